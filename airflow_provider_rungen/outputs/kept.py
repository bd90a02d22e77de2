"""What a record holds of a job: its result and its input, without secrets, as far as it can. No I/O."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

from airflow_provider_rungen.client.output_urls import redact_value

#: A larger result has a file of its own.
MAX_RESULT_BYTES = 64 << 10


def fits_record(content: bytes) -> bool:
    """Return whether a record can hold JSON: no parser reads half a surrogate pair, or 200 levels."""
    if len(content) > MAX_RESULT_BYTES:
        return False
    try:
        from_json(b"[%b]" % content)
    except ValueError:
        return False
    return True


def kept_value(value: Any) -> Any:
    """Return what is kept of an input, or of a misfit result: nothing, if a record cannot hold it."""
    kept = redact_value(value)
    return kept if fits_record(json.dumps(kept, allow_nan=False).encode()) else None
