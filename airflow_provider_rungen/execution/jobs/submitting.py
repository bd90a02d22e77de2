"""Submit the inputs of a task, as many at a time as may be in flight, and ask the ledger before."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.retry import ATTEMPTS
from airflow_provider_rungen.client.scaling import outlast
from airflow_provider_rungen.exceptions import RunGenError, RunGenSubmissionUnknownError
from airflow_provider_rungen.execution.jobs.log_state import rows_of
from airflow_provider_rungen.execution.sending.sender import Sender, Throttle
from airflow_provider_rungen.execution.task.job_ids import log_jobs
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.jobs.plans import Plan
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.execution.sending.paid import Found, PaidInputs

log = logging.getLogger(__name__)

# Seconds between two look-ups of inputs that another run is about to submit.
WAIT_INTERVAL = 2.0


class Submitting:
    """
    Submits the inputs of one attempt.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        self._throttle = Throttle(run.options.max_concurrency)
        #: Why inputs have no job, as far as this attempt knows.
        self.errors: dict[int, RunGenError] = {}
        #: The inputs that another run was about to submit when they were last looked up.
        self.left_to_others: set[int] = set()
        #: How many inputs in a row were refused.
        self.refusals = 0
        #: The ledger, if it did not exist yet.
        self.new_ledger: str | None = None
        self.paid: PaidInputs | None = None
        #: When the last jobs may have been submitted (seconds since 1970).
        self.submitted_at = 0.0
        #: How many jobs may be bought in place of those of other runs that fail, in all of the attempt.
        self.spare: int | None = None
        #: How many inputs have a job that was stored before.
        self.reused_count = 0
        self._found: Found | None = None
        # whether the stored jobs that are reused are to be read again
        self._is_reopened = False
        # whether a submission began, and did not end
        self._is_submitting = False
        # the jobs that no other attempt would find, unless the log has taken their ids since
        self._lost: set[str] = set()

    # --- the ledger ---

    def has_ledger(self) -> bool:
        """Return whether there is a ledger already."""
        if (ledger := self._run.options.ledger) is None:
            return False
        from airflow_provider_rungen.execution.archive.storage import Storage

        return bool(Storage(ledger.uri, "ledger").list_folder(""))

    def open_ledger(self, *, create: bool = True) -> tuple[LedgerBook | None, str]:
        """
        Open the ledger, and return the model with it. The service knows which model the app is.

        :param create: see `LedgerBook.open`.
        """
        options, hook = self._run.options, self._run.hook
        if options.ledger is None:
            return None, ""
        from airflow_provider_rungen.execution.ledger.book import LedgerBook
        from airflow_provider_rungen.execution.ledger.entries import model_identity

        app_id = self._run.app_id
        model = model_identity(hook.perform(outlast(app_id, lambda: get_app(app_id))))
        book = LedgerBook(options.ledger, model, self._log.home.run_token)
        self.new_ledger = book.open(create=create)
        return book, model

    def look_up(self, book: LedgerBook, plan: Plan) -> Found:
        """Find out which inputs of a plan were paid for."""
        self.paid = self._make_paid(book, plan)
        first: dict[str, int] = {}
        copies: Counter[str] = Counter()
        for number, row in enumerate(plan.rows()):
            if row.needs_job:
                first[row.digest] = number
            elif row.digest:
                copies[row.digest] += 1
        self._found = self.paid.find_all(first, copies)
        stored = self._found.stored
        self.reused_count = sum(1 + copies[digest] for digest, number in first.items() if number in stored)
        return self._found

    @property
    def stored_seconds(self) -> list[float]:
        """How long the jobs ran that the look-up found stored, as far as that is known."""
        times = (entry.execution_seconds for entry in (self._found.stored.values() if self._found else ()))
        return [each for each in times if each is not None]

    @property
    def new_count(self) -> int:
        """How many inputs are to be submitted, less what the look-up found for parts that are not loaded."""
        found = self._found.settled if self._found else ()
        return self._log.unsent_count - sum(number // PART_ROWS not in self._log.loaded for number in found)

    @property
    def spare_left(self) -> int | None:
        """How many such jobs may be bought from now on; negative if more would be needed."""
        return None if self.spare is None else self.spare - self._log.jobs.shared_in_vain

    def reopen_ledger(self) -> None:
        """Use the ledger again after a deferral. The keys are in the plan."""
        if self._run.options.ledger is not None:
            from airflow_provider_rungen.execution.ledger.book import LedgerBook

            book = LedgerBook(self._run.options.ledger, "", self._log.home.run_token)
            self.paid = self._make_paid(book, self._run.task_log.plan)
            self._is_reopened = True

    def _make_paid(self, book: LedgerBook, plan: Plan) -> PaidInputs:
        from airflow_provider_rungen.execution.sending.paid import PaidInputs

        sink = self._run.sink
        return PaidInputs(
            book,
            self._log.jobs,
            str(self._run.options.destination),
            self._run.app_id,
            key_of_number=lambda number: plan.row(number).digest,
            accepts=sink.accepts,
            on_stored=sink.add_stored,
        )

    def read_reused(self) -> set[str]:
        """Read the stored jobs of others again after a deferral, and return those that need no collecting."""
        if self.paid is None or not self._is_reopened:
            return set()
        self._is_reopened = False
        jobs = {
            number: row.current(self._log.jobs.since)
            for number, row in rows_of(self._log, range(self._log.part_count))
        }
        # "." is stored by this task run
        places = {number: job for number, job in jobs.items() if job and job.is_shared and job.stored != "."}
        stored = {number: job for number, job in places.items() if job.stored}
        gone = self.paid.read_again(stored)
        return {job.id for number, job in stored.items() if number not in gone}

    def note_found(self) -> None:
        """Note what the ledger knows of the inputs, those that are loaded later among them."""
        paid, found = self.paid, self._found
        if paid is not None and found is not None:
            paid.jobs = self._log.jobs
            self._log.on_load = lambda numbers: paid.note(found.only(numbers))
            self._log.on_load(self._log.jobs.inputs(*SUBMITTABLE, InputState.RUNNING))

    def is_remembered(self, job_id: str) -> bool:
        """Return whether the ledger, too, names a job of the log for its input."""
        number = self._log.jobs.table.input_of[job_id]
        entry = self._found.pending.get(number) if self._found is not None else None
        return entry is not None and entry.job_id == job_id

    def remember(self, stored: Sequence[StoredJob]) -> Future[None] | None:
        """Begin to note in the ledger, if there is one, which jobs are stored."""
        numbers = self._log.jobs.table.input_of
        if self.paid is None or not stored:
            return None
        return self.paid.add_done({numbers[job.job_id]: job for job in stored if job.job_id in numbers})

    def take_over(self, now: float) -> None:
        """Note jobs of earlier attempts, also in the ledger, which an outage may have kept them from."""
        jobs = self._log.jobs
        self.submitted_at = min(jobs.submitted_by, now)
        if self.paid is not None:
            numbers = jobs.inputs(InputState.RUNNING, InputState.COMPLETED)
            current = {number: jobs.table.rows[number].current(jobs.since) for number in numbers}
            own = {n: job for n, job in current.items() if job and not job.is_shared and not job.stored}
            self.paid.add_missing({number: job.id for number, job in own.items()})

    def forget_useless(self, errors: Mapping[str, RunGenError]) -> None:
        """Remove the jobs from the ledger that no attempt can use, given why this one cannot."""
        if self.paid is not None and errors:
            self.paid.forget_useless(errors)

    def forget(self, errors: Mapping[str, RunGenError | None]) -> None:
        """Remove jobs of no use from the ledger, given why they did not complete."""
        if self.paid is not None and errors:
            self.paid.forget(errors)

    def submit(self, deadline: float) -> bool:
        """
        Submit as many inputs as may be in flight.

        :param deadline: the time (seconds since 1970) after which nothing is submitted.
        :return: whether it stopped because the service refuses them all.
        """
        is_broken, is_waiting = self._submit_wave(deadline), False
        waits = self._run.options.wait_for_completion
        while self.left_to_others and not (is_broken or (waits and self._log.jobs.running)):
            if time.time() >= deadline:
                break
            if not is_waiting:
                log.info("Waiting for %d inputs that another run has claimed", len(self.left_to_others))
            is_waiting = True
            time.sleep(WAIT_INTERVAL)
            is_broken = self._submit_wave(deadline)
        return is_broken

    @property
    def has_free(self) -> bool:
        """Whether inputs are still to be submitted that no other run has claimed."""
        return self._log.unsent_count > len(self.left_to_others)

    def _submit_wave(self, deadline: float) -> bool:
        """Submit as many inputs as possible. Others take the place of those that another run has claimed."""
        run, is_broken = self._run, False
        run.guard.check()
        if (spare := self.spare_left) is not None and spare < 0:
            run.report.stop_submitting("jobs of other runs failed, and max_jobs or max_cost is reached")
        count = -1
        self._is_submitting = True
        with run.guard.defer_signals():
            if time.time() < deadline:
                self.left_to_others.clear()
            while len(self.left_to_others) > count and not is_broken and time.time() < deadline:
                count = len(self.left_to_others)
                is_broken = self._submit_some(self._room(), deadline)
            run.report.push_submitted()
        self._is_submitting = False
        return is_broken

    def _room(self) -> int:
        """Return how many inputs may be submitted now."""
        limit, unsent = self._run.options.max_in_flight, self._log.unsent_count
        if limit is None or not self._run.options.wait_for_completion:
            return unsent
        return min(max(limit - len(self._log.jobs.running), 0), unsent)

    def _submit_some(self, room: int, deadline: float) -> bool:
        # only this thread changes the table of jobs, and the inputs are read in another
        taken, plan = self._log.take(room, self.left_to_others), self._run.task_log.plan
        if not taken:
            return False
        todo = ((number, plan.input(number)) for number in taken)
        before = self._log.jobs.totals().submitted
        try:
            return self._send(todo, len(taken), deadline)
        except RunGenSubmissionUnknownError as error:
            raise self._run.report.explain_unknown(error) from error
        finally:
            count = self._log.jobs.totals().submitted - before
            self.submitted_at = time.time() if count else self.submitted_at
            if count or not self.left_to_others:
                self._run.report.log_submitted(count)

    def _send(self, todo: Iterator[tuple[int, Any]], count: int, deadline: float) -> bool:
        run, hook, options = self._run, self._run.hook, self._run.options
        is_single = self._log.count == 1
        sender = Sender(
            hook.aperform,
            self._log.app_id,
            self._log.saver,
            self.paid,
            # one job waits for nothing, unless another run has claimed its input
            throttle=Throttle(1, ATTEMPTS) if is_single else self._throttle,
            deadline=math.inf if is_single and self.paid is None else deadline,
            is_stopping=lambda: run.guard.is_pending,
            stop_after=options.stop_after if options.wait_for_completion else None,
            refusals=self.refusals,
            spare=self._log.home.spare,
        )

        async def submit() -> None:
            try:
                await sender.run(todo, count)
            finally:
                await hook.aclose()

        # the submission itself looks for a kill, and gives what is in flight its last second
        before = hook.checkpoint, hook.is_interrupted
        hook.checkpoint = hook.is_interrupted = None
        try:
            asyncio.run(submit())
        finally:
            hook.checkpoint, hook.is_interrupted = before
            self.errors |= sender.errors
            self.left_to_others |= sender.left_to_others
            self.refusals = sender.refusals
            self._lost.update(sender.unsaved_ids())
            if not is_single:
                self._warn_of_unknown()
        if is_single and isinstance(error := sender.errors.get(0), RunGenSubmissionUnknownError):
            raise error
        return sender.is_broken

    def _warn_of_unknown(self) -> None:
        unknown = self._log.unknown
        if unknown:  # what ends the attempt may be another error
            log.warning(
                "Fate unknown: %d inputs of app %s (the first is inputs[%d]). RunGen may have created "
                "their jobs; look at the app's jobs",
                *(len(unknown), self._log.app_id, unknown[0]),
            )

    # --- what nobody else knows ---

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no other attempt would find, without asking Airflow."""
        running = self._log.running
        if self._log.home.is_durable:
            self._lost &= self._log.jobs.unsaved_ids
        elif self.paid is None:
            return running
        return [job_id for job_id in running if job_id in self._lost]

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
                lost = self.unsaved_ids() if self._run.ending.has_next(error) else self._log.running
                log_jobs(f"No retry resumes these jobs of app {self._log.app_id}", lost)
            raise
