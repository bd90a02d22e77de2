"""Read the rows of a results table."""

from __future__ import annotations

import csv
import io
import json
from typing import Any


def read_rows(uri: str) -> list[dict[str, Any]]:
    """Return the rows of a ``.jsonl``, ``.csv`` or ``.parquet`` file."""
    from airflow_provider_rungen._airflow import ObjectStoragePath

    with ObjectStoragePath(uri).open("rb") as file:  # which Airflow 2.11 cannot iterate over
        content = file.read()
    if uri.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        rows: list[dict[str, Any]] = parquet.read_table(pa.BufferReader(content)).to_pylist()
        return rows
    text = content.decode()
    if uri.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.split("\n") if line]
