"""Tables. The run's conf has their rows, and the folder in which everything is stored."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, get_current_context, task

from airflow_provider_rungen.operators import RunGenRunTableOperator

HOME = "{{ dag_run.conf['home'] }}"
PLACE: dict[str, Any] = {"key": "sku", "destination": HOME + "/photos", "poll_interval": 1}
RETRIED: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=1)}


def rows(dag_run: Any) -> Iterator[dict[str, Any]]:
    """Yield so many rows."""
    return ({"sku": number, "title": f"product {number}"} for number in range(dag_run.conf["count"]))


def as_input(row: dict[str, Any]) -> dict[str, Any]:
    """Return the run's input, with the text of the row."""
    conf: Any = get_current_context()["dag_run"].conf
    return {**conf["input"], "prompt": f"{conf['input']['prompt']} {row['title']}"}


for dag_id, options in {
    "table_blocking": {"deferrable": False, **RETRIED},
    "table_deferred": {"deferrable": True, **RETRIED},
    "table_blocking_once": {"deferrable": False},
    "table_deferred_once": {"deferrable": True},
}.items():
    with DAG(dag_id, schedule=None):
        RunGenRunTableOperator(task_id="run", table=rows, to_input=as_input, **PLACE, **options)

with DAG("table_of_a_file", schedule=None):
    paint: Any = as_input  # the type of a task's function has the row, its call has not
    task.rungen_table(
        task_id="run",
        table=HOME + "/products.csv",
        results=HOME + "/results/photos.parquet",
        **PLACE,
    )(paint)()
