"""The DAGs that run on several workers and triggerers. The run's conf has the input."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_rungen.operators import RunGenRunJobOperator, RunGenRunTableOperator

STORE = f"{os.environ['AIRFLOW_HOME']}/store"
RETRIED = {"retries": 2, "retry_delay": timedelta(seconds=1), "poll_interval": 1}


def dag(dag_id: str, **defaults: Any) -> DAG:
    return DAG(dag_id, schedule=None, default_args=RETRIED | {"wait_for_completion": True} | defaults)


@task
def inputs(**context: Any) -> list[dict[str, Any]]:
    conf = context["dag_run"].conf
    return [conf["input"] | {"prompt": f"{conf['input']['prompt']} {n}"} for n in range(conf["count"])]


@task
def parts(**context: Any) -> list[list[dict[str, Any]]]:
    """Return a table for each of so many parts: rows of its own, and some that are in all of them."""
    conf = context["dag_run"].conf

    def rows(name: str, count: int) -> list[dict[str, Any]]:
        return [conf["input"] | {"prompt": f"{conf['input']['prompt']} {name}.{n}"} for n in range(count)]

    shared = rows("shared", conf["shared"])
    return [[*shared, *rows(str(part), conf["own"])] for part in range(conf["count"])]


for dag_id, deferrable in {"table_blocking": False, "table_deferred": True}.items():
    with dag(dag_id, deferrable=deferrable):
        RunGenRunTableOperator(task_id="run", table=inputs(), destination=STORE)

with dag("many", deferrable=True):
    RunGenRunJobOperator.partial(task_id="run").expand(input=inputs())

with dag("parts"):
    RunGenRunTableOperator.partial(task_id="run", destination=f"{STORE}/parts").expand(table=parts())
