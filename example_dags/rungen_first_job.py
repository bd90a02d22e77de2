"""
## Paint a picture from a form

1. Press **Trigger**, and describe the picture in the form.
2. Press **Trigger** again. The run takes as long as the model, and some seconds for Airflow.
3. Open the task `paint` of the run, and there **RunGen results**: a page with the picture and its prompt.

The picture is stored in the folder `rungen_pictures` in Airflow's home.
The app is that of the connection `rungen_default`. The form comes from the JSON Schema of the model's input.
For another model, pass the path of your own schema to `params_from_schema`. Each trigger pays for one job.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_rungen.schemas import params_from_schema

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_PICTURES_FOLDER", f"{HOME}/rungen_pictures")).expanduser()

with DAG(
    "rungen_first_job",
    description="Describe a picture in a form, and paint it",
    schedule=None,
    params=params_from_schema(
        "flux-schnell", prompt="a lighthouse at dawn, oil on canvas", width=512, height=512
    ),
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:

    @task.rungen(
        destination=FOLDER.as_uri(),
        input_schema="flux-schnell",
        doc_md="Runs one job with the values of the form, and stores its picture.",
    )
    def paint(params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the input of the job, without the fields that were left empty."""
        return {name: value for name, value in (params or {}).items() if value is not None}

    paint()
