"""The endpoints of the REST API, each described once as a flow. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from airflow_provider_rungen.client.codec import encode, encode_input, path_segment
from airflow_provider_rungen.client.flow import Flow, Request, Sleep
from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.retry import ATTEMPTS, RETRY_BUDGET, call, was_not_accepted
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConflictError,
    RunGenConnectionError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
    RunGenResponseError,
    RunGenSubmissionUnknownError,
)


def run_job(app_id: str, input: Any, *, attempts: int = ATTEMPTS) -> Flow[Job]:
    """
    Submit a job.

    :raises RunGenInputError: the input is not a JSON object; nothing was sent.
    :raises RunGenSubmissionUnknownError: the answer does not tell whether a job was created.
    """
    body = b'{"input":' + encode_input(input) + b"}"
    request = Request("POST", f"app/{path_segment(app_id)}/run_async", f"run a job of app {app_id}", body)

    def read(answer: Any) -> Job:
        job = Job.from_json(answer, app_id=app_id, status=JobStatus.QUEUED)
        try:
            path_segment(job.id, "job_id")
        except RunGenInputError as error:  # it could never be asked for
            raise RunGenResponseError(f"RunGen's answer names a job that cannot be used: {error}") from None
        return job

    try:
        return (yield from call(request, read, attempts=attempts))
    except (RunGenConnectionError, RunGenResponseError, RunGenAPIError) as error:
        is_refused = isinstance(error, RunGenAPIError) and not error.retryable
        if is_refused or was_not_accepted(error):
            raise
        reason = error.message
    raise RunGenSubmissionUnknownError(
        f"It is not known whether RunGen created the job of app {app_id}: {reason}",
        hint="Sending it again may run and bill it twice: look at the app's jobs first",
    )


def get_job(
    app_id: str,
    job_id: str,
    *,
    attempts: int = ATTEMPTS,
    timeout: float | None = None,
    is_lean: bool = False,
) -> Flow[Job]:
    """
    Ask for one job.

    :param timeout: seconds that one request may take; the connection's own limit when left out.
    :param is_lean: whether its result and input may be left out where they are large.
    """
    path = f"app/{path_segment(app_id)}/job/{path_segment(job_id, 'job_id')}"
    purpose = f"get job {job_id} of app {app_id}"
    request = Request("GET", path, purpose, timeout=timeout, is_lean=is_lean)
    read = partial(Job.from_json, app_id=app_id, job_id=job_id)
    return (yield from call(request, read, attempts=attempts))


def get_job_when_visible(app_id: str, job_id: str, *, known_by: float) -> Flow[Job]:
    """
    Ask for a job that the service may not know yet.

    :param known_by: the time (seconds since 1970) from which on an unknown job is one that is gone.
    """
    while True:
        try:
            return (yield from get_job(app_id, job_id))
        except RunGenNotFoundError:
            now = yield Sleep(0)
            if now >= known_by:
                raise
        yield Sleep(min(2.0, known_by - now))


def cancel_job(app_id: str, job_id: str, *, patience: float = RETRY_BUDGET) -> Flow[Job]:
    """
    Cancel a queued or running job.

    :param patience: the seconds after which no further attempt is made.
    :raises RunGenConflictError: the job is over, and it was not canceled.
    """
    path = f"app/{path_segment(app_id)}/job/{path_segment(job_id, 'job_id')}"
    request = Request("PUT", path, f"cancel job {job_id} of app {app_id}", as_user=True, is_lean=True)
    read = partial(Job.from_json, app_id=app_id, job_id=job_id, status=JobStatus.CANCELED)
    try:
        return (yield from call(request, read, patience=patience))
    except RunGenConflictError:
        try:
            job = yield from get_job(app_id, job_id, attempts=1, is_lean=True)
        except RunGenError:
            job = None
        if job and job.status is JobStatus.CANCELED:
            return job  # perhaps by an attempt whose answer was lost
        raise


def list_apps(*, attempts: int = ATTEMPTS) -> Flow[list[App]]:
    """Ask for all apps the key may see."""
    return (yield from call(Request("GET", "app", "list the apps"), App.list_from_json, attempts=attempts))


def get_app(
    app_id: str, *, attempts: int = ATTEMPTS, timeout: float | None = None, is_lean: bool = False
) -> Flow[App]:
    """
    Ask for one app.

    :param timeout: seconds that one request may take; the connection's own limit when left out.
    :param is_lean: whether its workflow may be left out where it is large.
    """
    path, purpose = f"app/{path_segment(app_id)}", f"get app {app_id}"
    request = Request("GET", path, purpose, timeout=timeout, is_lean=is_lean)
    return (yield from call(request, partial(App.from_json, app_id=app_id), attempts=attempts))


def create_app(body: Mapping[str, Any]) -> Flow[App]:
    """Create an app from the API's own create body."""
    request = Request("POST", "app", "create an app", encode(body, "app"))
    return (yield from call(request, App.from_json))


def update_app(app_id: str, body: Mapping[str, Any], *, patience: float = RETRY_BUDGET) -> Flow[App]:
    """
    Change the fields of an app that ``body`` names.

    :param patience: the seconds after which no further attempt is made.
    """
    request = Request("PUT", f"app/{path_segment(app_id)}", f"update app {app_id}", encode(body, "app"))
    return (yield from call(request, partial(App.from_json, app_id=app_id), patience=patience))


def scale_app(app_id: str, active_workers: int, *, patience: float = RETRY_BUDGET) -> Flow[App]:
    """
    Set the number of an app's workers.

    :param patience: the seconds after which no further attempt is made.
    """
    body = {"configuration": {"active_workers": active_workers}}
    return (yield from update_app(app_id, body, patience=patience))


def delete_app(app_id: str) -> Flow[None]:
    """Delete an app for good; it must have no workers."""
    yield from call(Request("DELETE", f"app/{path_segment(app_id)}", f"delete app {app_id}"), lambda _: None)
