"""
## Pay for a GPU only while it works

`create` finds or creates an app, which costs nothing without workers. `plan` counts the pictures that nobody
has paid for yet. If there are any, the group `app_is_up` gives the app a worker, and paints them. Then
`app_down` takes the worker away, whatever happens.

- The log of **app billing ends** says what the app cost.
- **app billing checked** is ended by the scheduler, without a worker, so its log is empty.
- Trigger it twice: the second run finds all pictures in the ledger. It leaves the app down and pays nothing.

To run it each night, set `schedule="0 3 * * *"`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_provider_rungen.operators import (
    Ledger,
    RunGenCreateAppOperator,
    RunGenPlanTableOperator,
    RunGenRunTableOperator,
    scaled_app,
)

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_PICTURES_FOLDER", f"{HOME}/rungen_pictures")).expanduser()
MODEL_URL = os.environ.get("RUNGEN_MODEL_URL", "https://models.example/flux-schnell.safetensors")


def picture(row: dict[str, Any]) -> dict[str, Any]:
    """Return the input of the row's job."""
    return {"prompt": row["subject"], "width": 512, "height": 512}


with DAG(
    "rungen_scaled_app",
    description="Give an app a GPU while there are pictures to paint, and see what it cost",
    schedule=None,
    # two concurrent runs would share the app
    max_active_runs=1,
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    create = RunGenCreateAppOperator(
        task_id="create",
        name="pictures of the night",
        configuration={"gpu_tier": "BASIC", "active_workers": 0},
        workflow={"model_url": MODEL_URL},
        doc_md="Creates the app, without workers. Later runs find it by its name.",
    )
    pictures: dict[str, Any] = {
        "table": [
            {"id": 1, "subject": "a harbor at dawn"},
            {"id": 2, "subject": "a market in the rain"},
            {"id": 3, "subject": "a mountain hut at night"},
        ],
        "key": "id",
        "columns": ["subject"],
        "to_input": picture,
        "app_id": create.output,
        "destination": f"{FOLDER.as_uri()}/night",
        "ledger": Ledger(f"{FOLDER.as_uri()}/ledger"),
        "input_schema": "flux-schnell",
    }
    plan = RunGenPlanTableOperator(
        task_id="plan", doc_md="Counts the pictures to pay for. It submits no job.", **pictures
    )
    with scaled_app(
        create.output,
        active_workers=1,
        only_if=plan.output,
        deferrable=True,
        price="1.20 USD/h",
    ):
        RunGenRunTableOperator(
            task_id="paint",
            deferrable=True,
            doc_md="Paints the pictures, and waits for them in the triggerer.",
            **pictures,
        )
