"""``make standalone``: run Airflow with the example DAGs and the emulated RunGen service until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from airflow_instance import EXAMPLES, AirflowError, AirflowInstance
from demo import add_language_model
from rungen_emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".standalone"
CONN_ID = "rungen_default"
FIRST = "rungen_first_job"


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    with Emulator(job_seconds=8) as emulator:
        add_language_model(emulator)
        environment = {
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "RUNGEN_FOLDER": str(HOME / "rungen"),
        }
        airflow = AirflowInstance(
            HOME / "airflow",
            EXAMPLES,
            environment=environment,
            port=int(os.environ.get("PORT") or 0),
        )
        print("Starting Airflow (about half a minute) ...", flush=True)
        with airflow:
            add_connection(airflow, emulator)
            print(f"Airflow {airflow.version()}, no login needed: {airflow.url}")
            print(f"Paint a picture: {airflow.url}/dags/{FIRST}")
            print(f"RunGen emulator: {emulator.url} (counts: {emulator.url}/_emulator/stats)")
            print(f"Its API key, which connection {CONN_ID} has: {emulator.service.api_key}")
            print(f"Airflow's own output: {airflow.log_file.relative_to(ROOT)}")
            print("Press Ctrl-C to stop both.", flush=True)
            try:
                while airflow.is_running():
                    time.sleep(1)
                raise AirflowError(f"Airflow ended; see {airflow.log_file}")
            finally:
                print("\nStopping ...", flush=True)


def add_connection(airflow: AirflowInstance, emulator: Emulator) -> None:
    """Put the connection into Airflow's database, which Admin → Connections shows. It replaces an old one."""
    fields = json.loads(emulator.airflow_connection())
    # Airflow's form sends an empty port as 0, with which its test fails
    host, _, port = fields["host"].rpartition(":")
    address = {"host": host, "port": int(port)}
    body = {"connection_id": CONN_ID, **fields, **address, "extra": json.dumps(fields["extra"])}
    # the emulator has a new port each time
    known = airflow.request("GET", "/connections", limit=1000)["connections"]
    if CONN_ID in [each["connection_id"] for each in known]:
        airflow.request("PATCH", f"/connections/{CONN_ID}", body)
    else:
        airflow.request("POST", "/connections", body)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
    except AirflowError as error:
        sys.exit(str(error))
