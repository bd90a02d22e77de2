"""Check inputs and results with JSON Schemas, some of which come with the package, and make forms of them."""

from __future__ import annotations

from airflow_provider_rungen.schemas.params import params_from_schema
from airflow_provider_rungen.schemas.schema import (
    MAX_FILE_BYTES,
    MAX_NAMED_VIOLATIONS,
    MAX_VIOLATIONS,
    Schema,
    checked,
)

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_NAMED_VIOLATIONS",
    "MAX_VIOLATIONS",
    "Schema",
    "checked",
    "params_from_schema",
]
