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

from airflow_provider_rungen import get_provider_info

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".standalone"
# What a user adds stays out of the checkout's own files, and `make clean` leaves it.
DAGS = ROOT / "dags"
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
        link_examples()
        airflow = AirflowInstance(
            HOME / "airflow",
            DAGS,
            environment=environment,
            port=int(os.environ.get("PORT") or 0),
        )
        print("Starting Airflow (about half a minute) ...", flush=True)
        with airflow:
            add_connection(airflow, emulator)
            print(f"Airflow {airflow.version()}, no login needed: {airflow.url}")
            print(f"Paint a picture: {airflow.url}/dags/{FIRST}")
            print(f"Add a DAG: save a .py file in {DAGS}, and it is at {airflow.url}/dags within 20 s")
            print(f"Pictures and results of the examples: {environment['RUNGEN_FOLDER']}")
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


def link_examples() -> None:
    """Put the examples into the DAG folder, where a change of one is seen, too."""
    DAGS.mkdir(exist_ok=True)
    link = DAGS / "examples"
    if not link.is_symlink():
        link.symlink_to(EXAMPLES, target_is_directory=True)


def add_connection(airflow: AirflowInstance, emulator: Emulator) -> None:
    """Put the connection into Airflow's database, which Admin → Connections shows. It replaces an old one."""
    # Airflow's form edits only what the extra has, and saves an empty field as null
    empty = dict.fromkeys(get_provider_info()["connection-types"][0]["conn-fields"])
    fields = json.loads(emulator.airflow_connection(price="1.20 USD/h"))
    # Airflow's form sends an empty port as 0, with which its test fails
    host, _, port = fields["host"].rpartition(":")
    address = {"host": host, "port": int(port)}
    extra = json.dumps(empty | fields["extra"])
    body = {"connection_id": CONN_ID, **fields, **address, "extra": extra}
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
