"""Check inputs and results with JSON Schemas, some of which come with the package, and make forms of them."""

from airflow_provider_rungen.schemas.schema import Schema, checked, params_from_schema

__all__ = ["Schema", "checked", "params_from_schema"]
