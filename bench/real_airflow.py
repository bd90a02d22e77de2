"""
DAGs in a real Airflow.

The time from the request that triggers a DAG to the end of its run, in an `airflow standalone` that has
read the DAG. A start of a worker is one process for the task. A deferrable task first waits for the end on
the worker for 5 s, unless `defer_after=0`. The mapped tasks run once, and fewer of them: their time is
scaled up.
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

from airflow_provider_rungen.emulator import Emulator
from bench.page import Row
from bench.processes import ROOT

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance

JOBS = 1000
JOB_SECONDS = 5.0
_TASKS = 100
_BATCHES = {
    "bench_batch": "on a worker",
    "bench_batch_deferrable": "deferrable",
    "bench_batch_deferred": "deferred at once",
}
_ONE_JOB = {
    "bench_job": "as it comes",
    "bench_job_deferred_to_the_end": "deferred at once, `end_from_trigger`",
}
_TWO_STARTS = "bench_job_deferred"
_TIMEOUT = 600
_START = "::group::Pre Execute"


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Run batches, a mapped task for each job, and DAGs of one job."""
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
            "BENCH_TASKS": str(tasks),
        }
        with AirflowInstance(Path(home), ROOT / "bench" / "dags", environment=environment) as airflow:
            runs = {
                dag_id: [_run(airflow, dag_id) for _ in range(rounds)]
                for dag_id in (*_BATCHES, *_ONE_JOB, _TWO_STARTS)
            }
            mapped, _ = _run(airflow, "bench_http_tasks")
    seconds = {dag_id: median(took for took, _ in found) for dag_id, found in runs.items()}
    starts = {dag_id: max(count for _, count in found) for dag_id, found in runs.items()}
    each = f"a mapped `HttpOperator` each, which only submits: {mapped * JOBS / tasks:,.0f} s"
    for dag_id, words in _BATCHES.items():
        what = f"a batch of {JOBS:,} jobs of {JOB_SECONDS:g} s, {words}"
        figure = f"{seconds[dag_id]:.1f} s, {'deferred' if starts[dag_id] > 1 else 'not deferred'}"
        yield Row(what, figure, each, "≤ 20 s", seconds[dag_id] <= 20)
    slow = seconds[_TWO_STARTS]
    for dag_id, words in _ONE_JOB.items():
        yield Row(
            f"one 2 s job, deferrable, {words}",
            f"{seconds[dag_id]:.1f} s ({seconds[dag_id] / slow:.2f} ×), starts of a worker: {starts[dag_id]}",
            f"deferred at once, ended on a worker: {slow:.1f} s, starts: {starts[_TWO_STARTS]}",
            "≤ 0.6 ×, one start",
            seconds[dag_id] <= 0.6 * slow and starts[dag_id] == 1,
            "A trigger does not fire in its first 6 s, since Airflow may lose a task whose trigger does.",
        )


def _run(airflow: AirflowInstance, dag_id: str) -> tuple[float, int]:
    """Run a DAG. Return the seconds from the request to the success, and the starts of its first task."""
    airflow.unpause(dag_id)
    began = time.time()
    run_id = airflow.trigger(dag_id)
    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
    task = airflow.task_instances(dag_id, run_id)[0]
    log = airflow.log(dag_id, run_id, task["task_id"], map_index=task["map_index"])
    if state != "success":
        raise RuntimeError(f"{dag_id}: {state}\n{log}")
    run = airflow.request("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
    return datetime.fromisoformat(run["end_date"]).timestamp() - began, log.count(_START)
