"""The links of the provider."""

from airflow_provider_rungen.links.rungen import RunGenAppLink, RunGenJobLink

__all__ = ["RunGenAppLink", "RunGenJobLink"]
