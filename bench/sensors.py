"""
Sensors.

Processor time of the machine for 50 sensors that wait at the same time, each for a job of 30 s, in an
`airflow standalone` on PostgreSQL. Counted is the work of all processes from the submission of the jobs to
the end of the run, without what they work in the same time when Airflow runs nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil

from airflow_provider_rungen.emulator import Emulator
from bench.page import Row
from bench.processes import ROOT, submit

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance
from local_services import LocalPostgres

_SENSORS = 50
_DAGS = ("bench_sensors_straight", "bench_sensors_poke", "bench_sensors_deferrable")
_IDLE = 30.0
_TIMEOUT = 600


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Run sensors in three ways, in turn."""
    count = max(4, round(_SENSORS * scale))
    spent: dict[str, list[float]] = {dag_id: [] for dag_id in _DAGS}
    with (
        tempfile.TemporaryDirectory() as home,
        Emulator(workers=count, job_seconds=30) as emulator,
        LocalPostgres() as database,
    ):
        environment = {
            # SQLite fails with fifty workers at once: its file is locked, and parts of Airflow end
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
            "BENCH_SENSORS": str(count),
            # all of them start at once, which delays the answers to their workers
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__CORE__PARALLELISM": str(count),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(count),
        }
        with AirflowInstance(Path(home), ROOT / "bench" / "dags", environment=environment) as airflow:
            for dag_id in _DAGS:
                airflow.unpause(dag_id)
            before = _busy()
            time.sleep(_IDLE)
            idle = (_busy() - before) / _IDLE
            for dag_id in _DAGS * rounds:
                before, began = _busy(), time.monotonic()
                ids = submit(emulator.service, [{"prompt": f"job {place}"} for place in range(count)])
                state = airflow.wait_for_run(dag_id, airflow.trigger(dag_id, {"ids": ids}), _TIMEOUT)
                if state != "success":
                    raise RuntimeError(f"{dag_id}: {state}")
                spent[dag_id].append(_busy() - before - idle * (time.monotonic() - began))
    straight, poke, deferrable = (median(spent[dag_id]) for dag_id in _DAGS)
    least = min(poke, deferrable)
    yield Row(
        f"{count} sensors, `start_from_trigger` and `end_from_trigger`",
        f"{straight:.0f} s ({straight / least:.2f} ×)",
        f"poke mode: {poke:.0f} s; deferrable: {deferrable:.0f} s",
        "less than either",
        straight < least,
    )


def _busy() -> float:
    """Return the seconds that the processors of this machine were busy, with any process."""
    times = psutil.cpu_times()
    return float(sum(times[:3]) + times.irq + times.softirq)
