"""The hook of the provider."""

from airflow_provider_rungen.hooks.rungen import RunGenHook

__all__ = ["RunGenHook"]
