"""Read the rows of a results table."""

from __future__ import annotations

import csv
import json
from typing import Any


def read_rows(uri: str) -> list[dict[str, Any]]:
    """Return the rows of a ``.jsonl``, ``.csv`` or ``.parquet`` file."""
    from airflow_provider_rungen._airflow import ObjectStoragePath

    path = ObjectStoragePath(uri)
    if uri.endswith(".parquet"):
        from pyarrow import parquet

        with path.open("rb") as file:
            rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
        return rows
    with path.open("r", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)) if uri.endswith(".csv") else [json.loads(line) for line in file]
