"""How a wait ends: the events of triggers, and the error of one job or of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.scaling import LoweredError
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenBadRequestError,
    RunGenError,
    RunGenForbiddenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
    RunGenJobQueuedTimeoutError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenResponseError,
)
from airflow_provider_rungen.execution.task.ranges import parse_ranges

# Of more failures than this, a message names no reasons.
MAX_REASONS = 10
# A job that ended like this does so at the next look, too.
JOB_IS_OVER = (RunGenJobFailedError, RunGenJobCanceledError)
# The event of a wait that has come as far as it should.
GO_ON = "go on"
# The errors of a single job that may come in place of an answer about it.
_CAUSES = {kind.__name__: kind for kind in (RunGenNotFoundError, RunGenBadRequestError, RunGenResponseError)}


def unsuccessful_job(job: Job) -> dict[str, Any]:
    """Return what an event holds of a job that did not complete."""
    found: dict[str, Any] = {"id": job.id, "status": job.status.value, "error": job.error}
    if (cause := job.cause) is not None:
        code = {"status_code": cause.status_code} if isinstance(cause, RunGenAPIError) else {}
        found["cause"] = {"kind": type(cause).__name__, "message": cause.message, "hint": cause.hint, **code}
    return found


def _read_cause(value: Any) -> RunGenError | None:
    if not isinstance(value, Mapping) or (kind := _CAUSES.get(str(value.get("kind")))) is None:
        return None
    code = {"status_code": value["status_code"]} if isinstance(value.get("status_code"), int) else {}
    return kind(str(value.get("message") or ""), hint=str(value.get("hint") or ""), **code)


def raise_for_event(event: Mapping[str, Any]) -> None:
    """
    Raise if the wait in the triggerer failed. Otherwise the event is a hint to look at the jobs.

    :raises RunGenJobTimeoutError: the deadline passed.
    :raises RunGenForbiddenError: RunGen refuses the API key.
    :raises RunGenError: the trigger could not go on.
    """
    outcome = event.get("outcome")
    if outcome == GO_ON:
        return
    message, hint = _message(event), event.get("hint") or ""
    if outcome == "timeout":
        kind = RunGenJobQueuedTimeoutError if event.get("queued") else RunGenJobTimeoutError
        app_id, job_id = event.get("app_id") or "", event.get("job_id") or ""
        raise kind(message, app_id=app_id, job_id=job_id, hint=hint or None)
    code, retryable = event.get("status_code"), bool(event.get("retryable", True))
    if isinstance(code, int):
        refusal = RunGenForbiddenError if code in (401, 403) else RunGenAPIError
        raise refusal(message, status_code=code, hint=hint, retryable=retryable)
    raise RunGenError(message, hint=hint, retryable=retryable)


def ended_positions(event: Mapping[str, Any], count: int) -> list[int] | None:
    """
    Return which of the jobs that a trigger waited for it found to be over, by position.

    :param count: how many jobs it was given.
    :return: ``None`` if the event does not say so.
    """
    try:
        return parse_ranges(event.get("ended"), count)
    except ValueError:
        return None


def are_all_over(event: Mapping[str, Any]) -> bool:
    """Return whether a trigger has seen the end of each of its jobs."""
    return event.get("outcome") == GO_ON and event.get("in_flight") == 0


def unsuccessful_jobs(event: Mapping[str, Any]) -> list[Job]:
    """Return the jobs that did not complete, as far as the event names them."""
    return [
        Job(
            id=str(job.get("id") or ""),
            app_id=event.get("app_id") or "",
            status=JobStatus.CANCELED if job.get("status") == JobStatus.CANCELED else JobStatus.FAILED,
            error=job.get("error") or "",
            cause=_read_cause(job.get("cause")),
        )
        for job in event.get("unsuccessful") or ()
    ]


def raise_for_app_event(event: Mapping[str, Any]) -> None:
    """
    Raise if the app is not ready.

    :raises RunGenAppTimeoutError: the deadline passed.
    :raises RunGenAppError: the trigger could not go on.
    """
    app_id, outcome = event.get("app_id") or "", event.get("outcome")
    if outcome == "ready":
        return
    if outcome == "timeout":
        raise RunGenAppTimeoutError(_message(event), app_id=app_id)
    hint, retryable = event.get("hint") or "", bool(event.get("retryable", True))
    error_class = LoweredError if event.get("was_lowered") else RunGenAppError
    raise error_class(_message(event), app_id=app_id, hint=hint, retryable=retryable)


def _message(event: Mapping[str, Any]) -> str:
    return event.get("message") or f"Could not read the trigger's event (outcome {event.get('outcome')!r})"


def raise_for_jobs(jobs: Iterable[Job], count: int = 0) -> None:
    """
    Raise if a job did not complete: its own error for one, an error that names the first ten for more.

    :param count: how many did not complete, when ``jobs`` does not hold all of them.
    :raises RunGenJobError: a job did not complete.
    """
    errors: list[RunGenError] = []
    for job in {job.id: job for job in jobs}.values():
        try:
            job.raise_for_status()
        except RunGenError as error:
            errors.append(error)
    if errors:
        raise combined_error(errors, max(count, len(errors)), "did not complete")


def combined_error(errors: Iterable[RunGenError], count: int, problem: str) -> RunGenError:
    """
    Return the error of a job, or one for many jobs that names the first ten.

    :param count: how many jobs failed.
    :param problem: what they did not do.
    """
    # permanent errors come first: they decide whether a retry can help
    errors = sorted(errors, key=lambda error: not is_permanent(error))
    first = errors[0]
    if len(errors) == 1:
        return first
    more = f"; and {count - MAX_REASONS} more" if count > MAX_REASONS else ""
    reasons = "; ".join(brief_reason(error) for error in errors[:MAX_REASONS])
    message = f"{count} jobs {problem}: {reasons}{more}"
    return first.revised(message, hint=first.hint, retryable=first.retryable)


def brief_reason(error: RunGenError) -> str:
    """Return the message of an error for a line that says already that something failed."""
    return error.message.removeprefix("Failed: ")


def is_permanent(error: RunGenError) -> bool:
    """Return whether a job has this error at the next look, too."""
    return not error.retryable or isinstance(error, JOB_IS_OVER)


def max_failures(max_failed: float, count: int) -> int:
    """Return how many of ``count`` may fail."""
    if isinstance(max_failed, float):
        return math.floor(max_failed * count + 1e-9)  # 0.29 of 100 are 28.999999999999996
    return max_failed


def format_reasons(reasons: Mapping[int, str]) -> str:
    """Return why inputs failed, by their index: the first ten."""
    failed = sorted(reasons)
    more = f"; and {len(failed) - MAX_REASONS} more" if len(failed) > MAX_REASONS else ""
    return "; ".join(f"input {index}: {reasons[index]}" for index in failed[:MAX_REASONS]) + more
