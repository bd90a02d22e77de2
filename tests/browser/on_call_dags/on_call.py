"""Tasks that fail, each in a way of its own."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    scaled_app,
)

FOLDER = os.environ.get("PAGES_FOLDER", "/tmp")  # noqa: S108 - the tests set it
ARGUMENTS: dict[str, Any] = {"start_date": datetime(2025, 1, 1, tzinfo=UTC), "schedule": None}
JOB: dict[str, Any] = {"task_id": "paint", "wait_for_completion": True, "poll_interval": 1}
BATCH: dict[str, Any] = {"task_id": "paint", "poll_interval": 1, "deferrable": False}
PRICE = "1.20 USD/h"


def given(number: int = 0, **emulator: Any) -> dict[str, Any]:
    return {"prompt": f"a lighthouse, number {number}", "width": 64, "height": 64, "emulator": emulator}


def twelve(*, slow_from: int) -> list[dict[str, Any]]:
    return [given(number, seconds=0.1 if number < slow_from else 600) for number in range(12)]


with DAG("revoked_key", **ARGUMENTS):
    RunGenRunJobOperator(input=given(), rungen_conn_id="rungen_revoked", **JOB)

with DAG("no_answer", **ARGUMENTS):
    RunGenRunJobOperator(input=given(), rungen_conn_id="rungen_down", **JOB)

with DAG("no_workers", **ARGUMENTS):
    RunGenRunJobOperator(input=given(), app_id="asleep", queued_timeout=3, **JOB)

with DAG("timed_out", **ARGUMENTS):
    RunGenRunTableOperator(
        table=twelve(slow_from=4), destination=f"file://{FOLDER}/timed_out", timeout=15, **BATCH
    )

with DAG("execution_timed_out", **ARGUMENTS):
    RunGenRunTableOperator(
        table=twelve(slow_from=4),
        destination=f"file://{FOLDER}/execution_timed_out",
        execution_timeout=timedelta(seconds=15),
        **BATCH,
    )

with DAG("queued_for_too_long", **ARGUMENTS):
    RunGenRunTableOperator(
        table=twelve(slow_from=12),
        app_id="asleep",
        queued_timeout=3,
        destination=f"file://{FOLDER}/queued",
        **BATCH,
    )

with DAG("refused_input", **ARGUMENTS):
    RunGenRunJobOperator(input=given(), rungen_conn_id="rungen_strict", **JOB)

with DAG("three_of_fifty", **ARGUMENTS):
    RunGenRunTableOperator(
        table=[
            given(number, seconds=0.1, **({"fail": "CUDA out of memory"} if number % 20 == 5 else {}))
            for number in range(50)
        ],
        destination=f"file://{FOLDER}/three_of_fifty",
        **BATCH,
    )

with DAG("out_of_memory", **ARGUMENTS):
    RunGenRunJobOperator(input=given(seconds=0.1, fail="CUDA out of memory"), **JOB)

with (
    DAG("still_up", **ARGUMENTS),
    scaled_app("flux-schnell", active_workers=2, price=PRICE, rungen_conn_id="rungen_stuck") as app,
):
    app.down.retries = 0
    RunGenRunJobOperator(input=given(seconds=0.1), rungen_conn_id="rungen_stuck", **JOB)

with DAG("revoked_while_deferred", **ARGUMENTS):
    RunGenRunJobOperator(input=given(seconds=600), rungen_conn_id="rungen_lost", deferrable=True, **JOB)

with DAG("collecting", **ARGUMENTS):
    RunGenCollectResultsOperator(task_id="paint", job_id="00000000-0000-0000-0000-000000000000")

with DAG("retrying", **ARGUMENTS):
    RunGenRunJobOperator(
        input=given(),
        app_id="asleep",
        queued_timeout=40,
        retries=2,
        retry_delay=timedelta(seconds=1),
        **JOB,
    )
