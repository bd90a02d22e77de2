"""``python -m bench.triggerers [JOBS ...]``: measure a triggerer that waits for jobs, for docs/operate.md.

It needs the ``distributed`` group, and takes a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from rungen_emulator import Emulator

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


def spent(airflow: DistributedAirflow) -> tuple[float, int]:
    """Return the processor seconds that the triggerer has used, and the bytes of memory that it uses now."""
    processes = [psutil.Process(pid) for pid in airflow.part("triggerer-1")]
    seconds = sum(sum(process.cpu_times()[:2]) for process in processes)
    # shared memory is counted proportionally
    return seconds, sum(process.memory_full_info().pss for process in processes)


def watch(airflow: DistributedAirflow, emulator: Emulator) -> dict[str, float]:
    """Return what the triggerer uses, and what it asks for, while nothing ends."""
    time.sleep(_SETTLING)
    (before, _), asked = spent(airflow), requests(emulator)
    time.sleep(_WATCHED)
    after, memory = spent(airflow)
    return {
        "processor": (after - before) / _WATCHED,
        "memory": memory,
        "requests_a_second": (requests(emulator) - asked) / _WATCHED,
    }


def requests(emulator: Emulator) -> int:
    """Return how many polls the emulator has answered."""
    return emulator.service.count("get") + emulator.service.count("get_app")


def measure(sizes: Sequence[int]) -> None:
    """Print what a triggerer uses that waits for given numbers of jobs."""
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
            Path(folder) / "home", dags, environment=environment, workers=0, triggerers=1
        ) as airflow:
            airflow.request("POST", "/pools", {"name": "nothing", "slots": 0})
            print(json.dumps({"jobs": 0, **watch(airflow, emulator)}), flush=True)
            for size in sizes:
                print(json.dumps(_one(airflow, emulator, dags, size)), flush=True)


def _one(airflow: DistributedAirflow, emulator: Emulator, dags: Path, size: int) -> dict[str, float]:
    service, load = emulator.service, Load(size)
    service.scale(APP, 0)
    ids = submit(service, load.inputs(0))
    dag_id = f"wait_{size}"
    (dags / f"{dag_id}.py").write_text(_DAG.format(dag_id=dag_id, ids=ids))
    airflow.unpause(dag_id, 180)
    run_id = airflow.trigger(dag_id)
    _defer(airflow, dag_id, run_id, ids)
    _wait_for(lambda: len(airflow.triggers_of("triggerer-1")) == size, "all triggers run")
    figures = watch(airflow, emulator)
    asked = requests(emulator)
    service.scale(APP, load.workers)
    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
    if state != "success":
        raise RuntimeError(f"{dag_id}: {state}")
    return {
        "jobs": size,
        **figures,
        "requests_per_job": (requests(emulator) - asked) / size,
        "late": _lateness(airflow, emulator, ids, dag_id),
    }


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > _TIMEOUT:
            raise RuntimeError(f"gave up waiting until {what}")
        time.sleep(1)


def _defer(airflow: DistributedAirflow, dag_id: str, run_id: str, ids: Sequence[str]) -> None:
    """Change all tasks of a run to deferred."""
    made = f"SELECT id FROM task_instance WHERE dag_id = '{dag_id}'"  # noqa: S608 - a DAG of ours
    _wait_for(lambda: len(airflow.database.query(made)) >= len(ids), f"{dag_id} is expanded")
    given = {"run": {"dag_id": dag_id, "run_id": run_id}, "ids": ids, "poll_interval": POLL_INTERVAL}
    airflow.run(sys.executable, ROOT / "bench" / "defer.py", given=json.dumps(given))


def _lateness(airflow: DistributedAirflow, emulator: Emulator, ids: Sequence[str], dag_id: str) -> float:
    """Return the 95th percentile of the seconds from a job's end to its task's end."""
    finished = {job["id"]: job["finished"] for job in emulator.service.jobs()}
    rows = airflow.database.query(
        "SELECT map_index, extract(epoch FROM end_date) FROM task_instance "  # noqa: S608 - a DAG of ours
        f"WHERE dag_id = '{dag_id}'"
    )
    late: list[float] = [float(end) - finished[ids[int(place)]] for place, end in rows]
    return round(statistics.quantiles(late, n=20)[-1], 2)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        measure([int(size) for size in sys.argv[1:]] or SIZES)
