"""``make demo``: run the example DAGs in a real Airflow with the emulated RunGen service, without a key."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_instance import EXAMPLES, AirflowError, AirflowInstance
from rungen_emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
RUN_TIMEOUT = 180
# What the emulated language model answers: two examples ask for it.
ANSWER = {"headline": "Made to last", "keywords": ["sturdy", "plain"], "scene": "a lantern in the snow"}


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    started = time.monotonic()
    shutil.rmtree(HOME, ignore_errors=True)
    with Emulator(job_seconds=3) as emulator:
        add_language_model(emulator)
        print(f"RunGen emulator: {emulator.url}")
        print("Starting Airflow (about half a minute) ...", flush=True)
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(price="1.20 USD/h"),
            "RUNGEN_FOLDER": str(HOME / "rungen"),
        }
        try:
            with AirflowInstance(HOME / "airflow", EXAMPLES, environment=environment) as airflow:
                spent = time.monotonic() - started
                print(f"Airflow {airflow.version()} is up after {spent:.0f} s: {airflow.url}")
                for show in (_first_job, _fire_and_collect, _catalog, _approval, _texts, _scaled_app):
                    show(airflow)
                print("\nStopping Airflow ...", flush=True)
        except AirflowError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    print(f"Done in {time.monotonic() - started:.0f} s. Airflow's own output: {_relative(airflow.log_file)}")
    return 0


def add_language_model(emulator: Emulator) -> None:
    """Add the language model of the examples."""
    emulator.service.add_app("my-llm", kind="text", workers=2, result=json.dumps(ANSWER))


def _first_job(airflow: AirflowInstance) -> None:
    run_id = _run(airflow, "rungen_first_job")
    for output in airflow.xcom("rungen_first_job", run_id, "paint")["outputs"]:
        print(f"Picture: {_relative(output['uri'])} ({output['size']:,} bytes)")


def _fire_and_collect(airflow: AirflowInstance) -> None:
    run_id = _run(airflow, "rungen_fire_and_collect")
    summary = airflow.xcom("rungen_fire_and_collect", run_id, "collect")
    print(f"{summary['completed']} results collected\nTable: {_relative(summary['results'])}")


def _catalog(airflow: AirflowInstance) -> None:
    run_id = _run(airflow, "rungen_catalog")
    print(format_summary(airflow.xcom("rungen_catalog", run_id, "paint")))
    table = change_two_colors(HOME / "changed_catalog.csv")
    print(f"\nWith other colors of two products: {_relative(table)}", end="")
    run_id = _run(airflow, "rungen_catalog", {"table": str(table)})
    _print_table(airflow.xcom("rungen_catalog", run_id, "paint"))


def _approval(airflow: AirflowInstance) -> None:
    dag_id = "rungen_approval"

    def approve(run_id: str) -> None:
        asked = airflow.answer(dag_id, run_id, "approve", "Approve")
        print(f"          Approved: {asked['body'].strip()}", flush=True)

    run_id = _run(airflow, dag_id, answer=approve)
    _print_table(airflow.xcom(dag_id, run_id, "paint"))


def _texts(airflow: AirflowInstance) -> None:
    for dag_id, task_id in {"rungen_descriptions": "describe", "rungen_second_stage": "paint"}.items():
        run_id = _run(airflow, dag_id)
        _print_table(airflow.xcom(dag_id, run_id, task_id))


def _scaled_app(airflow: AirflowInstance) -> None:
    run_id = _run(airflow, "rungen_scaled_app")
    bill = airflow.xcom("rungen_scaled_app", run_id, "app_down", "usage")
    print(f"The app cost {bill['cost']} {bill['currency']}: {bill['seconds']} worker seconds")


def _print_table(summary: Mapping[str, Any]) -> None:
    print(f"{format_summary(summary)}\nTable: {_relative(summary['results'])}")


def change_two_colors(path: Path) -> Path:
    """Write the table of products of the catalog to a file, with other colors of two of them."""
    products = (EXAMPLES / "rungen_catalog.csv").read_text()
    path.write_text(products.replace("boots,blue", "boots,green").replace("clock,black", "clock,red"))
    return path


def format_summary(summary: Mapping[str, Any]) -> str:
    """Return what a table cost in one line."""
    counts = {"bought": summary["jobs"], "reused": summary["reused"], "skipped": summary["skipped"]}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    return f"{summary['rows']} rows: {', '.join(parts)}"


def _run(
    airflow: AirflowInstance,
    dag_id: str,
    conf: Mapping[str, Any] | None = None,
    answer: Callable[[str], None] | None = None,
) -> str:
    """
    Run a DAG to its end, print changes of task states, and return the id of the run.

    :param answer: called once, when a task waits for a human.
    :raises AirflowError: the run fails. The message ends with the logs of the failed tasks.
    """
    run_id = airflow.trigger(dag_id, conf)
    print(f"\nRunning {dag_id}", flush=True)
    printed: dict[tuple[str, int], str | None] = {}
    started = time.monotonic()

    def print_changes() -> None:
        for task in airflow.task_instances(dag_id, run_id):
            name, state, index = task["task_id"], task["state"], task["map_index"]
            if state in (None, "scheduled", "queued", printed.get((name, index))):
                continue
            printed[name, index] = state
            print(f"  {time.monotonic() - started:4.0f} s  {name:11} {state}", flush=True)
            if state == "awaiting_input" and answer is not None:
                answer(run_id)

    if airflow.wait_for_run(dag_id, run_id, RUN_TIMEOUT, print_changes) != "success":
        failed = (task for task in airflow.task_instances(dag_id, run_id) if task["state"] == "failed")
        logs = [airflow.log(dag_id, run_id, each["task_id"], max(each["try_number"], 1)) for each in failed]
        raise AirflowError("\n\n".join([f"{dag_id} failed.", *logs]))
    return run_id


def _relative(path: Path | str) -> Path:
    return Path(str(path).removeprefix("file://")).relative_to(ROOT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
