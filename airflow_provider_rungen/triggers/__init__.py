"""The triggers of the provider."""

from airflow_provider_rungen.triggers.rungen import RunGenAppTrigger, RunGenJobTrigger

__all__ = ["RunGenAppTrigger", "RunGenJobTrigger"]
