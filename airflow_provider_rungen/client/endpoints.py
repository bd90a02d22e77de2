"""The endpoints of the REST API, each described once as a flow. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.codec import encode, encode_input, path_segment
from airflow_provider_rungen.client.flow import Flow, Gather, Request
from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.retry import (
    ATTEMPTS,
    RETRY_BUDGET,
    call,
    is_refusal,
    is_transient,
    retry,
    send,
)
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConflictError,
    RunGenConnectionError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
    RunGenResponseError,
    RunGenSubmissionUnknownError,
)

#: Begins the message of a `RunGenSubmissionUnknownError` about one job.
FATE_UNKNOWN = "Fate unknown: RunGen may have created the job"


def _app_request(method: str, app_id: str, purpose: str, **options: Any) -> Request:
    path, about = f"app/{path_segment(app_id)}", format_ids(app_id)
    return Request(method, path, purpose, about=about, app_id=app_id, **options)


def _job_request(method: str, app_id: str, job_id: str, purpose: str, **options: Any) -> Request:
    path = f"app/{path_segment(app_id)}/job/{path_segment(job_id, 'job_id')}"
    return Request(method, path, purpose, about=format_ids(app_id, job_id), **options)


def run_job(app_id: str, input: Mapping[str, Any], *, attempts: int = ATTEMPTS) -> Flow[Job]:
    """
    Submit a job.

    :param app_id: the app to run.
    :param input: a JSON object, as the app's model expects it.
    :param attempts: how many times to send the request at most.
    :raises RunGenInputError: the input is not a JSON object; nothing was sent.
    :raises RunGenSubmissionUnknownError: the job may or may not have been created.
    """
    body = b'{"input":' + encode_input(input) + b"}"
    path = f"app/{path_segment(app_id)}/run_async"
    request = Request("POST", path, f"run a job of app {app_id}", body, app_id=app_id)

    def read(answer: Any) -> Job:
        job = Job.from_json(answer, app_id=app_id, status=JobStatus.QUEUED)
        try:
            path_segment(job.id, "job_id")
        except RunGenInputError as error:
            raise RunGenResponseError(f"The answer has an invalid job id: {error.message}") from None
        return job

    try:
        return (yield from call(request, read, attempts=attempts))
    except (RunGenConnectionError, RunGenResponseError, RunGenAPIError) as error:
        if was_not_accepted(error):
            raise
        reason = error.message
    raise RunGenSubmissionUnknownError(
        f"{FATE_UNKNOWN}. {reason}",
        hint="Check the app's jobs before you submit it again: it could run and be billed twice",
    )


def get_job(
    app_id: str, job_id: str, *, attempts: int = ATTEMPTS, timeout: float | None = None, is_lean: bool = False
) -> Flow[Job]:
    """
    Get a job.

    :param app_id: its app.
    :param job_id: the job.
    :param attempts: how many times to send the request at most.
    :param timeout: the most seconds for one request; see `Request`.
    :param is_lean: whether a large result and input may be left out.
    """
    request = _job_request("GET", app_id, job_id, "get the job", timeout=timeout, is_lean=is_lean)
    read = partial(Job.from_json, app_id=app_id, job_id=job_id)
    return (yield from call(request, read, attempts=attempts))


def cancel_job(
    app_id: str, job_id: str, *, retry_budget: float = RETRY_BUDGET, is_known: bool = False
) -> Flow[Job]:
    """
    Cancel a queued or running job.

    :param app_id: its app.
    :param job_id: the job.
    :param retry_budget: seconds after which the request is not sent again.
    :param is_known: whether the service has accepted its submission, so that a refusal may pass.
    :raises RunGenConflictError: the job is over, and was not canceled.
    :raises RunGenNotFoundError: the service does not know the job.
    :raises RunGenAPIError: the service refuses with a 409, but the job may still run.
    """
    request = _job_request("PUT", app_id, job_id, "cancel the job", as_user=True, is_lean=True)
    read = partial(Job.from_json, app_id=app_id, job_id=job_id)

    def attempt(_: int) -> Flow[Job]:
        answer: RunGenError
        try:
            job = yield from send(request, read)
            if job.status is JobStatus.CANCELED:
                return job
            answer = RunGenResponseError(request.failure(f"it is {job.status}"))
        # perhaps an answer without a word
        except (RunGenResponseError, RunGenConflictError, RunGenBadRequestError) as error:
            answer = error
        code, asked = getattr(answer, "status_code", 409), answer.retry_after
        refusal = RunGenConflictError(answer.message, status_code=code, retry_after=asked, retryable=False)
        status = "its status is unknown"
        try:
            job = yield from get_job(app_id, job_id, attempts=1, is_lean=True)
        except RunGenError as error:
            if isinstance(error, RunGenNotFoundError) and not error.retryable:
                raise refusal from None
        else:
            if job.status is JobStatus.CANCELED:  # by an earlier attempt, whose answer was lost
                return job
            if job.is_terminal:
                raise refusal
            status = f"it is {job.status}"
        message = f"{refusal.message.removesuffix(request.about).rstrip()}, but {status} {request.about}"
        raise RunGenAPIError(message, status_code=409, retry_after=asked)

    def may_retry(error: RunGenError) -> bool:
        # what was submitted a moment ago may not be known yet
        is_patient = is_known and (is_refusal(error) or isinstance(error, RunGenNotFoundError))
        return is_patient or is_transient(error)

    return (yield from retry(attempt, may_retry, retry_budget=retry_budget))


def cancel_jobs(
    app_id: str,
    job_ids: Sequence[str],
    outcomes: dict[str, RunGenError | None],
    *,
    retry_budget: float,
    are_known: bool = False,
) -> Flow[None]:
    """
    Cancel many jobs.

    :param app_id: their app.
    :param job_ids: the jobs.
    :param outcomes: gets for each job, once it is known, why it was not canceled, or ``None``.
    :param retry_budget: seconds after which a request is not sent again.
    :param are_known: see `cancel_job`.
    """

    def cancel(job_id: str) -> Flow[None]:
        try:
            yield from cancel_job(app_id, job_id, retry_budget=retry_budget, is_known=are_known)
            outcomes[job_id] = None
        except RunGenError as error:
            outcomes[job_id] = error

    yield Gather([cancel(job_id) for job_id in job_ids])


def list_apps(*, attempts: int = ATTEMPTS) -> Flow[list[App]]:
    """
    List the apps that the key may see.

    :param attempts: how many times to send the request at most.
    """
    return (yield from call(Request("GET", "app", "list the apps"), App.list_from_json, attempts=attempts))


def get_app(
    app_id: str, *, attempts: int = ATTEMPTS, timeout: float | None = None, is_lean: bool = False
) -> Flow[App]:
    """
    Get an app.

    :param app_id: the app.
    :param attempts: how many times to send the request at most.
    :param timeout: the most seconds for one request; see `Request`.
    :param is_lean: whether a large workflow may be left out.
    """
    request = _app_request("GET", app_id, "get the app", timeout=timeout, is_lean=is_lean)
    return (yield from call(request, partial(App.from_json, app_id=app_id), attempts=attempts))


def create_app(body: Mapping[str, Any]) -> Flow[App]:
    """
    Create an app.

    :param body: the fields of the API: ``name``, ``configuration``, ``workflow``, ``description``.
    """
    request = Request("POST", "app", "create an app", encode(body, "app"))
    return (yield from call(request, App.from_json))


def update_app(app_id: str, body: Mapping[str, Any], *, attempts: int = ATTEMPTS) -> Flow[App]:
    """
    Change an app.

    :param app_id: the app.
    :param body: the fields to change, as for `create_app`.
    :param attempts: how many times to send the request at most.
    """
    request = _app_request("PUT", app_id, "change the app", body=encode(body, "app"))
    read = partial(App.from_json, app_id=app_id, is_change=True)
    return (yield from call(request, read, attempts=attempts))


def scale_app(app_id: str, active_workers: int, *, attempts: int = ATTEMPTS) -> Flow[App]:
    """
    Set the number of an app's workers.

    :param app_id: the app.
    :param active_workers: the number to set.
    :param attempts: how many times to send the request at most.
    """
    body = {"configuration": {"active_workers": active_workers}}
    return (yield from update_app(app_id, body, attempts=attempts))


def delete_app(app_id: str) -> Flow[None]:
    """
    Delete an app, which cannot be undone. It must have no workers.

    :param app_id: the app.
    """
    request = _app_request("DELETE", app_id, "delete the app")

    def attempt(number: int) -> Flow[None]:
        may_be_deleted = number > 1  # by an earlier attempt, whose answer was lost
        try:
            if (yield from send(request, lambda body: body is None)):
                return
            may_be_deleted = True  # RunGen answers without a word: it may be that of a gateway
            yield from get_app(app_id, attempts=1)
        except RunGenNotFoundError as error:
            if error.retryable or not may_be_deleted:
                raise
        else:
            raise RunGenResponseError(request.failure("it is still there"))

    yield from retry(attempt, is_transient)
