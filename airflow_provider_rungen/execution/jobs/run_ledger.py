"""The ledger as one attempt uses it: what its inputs have cost already, and what it learns of that."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.plan import input_digest
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.jobs.plans import Plan
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.ledger.files import Watched
    from airflow_provider_rungen.execution.ledger.store import LedgerStore
    from airflow_provider_rungen.execution.sending.paid import Found, PaidInputs
    from airflow_provider_rungen.execution.sources.inputs import KeyOf
    from airflow_provider_rungen.ledger import Ledger

log = logging.getLogger(__name__)


class RunLedger:
    """
    The ledger of one attempt, if its task has one.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        #: The ledger, if it did not exist yet.
        self.new_ledger: str | None = None
        #: What it knows of the inputs; ``None`` without a ledger.
        self.paid: PaidInputs | None = None
        #: How many inputs have a job that was stored before.
        self.reused_count = 0
        self._book: LedgerStore | None = None
        self._found: Found | None = None
        # whether the stored jobs that are reused are to be read again
        self._is_reopened = False

    def open(self, *, create: bool = True) -> str:
        """
        Open the ledger, if there is one, and return the model with it. The service knows which the app has.

        :param create: see `LedgerStore.open`.
        """
        options, hook = self._run.options, self._run.hook
        if options.ledger is None:
            return ""
        from airflow_provider_rungen.execution.ledger.entries import model_identity

        app_id = self._run.app_id
        self._book = self._make_book(options.ledger, "")
        self.new_ledger = self._book.open(create=create)
        model = self._book.model = model_identity(hook.perform(get_app(app_id)))
        return model

    def check_model(self) -> None:
        """Warn if the app's model has changed: the ledger has what was made since under the one before."""
        model, app_id = self._log.run_log.attempt.model, self._run.app_id
        if self.paid is None or not model or not self._log.jobs.totals().own:
            return
        from airflow_provider_rungen.execution.ledger.entries import model_identity

        with suppress(RunGenError):
            if model_identity(self._run.hook.perform(get_app(app_id, attempts=1))) != model:
                log.warning(
                    "The model of app %s was changed during this run: the ledger may have outputs of the new "
                    "one under the old one. Run these inputs once more with refresh=True",
                    app_id,
                )

    @property
    def key_of(self) -> KeyOf:
        """What returns the fingerprint of an input: its key in the ledger, if there is one."""
        return input_digest if self._book is None else self._book.key

    def look_up(self, plan: Plan) -> Found | None:
        """Find out which inputs of a plan were paid for, if there is a ledger."""
        if self._book is None:
            return None
        self.paid = self._make_paid(self._book, plan)
        first: dict[str, int] = {}
        copies: Counter[str] = Counter()
        for number, row in enumerate(plan.rows()):
            if row.needs_job:
                first[row.digest] = number
            elif row.digest:
                copies[row.digest] += 1
        self._found = self.paid.find_all(first, copies)
        counts = Counter(number // PART_ROWS for number in self._found.settled)
        self._log.state.paid = [counts[part] for part in range(plan.part_count)]
        stored = self._found.stored
        self.reused_count = sum(1 + copies[digest] for digest, number in first.items() if number in stored)
        return self._found

    def seconds_per_job(self) -> float:
        """
        Return how long a job is expected to run; 0 if that is not known.

        That is the mean of the inputs that are stored, otherwise of the jobs of earlier attempts, otherwise
        of up to 100 jobs of the app in the ledger.
        """
        entries = self._found.stored.values() if self._found else ()
        times = [each.execution_seconds for each in entries if each.execution_seconds is not None]
        totals = self._log.jobs.totals()
        if not times and totals.timed:
            return totals.seconds / totals.timed
        if not times and self._book is not None:
            times = self._book.files.sample(self._run.app_id)
        return fmean(times) if times else 0

    @property
    def unloaded_count(self) -> int:
        """How many inputs of parts that are not loaded need no job, as the look-up found."""
        paid = self._log.state.paid
        return sum(count for part, count in enumerate(paid) if part not in self._log.loaded)

    @property
    def new_count(self) -> int:
        """How many inputs are to be submitted."""
        return max(self._log.unsent_count - self.unloaded_count, 0)

    def watched(self, numbers: Iterable[int]) -> Watched | None:
        """Return what is known of the claims of others, to go on with it after a deferral."""
        rows = map(self._log.plan.row, numbers)
        return None if self._book is None else self._book.files.watched(row.digest for row in rows)

    def reopen(self, watched: Watched | None) -> None:
        """
        Use the ledger again after a deferral. The keys are in the plan.

        :param watched: what was known of the claims of others; ``None`` if there was no ledger then.
        """
        if self._run.options.ledger is not None and watched is not None:
            self._book = self._make_book(self._run.options.ledger, "")
            self._book.files.watch(watched)
            self.paid = self._make_paid(self._book, self._run.task_log.plan)
            self._log.on_load = self._note_part
            self._is_reopened = True

    def _note_part(self, numbers: Collection[int]) -> None:
        """Note what the ledger has of a part that is loaded after a deferral, if it had some of it before."""
        paid, counts = self.paid, self._log.state.paid
        numbers = [number for number in numbers if self._log.jobs.state(number) in SUBMITTABLE]
        if paid is None or not any(counts[number // PART_ROWS] for number in numbers):
            return
        try:
            find = partial(paid.look_up, numbers)
            found = self._run.guard.call_patiently("look inputs up in the ledger", find)
        except RunGenError as error:
            log.warning("%s", error)  # it is asked again before anything is sent
        else:
            paid.note(found)

    def _make_book(self, ledger: Ledger, model: str) -> LedgerStore:
        from airflow_provider_rungen.execution.ledger.store import LedgerStore

        return LedgerStore(ledger, model, self._log.home.run_token, began=self._log.home.began)

    def _make_paid(self, book: LedgerStore, plan: Plan) -> PaidInputs:
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
            completes=self._run.options.check is None,
        )

    def read_reused(self) -> set[str]:
        """Read the stored jobs of others again after a deferral, and return those that need no collecting."""
        if self.paid is None or not self._is_reopened:
            return set()
        self._is_reopened = False
        jobs = {number: row.current(self._log.jobs.since) for number, row in self._log.rows()}
        # "." is stored by this task run
        places = {number: job for number, job in jobs.items() if job and job.is_shared and job.stored != "."}
        stored = {number: job for number, job in places.items() if job.stored}
        gone = self.paid.read_again(stored)
        return {job.id for number, job in stored.items() if number not in gone}

    @property
    def stored_ids(self) -> set[str]:
        """The stored jobs that the look-up found."""
        return {each.job_id for each in self._found.stored.values()} if self._found else set()

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
        entry = self._found.settled.get(number) if self._found is not None else None
        return entry is not None and entry.state == "pending" and entry.job_id == job_id

    def remember(self, stored: Sequence[StoredJob]) -> Future[None] | None:
        """Begin to note in the ledger, if there is one, which jobs are stored."""
        numbers = self._log.jobs.table.input_of
        if self.paid is None or not stored:
            return None
        return self.paid.add_done({numbers[job.job_id]: job for job in stored if job.job_id in numbers})

    def add_resumed(self) -> list[str]:
        """
        Note jobs of earlier attempts, which an outage may have kept from the ledger, or which had none.

        :return: those that are stored, to be noted once they are read.
        """
        if self.paid is None or self._found is None:
            return []
        jobs = self._log.jobs
        numbers = jobs.inputs(InputState.RUNNING, InputState.COMPLETED)
        current = {number: jobs.table.rows[number].current(jobs.since) for number in numbers}
        ours = {number: job for number, job in current.items() if job and not job.is_shared}
        self.paid.add_missing({number: job.id for number, job in ours.items() if not job.stored})
        known = self._found.settled
        return [job.id for number, job in ours.items() if job.stored and number not in known]

    def forget_useless(self, errors: Mapping[str, RunGenError]) -> Future[None] | None:
        """Begin to remove the jobs from the ledger that no attempt can use, given why this one cannot."""
        return begin(self.paid.forget_useless, errors) if self.paid is not None and errors else None

    def forget(self, errors: Mapping[str, RunGenError | None]) -> Future[None] | None:
        """Begin to remove jobs of no use from the ledger, given why they did not complete."""
        return begin(self.paid.forget, errors) if self.paid is not None and errors else None
