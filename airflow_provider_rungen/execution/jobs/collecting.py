"""Note how the jobs of an attempt ended, and collect what they made while others run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.daemon_threads import ends_within
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of
from airflow_provider_rungen.client.progress import are_too_many
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobError, RunGenResponseError
from airflow_provider_rungen.execution.jobs.job_ends import ENDS, end_of, reason_of
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.execution.task.outcomes import error_of, is_useless, parse_ranges
from airflow_provider_rungen.runs.rows import JobState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)


class Collecting:
    """
    Collects for one attempt.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        #: The jobs that a trigger found to be ended, and that no poll has seen since.
        self.ended: list[str] = []
        #: The jobs that a trigger found to be ended.
        self.over: Collection[str] = ()
        # the jobs that are ended, and whose outputs are to be stored
        self._to_store: list[str] = []
        # the jobs that are ended, and not counted in `failures`
        self._uncounted: list[str] = []
        # the stored jobs that are being written to the ledger
        self._remembering: tuple[Future[None] | None, list[str]] = (None, [])
        # what the ledger forgets
        self._forgetting: Future[None] | None = None
        # the jobs that ran when the rest was collected
        self._left: set[str] | None = None

    def find_unstored(self, stored: list[str] | None = None) -> None:
        """
        Find the jobs that are known to have completed, and whose outputs are not stored.

        :param stored: jobs to look for in the destination: the service, or the ledger, does not know them.
        """
        if stored and self._log.stores:
            self.gather(stored)
            self.note_stored()
        self._to_store = self._log.completed if self._log.stores else []

    def note_ended(self, ended: Collection[Job]) -> None:
        """Note how jobs ended. An input whose job another task run submitted may need one of its own."""
        jobs = self._log.jobs
        for job in ended:
            if job.id not in jobs.table.input_of:
                continue
            self._uncounted.append(job.id)
            self._run.report.note_ended(job)
            why = job.error if job.cause is None else reason_of(job.cause, job.app_id, job.id)
            self._log.jobs.end(job.id, ENDS[job.status], seconds=job.execution_time, why=why)
            if job.status is JobStatus.COMPLETED and job.cause is not None:
                self._run.sink.errors[job.id] = job.cause  # its answer is too large
            elif job.status is JobStatus.COMPLETED and self._log.stores:
                self._to_store.append(job.id)
        useless = [job for job in ended if job.status is not JobStatus.COMPLETED]
        self._wait_for(self._run.ledger.forget({job.id: error_of(job) for job in useless}))
        if not self._log.stores:  # the results were taken as they came
            self._note_collected([job.id for job in ended], len(self._run.sink.stored), has_time=True)

    def refetch(self, job_ids: list[str], *, have_ended: bool = True) -> None:
        """
        Find out how jobs are that may have ended.

        :param have_ended: whether they should have. Otherwise each is asked for once.
        """
        ended: list[Job] = []

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            job = job_of(outcome, self._log.app_id, job_id)
            if job.is_terminal:
                ended.append(self._run.sink.hold(job))

        try:
            self._run.wait.refetch(self._log.app_id, job_ids, note, have_ended=have_ended)
        finally:  # one job that cannot be fetched ends it all
            self.note_ended(ended)

    def note_event(self, event: Mapping[str, Any]) -> bool:
        """Look at the jobs that the trigger found to be ended, and return whether everything fails."""
        running = self._log.jobs.running
        ended = [running[place] for place in parse_ranges(event.get("ended"), len(running))]
        self.over = ended
        if not self._log.stores:
            self.ended = ended
            return False
        # storing them tells how they ended
        self.gather(ended)
        self._note_ended_unstored(ended)
        return self._count_failures(ended)

    def _count_failures(self, ended: Collection[str]) -> bool:
        """Count how many of the jobs failed in a row, and return whether it is worth to go on no more."""
        table, state, is_broken = self._log.jobs.table, self._log.state, False
        for job_id in ended:
            job = table.job(job_id) if job_id in table.input_of else None
            # what another run bought says nothing about the model as it is now
            match job.state if job and not job.is_shared else None:
                case JobState.COMPLETED:
                    state.failures, state.has_success = 0, True
                case JobState.FAILED | JobState.INVALID | JobState.REJECTED:
                    state.failures += 1
            is_broken |= are_too_many(state.failures, has_success=state.has_success)
        return is_broken and not self._run.is_single and bool(self._log.has_unsent or self._log.jobs.running)

    def _note_ended_unstored(self, ended: list[str]) -> None:
        jobs = self._log.jobs
        for job_id in ended:
            error = self._run.sink.errors.get(job_id)
            is_running = type(error) is RunGenJobError  # the trigger was wrong
            is_too_large = isinstance(error, RunGenResponseError) and error.is_too_large
            if error is None or is_running or not (isinstance(error, RunGenJobError) or is_too_large):
                continue
            if job_id in jobs.table.input_of and jobs.table.job(job_id).state is JobState.OPEN:
                seconds = error.execution_time if isinstance(error, RunGenJobError) else None
                why = reason_of(error, self._log.app_id, job_id)
                self._log.jobs.end(job_id, end_of(error), seconds=seconds, why=why)

    def store(self) -> bool:
        """Store the outputs of jobs that are ended, while others run; return whether everything fails."""
        if job_ids := self._to_store:
            self._to_store = []
            self.gather(job_ids)
        ended, self._uncounted = self._uncounted, []
        return self._count_failures(ended)

    def gather(self, job_ids: list[str]) -> None:
        """Collect what jobs made, and note how that went."""
        before = len(self._run.sink.stored)
        try:
            self._run.sink.gather(self._log.app_id, job_ids, self._run.report.take_ended(job_ids))
        except BaseException as error:
            has_time = isinstance(error, Exception) and not self._run.guard.is_killed
            self._note_collected(job_ids, before, has_time=has_time)
            raise
        self._note_collected(job_ids, before, has_time=True)

    def _note_collected(self, job_ids: list[str], stored_before: int, *, has_time: bool) -> None:
        """
        Note how that went.

        :param has_time: whether the last write to the ledger is waited for. If not, the next attempt finds
            these jobs stored.
        """
        jobs, new = self._log.jobs, self._run.sink.stored[stored_before:]
        for stored in new:
            jobs.end(stored.job_id, JobState.COMPLETED, seconds=stored.execution_seconds)
        if has_time:
            self.note_stored()
        self._remembering = self._run.ledger.remember(new), [stored.job_id for stored in new]
        if self._remembering[0] is None:
            self.note_stored()
        errors = {
            job_id: self._run.sink.errors[job_id] for job_id in job_ids if job_id in self._run.sink.errors
        }
        useless = {job_id: error for job_id, error in errors.items() if is_useless(error)}
        if has_time:
            self._reopen(useless)
        for job_id, error in useless.items():
            seconds = error.execution_time if isinstance(error, RunGenJobError) else None
            why = reason_of(error, self._log.app_id, job_id)
            jobs.end(job_id, end_of(error), seconds=seconds, why=why)
            if job_id in jobs.table.input_of and jobs.table.job(job_id).state is JobState.COMPLETED:
                jobs.end(job_id, JobState.INVALID, why=why)  # so that a retry runs its input again
        self._wait_for(self._run.ledger.forget_useless(errors))

    def _reopen(self, useless: Collection[str]) -> None:
        """Make the log take that jobs are of no use whose parts were let go, since they were stored."""
        try:
            self._log.reopen(useless)
        except RunGenError as error:
            log.warning("%s; a retry may find the same jobs of no use", error.message)

    def _wait_for(self, forgetting: Future[None] | None) -> None:
        """Wait for the ledger while there is time: the next attempt finds out itself what is of no use."""
        if forgetting is None:
            return
        hangs = self._forgetting is not None and not self._forgetting.done()
        within, self._forgetting = 0.0 if hangs else store_writer.STORE_RETRY_BUDGET, forgetting
        if ends_within(within, forgetting, self._run.guard.is_stopping):
            forgetting.result()
        elif not hangs and not self._run.guard.is_stopping():
            log.warning("The ledger does not answer, and may keep jobs that are of no use")

    def note_stored(self) -> None:
        """Note which jobs are stored, once the ledger has them, which is written while others are stored."""
        (write, job_ids), self._remembering = self._remembering, (None, [])
        if write is not None:
            write.result()
        for job_id in job_ids:
            if job_id in self._log.jobs.table.input_of:
                self._log.jobs.store(job_id)

    def collect_rest(self) -> None:
        """Collect the jobs that are ended, and nobody has collected yet; a second time those that ran."""
        result = self._run.report.result()
        # of these, no more is to be learned now: stored files do not make a rejected job a good one
        known = self._run.ledger.read_reused().union(job.id for job in result.jobs)
        rest = [job_id for job_id in result.job_ids if job_id not in known]
        if self._left is not None:  # the results say already why others were not
            rest = [job_id for job_id in rest if job_id in self._left]
        if running := set(rest).intersection(self._log.jobs.running):
            try:
                self.refetch(sorted(running), have_ended=False)
            except RunGenError as error:  # what is known to be over is stored in any case
                log.warning("%s; it is unknown how other jobs are", error.message)
        running = set(self._log.jobs.running)
        self.gather([job_id for job_id in rest if job_id not in running])
        self.note_stored()
        self._run.ledger.check_model()
        self._left = running.intersection(rest)

    def let_go(self) -> None:
        """Save what is ended, so that it need not be in memory."""
        # a signal in the middle of a call to the supervisor would leave it out of step
        with self._run.guard.defer_signals():
            self._log.saver.let_go(self._run.guard.is_stopping)
