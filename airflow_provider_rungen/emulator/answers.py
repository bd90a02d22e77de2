"""Formats apps and jobs in answers, as the API's documentation shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow_provider_rungen.emulator.apps import App, Job, State


def run_answer(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": State.QUEUED,
        "app_id": job.app_id,
        "created_at": _stamp(job.created),
        "input": job.input,
    }


def job_answer(job: Job, now: float, result: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": job.id,
        "created_at": _stamp(job.created),
        "request": {"input": job.input},
        "result": result,
        "status": job.state,
    }
    if job.started is not None:
        answer["execution_time"] = str(round((job.finished or now) - job.started, 3))
    if job.state is State.FAILED:
        answer["error"] = job.error
    return answer


def cancel_answer(job: Job) -> dict[str, Any]:
    return {"job_id": job.id, "status": State.CANCELED}


def app_answer(app: App) -> dict[str, Any]:
    return {
        **new_app_answer(app),
        "jobs": {
            "completed": app.completed,
            "failed": app.failed,
            "in_progress": app.busy,
            "in_queue": app.waiting,
            "retried": app.retried,
        },
        "workers": {
            "idle": max(0, app.ready - app.busy),
            "initializing": app.initializing,
            "ready": app.ready,
            "running": app.busy,
            "throttled": 0,
            "unhealthy": 0,
        },
    }


def new_app_answer(app: App) -> dict[str, Any]:
    """Return an app without its counters, which the answer to its creation lacks."""
    location = {} if app.location is None else {"location": app.location}
    return {
        "id": app.id,
        "name": app.name,
        "description": app.description,
        "status": app.status,
        "configuration": {"active_workers": app.active_workers, "gpu_tier": app.gpu_tier, **location},
        "workflow": {"model_url": app.model_url, "tools": app.tools},
        "created_at": _stamp(app.created),
        "created_by": "emulator",
        "owner_team_id": app.owner_team_id,
        "owner_user_id": "00000000-0000-4000-8000-000000000001",
        "updated_at": _stamp(app.updated),
    }


def _stamp(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S")
