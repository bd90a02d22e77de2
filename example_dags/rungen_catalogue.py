"""
## A catalog in pictures

`paint` runs a job for each product that is new or has changed, and writes a table of all pictures. A
ledger remembers which inputs were paid for: trigger it twice, and the second run pays for nothing.

When the table is written, `rungen_contact_sheet` shows it on one page, if it is unpaused.

To run it each night, set `schedule="0 2 * * *"`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset

from airflow_provider_rungen.operators import RunGenRunTableOperator

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_CATALOGUE_FOLDER", f"{HOME}/rungen_catalogue")).expanduser()


def studio_photo(product: dict[str, Any]) -> dict[str, Any]:
    """Return the input of the product's job."""
    prompt = f"studio photo of {product['title']}, {product['color']}"
    return {"prompt": prompt, "width": 640, "height": 512}


with DAG(
    "rungen_catalogue",
    description="Paint each product that is new or has changed, and write a table of all pictures",
    schedule=None,
    # two runs at the same moment could both pay for a new product
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    # both can be in an object store: s3://my-aws-connection@bucket/folder
    params={
        "catalogue": str(Path(__file__).with_name("rungen_catalogue.csv")),
        "folder": FOLDER.as_uri(),
    },
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    RunGenRunTableOperator(
        task_id="paint",
        table="{{ params.catalogue }}",
        key="sku",
        to_input=studio_photo,
        columns=["title", "color"],
        # also has a page to look at: pictures/index.html
        destination="{{ params.folder }}/pictures",
        results="{{ params.folder }}/pictures.csv",
        # an input that was paid for before is not paid for again
        ledger="{{ params.folder }}/ledger",
        input_schema="flux-schnell",
        max_failed=0.1,
        deferrable=True,
        outlets=[Asset("rungen_catalogue_pictures")],
        doc_md="Waits in the triggerer. The XCom `return_value` counts what was bought and what was reused.",
    )
