"""Decide whether too many inputs or jobs failed, and which jobs have no use any more."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
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
# How the inputs end that a stop has kept from running.
_STOPPED = (RunGenJobCanceledError, RunGenJobTimeoutError)


class Advice(Protocol):
    """What an attempt that runs jobs knows of its inputs, and of what comes after it."""

    known_app_id: str

    def locate(self, numbers: Iterable[int]) -> Mapping[int, Mapping[str, Any]]:
        """Return the ``file`` and ``line`` of inputs, by number: see `Source.places`."""

    def retry_hint(self, some: str, everything: str) -> str:
        """
        Return what a retry does.

        :param some: what it runs if it finds what this attempt did.
        :param everything: what it runs if it does not.
        """

    def clear_hint(self) -> str:
        """Return what to do about inputs that no retry can help, and what that submits."""


def check_inputs(
    ti: Any, advice: Advice, result: BatchResult, errors: Mapping[int, RunGenError], max_failed: float
) -> None:
    """
    Report which inputs of a batch failed: in the log and as the XCom ``failed``.

    :param errors: why they have no result, by index.
    :param max_failed: how many may fail: a number, or a share below 1.
    :raises RunGenJobFailedError: more failed, or the batch was stopped.
    """
    push_failed(ti, result.ids, errors, advice.locate(errors))
    if result.stopped is not None:
        raise stop_error(advice, result.stopped, errors, len(result.ids))
    reasons = _reasons(errors)
    if len(errors) > (allowed := max_failures(max_failed, len(result.ids))):
        # a retry runs a job that failed again, and is refused what was refused
        over = {job.id for job in result.jobs}
        # what keeps a result from being returned says how it can be
        hints = [error.hint for index, error in sorted(errors.items()) if result.ids[index] and error.hint]
        raise failure_error(
            advice,
            f"{len(errors)} of {len(result.ids)} inputs failed, {allowed} may (max_failed): {reasons}",
            job_id=next((job_id for index in sorted(errors) if (job_id := result.ids[index])), ""),
            what="inputs",
            retryable=any(error.retryable or result.ids[index] in over for index, error in errors.items()),
            otherwise=hints[0] if hints else advice.clear_hint(),
        )
    warn_of_failures(len(errors), len(result.ids), "inputs", reasons)


def check_collected(
    ti: Any, result: BatchResult, errors: Mapping[int, RunGenError], max_failed: float
) -> None:
    """
    Report which jobs could not be collected: in the log and as the XCom ``failed``.

    :param errors: why they have no result, by index.
    :param max_failed: how many may fail: a number, or a share below 1.
    :raises RunGenError: more failed, or one is not over.
    """
    push_failed(ti, result.ids, errors)
    allowed = max_failures(max_failed, len(result.ids))
    is_running = any(type(error) is RunGenJobError for error in errors.values())
    if len(errors) > allowed or is_running:
        is_hopeless = sum(map(is_permanent, errors.values())) > allowed
        # a job may be there several times
        of_jobs = dict.fromkeys(error for index, error in errors.items() if result.ids[index] is not None)
        named = [error for error in of_jobs if is_hopeless or not is_permanent(error)]
        limit = f" ({allowed} of {len(result.ids)} may fail)" if max_failed else ""
        raise combined_error(named, len(named), f"were not collected{limit}")
    warn_of_failures(len(errors), len(result.ids), "jobs", _reasons(errors))


def failure_error(
    advice: Advice, message: str, *, job_id: str, what: str, retryable: bool, otherwise: str, where: str = ""
) -> RunGenJobFailedError:
    """
    Return the error of a task of which too much failed.

    :param what: what has failed, in the plural.
    :param otherwise: what to do if no retry helps.
    :param where: where more of the reasons are.
    """
    hint = advice.retry_hint("only these again", f"all {what} again") if retryable else otherwise
    return RunGenJobFailedError(
        message, app_id=advice.known_app_id, job_id=job_id, hint=where + hint, retryable=retryable
    )


def stop_error(
    advice: Advice, stopped: Stopped, errors: Mapping[int, RunGenError], count: int, where: str = ""
) -> RunGenJobFailedError:
    """
    Return the error of a batch that was stopped.

    :param errors: why inputs have no result, by index.
    :param count: how many inputs there are.
    :param where: where more of the reasons are.
    """
    reasons = _reasons({index: error for index, error in errors.items() if not isinstance(error, _STOPPED)})
    not_bought = stopped.canceled + stopped.unsent
    message = (
        f"Stopped: {stopped.cause}: {reasons}. {not_bought} of {count} inputs were not bought "
        f"({stopped.canceled} jobs canceled, {stopped.unsent} inputs not submitted)"
    )
    if stopped.not_canceled:
        message += f". {len(stopped.not_canceled)} jobs could not be canceled and may still run"
    hint = advice.clear_hint()
    if stopped.retryable:
        hint = f"Check the app. {advice.retry_hint('only what did not complete', 'all inputs again')}"
    return RunGenJobFailedError(
        message, app_id=advice.known_app_id, job_id="", hint=where + hint, retryable=stopped.retryable
    )


def warn_of_failures(failed: int, count: int, what: str, reasons: str) -> None:
    """Log what failed, if anything did, and may."""
    if failed:
        log.warning("Failed: %d of %d %s, as max_failed allows: %s", failed, count, what, reasons)


def error_text(error: BaseException) -> str:
    """Return the message of an error that ends a task, without its hint."""
    cause = error if isinstance(error, RunGenError) else error.__cause__
    if isinstance(cause, RunGenError):
        return cause.message
    return clean_text(f"{type(error).__name__}: {error}")


def push_failed(
    ti: Any,
    ids: Sequence[str | None],
    errors: Mapping[int, RunGenError],
    places: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """
    Push the XCom ``failed``: what is known of the first inputs that failed.

    :param errors: why they have no result, by index.
    :param places: the ``file`` and ``line`` of inputs, by index.
    """
    failed = [
        {
            "index": index,
            **places.get(index, {}),
            "job_id": ids[index],
            "error": clean_text(brief_reason(errors[index]), MAX_FAILED_ERROR),
        }
        for index in sorted(errors)[:MAX_FAILED]
    ]
    ti.xcom_push(key="failed", value=failed)


def _reasons(errors: Mapping[int, RunGenError]) -> str:
    return format_reasons({index: brief_reason(error) for index, error in errors.items()})
