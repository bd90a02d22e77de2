"""What an attempt that runs jobs reports: ids, counts and usage."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.endpoints import FATE_UNKNOWN
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import OtherInputs
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenGivenUpError,
    RunGenJobTimeoutError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.jobs.job_ends import job_at_end
from airflow_provider_rungen.execution.jobs.places import StoragePlace
from airflow_provider_rungen.execution.sinks.batch_result import NOT_SUBMITTED, BatchResult, Stopped
from airflow_provider_rungen.execution.task.xcom_keys import LABEL_KEY
from airflow_provider_rungen.runs.rows import InputState, Row

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

_CLAIMED = f"{NOT_SUBMITTED}: another run has claimed it"
_IN_DOUBT = (InputState.ANNOUNCED, InputState.UNKNOWN)


@dataclass
class _Known:
    """What is known of inputs, by number, and of jobs: see `BatchResult`."""

    ids: list[str | None] = field(default_factory=list)
    refused: dict[int, RunGenError] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def copy(self) -> _Known:
        return _Known(list(self.ids), dict(self.refused), dict(self.jobs), set(self.shared))


class RunReport:
    """
    Reports what an attempt did.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        #: How many inputs or rows there are.
        self.rows = 0
        self.unsent_error: RunGenError | None = None  #: Why inputs are not submitted any more.
        # how many ids were pushed; None until the first were
        self._pushed_count: int | None = None
        # the jobs that did not complete, with all that is known of them
        self._ended: dict[str, Job] = {}
        # what is known of the parts that were let go, which may be read from storage
        self._closed = _Known()
        self._closed_parts: set[int] = set()
        # how long jobs ran, of all rows that were read
        self._times: dict[str, float] = {}

    def job_ids(self) -> list[str]:
        """Return the jobs of the inputs, as far as they are known without a look at storage."""
        jobs = self._run.task_log.jobs
        rows = (row.current(jobs.since) for _, row in sorted(jobs.table.rows.items()))
        ids = [*filter(None, self._closed.ids), *(job.id for job in rows if job is not None)]
        return list(dict.fromkeys(ids))  # a part may have been opened again

    # --- XCom ---

    def push_submitted(self) -> None:
        """Push the ids after the first submission, and after the last."""
        if self._pushed_count is None or not self._run.task_log.has_unsent:
            self.push_ids()

    def note_pushed(self) -> None:
        """Note that all ids were pushed before a deferral."""
        self._pushed_count = self._run.task_log.jobs.totals().submitted

    def stop_submitting(self, error: RunGenError) -> None:
        """Submit nothing more. What is in flight is paid for, so the task ends when it is over."""
        if unsent := self._run.task_log.stop_submitting():
            log.error("Submitting no more: %s. %d inputs are left", error.message, unsent)
            self.unsent_error = self.unsent_error or error

    def push_ids(self) -> None:
        """Push the id of a single job, and the link to one of many, unless they are pushed."""
        task_log, ti = self._run.task_log, self._run.ti
        count = task_log.jobs.totals().submitted
        if self._run.is_single and count != self._pushed_count:
            [job_id] = self.result().ids
            if job_id is not None:
                ti.xcom_push(key="job_id", value=job_id)
                if (label := self._run.options.job_label) is not None:
                    ti.xcom_push(key=LABEL_KEY, value={job_id: str(label)})
        if self._pushed_count is None:
            for job_id in (*task_log.running, *task_log.jobs.shared)[-1:]:
                self._run.link_to_job(task_log.app_id, job_id)
        self._pushed_count = count

    # --- the end ---

    def note_ended(self, job: Job) -> None:
        """Keep how a job ended."""
        self._ended[job.id] = job

    def note_canceled(self, job_id: str, why: str, seconds: float | None) -> None:
        """Keep why this attempt canceled a job, and how long it ran, if that is known."""
        app_id, status = self._run.task_log.app_id, JobStatus.CANCELED
        self._ended[job_id] = Job(job_id, app_id, status, error=why, execution_time=seconds)

    def take_ended(self, job_ids: Collection[str]) -> list[Job]:
        """Return those of some jobs that the service has just returned, or that failed."""
        found = [self._ended[job_id] for job_id in job_ids if job_id in self._ended]
        for job in found:
            if job.status is JobStatus.COMPLETED:
                del self._ended[job.id]
        return found

    def result(self, stopped: Stopped | None = None) -> BatchResult:
        """Return how far the task has come."""
        task_log, plan = self._run.task_log, self._run.task_log.plan
        open_parts = task_log.open_parts
        closed = set(range(task_log.plan.part_count)) - open_parts - self._closed_parts
        if self._run.ending.has_next():
            self._add_closed(closed)
        else:  # a clear may buy all again
            self._run.guard.call_patiently("read the run log", lambda: self._add_closed(closed))
        known = self._closed.copy()
        self._add_rows(known, task_log.rows(sorted(open_parts)))
        claimed, why = self._run.submitting.claimed_by_others, self.unsent_error
        unsent = None
        if why is not None:
            kind = RunGenJobTimeoutError if isinstance(why, RunGenJobTimeoutError) else RunGenError
            unsent = kind(f"{NOT_SUBMITTED}: {why.message}", retry_after=why.retry_after)
        firsts = {}
        if self._run.options.ledger is not None:
            rows = enumerate(plan.rows())
            firsts = {number: planned.first for number, planned in rows if planned.first is not None}
        for number, job_id in enumerate(known.ids):
            error = RunGenJobTimeoutError(_CLAIMED) if number in claimed else unsent
            if job_id is None and error is not None and number not in firsts:
                known.refused.setdefault(number, error)
        for number, first in firsts.items():
            known.ids[number] = known.ids[first]
            if first in known.refused:
                known.refused[number] = known.refused[first]
        refused = dict(sorted(known.refused.items()))
        return BatchResult(known.ids, refused, list(known.jobs.values()), stopped, known.shared)

    def _add_closed(self, parts: set[int]) -> None:
        """Read parts that were let go, once. They do not change any more."""
        if not self._closed_parts:
            self._closed.ids = [None] * self._run.task_log.plan.count
        parts &= self._run.task_log.loaded
        self._add_rows(self._closed, self._run.task_log.rows(sorted(parts)))
        self._closed_parts |= parts

    def _add_rows(self, known: _Known, rows: Iterable[tuple[int, Row]]) -> None:
        task_log = self._run.task_log
        writer, since = task_log.jobs.writer, task_log.jobs.since
        for number, row in rows:
            self._times |= self._times_of(row)
            state, job = row.state(writer, since), row.current(since)
            if state is InputState.REFUSED or state in _IN_DOUBT:
                known.refused[number] = self._refusal(number, row, is_in_doubt=state in _IN_DOUBT)
            elif job is not None:
                known.ids[number] = job.id
                if job.is_shared:
                    known.shared.add(job.id)
                if not job.use:
                    known.jobs[job.id] = self._ended.get(job.id) or job_at_end(job, task_log.app_id)

    def _refusal(self, number: int, row: Row, *, is_in_doubt: bool) -> RunGenError:
        if (error := self._run.submitting.errors.get(number)) is not None:
            return error
        if is_in_doubt:
            return RunGenSubmissionUnknownError(FATE_UNKNOWN)
        intent = row.intent_of(self._run.task_log.jobs.writer)
        why = (intent and intent.refusal) or "it was refused"
        if intent is not None and intent.is_given_up:
            return RunGenGivenUpError(why)
        return RunGenBadRequestError(why, retryable=False)

    def write_failure(self, error: Exception) -> None:
        """Write what is known to the sink and to the error that ends the task. It never raises."""
        run = self._run
        try:
            if self._pushed_count is not None:
                self.push_ids()
        except Exception as failure:  # the first error counts
            log.warning("Could not push the ids of all jobs: %s", type(failure).__name__)
        try:
            if self._has_to_store(error):
                with run.opened():
                    run.collecting.collect_rest()
            run.submitting.stop()  # what is stored already is no failure
            if self._has_news(result := self.result()):
                run.sink.report(result, run.task_log.plan, error)
        except Exception as failure:
            log.warning("Could not write all that is known: %s", clean_text(str(failure)))
        run.advice.add_to(error)

    def _has_news(self, result: BatchResult) -> bool:
        """Return whether anything is known of an input. Otherwise what the last run wrote stays."""
        task_log = self._run.task_log
        return any(result.ids) or bool(task_log.jobs.totals().refused or task_log.unknown)

    def _has_to_store(self, error: Exception) -> bool:
        """Return whether what completed is stored though the task fails, since no other attempt does it."""
        cause = error if isinstance(error, RunGenError) else error.__cause__
        if not self._run.options.wait_for_completion:
            return False
        if not isinstance(cause, RunGenError):
            return not self._run.ending.has_next(error)
        is_lost = isinstance(cause, RunGenJobTimeoutError) or not self._run.ending.has_next(cause)
        return is_lost and not retry.is_refusal(cause)

    def others(self) -> OtherInputs:
        """Return what progress lines count beside the jobs that this process waits, or has waited, for."""
        task_log, wait, ledger = self._run.task_log, self._run.wait, self._run.ledger
        unsent = ledger.new_count
        done = task_log.state.count - unsent - len(task_log.jobs.running)
        failed = done - ledger.unloaded_count - task_log.jobs.totals().completed
        return OtherInputs(done - wait.returned, failed - wait.unsuccessful, unsent)

    def usage(self) -> dict[str, Any]:
        """Return what the jobs of all attempts used: the XCom ``usage``."""
        totals = self._run.task_log.jobs.totals()
        return {
            "jobs": totals.submitted,
            "completed": totals.jobs_completed,
            "failed": totals.jobs_failed,
            "reused": totals.shared,
            # of a service that does not say so, nobody knows
            "execution_seconds": round(totals.seconds, 3) if totals.timed or not totals.submitted else None,
        }

    def times(self) -> dict[str, float]:
        """Return the XCom ``rungen_times``, as far as it is known without a look at storage."""
        for row in self._run.task_log.jobs.table.rows.values():
            self._times |= self._times_of(row)
        return self._times

    def _times_of(self, row: Row) -> dict[str, float]:
        """Return how long the jobs of an input ran, unless pages find it in the log."""
        return {} if isinstance(self._run.task_log.home.place, StoragePlace) else row.times

    def log_submitted(self, new: int) -> None:
        """Log how many inputs were submitted."""
        task_log = self._run.task_log
        if task_log.state.count == 1:
            for job_id in task_log.running if new else ():
                log.info("Submitted job %s to app %s", job_id, task_log.app_id)
            return
        unsent, submitted = self._run.ledger.new_count, task_log.state.submitted
        resumed = max(task_log.jobs.totals().own - submitted, 0)
        limit = self._run.options.max_in_flight
        is_held_up = unsent and limit is not None and len(task_log.jobs.running) >= limit
        more = f"; {resumed} have a job of an earlier attempt" if resumed else ""
        more += f"; {unsent} wait for others to end (max_in_flight)" if is_held_up else ""
        log.info(
            "Submitted %d of %d inputs to app %s%s", submitted, task_log.state.count, task_log.app_id, more
        )
