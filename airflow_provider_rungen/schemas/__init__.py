"""Check inputs and results with JSON Schemas, some of which come with the package, and make forms of them."""

from airflow_provider_rungen.schemas.params import params_from_schema
from airflow_provider_rungen.schemas.schema import Schema, checked

__all__ = ["Schema", "checked", "params_from_schema"]
