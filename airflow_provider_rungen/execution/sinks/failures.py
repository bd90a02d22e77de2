"""Decide whether more jobs failed than may fail, and which jobs have no use any more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.sinks.batch_result import BatchResult, Stopped
from airflow_provider_rungen.execution.task.outcomes import (
    brief_reason,
    combined_error,
    format_reasons,
    is_permanent,
    max_failures,
)

log = logging.getLogger(__name__)


# XCom has so many failed jobs at most, and so many characters of each error.
MAX_FAILED = 1000
MAX_FAILED_ERROR = 200
_USELESS = (RunGenJobFailedError, RunGenJobCanceledError, RunGenNotFoundError, RunGenResultError)


def has_expired(error: RunGenError) -> bool:
    """Return whether an output of a job expired before it was stored."""
    return isinstance(error, RunGenOutputError) and error.is_expired


def is_useless(error: RunGenError) -> bool:
    """Return whether a job with this error has no use any more, so that a retry runs its input again."""
    return isinstance(error, _USELESS) or has_expired(error)


class Advice(Protocol):
    """What an attempt knows of what comes after it."""

    known_app_id: str

    def retry_hint(self, some: str, everything: str) -> str:
        """
        Return what a retry does.

        :param some: what it runs if it finds what this attempt did.
        :param everything: what it runs if it does not.
        """

    def clear_hint(self) -> str:
        """Return what to do about inputs that no retry can help, and what that submits."""


def failed_jobs(
    ids: Sequence[str | None],
    reasons: Mapping[int, str],
    places: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """
    Return the XCom ``failed``: what is known of the first jobs that failed.

    :param ids: the jobs, with ``None`` for an input without a job.
    :param reasons: why they failed, by index.
    :param places: the ``file`` and ``line`` of inputs, by index.
    """
    return [
        {
            "index": index,
            **places.get(index, {}),
            "job_id": ids[index],
            "error": clean_text(reasons[index], MAX_FAILED_ERROR),
        }
        for index in sorted(reasons)[:MAX_FAILED]
    ]


def failure_reasons(ids: Sequence[str | None], errors: Mapping[str, RunGenError]) -> dict[int, str]:
    """
    Return why jobs failed, by index.

    :param ids: the jobs, with ``None`` for an input without a job.
    :param errors: the errors of those that failed.
    """
    return {
        index: "it has no job" if job_id is None else brief_reason(errors[job_id])
        for index, job_id in enumerate(ids)
        if job_id is None or job_id in errors
    }


def enforce_max_failed(
    ids: Sequence[str | None],
    errors: Mapping[str, RunGenError],
    reasons: Mapping[int, str],
    max_failed: float,
    logged_failures: int,
) -> None:
    """
    Fail when too many jobs failed, or one is not over.

    :param reasons: see `failure_reasons`.
    :param max_failed: how many may fail: a number, or a share below 1.
    :param logged_failures: how many failures the log names already.
    """
    if not reasons:
        return
    allowed = max_failures(max_failed, len(ids))
    is_running = any(type(error) is RunGenJobError for error in errors.values())
    if len(reasons) <= allowed and not is_running:
        if len(reasons) > logged_failures:
            log.warning(
                "Failed: %d of %d jobs, as max_failed allows: %s",
                *(len(reasons), len(ids), format_reasons(reasons)),
            )
        return
    permanent = sum(ids[index] is None or is_permanent(errors[ids[index] or ""]) for index in reasons)
    named = [error for error in errors.values() if permanent > allowed or not is_permanent(error)]
    limit = f" ({allowed} of {len(ids)} may fail)" if max_failed else ""
    raise combined_error(named, len(named), f"were not collected{limit}")


def inputs_error(
    run: Advice, result: BatchResult, reasons: Mapping[int, str], allowed: int
) -> RunGenJobFailedError:
    """
    Return the error of a batch of which too many inputs failed.

    :param reasons: see `BatchResult.reasons`.
    :param allowed: how many may fail.
    """
    refused = result.refused
    # a retry is refused in the same way
    retryable = len(reasons) > len(refused) or any(error.retryable for error in refused.values())
    limit = f", {allowed} may (max_failed)" if allowed else ""
    return RunGenJobFailedError(
        f"{len(reasons)} of {len(result.ids)} inputs failed{limit}: {format_reasons(reasons)}",
        app_id=run.known_app_id,
        job_id=next((job_id for index in reasons if (job_id := result.ids[index])), ""),
        hint=run.retry_hint("only these again", "all inputs again") if retryable else run.clear_hint(),
        retryable=retryable,
    )


def stop_error(run: Advice, result: BatchResult, stopped: Stopped, where: str = "") -> RunGenJobFailedError:
    """
    Return the error of a batch that was stopped.

    :param where: where more of the reasons are.
    """
    hint = run.clear_hint()
    if stopped.retryable:
        hint = f"Check the app. {run.retry_hint('only what did not complete', 'all inputs again')}"
    reasons = format_reasons(result.failures())
    return stopped.error(run.known_app_id, reasons, len(result.ids), where + hint)


def error_text(error: BaseException) -> str:
    """Return the message of an error that ends a task, without its hint."""
    cause = error if isinstance(error, RunGenError) else error.__cause__
    if isinstance(cause, RunGenError):
        return cause.message
    return clean_text(f"{type(error).__name__}: {error}")
