"""The DAGs that `make bench` runs in a real Airflow."""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunBatchOperator, RunGenRunJobOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

INPUTS = [{"prompt": f"job {place}"} for place in range(int(os.environ.get("BENCH_JOBS", "1")))]
TASKS = int(os.environ.get("BENCH_TASKS", "1"))
SENSORS = int(os.environ.get("BENCH_SENSORS", "1"))
BATCHES: dict[str, dict[str, Any]] = {
    "bench_batch": {"deferrable": False},
    "bench_batch_deferrable": {"deferrable": True},
    "bench_batch_deferred": {"deferrable": True, "defer_after": 0},
}
JOBS: dict[str, dict[str, Any]] = {
    "bench_job": {},
    "bench_job_deferred": {"defer_after": 0},
    "bench_job_deferred_to_the_end": {"defer_after": 0, "end_from_trigger": True},
}
WAYS_TO_WAIT: dict[str, dict[str, Any]] = {
    "bench_sensors_poke": {"deferrable": False, "mode": "poke"},
    "bench_sensors_deferrable": {"deferrable": True, "defer_after": 0},
    "bench_sensors_straight": {"deferrable": True, "start_from_trigger": True, "end_from_trigger": True},
}

for dag_id, options in BATCHES.items():
    with DAG(dag_id, schedule=None):
        RunGenRunBatchOperator(task_id="batch", inputs=INPUTS, poll_interval=1, **options)

for dag_id, options in JOBS.items():
    with DAG(dag_id, schedule=None):
        RunGenRunJobOperator(
            task_id="job",
            input={"prompt": "one job", "emulator": {"seconds": 2}},
            wait_for_completion=True,
            deferrable=True,
            poll_interval=1,
            **options,
        )

with DAG("bench_http_tasks", schedule=None):
    HttpOperator.partial(
        task_id="submit",
        http_conn_id="bench_http",
        endpoint="app/flux-schnell/run_async",
        method="POST",
        headers={"Content-Type": "application/json", "x-api-key": "rungen-emulator-key"},
    ).expand(data=[json.dumps({"input": {"prompt": f"task {place}"}}) for place in range(TASKS)])

for dag_id, options in WAYS_TO_WAIT.items():
    # few at a time, since a start needs a processor, and a deferred wait needs no worker
    with DAG(dag_id, schedule=None, max_active_tasks=8 if options["deferrable"] else SENSORS):
        for place in range(SENSORS):
            job_id = f"{{{{ dag_run.conf['ids'][{place}] }}}}"
            RunGenJobSensor(task_id=f"wait_{place}", job_id=job_id, poke_interval=5, **options)
