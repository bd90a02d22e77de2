"""Measures whole DAGs in a real Airflow: a batch of 1,000 jobs or a task for each, and one short job."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_rungen import operators
from bench.service import ROOT, Service

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance

JOBS = 1000
JOB_SECONDS = 5.0
IN_PLACE, DEFERRABLE, DEFERRED = "bench_batch", "bench_batch_deferrable", "bench_batch_deferred"
TASK_EACH = "bench_http_tasks"
JOB, JOB_DEFERRED, JOB_TO_THE_END = "bench_job", "bench_job_deferred", "bench_job_deferred_to_the_end"
_ONE_JOB = (JOB, JOB_DEFERRED, JOB_TO_THE_END)
_TIMEOUT = 600
_START = "::group::Pre Execute"


def measure(rounds: int, tasks: int) -> dict[str, Any]:
    """
    Return the seconds of each round, by DAG, and how often a worker was started for one job.

    :param tasks: how many tasks to run with one job each. Their time is extrapolated to all jobs.
    """
    has_batch = hasattr(operators, "RunGenRunBatchOperator")
    seconds: dict[str, list[float]] = {}
    starts: dict[str, list[int]] = {}
    deferrals: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as home, Service(workers=JOBS, job_seconds=JOB_SECONDS) as service:
        environment = {
            "AIRFLOW_CONN_RUNGEN_DEFAULT": service.connection,
            "AIRFLOW_CONN_BENCH_HTTP": json.dumps(
                {"conn_type": "http", "host": "127.0.0.1", "port": urlsplit(service.url).port}
            ),
            "BENCH_JOBS": str(JOBS),
            "BENCH_TASKS": str(tasks),
        }
        with AirflowInstance(Path(home), ROOT / "bench" / "dags", environment=environment) as airflow:
            for _ in range(rounds):
                for dag_id in _ONE_JOB:
                    took, log = _run(airflow, dag_id)
                    seconds.setdefault(dag_id, []).append(took)
                    starts.setdefault(dag_id, []).append(log.count(_START))
                for dag_id in (IN_PLACE, DEFERRABLE, DEFERRED) if has_batch else ():
                    took, log = _run(airflow, dag_id)
                    seconds.setdefault(dag_id, []).append(took)
                    deferrals.setdefault(dag_id, []).append(log.count(_START) - 1)
            seconds[TASK_EACH] = [_run(airflow, TASK_EACH)[0]]
        return {
            "jobs": JOBS,
            "job_seconds": JOB_SECONDS,
            "tasks": tasks,
            "seconds": seconds,
            "worker_starts": starts,
            "deferrals": deferrals,
            "requests": service.requests(),
        }


def _run(airflow: AirflowInstance, dag_id: str) -> tuple[float, str]:
    """Run a DAG, and return the seconds from the request to the success, and the log of its first task."""
    airflow.unpause(dag_id)
    began = time.time()
    run_id = airflow.trigger(dag_id)
    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
    task = airflow.task_instances(dag_id, run_id)[0]
    log = airflow.log(dag_id, run_id, task["task_id"], map_index=task["map_index"])
    if state != "success":
        raise RuntimeError(f"{dag_id}: {state}\n{log}")
    run = airflow.request("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
    return datetime.fromisoformat(run["end_date"]).timestamp() - began, log
