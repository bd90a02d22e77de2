"""Tasks that fail, each in a way of its own."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunJobOperator, RunGenRunTableOperator, scaled_app

FOLDER = os.environ.get("PAGES_FOLDER", "/tmp")  # noqa: S108 - the tests set it
ARGUMENTS: dict[str, Any] = {"start_date": datetime(2025, 1, 1, tzinfo=UTC), "schedule": None}
JOB: dict[str, Any] = {"task_id": "paint", "wait_for_completion": True, "poll_interval": 1}


def given(number: int = 0, **emulator: Any) -> dict[str, Any]:
    return {"prompt": f"a lighthouse, number {number}", "width": 64, "height": 64, "emulator": emulator}


def table(name: str, rows: list[dict[str, Any]], **options: Any) -> RunGenRunTableOperator:
    return RunGenRunTableOperator(
        task_id="paint", table=rows, destination=f"file://{FOLDER}/{name}", poll_interval=1, **options
    )


with DAG("revoked_key", **ARGUMENTS):
    RunGenRunJobOperator(input=given(), rungen_conn_id="rungen_revoked", **JOB)

with DAG("no_workers", **ARGUMENTS):
    RunGenRunJobOperator(input=given(), app_id="asleep", queued_timeout=3, **JOB)

with DAG("out_of_memory", **ARGUMENTS):
    RunGenRunJobOperator(input=given(seconds=0.1, fail="CUDA out of memory"), **JOB)

with DAG("timed_out", **ARGUMENTS):
    twelve = [given(number, seconds=0.1 if number < 4 else 600) for number in range(12)]
    table("timed_out", twelve, deferrable=False, execution_timeout=timedelta(seconds=15))

with DAG("three_of_fifty", **ARGUMENTS):
    failing = {number: {"fail": "CUDA out of memory"} for number in (5, 25, 45)}
    table("three", [given(number, seconds=0.1, **failing.get(number, {})) for number in range(50)])

with DAG("moving", **ARGUMENTS):
    table(
        "moving", [given(number, seconds=0.1 if number < 6 else 90) for number in range(12)], deferrable=False
    )

with (
    DAG("still_up", **ARGUMENTS),
    scaled_app("flux-schnell", active_workers=2, rungen_conn_id="rungen_stuck") as app,
):
    app.down.retries = 0
    RunGenRunJobOperator(input=given(seconds=0.1), rungen_conn_id="rungen_stuck", **JOB)
