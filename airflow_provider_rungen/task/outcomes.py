"""How a wait ends: the events of triggers, and the error of one job or of many."""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from airflow_provider_rungen._airflow import AirflowFailException
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.retry import is_refusal
from airflow_provider_rungen.client.texts import MAX_LINE, clean_text
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConfigError,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
)

log = logging.getLogger(__name__)

# Of more failures than this, a message names no reasons.
MAX_REASONS = 10
# XCom has so many failed jobs at most, and so many characters of each error.
MAX_FAILED = 1000
MAX_FAILED_ERROR = 200
# A job that ended like this does so at the next look, too.
JOB_IS_OVER = (RunGenJobFailedError, RunGenJobCanceledError)
# The event of a wait that has come as far as it should.
GO_ON = "go on"
_RANGES = re.compile(r"(?:\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*)?")
# What an event says of an error beside its message.
_ABOUT = ("app_id", "job_id", "status_code", "is_from_service", "active_workers", "retry_after")


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
        if isinstance(value := found.get(name), str | int | float):
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


def format_ranges(numbers: Iterable[int]) -> str:
    """Return a text for different numbers, in ascending order."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_ranges(text: Any, end: int) -> list[int]:
    """Return the numbers below ``end`` that a text names; none for something else."""
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        return []
    bounds = (part.partition("-") for part in text.split(",") if part)
    ranges = (range(int(first), min(int(last or first) + 1, end)) for first, _, last in bounds)
    return list(chain.from_iterable(ranges))


def in_flight_of(event: Any) -> int | None:
    """Return how many of its jobs a trigger has not seen the end of, if its event says so."""
    found = event.get("in_flight") if isinstance(event, Mapping) else None
    return found if isinstance(found, int) else None


def are_all_over(event: Mapping[str, Any]) -> bool:
    """Return whether a trigger has seen the end of each of its jobs."""
    return event.get("outcome") == GO_ON and in_flight_of(event) == 0


def error_of(job: Job) -> RunGenError | None:
    """Return why a job did not complete."""
    try:
        job.raise_for_status()
    except RunGenError as error:
        return error
    return None


def raise_for_jobs(jobs: Iterable[Job], count: int = 0) -> None:
    """
    Raise if a job did not complete: its own error for one, an error that names the first ten for more.

    :param count: how many did not complete, when ``jobs`` does not hold all of them.
    :raises RunGenJobError: a job did not complete.
    """
    by_job = {job.id: error_of(job) for job in jobs}
    if errors := [error for error in by_job.values() if error is not None]:
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
    reasons = join_reasons([brief_reason(error) for error in errors[:MAX_REASONS]], count)
    message = f"{count} jobs {problem}: {reasons}"
    return first.revised(message, hint=first.hint, retryable=first.retryable)


def brief_reason(error: RunGenError) -> str:
    """Return the message of an error for a line that says already that something failed."""
    return error.message.removeprefix("Failed: ")


def is_misconfigured(error: BaseException) -> bool:
    """Return whether key, account or connection is at fault, which is no reason to cancel a job."""
    return is_refusal(error) or isinstance(error, RunGenConfigError)


def one_line(error: RunGenError) -> str:
    """Return why a task fails, and what to do, cut to what Airflow shows as one line."""
    text = str(error)
    room = MAX_LINE - (len(text) - len(error.message))
    if len(text) <= MAX_LINE or not isinstance(error, RunGenAPIError | RunGenConfigError):
        return text
    return text.replace(error.message, f"{error.message[: max(room, 100) - 1]}…", 1)


@contextmanager
def fail_without_retry(
    *also: type[RunGenError],
    is_killed: Callable[[], bool] = lambda: False,
    explain: Callable[[RunGenError], None] = lambda error: None,
) -> Iterator[None]:
    """
    Convert permanent errors to `AirflowFailException`.

    :param also: errors that are permanent here, though the same call may succeed later.
    :param is_killed: whether the attempt was killed, so that any error may be that of the kill.
    :param explain: completes an error: that of a trigger does not name the connection.
    """
    try:
        yield
    except RunGenError as error:
        explain(error)
        error.retryable = is_killed() or (error.retryable and not isinstance(error, also))
        if error.retryable:
            raise
        # its traceback, which would be logged a second time as that of the cause
        failure = error.named_in(AirflowFailException(one_line(error)))
        raise failure.with_traceback(error.__traceback__) from None


def log_failure(error: BaseException) -> None:
    """
    Log why a task fails, and at DEBUG where that came from.

    What to do begins a line, since Airflow's UI cuts long ones.
    """
    hint = getattr(error, "hint", "")
    log.error("%s", str(error).replace(f" {hint}", f"\n{hint}") if hint else error)
    frames: list[str] = []
    cause: BaseException | None = error
    while cause is not None:  # without their texts, which may have secrets of libraries
        frames += [f"{type(cause).__name__}\n", *traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or cause.__context__
    log.debug("Raised at\n%s", "".join(frames))


def is_permanent(error: RunGenError) -> bool:
    """Return whether a job has this error at the next look, too."""
    return not error.retryable or isinstance(error, JOB_IS_OVER)


def max_failures(max_failed: float | str, count: int) -> int:
    """Return how many of ``count`` may fail."""
    if isinstance(max_failed, str):  # any
        return count
    if isinstance(max_failed, float):
        return math.floor(max_failed * count + 1e-9)  # 0.29 of 100 are 28.999999999999996
    return max_failed


def join_reasons(reasons: Sequence[str], count: int) -> str:
    """
    Return some of many reasons as one text.

    :param count: how many reasons there are.
    """
    more = [f"and {count - len(reasons)} more"] if count > len(reasons) else []
    return "; ".join([*reasons, *more])
