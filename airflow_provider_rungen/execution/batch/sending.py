"""Sends the inputs of a batch that have no job yet, as far as a ledger or an earlier attempt knows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.endpoints import FATE_UNKNOWN
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import strip_payloads
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution import attempts
from airflow_provider_rungen.execution.attempts import End
from airflow_provider_rungen.execution.batch.checkpoint import KEY, BatchHeader, Checkpoint
from airflow_provider_rungen.execution.batch.ended import EndedJobs
from airflow_provider_rungen.execution.batch.inputs import Inputs, find_places
from airflow_provider_rungen.execution.batch.result import BatchResult
from airflow_provider_rungen.execution.batch.reuse import Reuse, run_token
from airflow_provider_rungen.execution.batch.submitter import BatchSubmitter, Throttle
from airflow_provider_rungen.execution.batch.unsent import Unsent
from airflow_provider_rungen.execution.durable import DurableRun, OnClear
from airflow_provider_rungen.execution.submission import RESUBMISSION_GRACE
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.execution.options import BatchOptions
    from airflow_provider_rungen.execution.waiting import Defer
    from airflow_provider_rungen.hooks.rungen import RunGenHook

log = logging.getLogger(__name__)

IDS_IN_A_LINE = 50
# How many refusals keep their reason over a deferral; a message names no more.
MAX_PUSHED_REASONS = 10


class SendingRun(DurableRun["BatchOptions"]):
    """An attempt that submits many inputs, as many at a time as may be in flight."""

    record_key = KEY

    def __init__(self, task: BaseOperator, context: Context, options: BatchOptions, defer: Defer) -> None:
        super().__init__(task, context, options, defer)
        self._store = context.get("task_state_store") if options.durable else None
        # what is saved of this attempt, or else of an earlier one
        self._checkpoint: Checkpoint | None = None
        self.reuse = Reuse()
        #: The ledger, if it did not exist yet.
        self.new_ledger: str | None = None
        #: The inputs that this attempt could not submit, with the reason.
        self.refused: dict[int, RunGenError] = {}
        self.ended = EndedJobs()
        self.unsent = Unsent()
        self._refusals = 0
        self._throttle = Throttle(options.max_concurrency)
        # where the inputs come from
        self._source = getattr(task, "inputs", None)
        # whether ids were pushed, and whether all of them are
        self._has_pushed = self._is_pushed = False
        # whether a submission began, and did not end
        self._is_submitting = False

    def accepts(self, stored: StoredJob) -> bool:
        """Return whether a stored job can be reused."""
        return True

    def add_reused(self, stored: StoredJob) -> None:
        """Take a stored job that is reused."""
        self.usage.note_reused(stored.job_id)

    def result(self, checkpoint: Checkpoint) -> BatchResult:
        """Return how far the batch has come."""
        ids = self.reuse.expand(checkpoint.entries)
        unknown = dict.fromkeys(checkpoint.unknown, RunGenSubmissionUnknownError(FATE_UNKNOWN))
        return BatchResult(ids, self.reuse.expand_refused(unknown | self.refused), self.ended.jobs)

    def _read_inputs(self, read_inputs: Callable[[], Any], book: LedgerBook | None) -> Inputs:
        schema, self._source = Schema.of(self.options.input_schema, "input_schema"), read_inputs()
        return Inputs(self._source, schema, format=self.options.format, key_of=book.key if book else None)

    def locate(self, indexes: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Return the file and line of inputs that come from files."""
        return find_places(self._source, indexes, self.options.format)

    def _open_book(self, *, create: bool = True) -> LedgerBook | None:
        """
        Open the ledger. The service knows which model the app is.

        :param create: see `LedgerBook.open`.
        """
        if self.options.ledger is None:
            return None
        from airflow_provider_rungen.execution.ledger.book import LedgerBook
        from airflow_provider_rungen.execution.ledger.keys import model_identity

        app = self.hook.get_app(app_id=self.app_id)
        book = LedgerBook(self.options.ledger, model_identity(app), run_token(self.ti))
        self.new_ledger = book.open(create=create)
        return book

    def _look_up(self, inputs: Inputs, book: LedgerBook) -> None:
        """Find out which inputs were paid for."""
        destination, token = str(self.options.destination), run_token(self.ti)
        self.reuse = Reuse.begin(
            book, inputs.keys, destination, token, accepts=self.accepts, on_stored=self.add_reused
        )

    # --- the ledger ---

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
        # a kill leaves little time, and the next attempt finds out that they were canceled
        attempts.call_briefly(lambda: self.reuse.forget(self.canceled.intersection(job_ids)))
        return left

    @contextmanager
    def owning(self) -> Iterator[RunGenHook]:
        try:
            with super().owning() as hook:
                yield hook
        except Exception as error:
            if self._is_submitting:
                self._name_lost_jobs(error)
            raise

    def _name_lost_jobs(self, error: Exception) -> None:
        """Log the ids that nobody else learns when the attempt ends before it pushes them."""
        checkpoint = self.batch
        lost = checkpoint.unsaved_job_ids if self.has_next(error) else self.in_flight(checkpoint)
        left = [job_id for job_id in lost if job_id not in self.canceled]
        for start in range(0, len(left), IDS_IN_A_LINE):
            some = ", ".join(left[start : start + IDS_IN_A_LINE])
            log.warning("No retry resumes these jobs of app %s: %s", checkpoint.header.app_id, some)

    # --- the record ---

    def note_end(self, end: End) -> None:
        header = self.stored_header() if self._checkpoint is None else self._checkpoint.header
        if header is not None and header.digest:
            self.state.note(KEY, replace(header, end=end, attempt=self.attempt).to_store())

    def stored_header(self) -> BatchHeader | None:
        """Return the header in the state store."""
        return BatchHeader.from_store(self.state.get(KEY)) if self.state.is_durable else None

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
                hint=self._how_to_submit_again,
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

    def submit(self, deadline: float) -> bool:
        """
        Submit as many inputs as may be in flight.

        :param deadline: the time (seconds since 1970) after which nothing is submitted.
        :return: whether it stopped because the service refuses them all.
        """
        checkpoint, is_broken = self.batch, False
        known_before = len(checkpoint.job_ids)
        self.guard.check()
        self._is_submitting = True
        with self.guard.defer_signals():
            indexes, inputs = self.unsent.take(self._room(checkpoint))
            if indexes:
                self._is_pushed = False
                is_broken = self._submit_some(inputs, indexes, checkpoint, deadline)
                self._log_submitted(checkpoint, len(checkpoint.job_ids) - known_before)
            is_first = not self._has_pushed
            if is_first or not self.unsent:
                self.push_progress()
            for job_id in checkpoint.job_ids[:1] if is_first else ():
                self.link_to_job(checkpoint.header.app_id, job_id)
        self._is_submitting = False
        return is_broken

    @property
    def batch(self) -> Checkpoint:
        """The checkpoint, once there is one."""
        if self._checkpoint is None:
            raise RuntimeError("no input was looked at yet")
        return self._checkpoint

    def _room(self, checkpoint: Checkpoint) -> int:
        """Return how many inputs may be submitted now."""
        limit = self.options.max_in_flight
        if limit is None or not self.options.wait_for_completion:
            return len(self.unsent)
        return max(limit - len(self.in_flight(checkpoint)), 0)

    def in_flight(self, checkpoint: Checkpoint) -> list[str]:
        """Return the jobs to wait for, those that other tasks submitted among them."""
        return [job_id for job_id in checkpoint.job_ids if job_id not in self.ended.ids]

    @property
    def unsubmitted(self) -> list[int]:
        """The inputs that were neither accepted nor refused."""
        return [index for index in self.batch.absent if index not in self.refused]

    def push_progress(self) -> None:
        """Push what was submitted, unless that was done."""
        if not self._is_pushed:
            self.push_submitted(self.reuse.expand(self.batch.entries), self.refused)
            self._has_pushed = self._is_pushed = True

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

    def _submit_some(
        self,
        inputs: Iterator[tuple[int, Any]],
        indexes: Collection[int],
        checkpoint: Checkpoint,
        deadline: float,
    ) -> bool:
        """Submit inputs with these indexes, and return whether it stopped because all are refused."""
        app_id, hook = checkpoint.header.app_id, self.hook
        submitter = BatchSubmitter(
            hook.aperform,
            app_id,
            checkpoint,
            throttle=self._throttle,
            deadline=deadline,
            is_stopping=lambda: self.guard.is_pending,
            stop_after=self.options.stop_after if self.options.wait_for_completion else None,
            refusals=self._refusals,
        )

        async def submit() -> None:
            try:
                await submitter.run(inputs, indexes)
            finally:
                await hook.aclose()

        # the submission itself looks for a kill, and gives what is in flight its last second
        before = hook.checkpoint, hook.is_interrupted
        hook.checkpoint = hook.is_interrupted = None
        try:
            asyncio.run(submit())
        except RunGenSubmissionUnknownError as error:
            raise self._explain_unknown(error) from error
        except RunGenError:
            raise
        except Exception:
            checkpoint.flush_with_retries()
            if self.options.cancel_on_kill:
                self.own_in_flight(checkpoint)
                self.cancel(checkpoint.unsaved_job_ids)
            raise
        finally:
            hook.checkpoint, hook.is_interrupted = before
            self.refused |= submitter.refused
            self._refusals = submitter.refusals
            self.own_in_flight(checkpoint)
            if unknown := checkpoint.unknown:  # what ends the attempt may be another error
                log.warning(
                    "Fate unknown: %d inputs of app %s (the first is inputs[%d]). RunGen may have created "
                    "their jobs; look at the app's jobs",
                    *(len(unknown), app_id, unknown[0]),
                )
        return submitter.is_broken

    # --- unknown fates ---

    @property
    def _how_to_submit_again(self) -> str:
        is_discarded = attempts.CLEAR_DISCARDS_STATE and self.on_clear != "keep"
        what = "all inputs" if self.on_clear == "new" or is_discarded else "these"
        return f"Look at the app's jobs, then clear the task to submit {what} again"

    def retry_hint(self, some: str, everything: str) -> str:
        """
        Return what a retry does.

        :param some: what it runs if it finds what this attempt did.
        :param everything: what it runs if it does not.
        """
        if not self.is_durable:
            return f"A retry runs {everything}"
        if not (unknown := self.batch.unknown):
            return f"A retry runs {some}"
        inputs = f"{len(unknown)} input{'s' * (len(unknown) > 1)} of unknown fate"
        if self.options.on_unknown_submission == "fail" and self._store is not None:
            return (
                f"A retry submits nothing, and fails because of {inputs} (on_unknown_submission). "
                f"{self._how_to_submit_again}"
            )
        return f"A retry runs {some}, and may pay twice for {inputs}. Look at the app's jobs first"

    def _explain_unknown(self, error: RunGenSubmissionUnknownError) -> RunGenSubmissionUnknownError:
        """Return the error of an attempt that gives up submitting because of such errors."""
        checkpoint = self.batch
        unknown, count = len(checkpoint.unknown), len(checkpoint.ids)
        reason = error.message.removeprefix(f"{FATE_UNKNOWN}. ")
        return error.revised(
            f"Fate unknown: RunGen may have created the jobs of {unknown} of {count} inputs. {reason}",
            hint=self.retry_hint("only what has no job", "all inputs again"),
            retryable=error.retryable,
        )

    def own_in_flight(self, checkpoint: Checkpoint) -> None:
        """Answer for the jobs that may still run."""
        self.usage.note_submitted(checkpoint.job_ids)
        self.own(checkpoint.header.app_id, self.in_flight(checkpoint))

    def _log_submitted(self, checkpoint: Checkpoint, submitted: int) -> None:
        app_id, left = checkpoint.header.app_id, len(self.unsent)
        if len(checkpoint.ids) == len(checkpoint.job_ids) == 1:
            log.info("Submitted job %s to app %s", checkpoint.job_ids[0], app_id)
            return
        more = f"; {left} wait for others to end (max_in_flight)" if left else ""
        log.info("Submitted %d of %d inputs to app %s%s", submitted, len(checkpoint.ids), app_id, more)
