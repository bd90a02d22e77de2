"""
A user's DAG file that a type checker accepts, with each parameter once.

A parameter has the same type wherever it is taken (``tests/test_signatures.py``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, XComArg
from pydantic import BaseModel

from airflow_provider_rungen.decorators import rungen_table_task, rungen_task
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenDeleteAppOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    RunGenScaleAppOperator,
    SqlRows,
    scaled_app,
)
from airflow_provider_rungen.results import read_results
from airflow_provider_rungen.schemas import params_from_schema
from airflow_provider_rungen.sensors import RunGenAppSensor, RunGenJobSensor

# a type checker infers dict[str, object]
MIXED = {"prompt": "a lighthouse", "width": 512}


def report(summary: dict[str, Any]) -> list[str]:
    results = read_results(summary)
    assert results.to_arrow().num_rows == len(results.to_pandas())
    return [row["error"] for row in results.rows(status=["failed", "refused"])]


class Picture(BaseModel):
    """What a result has to be."""

    image: str


def look_at(result: Any, files: list[Any]) -> None:
    """Take what a job made."""


def picture(row: dict[str, Any]) -> dict[str, Any] | None:
    return {"prompt": row["title"]} if row["title"] else None


form = params_from_schema("flux-schnell", prompt="a lighthouse", width=512)

with DAG("accepted", schedule=None, start_date=datetime(2025, 1, 1), params=form):
    create = RunGenCreateAppOperator(
        task_id="create",
        name="flux",
        configuration={"gpu_tier": "BASIC"},
        workflow={"model_url": "https://models.example/flux"},
        description="Pictures",
        execution_timeout=timedelta(minutes=5),
    )
    scale = RunGenScaleAppOperator(
        task_id="scale",
        active_workers="{{ params.workers }}",
        only_if="{{ params.rows }}",
        app_id=create.output,
        poll_interval=timedelta(seconds=5),
        timeout=1800,
        retries=2,
    )
    RunGenRunJobOperator(task_id="mixed", input=MIXED)
    inputs = [MIXED | {"seed": seed} for seed in range(3)]
    RunGenRunTableOperator(task_id="many", table=inputs, destination="s3://bucket/many")
    run = RunGenRunJobOperator(
        task_id="run",
        input={"prompt": "a lighthouse in {{ ds }}", "seeds": [1, 2, None], "app": create.output},
        rungen_conn_id="rungen_default",
        label="{{ ds }}",
        wait_for_completion=True,
        deferrable=True,
        queued_timeout=900,
        cancel_on_kill=True,
        input_schema="flux-schnell",
        retry_delay=timedelta(minutes=1),
        pool="gpu",
        doc_md="Runs a job.",
    )
    RunGenRunTableOperator(
        task_id="of_a_file", table="s3://bucket/prompts.jsonl", destination="s3://bucket/x"
    )
    table = RunGenRunTableOperator(
        task_id="table",
        table="s3://bucket/products/*.parquet",
        key=["sku", "color"],
        to_input=picture,
        columns=["title"],
        limit=20,
        app_id="flux-schnell",
        input_schema={"type": "object"},
        destination="s3://bucket/pictures",
        results="s3://bucket/pictures/results.parquet",
        version="{{ params.version }}",
        reuse=timedelta(days=90),
        per_row=True,
        max_in_flight=None,
        output_type=Picture,
        check=look_at,
        max_jobs=500,
        max_cost="20 USD",
        max_failed="any",
        max_attempts=5,
    )
    RunGenRunTableOperator(task_id="rows", table=[{"id": 1}], key="id", reuse=False, destination="/data/rows")

    query = SqlRows(
        sql="SELECT sku FROM products WHERE day = %s", conn_id="warehouse", parameters=["{{ ds }}"]
    )
    RunGenRunTableOperator(task_id="query", table=query, key="sku", destination="/data/query")
    RunGenRunTableOperator(
        task_id="function",
        table=lambda params: [{"id": params["id"]}],
        key="id",
        destination="/data/function",
    )
    RunGenRunTableOperator(
        task_id="chain",
        table=XComArg(table, key="results"),
        where=["completed", "skipped"],
        key="sku",
        destination="/data/chain",
    )

    @rungen_table_task(
        table=table.output,
        where="completed",
        key="sku",
        destination="/data/rows",
        limit="{{ params.limit }}",
    )
    def paint_row(row: dict[str, Any], style: str) -> dict[str, Any]:
        return {"prompt": f"{row['title']}, {style}"}

    paint_row.override(limit=20)("in oil")
    RunGenJobSensor(
        task_id="wait",
        job_id=run.output,
        poke_interval=timedelta(seconds=30),
        timeout=3600,
        soft_fail=True,
        mode="reschedule",
    )
    RunGenAppSensor(task_id="is_up", app_id="flux-schnell", status="RUNNING", poke_interval=30)
    RunGenCollectResultsOperator(
        task_id="collect",
        job_id=[run.output, "5b1c9c3e-0d5a-4d26-a4b0-64f1e2b9a3f7"],
        max_failed=1,
    )
    RunGenCancelJobOperator(task_id="cancel", job_id=run.output, trigger_rule="all_done")
    RunGenDeleteAppOperator(task_id="delete", app_id=create.output, poll_interval=5)
    mapped = RunGenRunJobOperator.partial(task_id="mapped", app_id="flux-schnell").expand(
        input=[{"prompt": "x"}]
    )

    @rungen_task(app_id="flux-schnell", multiple_outputs=False, retries=2)
    def paint(subject: str) -> dict[str, Any]:
        return {"prompt": subject}

    with scaled_app("gpu", 2, max_workers=4, name="gpu", pool="gpu"):
        paint("a lighthouse")
