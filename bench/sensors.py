"""Many sensors in a real Airflow: what it spends on waiting, by the way to wait."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.service import ROOT, Service

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance

SENSORS = 50
JOB_SECONDS = 30.0
POKE, DEFERRABLE, STRAIGHT = "bench_sensors_poke", "bench_sensors_deferrable", "bench_sensors_straight"
_IDLE = 30.0
_TIMEOUT = 600


def measure(rounds: int, count: int) -> dict[str, Any]:
    """
    Give the processor seconds over those that Airflow spends when it runs nothing, and the wall time.

    :param count: how many sensors wait, each for a job of its own.
    """
    spent: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home, Service(workers=count, job_seconds=JOB_SECONDS) as service:
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": service.connection,
            "BENCH_JOBS": "1",
            "BENCH_TASKS": "1",
            "BENCH_SENSORS": str(count),
            # all of them at once, in each way
            "AIRFLOW__CORE__PARALLELISM": str(count),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(count),
        }
        with AirflowInstance(Path(home), ROOT / "bench" / "dags", environment=environment) as airflow:
            for dag_id in (POKE, DEFERRABLE, STRAIGHT):
                airflow.unpause(dag_id)
            before = _busy(airflow)
            time.sleep(_IDLE)
            idle = (_busy(airflow) - before) / _IDLE
            for _ in range(rounds):
                for dag_id in (POKE, DEFERRABLE, STRAIGHT):
                    before, began = _busy(airflow), time.monotonic()
                    ids = service.submit([{"prompt": f"job {place}"} for place in range(count)])
                    run_id = airflow.trigger(dag_id, {"ids": ids})
                    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
                    if state != "success":
                        raise RuntimeError(f"{dag_id}: {state}")
                    seconds = time.monotonic() - began
                    took.setdefault(dag_id, []).append(seconds)
                    spent.setdefault(dag_id, []).append(_busy(airflow) - before - idle * seconds)
    return {"sensors": count, "job_seconds": JOB_SECONDS, "idle": idle, "cpu": spent, "seconds": took}


def _busy(airflow: AirflowInstance) -> float:
    """Give the seconds that all of Airflow's processes have worked, those included that ended since."""
    ticks = 0
    for pid in airflow.processes():
        with contextlib.suppress(OSError):  # it ended, and its parent has its time
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, words[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
