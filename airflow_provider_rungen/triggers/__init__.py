"""The triggers of the provider."""

from airflow_provider_rungen.triggers.app import RunGenAppTrigger
from airflow_provider_rungen.triggers.job import RunGenJobTrigger

__all__ = ["RunGenAppTrigger", "RunGenJobTrigger"]
