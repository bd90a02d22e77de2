"""The result of a batch: the job of each input, why inputs have no result, and whether too many have none."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.texts import clean_text, format_ids
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution.task.outcomes import (
    MAX_REASONS,
    brief_reason,
    combined_error,
    is_permanent,
    join_reasons,
    max_failures,
)

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

# XCom has so many failed jobs at most, and so many characters of each error.
MAX_FAILED = 1000
MAX_FAILED_ERROR = 200
#: Why an input has no job, if it was neither refused nor submitted.
NOT_SUBMITTED = "it was not submitted"
# How inputs end that a stop has kept from running.
_STOPPED = (RunGenJobCanceledError, RunGenJobTimeoutError)


@dataclass(frozen=True)
class Stopped:
    """
    A batch that was stopped, because everything failed.

    :param cause: what happened, with the figures.
    :param canceled: how many of its jobs were canceled.
    :param unsent: how many inputs were not submitted.
    :param not_canceled: the jobs that could not be canceled.
    :param retryable: whether a retry may have more success.
    """

    cause: str
    canceled: int
    unsent: int
    not_canceled: Sequence[str]
    retryable: bool


@dataclass(frozen=True)
class BatchResult:
    """
    The result of a batch: the job of each input.

    :param ids: the job of each input, or ``None``.
    :param refused: by index, the errors of inputs that have no job.
    :param jobs: the jobs that have ended, all that failed among them.
    :param stopped: why it was stopped before all inputs had a job.
    :param shared: the jobs that another task run submitted, or that were stored before.
    :param submitted: how many jobs this task run submitted, in all its attempts; by default, those of ``ids``
        that are not shared.
    """

    ids: list[str | None]
    refused: Mapping[int, RunGenError] = field(default_factory=dict)
    jobs: Sequence[Job] = ()
    stopped: Stopped | None = None
    shared: Collection[str] = ()
    submitted: int | None = None

    @property
    def job_ids(self) -> list[str]:
        """The jobs. Equal inputs may share one."""
        return [job_id for job_id in dict.fromkeys(self.ids) if job_id]

    def errors(self, by_job: Mapping[str, RunGenError]) -> dict[int, RunGenError]:
        """
        Return why inputs have no result, by index.

        :param by_job: why jobs have none.
        """
        found = {}
        for index, job_id in enumerate(self.ids):
            if index in self.refused:
                found[index] = self.refused[index]
            elif job_id is None:
                found[index] = RunGenJobTimeoutError(NOT_SUBMITTED)
            elif job_id in by_job:
                found[index] = by_job[job_id]
        return found


def check_single(app_id: str, errors: Mapping[int, RunGenError]) -> None:
    """
    Raise the error of the only job.

    :raises RunGenError: it was refused, did not complete, or there was no time to submit it.
    """
    for error in errors.values():
        if type(error) is RunGenJobTimeoutError and not error.job_id:
            message = f"The time was up before the job: {NOT_SUBMITTED} {format_ids(app_id)}"
            raise RunGenJobTimeoutError(message, app_id=app_id)
        raise error


def check_inputs(
    run: Runner, result: BatchResult, errors: Mapping[int, RunGenError], max_failed: float
) -> None:
    """
    Report which inputs of a batch failed: in the log and as the XCom ``failed``.

    :param errors: why they have no result, by index.
    :param max_failed: how many may fail: a number, or a share below 1.
    :raises RunGenJobFailedError: more failed, or the batch was stopped.
    """
    push_failed(run.ti, result.ids, errors, run.locate(errors))
    # a retry runs a job that failed again, and is refused what was refused
    ended = {job.id for job in result.jobs}
    # what keeps a result from being returned says how it can be
    hints = [error.hint for index, error in sorted(errors.items()) if result.ids[index] and error.hint]
    check_failures(
        run,
        result,
        errors,
        len(errors),
        len(result.ids),
        max_failed=max_failed,
        what="inputs",
        reasons=_reasons(errors),
        job_id=next((job_id for index in sorted(errors) if (job_id := result.ids[index])), ""),
        retryable=any(error.retryable or result.ids[index] in ended for index, error in errors.items()),
        hint=hints[0] if hints else "",
    )


def check_failures(
    run: Runner,
    result: BatchResult,
    errors: Mapping[int, RunGenError],
    failed: int,
    count: int,
    *,
    max_failed: float,
    what: str,
    reasons: str,
    job_id: str,
    retryable: bool,
    hint: str = "",
    where: str = "",
) -> None:
    """
    Raise if too much failed, and warn if something did.

    :param errors: why inputs have no result, by index.
    :param failed: how many failed.
    :param count: of how many.
    :param max_failed: how many may fail: a number, or a share below 1.
    :param what: what failed, in the plural.
    :param job_id: the first job that failed.
    :param retryable: whether a retry may help.
    :param hint: what to do if no retry helps. By default, that of the attempt.
    :param where: where more of the reasons are.
    :raises RunGenJobFailedError: more failed, or the batch was stopped.
    """
    if result.stopped is not None:
        raise _stop_error(run, result.stopped, errors, len(result.ids), where)
    if failed > (allowed := max_failures(max_failed, count)):
        hint = hint or run.clear_hint()
        if retryable:
            hint = run.retry_hint("only these again", f"all {what} again")
        message = f"{failed} of {count} {what} failed, {allowed} may (max_failed): {reasons}"
        app_id = run.known_app_id
        raise RunGenJobFailedError(
            message, app_id=app_id, job_id=job_id, hint=where + hint, retryable=retryable
        )
    _warn_of_failures(failed, count, what, reasons)


def check_collected(
    ti: Any, result: BatchResult, errors: Mapping[int, RunGenError], max_failed: float
) -> None:
    """
    Report which jobs could not be collected: in the log and as the XCom ``failed``.

    :param errors: why they have no result, by index.
    :param max_failed: how many may fail: a number, or a share below 1.
    :raises RunGenError: more failed, or one has not ended.
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
    _warn_of_failures(len(errors), len(result.ids), "jobs", _reasons(errors))


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


def _stop_error(
    run: Runner, stopped: Stopped, errors: Mapping[int, RunGenError], count: int, where: str
) -> RunGenJobFailedError:
    failed = {index: error for index, error in errors.items() if not isinstance(error, _STOPPED)}
    message = (
        f"Stopped: {stopped.cause}: {_reasons(failed)}. {stopped.canceled + stopped.unsent} of {count} "
        f"inputs were not bought ({stopped.canceled} jobs canceled, {stopped.unsent} inputs not submitted)"
    )
    if stopped.not_canceled:
        message += f". {len(stopped.not_canceled)} jobs could not be canceled and may still run"
    hint = run.clear_hint()
    if stopped.retryable:
        hint = f"Check the app. {run.retry_hint('only what did not complete', 'all inputs again')}"
    app_id = run.known_app_id
    return RunGenJobFailedError(message, app_id=app_id, hint=where + hint, retryable=stopped.retryable)


def _warn_of_failures(failed: int, count: int, what: str, reasons: str) -> None:
    if failed:
        log.warning("Failed: %d of %d %s, as max_failed allows: %s", failed, count, what, reasons)


def _reasons(errors: Mapping[int, RunGenError]) -> str:
    named = [f"input {index}: {brief_reason(errors[index])}" for index in sorted(errors)[:MAX_REASONS]]
    return join_reasons(named, len(errors))
