"""
DAGs in a real Airflow.

The time from the request that triggers a DAG to the end of its run, in an `airflow standalone` that has
read the DAG. The mapped tasks run once, and fewer of them: their time is scaled up.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import median
from urllib.parse import quote

from rungen_emulator import Emulator

from bench.page import Row
from bench.processes import ROOT

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance

JOBS = 1000
JOB_SECONDS = 5.0
_TASKS = 100
_TABLES = {"bench_table": "on a worker", "bench_table_deferrable": "deferrable"}
_TIMEOUT = 600


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Run tables, and a mapped task for each job."""
    tasks = max(4, round(_TASKS * scale))
    with (
        tempfile.TemporaryDirectory() as home,
        Emulator(workers=JOBS, job_seconds=JOB_SECONDS) as emulator,
    ):
        http = {"conn_type": "http", "host": "127.0.0.1", "port": emulator.port}
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
            "AIRFLOW_CONN_BENCH_HTTP": json.dumps(http),
            "BENCH_JOBS": str(JOBS),
            "BENCH_FOLDER": home,
            "BENCH_TASKS": str(tasks),
        }
        with AirflowInstance(Path(home), ROOT / "bench" / "dags", environment=environment) as airflow:
            runs = {dag_id: [_run(airflow, dag_id) for _ in range(rounds)] for dag_id in _TABLES}
            mapped = _run(airflow, "bench_http_tasks")
    each = f"a mapped `HttpOperator` each, which only submits: {mapped * JOBS / tasks:,.0f} s"
    for dag_id, words in _TABLES.items():
        what = f"a table of {JOBS:,} jobs of {JOB_SECONDS:g} s, {words}"
        seconds = median(runs[dag_id])
        yield Row(what, f"{seconds:.1f} s", each, "≤ 20 s", seconds <= 20)


def _run(airflow: AirflowInstance, dag_id: str) -> float:
    """Run a DAG, and return the seconds from the request to its end."""
    airflow.unpause(dag_id)
    began = time.time()
    run_id = airflow.trigger(dag_id)
    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
    if state != "success":
        task = airflow.task_instances(dag_id, run_id)[0]
        log = airflow.log(dag_id, run_id, task["task_id"], map_index=task["map_index"])
        raise RuntimeError(f"{dag_id}: {state}\n{log}")
    run = airflow.request("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
    return datetime.fromisoformat(run["end_date"]).timestamp() - began
