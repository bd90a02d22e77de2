"""
Take a studio photo of each product, and pay for each one once.

Trigger it twice: the second run buys nothing, because the destination has what was paid for. When the table
has changed, a run buys the new and the changed products.
"""

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunTableOperator

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket


def studio_photo(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"studio photo of {row['title']}, {row['color']}", "width": 640, "height": 512}


with DAG(
    "rungen_catalog",
    description="Take a studio photo of each product, and pay for each one once",
    schedule=None,  # or "@daily"
    params={"table": str(Path(__file__).with_name("rungen_catalog.csv"))},  # or s3://my-bucket/*.parquet
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    RunGenRunTableOperator(
        task_id="paint",
        table="{{ params.table }}",
        key="sku",
        columns=["title", "color"],
        to_input=studio_photo,
        destination=f"{FOLDER}/catalog",
        deferrable=True,
    )
