"""Submit the inputs of a task, as many at a time as may be in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.retry import ATTEMPTS
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.transport import MAX_CONCURRENCY
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobTimeoutError,
    RunGenLimitError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.sending.sender import Sender, Throttle
from airflow_provider_rungen.execution.task.job_ids import log_jobs
from airflow_provider_rungen.runs.rows import SUBMITTABLE

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.quote import Limits
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

# Seconds between two look-ups of inputs that another run is about to submit.
WAIT_INTERVAL = 2.0
# The same while jobs of this task run.
LOOK_INTERVAL = 30.0


class Submitting:
    """
    Submits the inputs of one attempt.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        self._throttle = Throttle(MAX_CONCURRENCY)
        #: Why inputs have no job, as far as this attempt knows.
        self.errors: dict[int, RunGenError] = {}
        #: The inputs that another run was about to submit when they were last looked up.
        self.claimed_by_others: set[int] = set()
        # whether a submission began, and did not end
        self._is_submitting = False
        # the jobs that no other attempt would find, unless the log has taken their ids since
        self._lost: set[str] = set()
        self._unknown_count = 0
        # why no more may be bought, if so
        self._limit = RunGenLimitError("jobs that were resumed failed, and max_jobs or max_cost is reached")

    def keep_within(self, limits: Limits) -> None:
        """
        Find out how many jobs the attempt may buy. If these are too few, it only waits for those in flight.

        :raises RunGenLimitError: they are too few, and there is nothing to wait for or to collect.
        """
        try:
            self._log.state.allowance = limits.check(self._log.plan, self._run.ledger.new_count)
        except RunGenLimitError as error:
            if not (self._log.running or self._log.jobs.totals().own):
                raise
            self._log.state.allowance, self._limit = 0, error

    def submit(self, deadline: float) -> bool:
        """
        Submit as many inputs as may be in flight.

        :param deadline: the time (seconds since 1970) after which nothing is submitted.
        :return: whether it stopped because the service refuses them all.
        """
        waits, is_waiting = self._run.options.wait_for_completion, False
        while not self._submit_round(deadline):
            if time.time() >= deadline:
                self._stop_late()
                return False
            if not self.claimed_by_others or (waits and self._log.jobs.running):
                return False
            if not is_waiting:
                log.info("Waiting for %d inputs that another run has claimed", len(self.claimed_by_others))
            is_waiting = True
            time.sleep(WAIT_INTERVAL)
        return True

    def _stop_late(self) -> None:
        """
        Submit nothing more, since the time is up. Trouble with the service may be why some was not.

        :raises RunGenJobTimeoutError: the task waits, and inputs are left, whether or not jobs are in flight.
        """
        if not self._log.has_unsent:
            return
        why, app_id = self._throttle.trouble, self._log.app_id
        if isinstance(why, RunGenSubmissionUnknownError):  # that of one input
            why = None
        if why is not None:
            self._run.report.unsent_error = RunGenJobTimeoutError(why.message, retry_after=why.retry_after)
        self._take_stored()
        is_told = self._run.is_single and why is not None  # by the error of the only job
        if self._run.options.wait_for_completion and self.has_free and not is_told:
            unsent, count = self._log.unsent_count, self._log.state.count
            late = f"Not over in time: {unsent} of {count} inputs were not submitted"
            raise RunGenJobTimeoutError(
                f"{late} {format_ids(app_id)}" if why is None else f"{late}: {why.message}",
                app_id=app_id,
                retry_after=None if why is None else why.retry_after,
            )
        self._log.stop_submitting()

    def keep_deadline(self, now: float) -> None:
        """Keep the deadline of the last attempt, if this one only waits for what that one submitted."""
        home, state = self._log.home, self._log.state
        if not home.earlier or not self._log.running or self._may_buy:
            return
        deadline = home.earlier[-1].deadline
        if deadline > now or not home.is_cleared:
            state.keeps_deadline, state.deadline = True, deadline
            self._log.note(deadline=deadline)

    def renew_deadline(self) -> bool:
        """Start the time again if jobs are bought again, as for new ones; return whether there are some."""
        state = self._log.state
        if not state.keeps_deadline or not self._may_buy:
            return False
        state.keeps_deadline, state.deadline = False, time.time() + self._run.options.timeout
        self._log.note(deadline=state.deadline)
        return True

    @property
    def _may_buy(self) -> bool:
        return self._log.has_unsent and self._log.state.allowance != 0

    @property
    def has_free(self) -> bool:
        """Whether inputs are still to be submitted that no other run has claimed."""
        return self._log.unsent_count > len(self.claimed_by_others)

    @property
    def next_lookup(self) -> float | None:
        """When to look inputs up again (seconds since 1970), if others have claimed all that are unsent."""
        is_waiting = self._log.has_unsent and not self.has_free
        return time.time() + LOOK_INTERVAL if is_waiting else None

    def _submit_round(self, deadline: float) -> bool:
        """Submit as many inputs as possible. Others take the place of those that another run has claimed."""
        run, is_broken = self._run, False
        run.guard.check()
        if self._log.state.allowance == 0 and self._log.has_unsent:
            self._stop_at_limit()
        count, claimed = -1, set(self.claimed_by_others)
        self._is_submitting = True
        with run.guard.defer_signals():
            if time.time() < deadline:
                self.claimed_by_others.clear()
            while len(self.claimed_by_others) > count and not is_broken and time.time() < deadline:
                count = len(self.claimed_by_others)
                is_broken = self._submit_some(deadline)
            if time.time() >= deadline:  # it may have been too late to look all of them up again
                self.claimed_by_others |= claimed.intersection(self._log.jobs.inputs(*SUBMITTABLE))
            run.guard.call_patiently("push the ids of the jobs", run.report.push_submitted)
        self._is_submitting = False
        return is_broken

    def _stop_at_limit(self) -> None:
        """Submit no more if the ledger lacks any, since no more may be bought."""
        error: RunGenError = self._limit
        try:
            self._settle_rest()
        except RunGenError as failure:
            error = failure
        self._run.report.stop_submitting(error)

    def stop(self) -> int:
        """Submit nothing more, and return how many inputs are not submitted: none that is stored already."""
        self._take_stored()
        return self._log.stop_submitting()

    def _take_stored(self) -> None:
        """Take from the ledger what is stored of the inputs that are not to be submitted."""
        if (paid := self._run.ledger.paid) is not None:
            paid.takes_running = False
        try:
            self._settle_rest()
        except RunGenError as error:
            log.warning("%s; inputs that are stored may count as not submitted", error.message)

    def _settle_rest(self) -> None:
        """
        Take from the ledger what it has of the inputs that are not to be submitted.

        :raises RunGenError: it cannot be read.
        """
        paid = self._run.ledger.paid
        if paid is None or not self._log.has_unsent:
            return
        if self._run.was_deferred:
            self._log.on_load = lambda numbers: None  # all are looked up at once below
        while self._log.load_next() is not None:
            pass  # what the look-up found is noted
        if self._run.was_deferred:
            paid.note(paid.look_up(self._log.jobs.inputs(*SUBMITTABLE)))

    def _submit_some(self, deadline: float) -> bool:
        options, state = self._run.options, self._log.state
        most = self._log.unsent_count if state.allowance is None else state.allowance
        limit = options.max_in_flight if options.wait_for_completion else None
        # only this thread changes the table of jobs, and the inputs are read in another
        taken = self._log.take(most, limit, self.claimed_by_others)
        if not taken:
            return False
        before = self._log.jobs.totals()
        try:
            return self._send(taken, deadline)
        except RunGenSubmissionUnknownError as error:
            raise self._run.advice.explain_unknown(error) from None
        finally:
            totals = self._log.jobs.totals()
            count = totals.submitted - before.submitted
            if state.allowance is not None:  # a submission of unknown fate may have been bought
                state.allowance = max(state.allowance - count - totals.unknown + before.unknown, 0)
            state.submitted += count
            if count or not self.claimed_by_others:
                self._run.report.log_submitted(count)

    def _send(self, taken: list[int], deadline: float) -> bool:
        run, hook, plan = self._run, self._run.hook, self._log.plan
        is_single = self._log.state.count == 1
        if is_single:  # one job waits for nothing, unless another run has claimed its input
            self._throttle = Throttle(1, ATTEMPTS)
        sender = Sender(
            hook.aperform,
            self._log.app_id,
            self._log.saver,
            self._run.ledger.paid,
            throttle=self._throttle,
            deadline=deadline,
            is_stopping=lambda: run.guard.is_pending,
            refusals=self._log.state.refusals,
            has_success=self._log.jobs.totals().own > 0,
            fallback=self._log.home.fallback,
            is_single=is_single,
        )

        async def submit() -> None:
            try:
                await sender.run(((number, plan.input(number)) for number in taken), len(taken))
            finally:
                await hook.aclose()

        # the submission itself looks for a kill, which ends what waits for its turn
        before = hook.checkpoint, hook.is_interrupted
        hook.checkpoint, hook.is_interrupted = None, sender.is_stopping
        try:
            asyncio.run(submit())
        finally:
            hook.checkpoint, hook.is_interrupted = before
            self.errors |= sender.errors
            self.claimed_by_others |= sender.claimed_elsewhere
            self._log.state.refusals = sender.refusals
            self._lost.update(sender.unsaved_ids())
            if not is_single:
                self._warn_of_unknown()
        if is_single and isinstance(error := sender.errors.get(0), RunGenSubmissionUnknownError):
            raise error
        return sender.is_broken

    def _warn_of_unknown(self) -> None:
        unknown, before = self._log.unknown, self._unknown_count
        self._unknown_count = len(unknown)
        if len(unknown) > before:  # what ends the attempt may be another error
            log.warning(
                "Fate unknown: %d inputs of app %s (the first is inputs[%d]). RunGen may have created "
                "their jobs; look at the app's jobs",
                *(len(unknown), self._log.app_id, unknown[0]),
            )

    # --- what nobody else knows ---

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no other attempt would find, without asking Airflow."""
        useful = [*self._log.running, *self._log.completed]
        if self._log.home.is_durable:
            self._lost &= self._log.jobs.unsaved_ids
        elif self._run.ledger.paid is None:
            return useful
        return [job_id for job_id in useful if job_id in self._lost]

    def note_lost(self, job_ids: Collection[str]) -> None:
        """Note the jobs that only the XCom of a deferral knows."""
        self._lost = set(job_ids)

    @contextmanager
    def naming_lost_jobs(self) -> Iterator[None]:
        """Log the ids that nobody else learns when the attempt ends before it pushes them."""
        try:
            yield
        except Exception as error:
            if self._is_submitting:
                useful = [*self._log.running, *self._log.completed]
                lost = self.unsaved_ids() if self._run.ending.has_next(error) else useful
                log_jobs(f"No retry resumes these jobs of app {self._log.app_id}", lost)
            raise
