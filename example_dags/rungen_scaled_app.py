"""Pay for a GPU only while it works: scale the app up, paint a batch, collect it, scale the app down."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenRunBatchOperator,
    scaled_app,
)

MODEL_URL = os.environ.get("RUNGEN_MODEL_URL", "https://models.example/flux-schnell.safetensors")
SUBJECTS = ("a harbour at dawn", "a market in the rain", "a mountain hut at night")

with DAG(
    "rungen_scaled_app",
    schedule="0 3 * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    # two runs at a time would share the app
    max_active_runs=1,
    tags=["rungen"],
):

    @task
    def extract() -> list[dict[str, Any]]:
        """Give one job's input for each picture; the app is not up yet, and costs nothing."""
        return [{"prompt": subject, "width": 512, "height": 512} for subject in SUBJECTS]

    @task
    def report(results: Any) -> int:
        """Say how many pictures there are; the app need not be up for that."""
        return sum(len(result["images"]) for result in results)

    inputs = extract()
    # the first run creates it, the others find it by its name; without workers it costs nothing
    create = RunGenCreateAppOperator(
        task_id="create",
        name="pictures of the night",
        configuration={"gpu_tier": "BASIC", "active_workers": 0},
        workflow={"model_url": MODEL_URL},
    )
    app_id = create.output
    with scaled_app(app_id, active_workers=1, deferrable=True, drain=True, drain_timeout=600):
        paint = RunGenRunBatchOperator(
            task_id="paint", app_id=app_id, inputs=inputs, deferrable=True, input_schema="flux-schnell"
        )
    # what the jobs have made can be collected when the app is down
    collect = RunGenCollectResultsOperator(task_id="collect", app_id=app_id, job_id=paint.output)
    report(collect.output)
