"""Many sensors in a real Airflow: what it spends on waiting, by the way to wait."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.service import ROOT, Service

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance
from local_services import LocalPostgres

SENSORS = 50
JOB_SECONDS = 30.0
POKE, DEFERRABLE, STRAIGHT = "bench_sensors_poke", "bench_sensors_deferrable", "bench_sensors_straight"
_IDLE = 30.0
_TIMEOUT = 600


def measure(rounds: int, count: int) -> dict[str, Any]:
    """
    Give the processor seconds of the machine, less those it spends when Airflow runs nothing, and the time.

    :param count: how many sensors wait, each for a job of its own.
    """
    spent: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        Service(workers=count, job_seconds=JOB_SECONDS) as service,
        LocalPostgres() as database,
    ):
        environment = {
            # fifty workers at once are too much for SQLite: parts of Airflow end, as its file is locked
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
            "AIRFLOW_CONN_RUNGEN_DEFAULT": service.connection,
            "BENCH_JOBS": "1",
            "BENCH_TASKS": "1",
            "BENCH_SENSORS": str(count),
            # all of them at once, which makes the answers to their workers late
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__CORE__PARALLELISM": str(count),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(count),
        }
        with AirflowInstance(Path(home), ROOT / "bench" / "dags", environment=environment) as airflow:
            for dag_id in (POKE, DEFERRABLE, STRAIGHT):
                airflow.unpause(dag_id)
            before = _busy()
            time.sleep(_IDLE)
            idle = (_busy() - before) / _IDLE
            for _ in range(rounds):
                for dag_id in (POKE, DEFERRABLE, STRAIGHT):
                    before, began = _busy(), time.monotonic()
                    ids = service.submit([{"prompt": f"job {place}"} for place in range(count)])
                    run_id = airflow.trigger(dag_id, {"ids": ids})
                    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
                    if state != "success":
                        raise RuntimeError(f"{dag_id}: {state}")
                    seconds = time.monotonic() - began
                    took.setdefault(dag_id, []).append(seconds)
                    spent.setdefault(dag_id, []).append(_busy() - before - idle * seconds)
    return {"sensors": count, "job_seconds": JOB_SECONDS, "idle": idle, "cpu": spent, "seconds": took}


def _busy() -> float:
    """Give the seconds that the processors of this machine have worked, whoever they worked for."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
