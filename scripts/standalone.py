"""``make standalone``: run Airflow with the example DAGs and the emulated RunGen service until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from airflow_instance import AirflowError, AirflowInstance

from airflow_provider_rungen.emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".standalone"


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    with Emulator(job_seconds=8) as emulator:
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "RUNGEN_CATALOGUE_FOLDER": str(HOME / "catalogue"),
            "RUNGEN_DESCRIPTIONS_FOLDER": str(HOME / "descriptions"),
        }
        airflow = AirflowInstance(
            HOME / "airflow",
            ROOT / "example_dags",
            environment=environment,
            port=int(os.environ.get("PORT") or 0),
        )
        print("Starting Airflow (about half a minute) ...", flush=True)
        with airflow:
            print(f"Airflow {airflow.version()}, no login needed: {airflow.url}")
            print(f"RunGen emulator: {emulator.url} (counts: {emulator.url}/_emulator/stats)")
            print(f"Airflow's own output: {airflow.log_file.relative_to(ROOT)}")
            print("Press Ctrl-C to stop both.", flush=True)
            try:
                while airflow.is_running():
                    time.sleep(1)
                raise AirflowError(f"Airflow ended; see {airflow.log_file}")
            finally:
                print("\nStopping ...", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
    except AirflowError as error:
        sys.exit(str(error))
