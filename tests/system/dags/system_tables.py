"""DAGs from a table to a table. The run's conf has the rows, and where everything is stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, get_current_context, task

from airflow_provider_rungen.operators import Ledger

HOME = "{{ dag_run.conf['home'] }}"


def row_input(row: dict[str, Any]) -> dict[str, Any]:
    """Return the run's input, with the text of the row."""
    conf: Any = get_current_context()["dag_run"].conf
    return {**conf["input"], "prompt": f"{conf['input']['prompt']} {row['title']}"}


def table_dag(dag_id: str, **options: Any) -> None:
    with DAG(dag_id, schedule=None, default_args={"retries": 2, "retry_delay": timedelta(seconds=1)}):
        function: Any = row_input  # the type of a task's function has the row, its call has not
        task.rungen_table(
            task_id="run",
            table=HOME + "/products.csv",
            key="sku",
            destination=HOME + "/photos",
            results=HOME + "/results/photos.parquet",
            ledger=Ledger(HOME + "/ledger"),
            poll_interval=1,
            **options,
        )(function)()


table_dag("table_blocking", deferrable=False)
table_dag("table_deferred", deferrable=True)
