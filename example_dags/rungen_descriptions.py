"""
## From Arrow to Parquet

`describe` runs a language model for each product that is in stock, and writes a table with its texts. A
second run pays only for what is new.

The param `app_id` is the app of a language model. The package needs its extra `[tables]`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunTableOperator

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_DESCRIPTIONS_FOLDER", f"{HOME}/rungen_descriptions")).expanduser()


def products() -> Any:
    """Return the products as Arrow, as DuckDB, Iceberg or your own code would."""
    import pyarrow

    return pyarrow.table(
        {
            "id": [104, 220, 310, 118],
            "title": ["enamel kettle", "rubber boots", "writing desk", "reading lamp"],
            "price": [39.5, 54.0, 620.0, 89.9],
            "in_stock": [True, True, False, True],
        }
    )


def prompt_for(product: dict[str, Any]) -> dict[str, Any] | None:
    """Return the input of the product's job, or ``None`` for a product that nobody can buy."""
    if not product["in_stock"]:
        return None
    return {"prompt": f"Describe in two sentences: {product['title']}, {product['price']} EUR"}


with DAG(
    "rungen_descriptions",
    description="Write a text about each product into a Parquet table",
    schedule=None,
    params={"folder": FOLDER.as_uri(), "app_id": "llama-text"},
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    RunGenRunTableOperator(
        task_id="describe",
        # or a query: SqlRows("SELECT …", conn_id="warehouse")
        table=products,
        key="id",
        to_input=prompt_for,
        columns=["title", "price"],
        app_id="{{ params.app_id }}",
        destination="{{ params.folder }}",
        results="{{ params.folder }}/descriptions.parquet",
        ledger="{{ params.folder }}/ledger",
        deferrable=True,
        doc_md="Waits in the triggerer. Products that are out of stock are skipped, and cost nothing.",
    )
