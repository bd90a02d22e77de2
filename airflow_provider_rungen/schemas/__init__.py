"""Check inputs and results with JSON Schemas, some of which come with the package, and make forms of them."""

from airflow_provider_rungen.schemas.output_type import OutputType, checked
from airflow_provider_rungen.schemas.schema import Schema, params_from_schema

__all__ = ["OutputType", "Schema", "checked", "params_from_schema"]
