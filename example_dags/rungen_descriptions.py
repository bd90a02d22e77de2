"""
Describe products in a Parquet table with typed columns.

The app `my-llm` runs a language model. A row whose text is not a `Description` is `invalid`.
"""

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG
from pydantic import BaseModel

from airflow_provider_rungen.operators import RunGenRunTableOperator

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket
PRODUCTS = [{"sku": "KT-104", "title": "enamel kettle"}, {"sku": "BT-220", "title": "rubber boots"}]


class Description(BaseModel):
    headline: str
    keywords: list[str]


def prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"As JSON with a headline and a list of keywords, describe: {row['title']}"}


with DAG("rungen_descriptions", description=__doc__, doc_md=__doc__, tags=["rungen", "example"]) as dag:
    RunGenRunTableOperator(
        task_id="describe",
        table=PRODUCTS,  # or a query, a file, or a function that returns Arrow
        key="sku",
        to_input=prompt,
        app_id="my-llm",
        output_type=Description,
        destination=f"{FOLDER}/descriptions",
        results=f"{FOLDER}/descriptions.parquet",
    )
