"""Formats apps and jobs in answers, in each way that the API's documentation allows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow_provider_rungen.emulator.apps import App, Job, State
from airflow_provider_rungen.emulator.options import Options

_ALTERNATE_WORDS = {
    "QUEUED": "IN_QUEUE",
    "RUNNING": "in_progress",
    "COMPLETED": "Completed",
    "CANCELED": "CANCELLED",
    "FAILED": "ERROR",
}


def job_word(options: Options, state: State) -> str:
    if options.words == "alternate":
        return _ALTERNATE_WORDS[state]
    return _case(options, options.failed_word if state is State.FAILED else state.value)


def stamp(options: Options, when: float) -> str:
    text = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text if options.time_format == "T" else text.replace("T", " ")


def job_answer(options: Options, job: Job, now: float, result: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {
        **_job_id(options, job, "id"),
        "created_at": stamp(options, job.created),
        "request": {"input": job.input},
        "result": result,
        "status": job_word(options, job.state),
    }
    if job.started is not None:
        seconds = round((now if job.finished is None else job.finished) - job.started, 3)
        answer["execution_time"] = str(seconds) if options.execution_time_as == "string" else seconds
    if job.state is State.FAILED:
        nested = options.error_field == "nested"
        answer["error" if nested else options.error_field] = {"message": job.error} if nested else job.error
    return _extra(options, answer)


def run_answer(options: Options, job: Job, wrapped: bool) -> dict[str, Any]:
    return _extra(
        options,
        {
            **_job_id(options, job, "id" if wrapped else "job_id"),
            "status": job_word(options, State.QUEUED),
            "app_id": job.app_id,
            "created_at": stamp(options, job.created),
            "input": job.input,
        },
    )


def cancel_answer(options: Options, job: Job) -> dict[str, Any]:
    return _extra(options, {**_job_id(options, job, "job_id"), "status": job_word(options, State.CANCELED)})


def app_answer(options: Options, app: App, *, just_created: bool = False) -> dict[str, Any]:
    configuration = {"active_workers": app.active_workers, "gpu_tier": app.gpu_tier}
    if app.location is not None:
        configuration["location"] = app.location
    answer: dict[str, Any] = {
        "id": app.id,
        "name": app.name,
        "description": app.description,
        "status": _case(options, app.status),
        "configuration": configuration,
        "workflow": {"model_url": app.model_url, "tools": app.tools},
        "created_at": stamp(options, app.created),
        "created_by": "emulator",
        "owner_team_id": app.owner_team_id,
        "owner_user_id": "00000000-0000-4000-8000-000000000001",
        "updated_at": stamp(options, app.updated),
    }
    if not just_created:
        answer["jobs"] = {
            "completed": app.completed,
            "failed": app.failed,
            "in_progress": app.busy,
            "in_queue": app.waiting,
            "retried": app.retried,
        }
        answer["workers"] = {
            "idle": max(0, app.ready - app.busy),
            "initializing": app.initializing,
            "ready": app.ready,
            "running": app.busy,
            "throttled": 0,
            "unhealthy": 0,
        }
    return _extra(options, answer)


def _job_id(options: Options, job: Job, documented: str) -> dict[str, str]:
    if options.id_field == "both":
        return {"id": job.id, "job_id": job.id}
    return {documented if options.id_field == "documented" else options.id_field: job.id}


def _case(options: Options, word: str) -> str:
    if options.words == "lower":
        return word.lower()
    return word.title() if options.words == "title" else word


def _extra(options: Options, answer: dict[str, Any]) -> dict[str, Any]:
    if options.extra_fields:
        answer |= {"x_region": "emulated", "x_trace": {"hops": [1, 2, 3]}, "x_note": None}
    return answer
