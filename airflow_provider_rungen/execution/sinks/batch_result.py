"""The result of a run: the job of each input, whether too many failed, and the sink of an id alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.retry import is_outage
from airflow_provider_rungen.client.texts import clean_text, format_count, format_ids
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenGivenUpError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
    RunGenLimitError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution.task.attempts import Attempt
from airflow_provider_rungen.execution.task.outcomes import (
    MAX_FAILED,
    MAX_FAILED_ERROR,
    MAX_REASONS,
    brief_reason,
    combined_error,
    error_of,
    is_permanent,
    join_reasons,
    max_failures,
)
from airflow_provider_rungen.execution.task.report import TaskOutcome

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.jobs.plans import Plan
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sinks.result_sink import ResultSink
    from airflow_provider_rungen.execution.task.run import TaskRun

    #: Takes the jobs of a task as they end: see `Collector`.
    Sink: TypeAlias = "JobId | ResultSink"

log = logging.getLogger(__name__)

#: Why an input has no job, if it was neither refused nor submitted.
NOT_SUBMITTED = "it was not submitted"
# What keeps inputs from being submitted, and is the error of the task.
_LIMITS = (RunGenLimitError, RunGenOutputError)
# How inputs end that a stop has kept from running.
_STOPPED = (RunGenJobCanceledError, RunGenJobTimeoutError)


@dataclass(frozen=True)
class Stopped:
    """
    A run that was stopped, because everything failed.

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
    The result of a run: the job of each input.

    :param ids: the job of each input, or ``None``.
    :param refused: by index, the errors of inputs that have no job.
    :param jobs: the jobs that have ended, all that failed among them.
    :param stopped: why it was stopped before all inputs had a job.
    :param shared: the jobs that another task run submitted, or that were stored before.
    """

    ids: list[str | None]
    refused: Mapping[int, RunGenError] = field(default_factory=dict)
    jobs: Sequence[Job] = ()
    stopped: Stopped | None = None
    shared: Collection[str] = ()

    @property
    def job_ids(self) -> list[str]:
        """The jobs. Equal inputs may share one."""
        return [job_id for job_id in dict.fromkeys(self.ids) if job_id]

    def errors(self, by_job: Mapping[str, RunGenError]) -> dict[int, RunGenError]:
        """
        Return why inputs have no result, by index.

        :param by_job: why jobs have none.
        """
        unsent = RunGenJobTimeoutError(NOT_SUBMITTED)
        found = (
            self.refused.get(index) or (unsent if job_id is None else by_job.get(job_id))
            for index, job_id in enumerate(self.ids)
        )
        return {index: error for index, error in enumerate(found) if error is not None}


def check_inputs(
    run: Runner,
    result: BatchResult,
    errors: Mapping[int, RunGenError],
    *,
    count: int,
    what: str = "inputs",
    reasons: Sequence[str] = (),
    where: str = "",
) -> None:
    """
    Raise if too many inputs failed, and warn if some did. Raise the error of a single one.

    :param errors: why they have no result, by index.
    :param count: how many there are.
    :param what: what they are, in the plural.
    :param reasons: the first reasons. By default, they name the inputs by their indexes.
    :param where: where more of the reasons are.
    :raises RunGenError: more failed than may, or the run was stopped.
    """
    if isinstance(unsent := run.report.unsent_error, _LIMITS):
        raise unsent
    if run.is_single and errors:
        raise _single_error(run.known_app_id, errors[0])
    max_failed = run.options.max_failed
    outage = _find_outage(run, result, errors, count)
    if result.stopped is not None:
        error = _stop_error(run, result.stopped, errors, count, where)
        if max_failed != "any" or outage is not None:
            raise error
        log.error("%s", error)
    why = join_reasons(reasons, len(errors)) if reasons else _reasons(errors)
    if len(errors) <= (allowed := max_failures(max_failed, count)):
        if outage is not None:
            some = "what failed otherwise again, and downloads the outputs"
            outage.add_hint(_retry_hint(run, result, errors, what, some))
            raise outage
        _warn_of_failures(len(errors), count, what, why)
        return
    retryable, hint = _what_next(run, result, errors, what)
    raise RunGenJobFailedError(
        f"{len(errors)} of {count} {what} failed, {allowed} may (max_failed): {why}",
        app_id=run.known_app_id,
        job_id=next((job_id for index in sorted(errors) if (job_id := result.ids[index])), ""),
        hint=where + hint,
        retryable=retryable,
    )


def _find_outage(
    run: TaskRun[Any], result: BatchResult, errors: Mapping[int, RunGenError], count: int
) -> RunGenError | None:
    """
    Return the outage that may not be allowed as a failure, for it says nothing of the jobs.

    On the last attempt, what the others made is worth more, unless nothing is left, mostly for the outage.
    """
    outages = [each for index, each in errors.items() if result.ids[index] is not None and is_outage(each)]
    took_all = len(errors) == count <= 2 * len(outages)
    if outages and (Attempt.of(run.context, run.task).has_next or took_all):
        return combined_error(outages, len(outages), "were not collected")
    return None


def _what_next(
    run: Runner, result: BatchResult, errors: Mapping[int, RunGenError], what: str
) -> tuple[bool, str]:
    """Return whether a retry may help inputs that failed, and what to do about them."""
    # a retry runs a job that failed again, and is refused what was refused
    ended = {job.id for job in result.jobs}
    # only a ledger is to buy what has expired
    worth_a_job = {
        index
        for index, error in errors.items()
        if result.ids[index] in ended and (run.options.ledger or not isinstance(error, RunGenOutputError))
    }
    if any(error.retryable or index in worth_a_job for index, error in errors.items()):
        return True, _retry_hint(run, result, errors, what, "only these again")
    # what keeps a result from being returned says how it can be; what gives an input up, how it is not
    helpful = (
        error
        for index, error in sorted(errors.items())
        if error.hint and (result.ids[index] or isinstance(error, RunGenGivenUpError))
    )
    first = next(helpful, None)
    return False, run.advice.clear_hint(is_last=True) if first is None else first.hint


def _retry_hint(
    run: Runner, result: BatchResult, errors: Mapping[int, RunGenError], what: str, some: str
) -> str:
    """
    Return what a retry does about inputs that failed.

    :param some: what it runs, if it has to buy jobs and finds what this attempt did.
    """
    ended = {job.id for job in result.jobs}
    buys = any((job_id := result.ids[index]) is None or job_id in ended for index in errors)
    some = some if buys else "no job again, and downloads the outputs"
    return run.advice.retry_hint(some, buys=buys)


def check_collected(
    run: TaskRun[Any], result: BatchResult, errors: Mapping[int, RunGenError], max_failed: float | str
) -> None:
    """
    Report which jobs could not be collected: in the log and as the XCom ``failed``.

    :param errors: why they have no result, by index.
    :param max_failed: how many may fail: see `max_failures`.
    :raises RunGenError: more failed, or one has not ended.
    """
    push_failed(run, result.ids, errors)
    allowed = max_failures(max_failed, len(result.ids))
    is_running = any(type(error) is RunGenJobError for error in errors.values())
    if len(errors) > allowed or is_running:
        are_permanent = sum(map(is_permanent, errors.values())) > allowed
        # a job may be there several times
        of_jobs = dict.fromkeys(error for index, error in errors.items() if result.ids[index] is not None)
        named = [error for error in of_jobs if are_permanent or not is_permanent(error)]
        limit = f" ({allowed} of {len(result.ids)} may fail)" if max_failed else ""
        raise combined_error(named, len(named), f"were not collected{limit}")
    if (outage := _find_outage(run, result, errors, len(result.ids))) is not None:
        raise outage
    _warn_of_failures(len(errors), len(result.ids), "jobs", _reasons(errors))


def push_failed(
    run: TaskRun[Any],
    ids: Sequence[str | None],
    errors: Mapping[int, RunGenError],
) -> None:
    """
    Push the XCom ``failed``: what is known of the first inputs that failed.

    :param errors: why they have no result, by index.
    """
    failed = [
        {
            "index": index,
            "job_id": ids[index],
            "error": clean_text(brief_reason(errors[index]), MAX_FAILED_ERROR),
        }
        for index in sorted(errors)[:MAX_FAILED]
    ]
    run.push("failed", failed)


def _single_error(app_id: str, error: RunGenError) -> RunGenError:
    if type(error) is RunGenJobTimeoutError and not error.job_id:
        ids = "" if app_id in error.message else f" {format_ids(app_id)}"
        message = f"The time was up before the job: {error.message}{ids}"
        return RunGenJobTimeoutError(message, app_id=app_id, retry_after=error.retry_after)
    return error


def _stop_error(
    run: Runner, stopped: Stopped, errors: Mapping[int, RunGenError], count: int, where: str
) -> RunGenJobFailedError:
    failed = {index: error for index, error in errors.items() if not isinstance(error, _STOPPED)}
    message = f"Stopped: {stopped.cause}. {stopped.unsent} of {count} inputs were not bought"
    if stopped.canceled:
        message += f", {format_count(stopped.canceled, 'job')} canceled (billed for what they ran)"
    if stopped.not_canceled:
        message += f". {len(stopped.not_canceled)} jobs could not be canceled and may still run"
    # last, for they may be cut
    message += f". Reasons: {_reasons(failed)}"
    hint = run.advice.clear_hint()
    if stopped.retryable:
        hint = f"Check the app. {run.advice.retry_hint('only what did not complete')}"
    app_id = run.known_app_id
    return RunGenJobFailedError(message, app_id=app_id, hint=where + hint, retryable=stopped.retryable)


def _warn_of_failures(failed: int, count: int, what: str, reasons: str) -> None:
    if failed:
        log.warning("Failed: %d of %d %s, as max_failed allows: %s", failed, count, what, reasons)


def _reasons(errors: Mapping[int, RunGenError]) -> str:
    named = [f"input {index}: {brief_reason(errors[index])}" for index in sorted(errors)[:MAX_REASONS]]
    return join_reasons(named, len(errors))


# --- an id ---


class JobId:
    """
    Return the id of a single job. There is nothing else to take.

    :param run: the attempt.
    """

    stores = False
    hold = staticmethod(strip_payloads)

    def __init__(self, run: Runner) -> None:
        self.errors: dict[str, RunGenError] = {}
        self.stored: list[StoredJob] = []
        self._run = run

    def check(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def accepts(self, stored: StoredJob) -> bool:
        return True

    def add_stored(self, stored: StoredJob) -> None:
        pass

    def gather(self, app_id: str, job_ids: Iterable[str], jobs: Iterable[Job] = ()) -> None:
        pass

    def finish(self, result: BatchResult, plan: Plan) -> Any:
        run, job_ids = self._run, result.job_ids
        by_job = {job.id: error for job in result.jobs if (error := error_of(job)) is not None}
        check_inputs(run, result, result.errors(self.errors | by_job), count=1)
        run.record_outcome(TaskOutcome(run.known_app_id, job_ids))
        return next(iter(job_ids), None)

    def report(self, result: BatchResult, plan: Plan, error: BaseException) -> None:
        pass

    def close(self) -> None:
        pass
