"""
## From Parquet to Parquet

`export` writes a table of products. `describe` runs a language model for each product that is in stock, and
writes a table with its texts. A second run pays only for what is new.

The param `app_id` is the app of a language model. The package needs its extra `[tables]`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task

from airflow_provider_rungen.operators import RunGenRunTableOperator

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_DESCRIPTIONS_FOLDER", f"{HOME}/rungen_descriptions")).expanduser()


def prompt_for(product: dict[str, Any]) -> dict[str, Any] | None:
    """Return the input of the product's job, or ``None`` for a product that nobody can buy."""
    if not product["in_stock"]:
        return None
    return {"prompt": f"Describe in two sentences: {product['title']}, {product['price']} EUR"}


with DAG(
    "rungen_descriptions",
    description="Write a text about each product of a Parquet table into another one",
    schedule=None,
    params={"folder": FOLDER.as_uri(), "app_id": "llama-text"},
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:

    @task
    def export(folder: str) -> str:
        """Write the products as Parquet, as your warehouse would, and return where they are."""
        import pyarrow
        from pyarrow import parquet

        products = pyarrow.table(
            {
                "id": [104, 220, 310, 118],
                "title": ["enamel kettle", "rubber boots", "writing desk", "reading lamp"],
                "price": [39.5, 54.0, 620.0, 89.9],
                "in_stock": [True, True, False, True],
            }
        )
        path = ObjectStoragePath(folder) / "products.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            parquet.write_table(products, file)
        return str(path)

    RunGenRunTableOperator(
        task_id="describe",
        table=export("{{ params.folder }}"),
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
