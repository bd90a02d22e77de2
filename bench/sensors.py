"""Measures many sensors in a real Airflow: the processor time of each way to wait."""

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
    Return the processor seconds of the machine, minus those of an idle Airflow, and the duration.

    :param count: how many sensors wait, each for one job.
    """
    spent: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        Service(workers=count, job_seconds=JOB_SECONDS) as service,
        LocalPostgres() as database,
    ):
        environment = {
            # SQLite fails with fifty workers at once: its file is locked, and parts of Airflow end
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
            "AIRFLOW_CONN_RUNGEN_DEFAULT": service.connection,
            "BENCH_JOBS": "1",
            "BENCH_TASKS": "1",
            "BENCH_SENSORS": str(count),
            # all of them start at once, which delays the answers to their workers
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
    """Return the seconds that the processors of this machine were busy, with any process."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
