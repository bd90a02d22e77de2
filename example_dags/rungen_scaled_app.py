"""
Pay for a GPU only while it works.

`plan` counts the pictures to pay for. If there are any, the app gets a worker, and `paint` paints them. Then
the worker goes, whatever happens. The log of *app billing ends* says what the app cost.
"""

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_provider_rungen import operators as rungen

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket
SUBJECTS = ("a harbor at dawn", "a market in the rain", "a mountain hut at night")

with DAG(
    "rungen_scaled_app",
    description="Give an app a GPU while there are pictures to paint",
    max_active_runs=1,  # two runs would share the app
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    create = rungen.RunGenCreateAppOperator(
        task_id="create",
        name="pictures of the night",  # by which later runs find it
        configuration={"gpu_tier": "BASIC", "active_workers": 0},
        workflow={"model_url": "https://models.example/flux-schnell.safetensors"},
    )
    pictures: dict[str, Any] = {
        "table": [{"prompt": subject} for subject in SUBJECTS],
        "app_id": create.output,
        "destination": f"{FOLDER}/night",
    }
    plan = rungen.RunGenPlanTableOperator(task_id="plan", **pictures)
    with rungen.scaled_app(create.output, only_if=plan.output):
        paint = rungen.RunGenRunTableOperator(task_id="paint", deferrable=True, **pictures)
