"""The URLs that links lead to: patterns of the connection, or addresses of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_rungen.client.codec import path_segment

if TYPE_CHECKING:
    from airflow_provider_rungen.client.settings import Settings


def app_url(settings: Settings, app_id: str) -> str:
    """Return the URL of an app's page: the connection's ``app_url``, or the address of the API."""
    pattern = settings.app_url or f"{settings.base_url}/app/{{app_id}}"
    return pattern.replace("{app_id}", path_segment(app_id))


def job_url(settings: Settings, app_id: str, job_id: str) -> str:
    """Return the URL of a job's page: the connection's ``job_url``, or the address of the API."""
    pattern = settings.job_url or f"{settings.base_url}/app/{{app_id}}/job/{{job_id}}"
    return pattern.replace("{app_id}", path_segment(app_id)).replace(
        "{job_id}", path_segment(job_id, "job_id")
    )
