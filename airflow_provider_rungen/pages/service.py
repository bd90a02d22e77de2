"""What the pages ask the service: the apps of a connection, and one job. The functions block."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.client.workers import counts_workers, worker_states
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks.base import FlowHook
from airflow_provider_rungen.pages import airflow_db
from airflow_provider_rungen.pages.threads import TooSlowError, run_within
from airflow_provider_rungen.results.shown import shown, shown_row

#: Seconds that the service may take.
SERVICE_TIME = 4.0
_CENTS = Decimal("0.01")
# Characters of a result on the panel of a job.
_MAX_RESULT = 20_000


class PageHook(FlowHook):
    """The hook as a page uses it: with Airflow's core, and without waiting long for the service."""

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        return airflow_db.get_connection(conn_id)

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Any:
        return await asyncio.to_thread(cls.get_connection, conn_id)

    def _open_async_sender(self, settings: Settings) -> Any:
        return super()._open_async_sender(replace(settings, connect_timeout=2, read_timeout=3))


async def overview(conn_ids: list[str]) -> dict[str, Any]:
    """Return the apps of connections, billed first, with their workers, queue, and what is billed now."""
    answers = await asyncio.gather(*map(_apps_of, conn_ids))
    apps = dict[tuple[str, str], dict[str, Any]]()
    for conn_id, (settings, found, _) in zip(conn_ids, answers, strict=True):
        for app in found:
            base_url = settings.base_url if settings else ""
            row = apps.setdefault((base_url, app.id), _app(app, settings.price if settings else None))
            row["connections"].append(conn_id)
            row["per_hour"] = row["per_hour"] or _per_hour(app, settings.price if settings else None)
    rows = sorted(apps.values(), key=lambda row: (not row["is_billed"], row["name"]))
    silent = {conn_id: why for conn_id, (*_, why) in zip(conn_ids, answers, strict=True) if why}
    return {"apps": rows, "silent": silent, "connections": conn_ids}


async def _apps_of(conn_id: str) -> tuple[Settings | None, list[App], str]:
    try:
        return *await run_within(SERVICE_TIME, f"connection {conn_id}", _get_apps, conn_id), ""
    except Exception as error:
        return None, [], explain(error)


def _get_apps(conn_id: str) -> tuple[Settings, list[App]]:
    hook = PageHook(conn_id)
    return hook.settings, hook.perform_concurrently(endpoints.list_apps(attempts=1))


def _app(app: App, price: Price | None) -> dict[str, Any]:
    return {
        "id": app.id,
        "name": shown(app.name or app.id),
        "status": shown(app.status.lower()),
        "gpu": shown(app.configuration.get("gpu_tier") or "").lower(),
        "active_workers": app.active_workers,
        "workers": worker_states(app),
        "jobs": {name: count for name, count in app.jobs.items() if count},
        "is_billed": bool(app.active_workers) or counts_workers(app),
        "per_hour": _per_hour(app, price),
        "connections": [],
    }


def _per_hour(app: App, price: Price | None) -> dict[str, Any] | None:
    """Return what the workers of an app cost an hour, if that is known."""
    if not app.active_workers or price is None:
        return None
    amount = price.cost(3600 * app.active_workers, _CENTS)
    return {"amount": float(amount), "currency": price.currency}


async def ask_job(conn_id: str, app_id: str, job_id: str) -> dict[str, Any]:
    """
    Return a job as the service has it, as a row is shown, and its whole result as text.

    :raises RunGenError: the service has no such job, or refused.
    :raises TooSlowError: it did not answer in time.
    """
    return await run_within(SERVICE_TIME, f"connection {conn_id}", _get_job, conn_id, app_id, job_id)


def _get_job(conn_id: str, app_id: str, job_id: str) -> dict[str, Any]:
    job: Job = PageHook(conn_id).perform_concurrently(endpoints.get_job(app_id, job_id, attempts=1))
    result = redact_value(job.result)
    row = {
        "status": job.status.value.lower(),
        "error": job.error,
        "job_id": job.id,
        "seconds": job.execution_time,
        "input": redact_value(job.input),
        "result": result,
    }
    at = job.created_at.isoformat() if job.created_at else ""
    more = {"created_at": at, "result": None if result is None else shown(result, _MAX_RESULT)}
    return shown_row(row, (), lambda _: None) | more


def explain(error: Exception) -> str:
    """Return what a page says about an error of the service, or of its connection."""
    if isinstance(error, TooSlowError):
        return "RunGen did not answer in time."
    if isinstance(error, RunGenError):
        return shown(str(error))
    return f"RunGen could not be asked ({type(error).__name__})."
