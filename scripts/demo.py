"""``make demo``: run the example DAGs in a real Airflow with the emulated RunGen service, without a key."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_instance import EXAMPLES, AirflowError, AirflowInstance
from rungen_emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
PICTURES = HOME / "pictures"
CATALOGUE = HOME / "catalogue"
DESCRIPTIONS = HOME / "descriptions"
RUN_TIMEOUT = 180


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    started = time.monotonic()
    shutil.rmtree(HOME, ignore_errors=True)
    with Emulator(job_seconds=3) as emulator:
        print(f"RunGen emulator: {emulator.url}")
        print("Starting Airflow (about half a minute) ...", flush=True)
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
            "RUNGEN_CATALOGUE_FOLDER": str(CATALOGUE),
            "RUNGEN_DESCRIPTIONS_FOLDER": str(DESCRIPTIONS),
            "RUNGEN_PICTURES_FOLDER": str(PICTURES),
        }
        try:
            with AirflowInstance(HOME / "airflow", EXAMPLES, environment=environment) as airflow:
                spent = time.monotonic() - started
                print(f"Airflow {airflow.version()} is up after {spent:.0f} s: {airflow.url}")
                for show in (_first_job, _catalogue, _descriptions, _scaled_app):
                    show(airflow)
                print("\nStopping Airflow ...", flush=True)
        except AirflowError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    print(f"Done in {time.monotonic() - started:.0f} s. Airflow's own output: {_relative(airflow.log_file)}")
    return 0


def _first_job(airflow: AirflowInstance) -> None:
    run_id = _run(airflow, "rungen_first_job")
    for output in airflow.xcom("rungen_first_job", run_id, "paint")["outputs"]:
        print(f"Picture: {_relative(output['uri'])} ({output['size']:,} bytes)")


def _catalogue(airflow: AirflowInstance) -> None:
    dag_id, next_dag_id = "rungen_catalogue", "rungen_contact_sheet"
    run_id = _run(airflow, dag_id)
    print(format_summary(airflow.xcom(dag_id, run_id, "paint")))
    table = change_two_colors(HOME / "changed_catalogue.csv")
    print(f"\nWith other colors of two products: {_relative(table)}", end="")
    airflow.unpause(next_dag_id)  # a paused DAG would miss the asset's event
    run_id = _run(airflow, dag_id, {"catalogue": str(table)})
    summary = airflow.xcom(dag_id, run_id, "paint")
    print(f"{format_summary(summary)}\nTable: {_relative(summary['results'])}")
    run_id = airflow.wait_for_new_run(next_dag_id, RUN_TIMEOUT)
    print(f"\nRunning {next_dag_id}, started by the asset of the pictures", flush=True)
    _wait(airflow, next_dag_id, run_id)
    [page] = airflow.xcom(next_dag_id, run_id, "lay_out")
    print(f"Contact sheet for a browser: {_relative(page)}")


def _descriptions(airflow: AirflowInstance) -> None:
    run_id = _run(airflow, "rungen_descriptions")
    summary = airflow.xcom("rungen_descriptions", run_id, "describe")
    print(f"{format_summary(summary)}\nTable: {_relative(summary['results'])}")


def _scaled_app(airflow: AirflowInstance) -> None:
    dag_id = "rungen_scaled_app"
    run_id = _run(airflow, dag_id)
    tasks = [task["task_id"] for task in airflow.task_instances(dag_id, run_id)]
    [down] = [task_id for task_id in tasks if task_id.endswith("app_down")]
    bill = airflow.xcom(dag_id, run_id, down, "bill")
    print(f"The app cost {bill['cost']} {bill['currency']}: {bill['worker_seconds']} worker seconds")


def change_two_colors(path: Path) -> Path:
    """Write the table of products of the catalog to a file, with other colors of two of them."""
    products = (EXAMPLES / "rungen_catalogue.csv").read_text()
    path.write_text(products.replace("boots,blue", "boots,green").replace("clock,black", "clock,red"))
    return path


def format_summary(summary: Mapping[str, Any]) -> str:
    """Return what a table cost in one line."""
    counts = {"bought": summary["jobs"], "reused": summary["reused"], "skipped": summary["skipped"]}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    return f"{summary['rows']} rows: {', '.join(parts)}"


def _run(airflow: AirflowInstance, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
    """Run a DAG, and return the id of the run."""
    run_id = airflow.trigger(dag_id, conf)
    print(f"\nRunning {dag_id}", flush=True)
    _wait(airflow, dag_id, run_id)
    return run_id


def _wait(airflow: AirflowInstance, dag_id: str, run_id: str) -> None:
    """
    Wait for the end of a run, and print changes of task states.

    :raises AirflowError: it fails. The message ends with the logs of the failed tasks.
    """
    printed: dict[str, str | None] = {}
    started = time.monotonic()

    def print_changes() -> None:
        for task in airflow.task_instances(dag_id, run_id):
            name, state = task["task_id"], task["state"]
            if state not in (None, "scheduled", "queued", printed.get(name)):
                printed[name] = state
                print(f"  {time.monotonic() - started:4.0f} s  {name:11} {state}", flush=True)

    if airflow.wait_for_run(dag_id, run_id, RUN_TIMEOUT, print_changes) != "success":
        failed = (task for task in airflow.task_instances(dag_id, run_id) if task["state"] == "failed")
        logs = [airflow.log(dag_id, run_id, each["task_id"], max(each["try_number"], 1)) for each in failed]
        raise AirflowError("\n\n".join([f"{dag_id} failed.", *logs]))


def _relative(path: Path | str) -> Path:
    return Path(str(path).removeprefix("file://")).relative_to(ROOT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
