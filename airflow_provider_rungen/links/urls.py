"""The URLs that the connection gives for apps and jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_rungen.client.codec import path_segment

if TYPE_CHECKING:
    from airflow_provider_rungen.client.settings import Settings


def app_url(settings: Settings, app_id: str) -> str:
    """Return the URL of an app by the connection's ``app_url``; empty without one."""
    return (settings.app_url or "").replace("{app_id}", path_segment(app_id))


def job_url(settings: Settings, app_id: str, job_id: str) -> str:
    """Return the URL of a job by the connection's ``job_url``; empty without one."""
    return (
        (settings.job_url or "")
        .replace("{app_id}", path_segment(app_id))
        .replace("{job_id}", path_segment(job_id, "job_id"))
    )
