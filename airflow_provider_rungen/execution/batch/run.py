"""Runs a batch: submits what has no job yet, waits for all of it, and reports which inputs failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import VISIBILITY_GRACE, job_of, strip_payloads
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution import attempts
from airflow_provider_rungen.execution.attempts import End
from airflow_provider_rungen.execution.batch.checkpoint import KEY, BatchHeader, Checkpoint
from airflow_provider_rungen.execution.batch.inputs import Inputs
from airflow_provider_rungen.execution.batch.result import BatchResult
from airflow_provider_rungen.execution.batch.reuse import Reuse, run_token, task_token
from airflow_provider_rungen.execution.batch.saved import SavedLines
from airflow_provider_rungen.execution.batch.submitter import BatchSubmitter
from airflow_provider_rungen.execution.durable import DurableRun, OnClear
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import format_reasons, max_failures, read_job_event
from airflow_provider_rungen.execution.submission import RESUBMISSION_GRACE
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.execution.options import BatchOptions
    from airflow_provider_rungen.execution.waiting import Defer

log = logging.getLogger(__name__)

IDS_IN_A_LINE = 50
# How many refusals keep their reason over a deferral; a message names no more.
MAX_PUSHED_REASONS = 10


class BatchRun(DurableRun["BatchOptions"]):
    """An attempt that runs many jobs."""

    record_key = KEY

    def __init__(self, task: BaseOperator, context: Context, options: BatchOptions, defer: Defer) -> None:
        super().__init__(task, context, options, defer)
        self._store = context.get("task_state_store") if options.durable else None
        # what is saved of this attempt, or else of an earlier one
        self._checkpoint: Checkpoint | None = None
        self.reuse = Reuse()
        self._input_count = 0
        #: The jobs that this attempt has canceled.
        self.canceled: set[str] = set()

    def submit_and_wait(self, read_inputs: Callable[[], Any]) -> BatchResult:
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
        header = BatchHeader(
            app_id=app_id,
            digest=inputs.digest,
            count=inputs.count,
            deadline=time.time() + self.options.timeout,
            attempt=self.attempt,
        )
        checkpoint, completed = self._resume_or_begin(Checkpoint(self._store, header))
        self._checkpoint = checkpoint
        deadline = self.deadline(checkpoint.header.deadline)
        refused = self._submit(inputs, checkpoint, completed, deadline)
        self._own_running(checkpoint, completed)
        result = BatchResult(self.reuse.expand(checkpoint.entries), self.reuse.expand_refused(refused))
        if not self.options.wait_for_completion:
            return result
        jobs = self.wait(
            deadline=deadline,
            visible_by=time.time() + VISIBILITY_GRACE,
            on_finished=self.keep,
            can_end_from_trigger=None not in result.ids and self.options.destination is None,
            before_end_from_trigger=lambda: self._push_success(result),
        )
        return replace(result, jobs=jobs)

    def accepts(self, stored: StoredJob) -> bool:
        """Return whether a stored job can be reused."""
        return True

    def add_reused(self, stored: StoredJob) -> None:
        """Take a stored job that is reused."""
        self.usage.note_reused(stored.job_id)

    def keep(self, job: Job) -> Job:
        """Return what is kept of a job that is over: there may be many."""
        return strip_payloads(job)

    def page_details(self) -> dict[str, Any]:
        destination = self.options.destination
        return super().page_details() | {
            "rows": self._input_count,
            "reused": len(self.reuse.stored) or None,
            "destination": None if destination is None else redact(str(destination)),
        }

    def _read_inputs(self, read_inputs: Callable[[], Any], book: LedgerBook | None) -> Inputs:
        schema = Schema.of(self.options.input_schema, "input_schema")
        return Inputs(read_inputs(), schema, format=self.options.format, key_of=book.key if book else None)

    def _open_book(self) -> LedgerBook | None:
        """Open the ledger. The service knows which model the app is."""
        if self.options.ledger is None:
            return None
        from airflow_provider_rungen.execution.ledger.book import LedgerBook
        from airflow_provider_rungen.execution.ledger.keys import model_identity

        app = self.hook.get_app(app_id=self.app_id)
        return LedgerBook(self.options.ledger, model_identity(app), run_token(self.ti))

    # --- the ledger ---

    def _look_up(self, inputs: Inputs, book: LedgerBook) -> None:
        """Find out which inputs were paid for."""
        destination, token = str(self.options.destination), run_token(self.ti)
        self.reuse = Reuse.begin(
            book, inputs.keys, destination, token, accepts=self.accepts, on_stored=self.add_reused
        )

    @property
    def is_durable(self) -> bool:
        return super().is_durable or self.options.ledger is not None

    @property
    def on_clear(self) -> OnClear:
        ledger = self.options.ledger
        return super().on_clear if ledger is None or ledger.refresh else "keep"

    def own(self, app_id: str, job_ids: Sequence[str], borrowed: Collection[str] = ()) -> None:
        super().own(app_id, job_ids, borrowed or self.reuse.borrowed)

    def cancel(self, job_ids: Sequence[str], *, within: float | None = None) -> list[str]:
        left = super().cancel(job_ids, within=within)
        canceled = set(job_ids) - set(left)
        self.canceled |= canceled
        # a kill leaves little time, and the next attempt finds out that they were canceled
        attempts.call_briefly(lambda: self.reuse.forget(canceled))
        return left

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Open the hook, and answer for the jobs of an earlier attempt until the inputs are known."""
        self.warn_if_not_durable()
        self._checkpoint = earlier = Checkpoint.found(self._store)
        if earlier is not None:
            self.own(earlier.header.app_id, earlier.job_ids)
        with self.owning():
            yield
            if self.attempt.try_number > 1:  # an earlier attempt may have been killed while deferred
                self._remove_saved_lines()

    @contextmanager
    def completing(self, event: Mapping[str, Any]) -> Iterator[BatchResult]:
        """Go on after the wait in the triggerer."""
        app_id = event.get("app_id") or self.options.app_id or ""
        result = self._restore(app_id)
        try:
            with self.owning():
                app_id = event.get("app_id") or self.app_id
                self.own(app_id, self.jobs.job_ids)
                self.usage.note_submitted(self.jobs.job_ids)
                self.usage.note_event(self.jobs.job_ids, event)
                jobs = read_job_event(event)
                if event.get("count", 0) > len(jobs):  # more failed than the event holds
                    outcomes = self._fetch(app_id, self.jobs.job_ids).items()
                    jobs = [job_of(outcome, app_id, job_id) for job_id, outcome in outcomes]
                yield replace(result, jobs=jobs)
        finally:
            self._remove_saved_lines()

    def fail_deferral(self, reason: str) -> NoReturn:
        try:
            super().fail_deferral(reason)
        finally:
            self._remove_saved_lines()

    def _restore(self, app_id: str) -> BatchResult:
        """Return what was submitted before the deferral, and answer for its jobs."""
        result = BatchResult(self._pushed_ids(), self._pushed_refusals())
        if self.saves_lines:
            self._restore_reuse(result.ids, list(self.saved_lines.load()))
        self.own(app_id, self.new_job_ids(result))
        return result

    def _restore_reuse(self, ids: Sequence[str | None], saved: Sequence[Any]) -> None:
        from airflow_provider_rungen.execution.ledger.book import LedgerBook

        if self.options.ledger is not None:
            # no key is made any more, so the model makes no difference
            book = LedgerBook(self.options.ledger, "", run_token(self.ti))
            self.reuse = Reuse.restore(book, ids, saved, self.add_reused)

    def new_job_ids(self, result: BatchResult) -> list[str]:
        """Return the jobs that were not stored before."""
        return [job_id for job_id in result.job_ids if job_id not in self.reuse.stored_job_ids]

    @property
    def saved_lines(self) -> SavedLines:
        """What the task has to know again after a deferral."""
        return SavedLines(self.options.destination, task_token(self.ti))

    @property
    def saves_lines(self) -> bool:
        """Whether that is more than XCom has."""
        return self.options.ledger is not None

    def lines_to_save(self, checkpoint: Checkpoint) -> Iterator[Any]:
        """Yield what `_restore` reads."""
        for index, job_id in enumerate(self.reuse.expand(checkpoint.entries)):
            yield self.reuse.to_save(index, job_id)

    def _remove_saved_lines(self) -> None:
        if self.saves_lines:
            self.saved_lines.remove()

    def defer(self, deadline: float, **arguments: Any) -> NoReturn:
        if self.saves_lines and self._checkpoint is not None:
            self.saved_lines.save(self.lines_to_save(self._checkpoint))
        super().defer(deadline, **arguments)

    def finish(self, result: BatchResult, max_failed: float | None = None) -> list[str | None]:
        """
        Report which inputs failed.

        :param max_failed: how many may; the operator's parameter when left out.
        :return: the job of each input, or ``None``.
        :raises RunGenJobFailedError: more failed than ``max_failed`` allows.
        """
        reasons, count = result.reasons(), len(result.ids)
        self.ti.xcom_push(key="failed", value=list(reasons))
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
            log.info("All %d jobs of app %s %s", count, self.jobs.app_id, state)
        return result.ids

    def _failure(self, result: BatchResult, reasons: Mapping[int, str], allowed: int) -> RunGenJobFailedError:
        refused = result.refused
        # a retry is refused in the same way
        retryable = len(reasons) > len(refused) or any(error.retryable for error in refused.values())
        again = f"A retry runs {'only these' if self.is_durable else 'all inputs'} again"
        return RunGenJobFailedError(
            f"{len(reasons)} of {len(result.ids)} inputs failed, {allowed} may (max_failed): "
            f"{format_reasons(reasons)}",
            app_id=self.jobs.app_id,
            job_id=next((result.ids[index] or "" for index in reasons if result.ids[index]), ""),
            hint=again if retryable else "Correct them, and clear the task",
            retryable=retryable,
        )

    # --- the record ---

    def note_end(self, end: End) -> None:
        if self._checkpoint is not None:
            header: BatchHeader | None = self._checkpoint.header
        else:  # after a deferral
            header = BatchHeader.from_store(self.state.get(KEY)) if self.state.is_durable else None
        if header is not None:
            self.state.note(KEY, replace(header, end=end, attempt=self.attempt).to_store())

    def save(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.flush_with_retries()

    def unsaved(self) -> list[str]:
        return [] if self._checkpoint is None else self._checkpoint.unsaved_job_ids

    # --- an earlier attempt ---

    def _resume_or_begin(self, new: Checkpoint) -> tuple[Checkpoint, set[str]]:
        """Return the checkpoint to go on with, and the jobs of an earlier attempt that have completed."""
        earlier = self._checkpoint
        if earlier is None:
            return self._begin(new)
        new.known |= earlier.known
        is_cleared = self.attempt.was_cleared_since(earlier.header.attempt, earlier.header.end)
        if earlier.matches(new.header) and (self.resumes_clears or not is_cleared):
            earlier.begin_with(self.reuse)
            completed = self._resume(earlier, is_cleared=is_cleared)
            self._extend(earlier, new.header, is_cleared=is_cleared)
            return earlier, completed
        if earlier.job_ids:
            log.info("Task was cleared, or its inputs or app changed: submitting all inputs again")
            if self.options.cancel_on_kill:
                wanted = {entry.job_id for entry in self.reuse.pending.values()}
                self.cancel([job_id for job_id in self.jobs.running if job_id not in wanted])
        self.own("", [])
        return self._begin(new)

    def _begin(self, new: Checkpoint) -> tuple[Checkpoint, set[str]]:
        new.begin_with(self.reuse)
        return new, self._resume(new, is_cleared=False) if new.job_ids else set()

    def _extend(self, checkpoint: Checkpoint, new: BatchHeader, *, is_cleared: bool) -> None:
        """Reset the deadline for new jobs, and after a clear for running ones whose time is up."""
        is_late = is_cleared and checkpoint.header.deadline <= time.time()
        if is_late or None in checkpoint.entries:
            checkpoint.header = replace(checkpoint.header, deadline=new.deadline)
        if is_cleared:  # the retries of this attempt are to find it
            checkpoint.header = replace(checkpoint.header, attempt=self.attempt, end=End.UNKNOWN)
            if not checkpoint.flush_with_retries():
                log.warning("Could not save in the task state store that the batch was resumed")

    def _resume(self, checkpoint: Checkpoint, *, is_cleared: bool) -> set[str]:
        """Fetch the jobs of an earlier attempt, and return the completed. Those that failed run again."""
        app_id, unknown = checkpoint.header.app_id, checkpoint.unknown
        if unknown and self.options.on_unknown_submission == "fail" and not is_cleared:
            raise RunGenSubmissionUnknownError(
                f"Fate unknown: an earlier attempt may have created jobs of app {app_id} for up to "
                f"{len(unknown)} inputs (the first is inputs[{unknown[0]}])",
                hint="Look at the app's jobs, then clear the task to submit all inputs again",
                retryable=False,
            )
        submitted_at = max(
            [checkpoint.header.submitted_at, *(entry.at.timestamp() for entry in self.reuse.pending.values())]
        )
        # whoever can write an entry can write any time
        submitted_at = min(submitted_at, time.time())
        stored = {checkpoint.ids[index] for index in self.reuse.stored} & set(checkpoint.job_ids)
        rest = [job_id for job_id in checkpoint.job_ids if job_id not in stored]
        outcomes = self._fetch(app_id, rest, submitted_at + RESUBMISSION_GRACE)
        completed, failed = stored, 0
        for index, job_id in enumerate(checkpoint.ids):
            outcome = outcomes.get(job_id)
            if isinstance(outcome, RunGenNotFoundError | RunGenBadRequestError) or (
                isinstance(outcome, Job) and outcome.status in (JobStatus.FAILED, JobStatus.CANCELED)
            ):
                checkpoint.note(index, Checkpoint.NOT_CREATED)
                failed += 1
            elif isinstance(outcome, RunGenError):
                raise outcome
            elif outcome is not None and outcome.status is JobStatus.COMPLETED:
                completed.add(job_id)
        running = len(checkpoint.job_ids) - len(completed)
        metrics.incr("jobs.resumed", len(checkpoint.job_ids))
        log.info(
            "Resuming a batch of %d inputs: %d jobs completed, %d are resumed, %d failed and run again. The "
            "rest is submitted now",
            *(len(checkpoint.ids), len(completed), running, failed),
        )
        if unknown:
            log.warning(
                "Fate unknown: %d inputs may have jobs already. Submitting them again, which may run and "
                "bill them twice",
                len(unknown),
            )
        return completed

    def _fetch(
        self, app_id: str, job_ids: Sequence[str], visible_by: float = 0.0
    ) -> dict[str, Job | RunGenError]:
        found: dict[str, Job | RunGenError] = {}

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            if isinstance(outcome, RunGenError):
                if retry.is_transient(outcome):
                    raise outcome  # the rest would fail likewise
                found[job_id] = outcome
            else:
                found[job_id] = strip_payloads(outcome)
                if outcome.is_terminal:
                    self.usage.note(outcome)

        self.refetch(app_id, job_ids, note, visible_by=visible_by)
        return found

    # --- the submission ---

    def _submit(
        self, inputs: Inputs, checkpoint: Checkpoint, completed: set[str], deadline: float
    ) -> dict[int, RunGenError]:
        """Submit what has no job yet, and return the inputs that were refused, with the reason."""
        refused: dict[int, RunGenError] = {}
        absent = checkpoint.absent
        known_before = len(checkpoint.job_ids)
        self.guard.check()
        with self._naming_lost_jobs(checkpoint), self.guard.defer_signals():
            if absent:
                refused = self._submit_absent(inputs, checkpoint, completed, deadline)
                self._log_submitted(checkpoint, len(checkpoint.job_ids) - known_before)
            self.push_submitted(self.reuse.expand(checkpoint.entries), refused)
            for job_id in checkpoint.job_ids[:1]:
                self.link_to_job(checkpoint.header.app_id, job_id)
        return refused

    def push_submitted(self, ids: list[str | None], refused: Mapping[int, RunGenError]) -> None:
        """Push what the task has to know again after a deferral."""
        self.ti.xcom_push(key="job_ids", value=ids)
        if refused:
            reasons = [
                # 0.1 reads the opposite of retryable
                (index, error.message if number < MAX_PUSHED_REASONS else "", not error.retryable)
                for number, (index, error) in enumerate(sorted(refused.items()))
            ]
            self.ti.xcom_push(key="refused", value=reasons)

    def _submit_absent(
        self, inputs: Inputs, checkpoint: Checkpoint, completed: set[str], deadline: float
    ) -> dict[int, RunGenError]:
        app_id, hook = checkpoint.header.app_id, self.hook
        absent = set(checkpoint.absent)
        todo = ((index, item) for index, item in enumerate(inputs) if index in absent)
        submitter = BatchSubmitter(
            hook.aperform,
            app_id,
            checkpoint,
            max_concurrency=self.options.max_concurrency,
            deadline=deadline,
            is_stopping=lambda: self.guard.is_pending,
        )

        async def submit() -> None:
            try:
                await submitter.run(todo, len(absent))
            finally:
                await hook.aclose()

        # the submission itself looks for a kill, and gives what is in flight its last second
        before = hook.checkpoint, hook.is_interrupted
        hook.checkpoint = hook.is_interrupted = None
        try:
            asyncio.run(submit())
        except RunGenError:
            raise
        except Exception:
            checkpoint.flush_with_retries()
            if self.options.cancel_on_kill:
                self._own_running(checkpoint, completed)
                self.cancel(checkpoint.unsaved_job_ids)
            raise
        finally:
            hook.checkpoint, hook.is_interrupted = before
            self._own_running(checkpoint, completed)
            if unknown := checkpoint.unknown:  # what ends the attempt may be another error
                log.warning(
                    "Fate unknown: %d inputs of app %s (the first is inputs[%d]). RunGen may have created "
                    "their jobs; look at the app's jobs",
                    *(len(unknown), app_id, unknown[0]),
                )
        return submitter.refused

    def _own_running(self, checkpoint: Checkpoint, completed: set[str]) -> None:
        self.usage.note_submitted(checkpoint.job_ids)
        running = [job_id for job_id in checkpoint.job_ids if job_id not in completed]
        self.own(checkpoint.header.app_id, running)

    @staticmethod
    def _log_submitted(checkpoint: Checkpoint, submitted: int) -> None:
        app_id = checkpoint.header.app_id
        if len(checkpoint.ids) == len(checkpoint.job_ids) == 1:
            log.info("Submitted job %s to app %s", checkpoint.job_ids[0], app_id)
        else:
            log.info("Submitted %d of %d inputs to app %s", submitted, len(checkpoint.ids), app_id)

    @contextmanager
    def _naming_lost_jobs(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Log the ids that nobody else learns when the attempt ends before it pushes them."""
        try:
            yield
        except Exception as error:
            lost = checkpoint.unsaved_job_ids if self.has_next(error) else checkpoint.job_ids
            for start in range(0, len(lost), IDS_IN_A_LINE):
                some = ", ".join(lost[start : start + IDS_IN_A_LINE])
                log.warning("No retry resumes these jobs of app %s: %s", checkpoint.header.app_id, some)
            raise

    # --- XCom ---

    def _push_success(self, result: BatchResult) -> None:
        self.ti.xcom_push(key="failed", value=[])
        self.push_return_value(result.ids)

    def _pushed_ids(self) -> list[str | None]:
        return self.xcom_pull("job_ids") or []

    def _pushed_refusals(self) -> dict[int, RunGenError]:
        pushed = self.xcom_pull("refused") or ()
        return {
            index: RunGenError(reason, retryable=not is_permanent) for index, reason, is_permanent in pushed
        }

    def pushed_job_ids(self) -> list[str]:
        return self.new_job_ids(self._restore(self.options.app_id or ""))
