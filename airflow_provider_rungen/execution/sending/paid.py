"""What a ledger knows of the inputs of a task run: asked before the first, and again before each block."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin, in_daemon_thread
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobFailedError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.ledger.entries import Entry, destination_of
from airflow_provider_rungen.execution.ledger.files import CLAIM_TIME
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.execution.task.job_ids import format_jobs
from airflow_provider_rungen.execution.task.outcomes import brief_reason, is_useless
from airflow_provider_rungen.runs.rows import ENDED_BADLY, SUBMITTABLE, Job, JobState, Row

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.ledger.store import LedgerStore
    from airflow_provider_rungen.runs.jobs import Jobs

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """
    What the ledger knows about some inputs, by number.

    :param settled: those that need no job: it is stored, or may still run, or was the last of too many.
    :param untaken: the stored jobs that nobody has taken yet.
    :param claimed: those that this attempt has claimed, at `at` (monotonic clock).
    """

    settled: Mapping[int, Entry]
    untaken: Collection[StoredJob] = ()
    claimed: Collection[int] = ()
    at: float = 0.0

    def in_state(self, state: str) -> dict[int, Entry]:
        """Return the entries in a state; see `Entry.state`."""
        return {number: entry for number, entry in self.settled.items() if entry.state == state}

    @property
    def stored(self) -> dict[int, Entry]:
        """The jobs whose outputs are stored."""
        return self.in_state("done")

    def only(self, numbers: Collection[int]) -> Found:
        """Return what is known about some of the inputs."""
        return replace(self, settled={n: self.settled[n] for n in numbers if n in self.settled})


@dataclass(eq=False)
class PaidInputs:
    """
    The ledger, as one task run sees it. What it knows of an input becomes a job in `Jobs`, and nothing else.

    `note` runs in the thread that owns `jobs`. All other methods block, and may run in any other.

    :param ledger: the ledger, which is open.
    :param jobs: the jobs of the task run.
    :param destination: where this task stores outputs.
    :param app_id: the app that runs the inputs.
    :param key_of_number: returns the key of an input in the ledger.
    :param accepts: returns whether a stored job can be used: whether its result fits `output_type`.
    :param on_stored: takes each stored job that can. All of them would fill the memory.
    :param completes: whether a submitted job that is stored is done. It is not if it is still to be checked.
    """

    ledger: LedgerStore
    #: They are others after a deferral.
    jobs: Jobs
    destination: str
    app_id: str
    _: KW_ONLY
    key_of_number: Callable[[int], str]
    accepts: Callable[[StoredJob], bool]
    on_stored: Callable[[StoredJob], object]
    completes: bool = True
    #: Whether jobs that run are taken. Nobody waits for them once an attempt stops.
    takes_running: bool = field(init=False, default=True)
    _unfit: set[str] = field(init=False, default_factory=set)
    # when inputs that have no job yet were claimed (monotonic clock)
    _claims: dict[int, float] = field(init=False, default_factory=dict)

    # --- what the ledger knows ---

    def find_all(self, keys: Mapping[str, int], copies: Mapping[str, int] | None = None) -> Found:
        """
        Look up a plan, before anything is sent. Stored jobs are read, and taken at once.

        :param keys: the first input of each key.
        :param copies: how many more inputs have the same key.
        :raises RunGenOutputError: the ledger, or a place of stored jobs, cannot be read.
        """
        copies = copies or {}
        found = self._find(keys, self.on_stored, destination=self.destination if self.completes else None)
        equal, stored = sum(copies.values()), found.stored
        if reused := sum(1 + copies.get(key, 0) for key, number in keys.items() if number in stored):
            log.info("Reused %d of %d inputs, which are stored already", reused, len(keys) + equal)
        if equal:
            log.info("%d of %d inputs are equal to others, whose jobs they share", equal, len(keys) + equal)
        return found

    def find(self, numbers: Iterable[int]) -> Found:
        """
        Look up a block right before it is announced, and claim it. Pass what is found to `note`.

        :raises RunGenOutputError: the ledger, or a place of stored jobs, cannot be read or written.
        """
        at = time.monotonic()
        untaken: list[StoredJob] = []
        keys = {self.key_of_number(number): number for number in numbers}
        self._forget_ended(keys)
        existing = self.ledger.claim(self.app_id, keys)
        found = self._find({key: keys[key] for key in existing}, untaken.append)
        useless = [key for key in existing if keys[key] not in found.settled]
        new = self.ledger.replace_useless(self.app_id, useless)
        claimed = [keys[key] for key in {*keys}.difference(existing) | new]
        return replace(found, untaken=untaken, claimed=claimed, at=at)

    def _forget_ended(self, keys: Mapping[str, int]) -> None:
        """Forget jobs that failed while no attempt looked, or while the ledger took no write."""
        ended: dict[str, Job] = {}
        for key, number in keys.items():
            job = self.jobs.table.row(number).current(self.jobs.since)
            if job is not None and job.state in ENDED_BADLY:
                ended[key] = job
        if ended:
            reasons = {key: job.why for key, job in ended.items() if job.state is JobState.FAILED}
            self.ledger.remove({key: job.id for key, job in ended.items()}, reasons)

    def note(self, found: Found) -> list[int]:
        """
        Add the jobs that were found to those of the task run.

        :return: the inputs that need no job of their own.
        """
        if not self.takes_running:
            found = replace(found, settled=found.stored | found.in_state("failed"))
        for stored_job in found.untaken:
            self.on_stored(stored_job)
        entries = [*sorted(found.stored.items()), *sorted(found.in_state("pending").items())]
        noted = [number for number, entry in entries if self._add(number, entry)]
        for number, entry in found.in_state("failed").items():
            if self.jobs.state(number) in SUBMITTABLE:
                failed = format_count(entry.failures, "failed job")
                self.jobs.give_up(number, f"given up after {failed}, the last: {entry.why}")
                noted.append(number)
        # what was found and is of no use is submitted without a claim
        unused = found.settled.keys() - noted
        self._claims |= dict.fromkeys({*found.claimed, *unused}, found.at)
        return noted

    def look_up(self, numbers: Iterable[int]) -> Found:
        """
        Look inputs up, and claim none. Pass what is found to `note`.

        :raises RunGenOutputError: the ledger, or a place of stored jobs, cannot be read.
        """
        untaken: list[StoredJob] = []
        keys = {self.key_of_number(number): number for number in numbers}
        self._forget_ended(keys)
        return replace(self._find(keys, untaken.append), untaken=untaken)

    def is_claimed(self, number: int) -> bool:
        """Return whether an input may be submitted now: others leave it to this attempt for long enough."""
        return time.monotonic() < self._claims.get(number, -CLAIM_TIME) + CLAIM_TIME / 4

    def renew(self, numbers: Collection[int]) -> None:
        """
        Claim inputs again that are still to be submitted, or in flight.

        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        at = time.monotonic()
        keys = {self.key_of_number(number): number for number in numbers if number in self._claims}
        claimed = self.ledger.replace_useless(self.app_id, keys)
        self._claims |= {keys[key]: at for key in claimed}

    def read_again(self, jobs: Mapping[int, Job]) -> set[int]:
        """
        Read stored jobs that were found before a deferral. What has expired since then still counts.

        :param jobs: by input.
        :return: the inputs whose jobs are gone from storage. The service may still have them.
        :raises RunGenOutputError: a place of stored jobs cannot be read.
        """
        now = datetime.now(UTC)
        entries = [Entry("", job.id, "", now, job.stored) for job in jobs.values()]
        stored = self.ledger.find_again(entries, self.on_stored)
        return {number for number, job in jobs.items() if job.id not in stored}

    # --- what it learns ---

    def add_pending(self, jobs: Mapping[int, str]) -> None:
        """
        Remember jobs of this task run, as soon as their ids are known.

        :param jobs: by input.
        :raises RunGenOutputError: the ledger cannot be written.
        """
        self.ledger.add_pending(self.app_id, self._by_key(jobs))
        for number in jobs:
            self._claims.pop(number, None)

    def release(self, unsent: Collection[int]) -> None:
        """Leave to others what was claimed of some inputs that have no job. A failure to do so is logged."""
        self.ledger.remove(self._by_key(dict.fromkeys(self._claims.keys() & unsent, "")))
        self._claims.clear()

    def add_missing(self, jobs: Mapping[int, str]) -> None:
        """
        Remember jobs that are resumed from the log, as far as an outage kept them from the ledger.

        :param jobs: by input.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        self.ledger.add_missing(self.app_id, self._by_key(jobs))

    def add_done(self, stored: Mapping[int, StoredJob]) -> Future[None]:
        """
        Begin to remember stored jobs. Until that is done, the log must not say so: nobody asks again then.

        :param stored: by input.
        :return: fails with a `RunGenOutputError` if the ledger cannot be read or written for a minute.
        """
        budget = store_writer.STORE_RETRY_BUDGET

        def add() -> None:
            # the plan, too, may be in a store
            write = partial(in_daemon_thread, self.ledger.add_done, self._by_key(stored))
            asyncio.run(store_writer.call_store("note stored jobs in the ledger", write, budget))

        return begin(add)

    def forget(self, errors: Mapping[str, RunGenError | None]) -> None:
        """
        Forget jobs that failed or were canceled. A failure to do so is logged.

        :param errors: by job, why it cannot be used. What the service calls failed, or expired, counts.
        """
        numbers = self.jobs.table.input_of
        keys = {self.key_of_number(numbers[job_id]): job_id for job_id in errors if job_id in numbers}
        if keys:
            whys = {key: errors[job_id] for key, job_id in keys.items()}
            # only a new job can change what the service reports as a failure, and what has expired
            counted = (RunGenJobFailedError, RunGenOutputError)
            failed = {key: why for key, why in whys.items() if why and type(why) in counted}
            self.ledger.remove(keys, {key: brief_reason(why) for key, why in failed.items()})

    def forget_useless(self, errors: Mapping[str, RunGenError]) -> None:
        """
        Forget the jobs that nobody is to use. Without this task's ``output_type``, others may use a result.

        :param errors: by job, why this attempt cannot.
        """
        useless = {
            job_id: error
            for job_id, error in errors.items()
            if is_useless(error) and type(error) is not RunGenResultError
        }
        if expired := [job_id for job_id, each in useless.items() if isinstance(each, RunGenOutputError)]:
            log.warning("Outputs expired: %s; its input is paid for again", format_jobs(expired))
        self.forget(useless)

    # --- internal ---

    def _by_key(self, values: Mapping[int, T]) -> dict[str, T]:
        return {self.key_of_number(number): value for number, value in values.items()}

    def _find(
        self, keys: Mapping[str, int], take: Callable[[StoredJob], object], *, destination: str | None = None
    ) -> Found:
        """
        Look inputs up.

        :param keys: the input of each key.
        :param take: takes the stored jobs that can be used.
        :param destination: see `LedgerStore.find`.
        """

        def take_if_accepted(job: StoredJob) -> None:
            if self.accepts(job):
                take(job)
            else:
                unfit.add(job.job_id)

        unfit: set[str] = set()
        table = self.jobs.table
        useless = {job.id for number in keys.values() for job in table.row(number).jobs if not job.use}
        useless |= self._unfit
        entries = self.ledger.find(keys, take_if_accepted, destination=destination, without=useless)
        if unfit:
            log.warning("%d stored results do not fit output_type, and their inputs run again", len(unfit))
            self._unfit |= unfit
        found = {keys[key]: entry for key, entry in entries.items() if entry.job_id not in unfit}
        if given_up := sum(entry.state == "failed" for entry in found.values()):
            inputs = format_count(given_up, "input")
            log.warning("Given up: %s, of which too many jobs have failed (max_attempts)", inputs)
        # nobody can wait for the jobs of another app
        here = {n: each for n, each in found.items() if each.state != "pending" or each.app_id == self.app_id}
        return Found(here)

    def _add(self, number: int, entry: Entry) -> bool:
        """Add a job, unless its input has one by now, or the job is known: then it failed, or is not ours."""
        jobs, job_id = self.jobs, entry.job_id
        table = jobs.table
        is_here = destination_of(entry.manifest, job_id) == self.destination.rstrip("/")
        place = "." if is_here else entry.manifest
        known_number = table.input_of.get(job_id)
        if entry.manifest and known_number == number and table.job(job_id).state is JobState.OPEN:
            # an attempt was killed before it noted this, and the service may have forgotten the job
            jobs.end(job_id, JobState.COMPLETED, seconds=entry.execution_seconds)
            jobs.store(job_id, place)
            return True
        if jobs.state(number) not in SUBMITTABLE or job_id in table.foreign:
            return False
        if known_number is not None:
            # one that does not count any more, and that the ledger has kept
            if known_number != number or not table.job(job_id).use:
                return False
        elif not self.ledger.is_of_task(entry):
            return jobs.share(number, job_id, stored=entry.manifest)
        job = Job(
            job_id,
            # an earlier attempt submitted it, so that it runs again if it failed
            max(jobs.writer.turn - 1, jobs.since),
            JobState.COMPLETED if entry.manifest else JobState.OPEN,
            seconds=entry.execution_seconds,
            stored=place if entry.manifest else "",
        )
        jobs.adopt(number, Row((job,)))
        return True
