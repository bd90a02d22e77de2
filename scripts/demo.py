"""``make demo``: paint a picture with a real Airflow and the emulated RunGen service, so no key is needed."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from airflow_instance import AirflowError, AirflowInstance

from airflow_provider_rungen.emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
PICTURES = HOME / "pictures"
DAG_ID = "rungen_first_job"
TASKS = ("paint", "wait", "collect")
RUN_TIMEOUT = 180


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    started = time.monotonic()
    shutil.rmtree(HOME, ignore_errors=True)
    with Emulator(job_seconds=3) as emulator:
        print(f"RunGen emulator: {emulator.url}")
        print("Starting Airflow, which takes half a minute or so ...", flush=True)
        environment = {"AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection()}
        try:
            with AirflowInstance(HOME / "airflow", ROOT / "example_dags", environment=environment) as airflow:
                spent = time.monotonic() - started
                print(f"Airflow {airflow.version()} is up after {spent:.0f} s: {airflow.url}")
                is_success = _run(airflow)
                print("\nStopping Airflow ...", flush=True)
        except AirflowError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    print(f"Done in {time.monotonic() - started:.0f} s. " if is_success else "The run failed. ", end="")
    print(f"Airflow's own output: {_relative(airflow.log_file)}")
    return 0 if is_success else 1


def _run(airflow: AirflowInstance) -> bool:
    run_id = airflow.trigger(DAG_ID)
    print(f"\nRunning example_dags/{DAG_ID}.py: {' -> '.join(TASKS)}", flush=True)
    progress = _Progress(airflow, run_id)
    state = airflow.wait_for_run(DAG_ID, run_id, RUN_TIMEOUT, progress.look)
    tasks = airflow.task_instances(DAG_ID, run_id)
    tasks.sort(key=lambda task: TASKS.index(task["task_id"]))
    if state != "success":
        _print_table(tasks, {})
        _print_failure(airflow, run_id, tasks)
        return False
    job_id = airflow.xcom(DAG_ID, run_id, "paint")
    urls = [image["image"] for image in airflow.xcom(DAG_ID, run_id, "collect")["images"]]
    # who has the query string can open the picture
    results = {"paint": f"job {job_id}", "collect": ", ".join(f"{url.partition('?')[0]}?***" for url in urls)}
    _print_table(tasks, results)
    print()
    for picture in _download(job_id, urls):
        print(f"Picture: {_relative(picture)} ({picture.stat().st_size:,} bytes)")
    return True


class _Progress:
    """Prints each change of a task's state once."""

    def __init__(self, airflow: AirflowInstance, run_id: str) -> None:
        self._airflow = airflow
        self._run_id = run_id
        self._started = time.monotonic()
        self._told: dict[str, str | None] = {}

    def look(self) -> None:
        for task in self._airflow.task_instances(DAG_ID, self._run_id):
            name, state = task["task_id"], task["state"]
            if state not in (None, "scheduled", "queued", self._told.get(name)):
                self._told[name] = state
                print(f"  {time.monotonic() - self._started:4.0f} s  {name:8} {state}", flush=True)


def _print_table(tasks: list[dict[str, Any]], results: dict[str, str]) -> None:
    print(f"\n{'task':8} {'state':15} {'seconds':>7}  result")
    for task in tasks:
        name, seconds = task["task_id"], f"{task['duration'] or 0:.1f}"
        print(f"{name:8} {task['state'] or '-':15} {seconds:>7}  {results.get(name, '')}".rstrip())


def _print_failure(airflow: AirflowInstance, run_id: str, tasks: list[dict[str, Any]]) -> None:
    for task in tasks:
        if task["state"] == "failed":
            print(f"\nThe log of {task['task_id']}:", file=sys.stderr)
            log = airflow.log(DAG_ID, run_id, task["task_id"], max(task["try_number"], 1))
            print(log, file=sys.stderr)


def _download(job_id: str, urls: list[str]) -> list[Path]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    # the URLs are of the emulator on this machine, which no proxy can reach
    opener = build_opener(ProxyHandler({}))
    pictures = []
    for number, url in enumerate(urls):
        picture = PICTURES / f"{job_id}-{number}.png"
        with opener.open(url, timeout=30) as response:
            picture.write_bytes(response.read())
        pictures.append(picture)
    return pictures


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
