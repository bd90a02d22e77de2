"""How a wait ends: the events of triggers, and the error of one job or of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.task.ranges import parse_ranges

# Of more failures than this, a message names no reasons.
MAX_REASONS = 10
# A job that ended like this does so at the next look, too.
JOB_IS_OVER = (RunGenJobFailedError, RunGenJobCanceledError)
_USELESS = (*JOB_IS_OVER, RunGenNotFoundError, RunGenResultError)
# The event of a wait that has come as far as it should.
GO_ON = "go on"
# What an event says of an error beside its message.
_ABOUT = ("app_id", "job_id", "status_code")


def error_to_json(error: RunGenError) -> dict[str, Any]:
    """Return an error as an event holds it: see `read_error`."""
    about = {name: getattr(error, name) for name in _ABOUT if getattr(error, name, None)}
    names = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    return {**names, "retryable": error.retryable, **about}


def read_error(found: Any) -> RunGenError | None:
    """Return the error that an event holds; ``None`` if it holds none."""
    if not isinstance(found, Mapping):
        return None
    kind = next((each for each in _kinds(RunGenError) if each.__name__ == found.get("kind")), RunGenError)
    message, hint = str(found.get("message") or ""), str(found.get("hint") or "")
    error = kind(message, hint=hint, retryable=bool(found.get("retryable", True)))
    for name in _ABOUT:
        if isinstance(value := found.get(name), str | int):
            setattr(error, name, value)
    return error


def _kinds(kind: type[RunGenError]) -> Iterator[type[RunGenError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def event_error(event: Any) -> RunGenError | None:
    """Return why the wait in the triggerer failed. If it did not, the event is a hint to look again."""
    if isinstance(event, Mapping) and event.get("outcome") == GO_ON:
        return None
    found = event.get("error") if isinstance(event, Mapping) else None
    return read_error(found) or RunGenError(
        f"Could not read the trigger's event {clean_text(str(event), 200)}"
    )


def raise_for_event(event: Any) -> None:
    """
    Raise if the wait in the triggerer failed.

    :raises RunGenError: what the trigger could not go on for: see `event_error`.
    """
    if (error := event_error(event)) is not None:
        raise error


def unsuccessful_job(job: Job) -> dict[str, Any]:
    """Return what an event holds of a job that did not complete."""
    found: dict[str, Any] = {"id": job.id, "status": job.status.value, "error": job.error}
    return found if job.cause is None else found | {"cause": error_to_json(job.cause)}


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
            cause=read_error(job.get("cause")),
        )
        for job in event.get("unsuccessful") or ()
    ]


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


def is_useless(error: RunGenError) -> bool:
    """Return whether a job with this error has no use any more, so that a retry runs its input again."""
    return isinstance(error, _USELESS) or (isinstance(error, RunGenOutputError) and error.is_expired)


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
