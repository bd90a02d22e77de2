"""
## Look at a sample before you pay for the rest

1. `sample` paints the first products of the catalog. Then the app goes down.
2. `plan` counts the other ones. It knows from the sample how long a picture takes, so it can quote a price.
3. `approve` waits for you, without a GPU or a worker slot. The tab **Required Actions** of the run has the
   quote, and a link to the pictures of the sample.
4. **Approve**, and `paint` paints the others. The ledger has the sample, so nobody pays for it again.
   **Reject**, and the run ends without another job.

With another `style`, all pictures are new.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG

from airflow_provider_rungen.operators import (
    RunGenCreateAppOperator,
    RunGenPlanTableOperator,
    RunGenRunTableOperator,
    scaled_app,
)

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_PICTURES_FOLDER", f"{HOME}/rungen_pictures")).expanduser()
MODEL_URL = os.environ.get("RUNGEN_MODEL_URL", "https://models.example/flux-schnell.safetensors")

QUOTE = """\
{% set plan = ti.xcom_pull(task_ids="plan", key="plan") -%}
**{{ plan.jobs }}** of {{ plan.rows }} pictures are left to paint: about {{ plan.seconds | round | int }} s of
GPU, **{{ plan.cost }} {{ plan.currency }}**.

[Look at the sample]({{ ti.xcom_pull(task_ids="sample", key="rungen_results_link") }})
"""


def picture(product: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Return the input of the product's job."""
    prompt = f"{params['style']} of {product['title']}, {product['color']}"
    return {"prompt": prompt, "width": 640, "height": 512}


with DAG(
    "rungen_approval",
    description="Paint a sample, quote the price of the rest, and wait for an approval",
    schedule=None,
    # two concurrent runs would share the app
    max_active_runs=1,
    params={
        "catalogue": str(Path(__file__).with_name("rungen_catalogue.csv")),
        "folder": f"{FOLDER.as_uri()}/approval",
        "style": "watercolor",
        "sample": 3,
    },
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    create = RunGenCreateAppOperator(
        task_id="create",
        name="pictures on approval",
        configuration={"gpu_tier": "BASIC", "active_workers": 0},
        workflow={"model_url": MODEL_URL},
        doc_md="Creates the app, without workers. Later runs find it by its name.",
    )
    app: dict[str, Any] = {"app_id": create.output, "price": "1.20 USD/h", "deferrable": True}
    pictures: dict[str, Any] = {
        "table": "{{ params.catalogue }}",
        "key": "sku",
        "columns": ["title", "color"],
        "to_input": picture,
        "app_id": create.output,
        "destination": "{{ params.folder }}/pictures",
        "ledger": "{{ params.folder }}/ledger",
        "input_schema": "flux-schnell",
        "deferrable": True,
    }
    # a results table of its own: the sample must not replace that of all pictures
    first: dict[str, Any] = {
        "limit": "{{ params.sample }}",
        "results": "{{ params.folder }}/sample.csv",
    }
    plan_sample = RunGenPlanTableOperator(
        task_id="plan_sample", doc_md="Counts the sample's pictures to pay for.", **pictures, **first
    )
    with scaled_app(name="sample_app", only_if=plan_sample.output, **app) as sample_app:
        sample = RunGenRunTableOperator(task_id="sample", doc_md="Paints the sample.", **pictures, **first)

    plan = RunGenPlanTableOperator(
        task_id="plan", doc_md="Counts the pictures that are left, and quotes their price.", **pictures
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Paint the other pictures?",
        body=QUOTE,
        doc_md="Waits for a human. No GPU is up.",
    )
    # the app is down before anybody is asked
    [sample, sample_app.down] >> plan >> approve

    with scaled_app(only_if=plan.output, **app):
        approve >> RunGenRunTableOperator(
            task_id="paint",
            results="{{ params.folder }}/pictures.csv",
            # as many as were approved, even if the catalog has grown
            max_jobs="{{ ti.xcom_pull(task_ids='plan') or 1 }}",
            doc_md="Paints the pictures that were approved.",
            **pictures,
        )
