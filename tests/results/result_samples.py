"""Rows of a results table, for tests that write or read one: a full row, and a bare one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_rungen.results.rows import ResultRow, Status

FORMATS = pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
COLUMNS = {"sku": "text", "n": "integer", "price": "number", "on": "boolean"}
CREATED = datetime(2025, 1, 11, 16, 45, 34, tzinfo=UTC)
RESULT = {"images": [{"image": "s3://shop/job/0-0.png"}], "text": "naïve"}
FULL = ResultRow(
    index=0,
    status=Status.COMPLETED,
    values={"sku": 'a,\n"é"', "n": 7, "price": 1.5, "on": True},
    job_id="job",
    reused=True,
    outputs=["s3://shop/job/0-0.png", "s3://shop/job/1-1.png"],
    input='{"prompt": "naïve"}',
    result=json.dumps(RESULT, ensure_ascii=False),
    seconds=2.0,
    cost=Decimal("0.00000050"),
    bought_at="2025-01-11T16:45:34+00:00",
)
BARE = ResultRow(index=1, status=Status.REFUSED, values={"sku": "b"}, error="it has no prompt")
#: What JSON Lines has of `FULL`, apart from its result.
WRITTEN: dict[str, Any] = {
    **FULL.values,
    "index": 0,
    "status": "completed",
    "error": None,
    "job_id": "job",
    "reused": True,
    "outputs": list(FULL.outputs),
    "output": "s3://shop/job/0-0.png",
    "input": '{"prompt": "naïve"}',
    "seconds": 2.0,
    "cost": "0.00000050",
    "bought_at": "2025-01-11T16:45:34+00:00",
}
