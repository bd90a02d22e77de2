"""
Ask before it spends: **Required Actions** of the run shows a quote, and waits without a worker.

**Approve**, and `paint` buys the pictures. **Reject**, and the run ends. What was bought before is free.
"""

import os
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenPlanTableOperator, RunGenRunTableOperator

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket

QUOTE = """{% set plan = ti.xcom_pull(task_ids="plan", key="plan") %}
{{ plan.jobs }} of {{ plan.rows }} pictures are left to paint, for \
{{ "about %s %s" % (plan.cost, plan.currency) if plan.cost else "an unknown price" }}."""

with DAG(
    "rungen_approval",
    description="Quote the price of a table, and wait for an approval",
    params={"table": str(Path(__file__).with_name("rungen_catalog.csv"))},
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    pictures: dict[str, Any] = {
        "table": "{{ params.table }}",
        "key": "sku",
        "to_input": lambda row: {"prompt": f"watercolor of {row['title']}, {row['color']}"},
        "destination": f"{FOLDER}/watercolors",
    }
    plan = RunGenPlanTableOperator(task_id="plan", **pictures)
    approve = ApprovalOperator(task_id="approve", subject="Paint the pictures?", body=QUOTE)
    approved = "{{ ti.xcom_pull(task_ids='plan') or 1 }}"  # no more, even if the table has grown
    paint = RunGenRunTableOperator(task_id="paint", max_jobs=approved, deferrable=True, **pictures)
    plan >> approve >> paint
