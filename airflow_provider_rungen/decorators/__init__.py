"""The decorators of the provider."""

from airflow_provider_rungen.decorators.rungen import rungen_table_task, rungen_task

__all__ = ["rungen_table_task", "rungen_task"]
