"""
Pay for a GPU only while it works: scale an app up, paint a batch, scale it down, store the pictures.

The log of `app_down` ends with what it cost.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenRunBatchOperator,
    scaled_app,
)

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_PICTURES_FOLDER", f"{HOME}/rungen_pictures")).expanduser()
MODEL_URL = os.environ.get("RUNGEN_MODEL_URL", "https://models.example/flux-schnell.safetensors")
SUBJECTS = ("a harbor at dawn", "a market in the rain", "a mountain hut at night")

with DAG(
    "rungen_scaled_app",
    schedule="0 3 * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    # two concurrent runs would share the app
    max_active_runs=1,
    tags=["rungen"],
) as dag:

    @task
    def extract() -> list[dict[str, Any]]:
        """Return the input of each job; the app is not up yet, and costs nothing."""
        return [{"prompt": subject, "width": 512, "height": 512} for subject in SUBJECTS]

    inputs = extract()
    # the first run creates it, later runs find it by its name; without workers it costs nothing
    create = RunGenCreateAppOperator(
        task_id="create",
        name="pictures of the night",
        configuration={"gpu_tier": "BASIC", "active_workers": 0},
        workflow={"model_url": MODEL_URL},
    )
    app_id = create.output
    with scaled_app(
        app_id, active_workers=1, deferrable=True, drain=True, drain_timeout=600, price="1.20 USD/h"
    ):
        paint = RunGenRunBatchOperator(
            task_id="paint", app_id=app_id, inputs=inputs, deferrable=True, input_schema="flux-schnell"
        )
    # results can be downloaded while the app scales down
    RunGenCollectResultsOperator(
        task_id="land", app_id=app_id, job_id=paint.output, destination=FOLDER.as_uri()
    )
