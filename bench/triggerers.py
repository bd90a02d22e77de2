"""``python -m bench.triggerers``: measure how many jobs triggerers can wait for, for docs/sizing.md.

It needs the ``distributed`` group, and takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from airflow_provider_rungen.emulator import Emulator
from bench.processes import APP, ROOT, submit
from bench.watching import Load

sys.path.append(str(ROOT / "scripts"))
from distributed_airflow import DistributedAirflow

SIZES = (100, 500, 1000, 2000)
POLL_INTERVAL = 5
_SETTLING = 15.0
_WATCHED = 40.0
_TIMEOUT = 600.0
# Its pool has no slots, so that no worker runs it.
_DAG = """\
from airflow.sdk import DAG
from airflow_provider_rungen.sensors import RunGenJobSensor

with DAG("{dag_id}", schedule=None):
    RunGenJobSensor.partial(task_id="wait", deferrable=True, pool="nothing").expand(job_id={ids!r})
"""


@dataclass(frozen=True)
class Spent:
    """
    The resources that triggerers have used.

    :param seconds: processor seconds of all their processes.
    :param running: processor seconds of the processes that run the triggers. Each has one event loop, which
        cannot use more than one processor.
    """

    seconds: float
    running: float
    memory: int

    @classmethod
    def by(cls, airflow: DistributedAirflow) -> Spent:
        seconds, running, memory = 0.0, 0.0, 0
        for name in airflow.parts("triggerer"):
            for pid, title in airflow.part(name).items():
                process = psutil.Process(pid)
                spent = sum(process.cpu_times()[:2])
                seconds += spent
                # the other two serve the log and write to the database; the session leader is one of them
                running += spent * ("triggerer" in title and os.getsid(pid) != pid)
                # shared memory is counted proportionally
                memory += process.memory_full_info().pss
        return cls(seconds, running, memory)


def measure(sizes: Sequence[int], triggerers: int) -> None:
    """Measure triggerers that wait for given numbers of jobs, and print the resources they use."""
    with tempfile.TemporaryDirectory() as folder, Emulator(workers=0) as emulator:
        dags = Path(folder) / "dags"
        dags.mkdir()
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
            "AIRFLOW__TRIGGERER__CAPACITY": str(max(sizes)),
            "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "500",
            "AIRFLOW__CORE__MAX_MAP_LENGTH": str(max(sizes)),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        }
        with DistributedAirflow(
            Path(folder) / "home", dags, environment=environment, workers=0, triggerers=triggerers
        ) as airflow:
            airflow.request("POST", "/pools", {"name": "nothing", "slots": 0})
            time.sleep(_SETTLING)
            before = Spent.by(airflow)
            time.sleep(_WATCHED)
            after = Spent.by(airflow)
            idle = {"cpu_waiting": (after.seconds - before.seconds) / _WATCHED, "memory": after.memory}
            print(json.dumps({"triggerers": triggerers, "jobs": 0, **idle}), flush=True)
            for size in sizes:
                print(json.dumps(_one(airflow, emulator, dags, size)), flush=True)


def _one(airflow: DistributedAirflow, emulator: Emulator, dags: Path, size: int) -> dict[str, Any]:
    service, load = emulator.service, Load(size)
    service.scale(APP, 0)
    ids = submit(service, load.inputs(0))
    dag_id = f"wait_{size}"

    def asked() -> int:
        return service.count("get") + service.count("get_app")

    (dags / f"{dag_id}.py").write_text(_DAG.format(dag_id=dag_id, ids=ids))
    airflow.unpause(dag_id, 180)
    run_id = airflow.trigger(dag_id)
    first, began = Spent.by(airflow), time.monotonic()
    _defer(airflow, dag_id, run_id, ids)
    while sum(_shares(airflow)) < size:
        if time.monotonic() - began > _TIMEOUT:
            raise RuntimeError(f"triggers were not started in time: {_shares(airflow)} of {size}")
        time.sleep(1)
    time.sleep(_SETTLING)
    asked_before, before = asked(), Spent.by(airflow)
    time.sleep(_WATCHED)
    asked_waiting, after = asked(), Spent.by(airflow)
    shares = _shares(airflow)
    service.scale(APP, load.workers)
    released = time.monotonic()
    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
    if state != "success":
        raise RuntimeError(f"{dag_id}: {state}")
    end = Spent.by(airflow)
    return {
        "jobs": size,
        "shares": shares,
        "cpu_per_begin": (before.seconds - first.seconds) / size,
        "cpu_waiting": (after.seconds - before.seconds) / _WATCHED,
        "cpu_waiting_running": (after.running - before.running) / _WATCHED,
        "memory": after.memory,
        "requests_waiting": (asked_waiting - asked_before) / _WATCHED,
        "requests_per_job": (asked() - asked_waiting) / size,
        "cpu_per_end": (end.seconds - after.seconds) / size,
        "seconds_to_drain": time.monotonic() - released,
        "late": _lateness(airflow, emulator, ids, dag_id),
    }


def _defer(airflow: DistributedAirflow, dag_id: str, run_id: str, ids: Sequence[str]) -> None:
    """Change all tasks of a run to deferred."""
    began = time.monotonic()
    made = f"SELECT id FROM task_instance WHERE dag_id = '{dag_id}'"  # noqa: S608 - a DAG of ours
    while len(airflow.database.query(made)) < len(ids):
        if time.monotonic() - began > _TIMEOUT:
            raise RuntimeError(f"{dag_id} was not expanded in time")
        time.sleep(1)
    given = {"run": {"dag_id": dag_id, "run_id": run_id}, "ids": ids, "poll_interval": POLL_INTERVAL}
    airflow.run(sys.executable, ROOT / "bench" / "defer.py", given=json.dumps(given))


def _shares(airflow: DistributedAirflow) -> list[int]:
    """Return how many triggers each triggerer runs."""
    return sorted(len(airflow.triggers_of(name)) for name in airflow.parts("triggerer"))


def _lateness(airflow: DistributedAirflow, emulator: Emulator, ids: Sequence[str], dag_id: str) -> float:
    """Return the 95th percentile of the seconds from a job's end to its task's end."""
    finished = {job["id"]: job["finished"] for job in emulator.service.jobs()}
    rows = airflow.database.query(
        "SELECT map_index, extract(epoch FROM end_date) FROM task_instance "  # noqa: S608 - a DAG of ours
        f"WHERE dag_id = '{dag_id}'"
    )
    late: list[float] = [float(end) - finished[ids[int(place)]] for place, end in rows]
    return round(statistics.quantiles(late, n=20)[-1], 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.triggerers", description="Measure triggerers.")
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=SIZES, help="how many, one load after the other"
    )
    parser.add_argument("--triggerers", type=int, default=1, help="how many share them")
    given = parser.parse_args()
    measure(given.jobs, given.triggerers)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
