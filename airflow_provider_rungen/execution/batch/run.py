"""Runs a batch: submits it in waves, waits for all of it, and reports which inputs failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.counters import CounterTrust
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import VISIBILITY_GRACE, job_of, strip_payloads
from airflow_provider_rungen.client.progress import OtherInputs
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.wait_goal import WaitGoal
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution import attempts
from airflow_provider_rungen.execution.batch.checkpoint import BatchHeader, Checkpoint
from airflow_provider_rungen.execution.batch.ended import DeferredBatch
from airflow_provider_rungen.execution.batch.result import BatchResult, Stopped
from airflow_provider_rungen.execution.batch.reuse import Reuse, run_token, task_token
from airflow_provider_rungen.execution.batch.saved import SavedLines
from airflow_provider_rungen.execution.batch.sending import SendingRun
from airflow_provider_rungen.execution.batch.unsent import Unsent
from airflow_provider_rungen.execution.failures import failed_jobs
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import format_reasons, max_failures, read_job_event

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.options import BatchOptions
    from airflow_provider_rungen.execution.spool import Spool
    from airflow_provider_rungen.execution.waiting import Defer

log = logging.getLogger(__name__)

ReadInputs = Callable[[], Any]
#: The XCom key of what a deferred batch has to know again.
STATE_KEY = "batch_state"


class BatchRun(SendingRun):
    """An attempt that runs many jobs."""

    def __init__(self, task: BaseOperator, context: Context, options: BatchOptions, defer: Defer) -> None:
        super().__init__(task, context, options, defer)
        self._lines: Spool | None = None
        # whether the saved lines are those of a deferral that begins
        self._is_deferring = False
        self._input_count = 0

    def submit_and_wait(self, read_inputs: ReadInputs) -> BatchResult:
        """
        Submit what is not submitted yet, and wait for all of it when asked to. Call it within `executing`.

        :param read_inputs: returns the inputs, as `open_rows` reads them.
        """
        book = self._open_book()
        inputs = self._read_inputs(read_inputs, book)
        app_id = self.app_id
        self._input_count = inputs.count
        self.link_to(app_id)
        self.push_origin(app_id)
        if book is not None:
            self._look_up(inputs, book)
            self.push_page(app_id)
        # not before the look-up, which has to notice that a folder is missing
        self.prepare_storage()
        header = BatchHeader(
            app_id=app_id,
            digest=inputs.digest,
            count=inputs.count,
            deadline=time.time() + self.options.timeout,
            attempt=self.attempt,
        )
        checkpoint, completed = self._resume_or_begin(Checkpoint(self._store, header))
        self._checkpoint = checkpoint
        if checkpoint.unsaved:  # one of the stores did not know them
            checkpoint.save()
        self.ended.ids |= completed
        self.unsent = Unsent(lambda: enumerate(inputs), checkpoint.absent)
        return self._run_waves(self.deadline(checkpoint.header.deadline))

    def keep(self, job: Job) -> Job:
        """Return what is kept of a job that is over: there may be many."""
        return strip_payloads(job)

    def prepare_storage(self) -> None:
        """Find out whether results can be stored, before anything is paid for."""

    def page_details(self) -> dict[str, Any]:
        destination = self.options.destination
        return super().page_details() | {
            "new_ledger": self.new_ledger,
            "rows": self._input_count,
            "reused": len(self.reuse.stored) or None,
            "destination": None if destination is None else redact(str(destination)),
        }

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Open the hook, and answer for the jobs of an earlier attempt until the inputs are known."""
        self.warn_if_not_durable()
        self._checkpoint = earlier = Checkpoint.found(self._store)
        if earlier is not None:
            # the last first: a kill cancels in this order, and most of the others are over
            self.own(earlier.header.app_id, earlier.job_ids[::-1])
        with self.owning():
            with self._pushing_all():
                yield
            if self.attempt.try_number > 1:  # an earlier attempt may have been killed while deferred
                self._remove_saved_lines()

    @contextmanager
    def _pushing_all(self) -> Iterator[None]:
        """Push the ids of all waves, also when a later wave fails."""
        try:
            yield
        except Exception:
            if self._has_pushed and not self.guard.is_killed:
                try:
                    self.push_progress()
                except Exception as failure:  # the first error counts
                    log.warning("Could not push the ids of all jobs: %s", type(failure).__name__)
            raise

    # --- the waves ---

    def _run_waves(self, deadline: float) -> BatchResult:
        """Submit and wait in turns, until all inputs have a job and all jobs are over."""
        checkpoint, options = self.batch, self.options
        while True:
            is_refused = self.submit(deadline)
            self.own_in_flight(checkpoint)
            if not options.wait_for_completion:
                return self.result(checkpoint)
            if is_refused and self.unsubmitted:
                return self._stop_refused(deadline)
            if time.time() >= deadline:
                self.unsent.clear()
            if self.jobs.job_ids and self._wait_for_part(deadline):
                return self._stop_failing()
            if not self.unsent and not self.jobs.job_ids:
                self.jobs.job_ids = self.jobs.finished = checkpoint.job_ids
                return self.result(checkpoint)

    def _wait_for_part(self, deadline: float, *, may_defer: bool = True) -> bool:
        """Wait until more may be submitted, or all is over; return whether everything fails."""
        options, has_unsent = self.options, bool(self.unsent)
        left = (options.max_in_flight or 0) // 2 if has_unsent else 0
        goal = WaitGoal(left, options.stop_after, self.ended.failures)
        if has_unsent and len(self.jobs.job_ids) <= left:  # refused inputs left room
            return False
        result = self.result(self.batch)
        jobs = self.wait(
            deadline=deadline,
            visible_by=time.time() + VISIBILITY_GRACE,
            on_finished=self.keep,
            can_end_from_trigger=None not in result.ids and not result.jobs and options.destination is None,
            before_end_from_trigger=lambda: self._push_success(result),
            goal=goal,
            others=OtherInputs(
                done=len(self.ended.ids) + len(self.refused),
                failed=len(self.ended.unsuccessful) + len(self.refused),
                unsent=len(self.unsent),
            ),
            may_defer=may_defer and (not has_unsent or self.can_read_again),
        )
        self.ended.note(jobs)
        self.ended.failures = goal.failures
        self.own_in_flight(self.batch)
        return goal.is_broken and bool(self.unsent or self.jobs.job_ids)

    @property
    def can_read_again(self) -> bool:
        """Whether the inputs can be read again after a deferral."""
        return True

    def _stop_failing(self) -> BatchResult:
        # of what one poll found, a success may have come last
        failures = max(self.ended.failures, self.options.stop_after or 0)
        return self._stop(f"{failures} jobs in a row failed", retryable=True)

    def _stop_refused(self, deadline: float) -> BatchResult:
        """Submit no more. Inputs that were accepted are fine, so their jobs may end."""
        self.unsent.clear()
        # an answer that came after the last refusal may have been a success
        refusals = max(self._refusals, self.options.stop_after or 0)
        log.warning("Submitting no more: %d inputs in a row were refused (stop_after)", refusals)
        if self.jobs.job_ids:
            self._wait_for_part(deadline, may_defer=False)
        return self._stop(f"{refusals} inputs in a row were refused", retryable=False)

    def _stop(self, cause: str, *, retryable: bool) -> BatchResult:
        """Cancel what is in flight, and return how far the batch has come."""
        checkpoint, unsent = self.batch, len(self.unsubmitted)
        self.unsent.clear()
        cause = f"{cause} (stop_after={self.options.stop_after})"
        running = self.jobs.running
        log.warning("Stopped: %s. Canceling %d jobs", cause, len(running))
        left = self.cancel(running)
        canceled = self.canceled.intersection(self.jobs.job_ids)
        over = [job_id for job_id in running if job_id not in canceled and job_id not in left]
        self.ended.note(
            Job(id=job_id, app_id=self.jobs.app_id, status=JobStatus.CANCELED, error=f"after {cause}")
            for job_id in self.jobs.job_ids
            if job_id in canceled
        )
        self.jobs.job_ids = checkpoint.job_ids
        self.jobs.finished = set(checkpoint.job_ids) - set(left)
        self._explain(over)
        stopped = Stopped(cause, len(canceled), unsent, left, retryable)
        return replace(self.result(checkpoint), stopped=stopped)

    def _explain(self, over: Collection[str] = ()) -> None:
        """Fetch the errors that no event had room for, and how jobs ended that could not be canceled."""
        app_id = self.jobs.app_id
        outcomes = self._fetch(app_id, [*self.ended.unexplained, *over])
        jobs = [job_of(outcome, app_id, job_id) for job_id, outcome in outcomes.items()]
        self.ended.note(job for job in jobs if job.is_terminal)

    # --- a deferral ---

    def defer(self, deadline: float, **arguments: Any) -> NoReturn:
        if self.unsent or self.ended.ids:
            arguments["used"] = self._push_state(deadline)
        if self.saves_lines:
            self.saved_lines.save(self.lines_to_save())
        elif self._lines is not None:
            self._remove_saved_lines()
        self._is_deferring = True
        super().defer(deadline, **arguments)

    def _push_state(self, deadline: float) -> dict[str, Any]:
        """Push what is over and what is left, and return what the jobs that are over used."""
        ended, failed = len(self.ended.ids), len(self.ended.unsuccessful)
        seconds = self.usage.seconds_of(self.ended.ids)
        state = DeferredBatch(self.batch.header, deadline, self.ended, seconds, bool(self.unsent))
        # a signal in the middle of a call to the supervisor would leave it out of step
        with self.guard.defer_signals():
            self.push_progress()
            self.ti.xcom_push(key=STATE_KEY, value=state.to_xcom(self.reuse.expand(self.batch.entries)))
        return {"jobs": ended, "completed": ended - failed, "failed": failed, "execution_seconds": seconds}

    @contextmanager
    def completing(self, event: Mapping[str, Any], read_inputs: ReadInputs = list) -> Iterator[BatchResult]:
        """
        Go on after the wait in the triggerer: with the next wave, if there is one.

        :param event: the trigger's event.
        :param read_inputs: returns the inputs again, if they were not saved.
        """
        self._own_last_known(event.get("app_id") or self.options.app_id or "", event.get("job_ids") or ())
        try:
            with self.owning():
                app_id = event.get("app_id") or self.app_id
                self.own(app_id, self.jobs.job_ids)
                state = self._restore(app_id)
                with self._pushing_all():
                    yield self._go_on(event, state, read_inputs)
        finally:
            if self._lines is not None and not self._is_deferring:
                if self.guard.is_killed:  # the bucket may hang
                    attempts.call_briefly(self._remove_saved_lines, self.guard.time_left())
                else:
                    self._remove_saved_lines()

    def _go_on(
        self, event: Mapping[str, Any], state: DeferredBatch | None, read_inputs: ReadInputs
    ) -> BatchResult:
        self.usage.note_submitted(self.batch.job_ids)
        self._note_event(event)
        self.trust = CounterTrust.from_json(event.get("counters"))
        checkpoint = self.batch
        self.own_in_flight(checkpoint)
        if state is not None and state.has_unsent:
            self._restore_unsent(read_inputs)
        if event.get("is_broken") and (self.unsent or self.jobs.job_ids):
            result = self._stop_failing()
        elif self.unsent or self.jobs.job_ids:
            result = self._run_waves(state.deadline if state else checkpoint.header.deadline)
        else:
            self.jobs.job_ids = self.jobs.finished = checkpoint.job_ids
            result = self.result(checkpoint)
        self._explain()
        self.read_stored()
        return replace(self.result(checkpoint), stopped=result.stopped)

    def read_stored(self) -> None:
        """Read the stored jobs that are reused, if a deferral was in between."""
        if self._checkpoint is not None:
            self._checkpoint.ids_again(self.reuse.read_stored(self.add_reused))

    def _note_event(self, event: Mapping[str, Any]) -> None:
        job_ids, before = list(self.jobs.job_ids), set(self.ended.ids)
        if self.ended.note_event(job_ids, event, read_job_event(event)):
            new = self.ended.ids - before
            ends = {job_id: job_id not in self.ended.unsuccessful for job_id in new}
            self.usage.note_ends(ends, event.get("execution_seconds"))
            return
        app_id = self.jobs.app_id
        outcomes = self._fetch(app_id, job_ids)
        jobs = [job_of(outcome, app_id, job_id) for job_id, outcome in outcomes.items()]
        self.ended.note(job for job in jobs if job.is_terminal)

    def _own_last_known(self, app_id: str, job_ids: Collection[str]) -> None:
        """Answer for the jobs until it is known which of them are in flight."""
        saved = Checkpoint.found(self._store)
        known = saved.job_ids[::-1] if saved is not None else []
        if self.options.ledger is None:  # or some may be those of other tasks, which are not to be canceled
            known = known or list(job_ids) or [job_id for job_id in self.pushed_ids()[::-1] if job_id]
        self.own(app_id, known)

    def fail_deferral(self, reason: str) -> NoReturn:
        try:
            super().fail_deferral(reason)
        finally:
            self._remove_saved_lines()

    def pushed_job_ids(self) -> list[str]:
        try:
            self._restore(self.options.app_id or "")
        except RunGenError as error:
            log.warning("%s", error.message)
            self._own_last_known(self.options.app_id or "", ())
        return list(self.jobs.job_ids)

    def _restore(self, app_id: str) -> DeferredBatch | None:
        """Restore what was submitted before the deferral, and answer for the jobs in flight."""
        ids = self.pushed_ids()
        pushed = self.xcom_pull(STATE_KEY)
        if self.options.ledger is not None or (pushed and pushed.get("has_unsent")):
            self._restore_lines(ids)
        return self.restore_batch(app_id, ids, pushed)

    def restore_batch(self, app_id: str, ids: Sequence[str | None], pushed: Any) -> DeferredBatch | None:
        """
        Restore the batch with the job of each input, and answer for the jobs in flight.

        :param pushed: the XCom of its state, if there is one.
        """
        state = DeferredBatch.from_xcom(pushed, ids)
        if state is None:
            header = self.stored_header() or BatchHeader(
                app_id, "", len(ids), time.time() + self.options.timeout, self.attempt, sent_upto=len(ids)
            )
        else:
            header = state.header
            self.ended = state.ended
            ends = {job_id: job_id not in state.ended.unsuccessful for job_id in state.ended.ids}
            self.usage.note_ends(ends, state.seconds)
        unknown = [index for index, error in self.refused.items() if error.retryable]
        self._checkpoint = Checkpoint.restored(self._store, header, ids, unknown, self.reuse)
        self._has_pushed = self._is_pushed = True
        for job_id in self.reuse.stored_job_ids:
            self.usage.note_reused(job_id)
        self.own(app_id, self.in_flight(self._checkpoint))
        return state

    def _restore_unsent(self, read_inputs: ReadInputs) -> None:
        """Make the inputs that are not submitted available again."""
        wanted = self.unsubmitted
        if self._lines is not None:
            self.unsent = Unsent(self.saved_inputs, wanted)
            return
        try:
            inputs = self._read_inputs(read_inputs, None)
        except RunGenInputError as error:
            reason = error.message
        else:
            if (inputs.digest, inputs.count) == (self.batch.header.digest, self.batch.header.count):
                self.unsent = Unsent(lambda: enumerate(inputs), wanted)
                return
            reason = "the inputs changed while the task was deferred"
        # what is in flight is paid for, so the task ends when it is over
        log.error("Submitting no more: %s. %d inputs are left", reason, len(wanted))
        self.refused |= dict.fromkeys(wanted, RunGenInputError(f"it was not submitted: {reason}"))
        self._is_pushed = False

    def new_job_ids(self, result: BatchResult) -> list[str]:
        """Return the jobs that were not stored before."""
        return [job_id for job_id in result.job_ids if job_id not in self.reuse.stored_job_ids]

    # --- what is saved for the time of a deferral ---

    @property
    def saved_lines(self) -> SavedLines:
        """What the task has to know again after a deferral."""
        return SavedLines(self.options.destination, task_token(self.ti), self.attempt.try_number)

    @property
    def can_save_lines(self) -> bool:
        """Whether there is a place for it."""
        return self.options.destination is not None

    @property
    def saves_lines(self) -> bool:
        """Whether that is more than XCom has."""
        return self.options.ledger is not None or (self.options.destination is not None and bool(self.unsent))

    def lines_to_save(self) -> Iterator[Any]:
        """Yield for each input what the ledger knows of it, and the input if it is not submitted."""
        find = self.unsent.finder()
        for index, job_id in enumerate(self.reuse.expand(self.batch.entries)):
            yield [self.reuse.to_save(index, job_id) if self.reuse.keys else None, find(index)]

    def saved_inputs(self) -> Iterator[tuple[int, Any]]:
        """Yield the inputs that were saved, with their indexes."""
        for index, (_, job_input) in enumerate(self._lines or ()):
            if job_input is not None:
                yield index, job_input

    def _restore_lines(self, ids: Sequence[str | None]) -> None:
        if self.options.destination is not None:
            self._lines = self.saved_lines.load()
            self.restore_reuse(ids, [saved for saved, _ in self._lines])

    def restore_reuse(self, ids: Sequence[str | None], saved: Sequence[Any]) -> None:
        """
        Restore what the ledger knew.

        :param ids: the job of each input.
        :param saved: what `Reuse.to_save` returned for each.
        """
        if self.options.ledger is not None:
            from airflow_provider_rungen.execution.ledger.book import LedgerBook

            # no key is made any more, so the model makes no difference
            book = LedgerBook(self.options.ledger, "", run_token(self.ti))
            self.reuse = Reuse.restore(book, ids, saved)

    def _remove_saved_lines(self) -> None:
        if self.can_save_lines:
            with suppress(RunGenError):  # the folder may be gone
                self.saved_lines.remove()

    # --- the end ---

    def has_to_store(self, error: Exception) -> bool:
        """Return whether what completed is stored though the task fails, since no other attempt does it."""
        cause = error if isinstance(error, RunGenError) else error.__cause__
        if self._checkpoint is None or self.guard.is_killed or not isinstance(cause, RunGenError):
            return False
        is_lost = isinstance(cause, RunGenJobTimeoutError) or not self.has_next(cause)
        return is_lost and not retry.is_refusal(cause)

    def store_completed(self, result: BatchResult, gather: Callable[[list[str]], None]) -> None:
        """
        Store what is paid for, though the task fails.

        :param gather: collects the results of jobs.
        """
        try:
            with self.opened():
                gather(self.new_job_ids(result))
        except RunGenError as failure:
            log.warning("Could not store all that completed: %s", failure.message)

    def finish(self, result: BatchResult, max_failed: float | None = None) -> list[str | None]:
        """
        Report which inputs failed.

        :param max_failed: how many may; the operator's parameter when left out.
        :return: the job of each input, or ``None``.
        :raises RunGenJobFailedError: more failed than ``max_failed`` allows.
        """
        reasons, count = result.reasons(), len(result.ids)
        failed = failed_jobs(result.ids, reasons, self.locate(reasons))
        self.ti.xcom_push(key="failed", value=failed)
        if result.stopped is not None:
            raise self.stop_error(result, result.stopped)
        max_failed = self.options.max_failed if max_failed is None else max_failed
        allowed = max_failures(max_failed, count)
        if len(reasons) > allowed:
            raise self._failure(result, reasons, allowed)
        self.record_outcome(TaskOutcome(self.jobs.app_id, result.job_ids, failed_count=len(reasons)))
        if reasons:
            log.warning(
                "Failed: %d of %d inputs, as max_failed allows: %s",
                *(len(reasons), count, format_reasons(reasons)),
            )
        else:
            state = "completed" if self.options.wait_for_completion else "were submitted"
            log.info("All %d jobs %s %s", count, state, format_ids(self.jobs.app_id))
        return result.ids

    def stop_error(self, result: BatchResult, stopped: Stopped, where: str = "") -> RunGenJobFailedError:
        """
        Return the error of a batch that was stopped.

        :param where: where more of the reasons are.
        """
        reasons = format_reasons(result.failures())
        if stopped.retryable:
            hint = f"Check the app. {self.retry_hint('only what did not complete', 'all inputs again')}"
        else:
            hint = "Correct them, and clear the task"
        return stopped.error(self.jobs.app_id, reasons, len(result.ids), where + hint)

    def _failure(self, result: BatchResult, reasons: Mapping[int, str], allowed: int) -> RunGenJobFailedError:
        refused = result.refused
        # a retry is refused in the same way
        retryable = len(reasons) > len(refused) or any(error.retryable for error in refused.values())
        again = self.retry_hint("only these again", "all inputs again")
        limit = f", {allowed} may (max_failed)" if allowed else ""
        return RunGenJobFailedError(
            f"{len(reasons)} of {len(result.ids)} inputs failed{limit}: {format_reasons(reasons)}",
            app_id=self.jobs.app_id,
            job_id=next((result.ids[index] or "" for index in reasons if result.ids[index]), ""),
            hint=again if retryable else "Correct them, and clear the task",
            retryable=retryable,
        )

    # --- XCom ---

    def _push_success(self, result: BatchResult) -> None:
        self.ti.xcom_push(key="failed", value=[])
        self.push_return_value(result.ids)

    def pushed_ids(self) -> list[str | None]:
        """Return the job of each input, as it was pushed before the deferral, and restore the refusals."""
        self.refused = {
            index: RunGenError(reason, retryable=not is_permanent)
            for index, reason, is_permanent in self.xcom_pull("refused") or ()
        }
        return self.xcom_pull("job_ids") or []
