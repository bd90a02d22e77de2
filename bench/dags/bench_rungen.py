"""The DAGs that `make bench` runs in a real Airflow."""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunTableOperator

INPUTS = [{"prompt": f"job {place}"} for place in range(int(os.environ.get("BENCH_JOBS", "1")))]
TASKS = int(os.environ.get("BENCH_TASKS", "1"))
FOLDER = os.environ.get("BENCH_FOLDER", "/tmp")  # noqa: S108 - `make bench` sets it
# of each run its own, since all others would buy nothing
DESTINATION = f"file://{FOLDER}/{{{{ dag_run.dag_id }}}}/{{{{ run_id }}}}"
TABLES: dict[str, dict[str, Any]] = {
    "bench_table": {"deferrable": False},
    "bench_table_deferrable": {"deferrable": True},
}

for dag_id, options in TABLES.items():
    with DAG(dag_id, schedule=None):
        RunGenRunTableOperator(
            task_id="table", table=INPUTS, destination=DESTINATION, poll_interval=1, **options
        )

with DAG("bench_http_tasks", schedule=None):
    HttpOperator.partial(
        task_id="submit",
        http_conn_id="bench_http",
        endpoint="app/flux-schnell/run_async",
        method="POST",
        headers={"Content-Type": "application/json", "x-api-key": "rungen-emulator-key"},
    ).expand(data=[json.dumps({"input": {"prompt": f"task {place}"}}) for place in range(TASKS)])
