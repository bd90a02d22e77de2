"""The DAGs that run on several workers and triggerers. The run's conf has the input."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_rungen.operators import RunGenRunBatchOperator, RunGenRunJobOperator

RETRIED = {"retries": 2, "retry_delay": timedelta(seconds=1), "poll_interval": 1}


def dag(dag_id: str, **defaults: Any) -> DAG:
    return DAG(dag_id, schedule=None, default_args=RETRIED | {"wait_for_completion": True} | defaults)


@task
def inputs(**context: Any) -> list[dict[str, Any]]:
    conf = context["dag_run"].conf
    return [conf["input"] | {"prompt": f"{conf['input']['prompt']} {n}"} for n in range(conf["count"])]


with dag("batch_blocking", deferrable=False):
    RunGenRunBatchOperator(task_id="run", inputs=inputs(), max_concurrency=4)

with dag("batch_deferred", deferrable=True, defer_after=1):
    RunGenRunBatchOperator(task_id="run", inputs=inputs(), max_concurrency=4)

with dag("many", deferrable=True, defer_after=0):
    RunGenRunJobOperator.partial(task_id="run").expand(input=inputs())
