"""Find out how the jobs of earlier attempts are, and cancel those that nobody waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.job_poller import concerns_one_job
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RejectRow,
    RunGenBadRequestError,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenResultError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.jobs.log_state import rows_of
from airflow_provider_rungen.runs import rows
from airflow_provider_rungen.runs.rows import InputState, JobState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.adopting import Unwanted
    from airflow_provider_rungen.execution.jobs.job_wait import JobWait
    from airflow_provider_rungen.execution.jobs.task_log import TaskLog
    from airflow_provider_rungen.execution.task.options import JobOptions

log = logging.getLogger(__name__)

# Seconds that the jobs of earlier plans have to be canceled.
CANCEL_TIME = 10.0
# Seconds without an answer after which a job is left to the wait, so that it holds up no submission.
LOOK_TIME = 10.0
ENDS = {
    JobStatus.COMPLETED: JobState.COMPLETED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.CANCELED: JobState.CANCELED,
}
_VERDICTS: dict[JobState, type[RunGenError]] = {
    JobState.INVALID: RunGenResultError,
    JobState.REJECTED: RejectRow,
}


def end_of(error: RunGenError) -> JobState:
    """Return how a job ended, given why it cannot be used."""
    if isinstance(error, RunGenJobFailedError):
        return JobState.FAILED
    if isinstance(error, RunGenJobCanceledError):
        return JobState.CANCELED
    if isinstance(error, RejectRow):
        return JobState.REJECTED
    return JobState.LOST if isinstance(error, RunGenNotFoundError) else JobState.COMPLETED


def job_at_end(job: rows.Job, app_id: str) -> Job:
    """Return a job that has no result as the log knows it."""
    verdict = _VERDICTS.get(job.state)
    return Job(
        id=job.id,
        app_id=app_id,
        status=JobStatus.CANCELED if job.state is JobState.CANCELED else JobStatus.FAILED,
        error=job.why,
        execution_time=job.seconds,
        cause=None if verdict is None else verdict(job.why, app_id=app_id, job_id=job.id),
    )


@dataclass
class Resuming:
    """
    Resumes what earlier attempts left.

    :param task_log: the log, after the attempt has begun.
    :param wait: asks the service, and cancels.
    :param options: the operator's parameters.
    :param input_of: returns the input of a row.
    :param digest_of: returns the fingerprint of an input.
    :param is_remembered: returns whether a ledger names a job for its input, too.
    """

    task_log: TaskLog
    wait: JobWait
    options: JobOptions
    input_of: Callable[[int], Any]
    digest_of: Callable[[Mapping[str, Any]], str]
    is_remembered: Callable[[str], bool]
    #: The jobs that the service does not know. Their outputs may be stored.
    lost: list[str] = field(default_factory=list)

    @property
    def app_id(self) -> str:
        """The app."""
        return self.task_log.app_id

    def check_unknown(self, how_to_submit_again: str, *, is_cleared: bool) -> None:
        """
        Decide about inputs of which it is unknown whether they have a job.

        :raises RunGenSubmissionUnknownError: there are some, and ``on_unknown_submission`` is ``fail``.
        """
        unknown = self.task_log.jobs.inputs(InputState.UNKNOWN)
        if not unknown:
            return
        is_single = self.task_log.count == 1
        if self.options.on_unknown_submission == "fail" and not is_cleared:
            message = (
                f"Fate unknown: an earlier attempt may have created the job {format_ids(self.app_id)}"
                if is_single
                else f"Fate unknown: an earlier attempt may have created jobs of app {self.app_id} for up to "
                f"{len(unknown)} inputs (the first is inputs[{unknown[0]}])"
            )
            raise RunGenSubmissionUnknownError(message, hint=how_to_submit_again, retryable=False)
        if is_single:
            log.warning(
                "Fate unknown: an earlier attempt may have created the job. Submitting it again, which may "
                "run and bill it twice %s",
                format_ids(self.app_id),
            )
        else:
            log.warning(
                "Fate unknown: %d inputs may have jobs already. Submitting them again, which may run and "
                "bill them twice",
                len(unknown),
            )

    def look(self) -> None:
        """Ask the service how the jobs are that may run, and whose they are."""
        jobs = self.task_log.jobs
        known = list(dict.fromkeys([*jobs.running, *jobs.unchecked, *jobs.outdated]))
        if not known:
            metrics.incr("jobs.resumed", self._completed_count)
            if self.task_log.count == 1 and self._completed_count:
                log.info("Resuming a job that is COMPLETED %s", format_ids(self.app_id, self._only_job()))
            return
        try:
            self.wait.refetch(self.app_id, known, self._note, LOOK_TIME)
        except RunGenError as error:
            # a wait outlasts what a look does not; but whose a job is has to be known first
            may_wait = self.options.wait_for_completion and not any(map(self._is_strange, jobs.unchecked))
            if not may_wait or not retry.is_transient(error):
                raise
            log.warning("%s; polled again with the others", error.message)
        self._log_found(known)
        self._cancel_outdated()

    def _note(self, job_id: str, outcome: Job | RunGenError) -> None:
        jobs = self.task_log.jobs
        is_ours = isinstance(outcome, Job) and self._is_ours(job_id, outcome)
        is_strange = self._is_strange(job_id)
        if isinstance(outcome, RunGenNotFoundError | RunGenBadRequestError):
            self.task_log.jobs.end(job_id, JobState.LOST)
            self.lost.append(job_id)
        elif isinstance(outcome, RunGenError):
            if is_strange or not concerns_one_job(outcome):
                raise outcome
            log.warning("%s; polled again with the others", outcome.message)
        elif is_strange and not is_ours:
            log.warning("Ignored a job that the log names, but whose input is another %s", job_id)
            jobs.check(job_id, is_ours=False)
        else:
            if job_id not in jobs.table.unchecked or (is_ours and isinstance(outcome.input, Mapping)):
                jobs.check(job_id, is_ours=True)
            else:
                jobs.disown(job_id)
            if outcome.is_terminal:
                state = ENDS[outcome.status]
                self.task_log.jobs.end(job_id, state, seconds=outcome.execution_time, why=outcome.error or "")

    def _is_strange(self, job_id: str) -> bool:
        """Return whether only storage names a job."""
        return job_id in self.task_log.jobs.table.unchecked and not self.is_remembered(job_id)

    def _is_ours(self, job_id: str, job: Job) -> bool:
        ours = self.input_of(self.task_log.jobs.table.input_of[job_id])
        # the service may add what was left out
        return not isinstance(job.input, Mapping) or all(
            job.input.get(name) == value for name, value in ours.items()
        )

    @property
    def _completed_count(self) -> int:
        """How many inputs have a job of this task run that completed."""
        totals = self.task_log.jobs.totals()
        return max(totals.completed - totals.shared, 0)

    def _only_job(self) -> str:
        rows = (row for _, row in rows_of(self.task_log, range(self.task_log.part_count)))
        return next((job.id for row in rows if (job := row.current(self.task_log.jobs.since))), "")

    def _log_found(self, known: Sequence[str]) -> None:
        jobs, totals = self.task_log.jobs, self.task_log.jobs.totals()
        running = [job_id for job_id in jobs.running if job_id in set(known)]
        metrics.incr("jobs.resumed", len(running) + self._completed_count)
        if self.task_log.count == 1:
            for job_id in known:
                self._log_single(job_id)
            return
        log.info(
            "Resuming a batch of %d inputs: %d jobs completed, %d are resumed, %d failed and run again. The "
            "rest is submitted now",
            *(self.task_log.count, totals.completed, len(running), len(jobs.inputs(InputState.TO_REPEAT))),
        )

    def _log_single(self, job_id: str) -> None:
        jobs, ids = self.task_log.jobs, format_ids(self.app_id, job_id)
        if job_id not in jobs.table.input_of or job_id in jobs.outdated:
            return
        match jobs.table.job(job_id).state:
            case JobState.LOST:
                log.info("Submitting a new job: that of an earlier attempt is gone %s", ids)
            case JobState.FAILED | JobState.CANCELED as state:
                log.info("Submitting a new job: that of an earlier attempt is %s %s", state.name, ids)
            case state:
                status = "COMPLETED" if state is JobState.COMPLETED else "not over"
                log.info("Resuming a job that is %s %s", status, ids)

    def _cancel_outdated(self) -> None:
        jobs = self.task_log.jobs
        outdated = [job_id for job_id in jobs.outdated if jobs.may_cancel(job_id)]
        if outdated and self.options.cancel_on_kill:
            log.info("The task was cleared: canceling its earlier jobs, which nobody waits for")
            self.cancel(outdated)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs of the app, and note it."""
        self.wait.cancel(self.app_id, job_ids, within=CANCEL_TIME + len(job_ids) / 10)
        for job_id in self.wait.canceled.intersection(job_ids):
            self.task_log.jobs.end(job_id, JobState.CANCELED)

    def cancel_unwanted(self, unwanted: Sequence[Unwanted]) -> None:
        """Cancel jobs of earlier plans (``cancel_on_kill``) that are certainly ours, and bill all of them."""
        running = [each for each in unwanted if each.job.state is JobState.OPEN and not each.job.is_shared]
        if running:
            log.info("Inputs or app changed: jobs of the last attempt are not resumed")
        for app_id in dict.fromkeys(each.app_id for each in running) if self.options.cancel_on_kill else ():
            jobs = [each for each in running if each.app_id == app_id]
            job_ids = [each.job.id for each in jobs if each.is_ours]
            job_ids += self._ours(app_id, {each.job.id: each.digest for each in jobs if not each.is_ours})
            self.wait.cancel(app_id, job_ids, within=CANCEL_TIME + len(job_ids) / 10)
        canceled = self.wait.canceled
        self.task_log.jobs.bill(
            replace(each.job, state=JobState.CANCELED) if each.job.id in canceled else each.job
            for each in unwanted
        )

    def _ours(self, app_id: str, digests: Mapping[str, str]) -> list[str]:
        ours: list[str] = []

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            if isinstance(outcome, Job):
                job_input = outcome.input
                if isinstance(job_input, Mapping) and self.digest_of(job_input) == digests[job_id]:
                    ours.append(job_id)
            elif retry.is_transient(outcome):
                raise outcome

        self.wait.refetch(app_id, list(digests), note)
        return ours
