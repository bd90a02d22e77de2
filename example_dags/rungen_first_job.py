"""
Paint a picture from a form.

Press **Trigger**, describe the picture, and press **Trigger** again. The link **RunGen results** of the task
`paint` shows it. The form comes from the JSON Schema of the model's input. For another model, pass your own.
"""

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_rungen.schemas import params_from_schema

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket

with DAG(
    "rungen_first_job",
    description="Describe a picture in a form, and paint it",
    params=params_from_schema("flux-schnell", prompt="a lighthouse at dawn", width=512, height=512),
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:

    @task.rungen(destination=f"{FOLDER}/first_job", input_schema="flux-schnell")
    def paint(params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the input of the job: the fields of the form that are not empty."""
        return {name: value for name, value in (params or {}).items() if value is not None}

    paint()
