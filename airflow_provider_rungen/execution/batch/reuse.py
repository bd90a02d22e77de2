"""What a ledger knows of the inputs of a batch: which need no job, and which have one already."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.job_ids import format_jobs
from airflow_provider_rungen.execution.ledger.entries import StoredPlace
from airflow_provider_rungen.execution.task_instances import loop_position

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.collector import Collector
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.execution.ledger.entries import Entry

log = logging.getLogger(__name__)

# The errors of jobs that have no use any more.
_USELESS = (RunGenJobFailedError, RunGenJobCanceledError, RunGenNotFoundError, RunGenResultError)
# Hexadecimal digits of a task in the token of its run.
_TASK_DIGITS = 32


def _has_expired(error: RunGenError) -> bool:
    return isinstance(error, RunGenOutputError) and error.is_expired


def task_token(ti: Any) -> str:
    """
    Return hexadecimal digits of a task in one DAG run. A clear does not change them.

    :param ti: the task instance.
    """
    task = json.dumps([ti.dag_id, ti.run_id, ti.task_id, ti.map_index, *loop_position(ti)])
    return hashlib.sha256(task.encode()).hexdigest()[:_TASK_DIGITS]


def run_token(ti: Any) -> str:
    """
    Return what the attempts of a task run have in common: digits of the task, and of a number that each clear
    changes.

    :param ti: the task instance.
    """
    return f"{task_token(ti)}{ti.max_tries & 0xFFFF:04x}"


def _placing(on_stored: Callable[[StoredJob], object]) -> Callable[[StoredJob], StoredPlace]:
    def take(job: StoredJob) -> StoredPlace:
        on_stored(job)
        return StoredPlace(job.job_id, job.app_id, job.manifest, job.execution_seconds)

    return take


class Reuse:
    """
    What a ledger knows of the inputs of one batch. Without a ledger, each input needs a job of its own.

    The first of several equal inputs is their *leader*: it gets the job, the others share it.

    :param book: the ledger.
    :param keys: the key of each input in the ledger.
    """

    def __init__(self, book: LedgerBook | None = None, keys: Sequence[str] = ()) -> None:
        self.book = book
        self.keys = keys
        #: By input, the stored job of an equal input, for leaders.
        self.stored: dict[int, StoredPlace] = {}
        #: The jobs that were stored before.
        self.stored_job_ids: set[str] = set()
        #: By input, the job of an equal input that may still run, for leaders.
        self.pending: dict[int, Entry] = {}
        #: Jobs that another task run submitted, which this one does not cancel.
        self.borrowed: set[str] = set()
        self._leaders: dict[str, int] = {}
        for index, key in enumerate(keys):
            self._leaders.setdefault(key, index)
        self._keys_by_job: dict[str, str] = {}
        # the jobs whose entries are in the ledger already
        self._saved: set[str] = set()
        self._is_unread = False

    @classmethod
    def begin(
        cls,
        book: LedgerBook,
        keys: Sequence[str],
        destination: str,
        run: str,
        *,
        accepts: Callable[[StoredJob], bool],
        on_stored: Callable[[StoredJob], object],
    ) -> Self:
        """
        Look all inputs up.

        :param destination: where this task stores outputs. Jobs that are stored there already are found, too.
        :param run: the token of the task run.
        :param accepts: returns whether a stored job can be reused.
        :param on_stored: takes each that can, as it is found. All of them would fill the memory.
        """
        self = cls(book, keys)
        unfit: list[str] = []

        def take(job: StoredJob) -> StoredPlace | None:
            if accepts(job):
                return placing(job)
            unfit.append(job.job_id)
            return None

        placing = _placing(on_stored)
        found = book.find(self._leaders, destination, on_stored=take)
        stored = {key: place for key, place in found.stored.items() if place is not None}
        self._take_stored(stored)
        if unfit:
            log.warning("%d stored results do not fit result_schema, and their inputs run again", len(unfit))
        if unnoted := found.unnoted & stored.keys():
            book.add_done({key: stored[key] for key in unnoted})
        self.pending = {self._leaders[key]: entry for key, entry in found.pending.items()}
        self._saved = {entry.job_id for entry in found.pending.values()}
        self._keys_by_job = {entry.job_id: key for key, entry in found.pending.items()}
        task = run[:_TASK_DIGITS]
        self.borrowed = {entry.job_id for entry in self.pending.values() if entry.run[:_TASK_DIGITS] != task}
        reused = sum(self.is_reused(index) for index in range(len(keys)))
        equal = len(keys) - len(self._leaders)
        if reused:
            log.info("Reused %d of %d inputs, which are stored already", reused, len(keys))
        if equal:
            log.info("%d of %d inputs are equal to others, whose jobs they share", equal, len(keys))
        return self

    @classmethod
    def restore(
        cls,
        book: LedgerBook,
        ids: Sequence[str | None],
        saved: Sequence[Any],
    ) -> Self:
        """
        Go on after a deferral. The stored jobs are not read yet: see `read_stored`.

        :param ids: the job of each input.
        :param saved: what `to_save` returned for each.
        """
        self = cls(book, [key for key, _, _ in saved])
        jobs = list(zip(ids, saved, strict=True))
        self._keys_by_job = {job_id: key for job_id, (key, _, _) in jobs if job_id is not None}
        self.borrowed = {job_id for job_id, (_, _, is_borrowed) in jobs if job_id and is_borrowed}
        self._take_stored({key: StoredPlace(*place) for _, (key, place, _) in jobs if place})
        self._is_unread = True
        return self

    def read_stored(self, on_stored: Callable[[StoredJob], object]) -> dict[int, str]:
        """
        Read the stored jobs, if a deferral was in between.

        :param on_stored: takes each, as it is found.
        :return: by input, the jobs that are gone from storage. The service may still have them.
        """
        if self.book is None or not self._is_unread:
            return {}
        before, self._is_unread = self.stored, False
        # not by their keys: the ledger may have changed meanwhile, and what expired since then still counts
        places = {self.keys[leader]: place for leader, place in before.items()}
        self._take_stored(self.book.find_again(places, on_stored=_placing(on_stored)))
        return {leader: place.job_id for leader, place in before.items() if leader not in self.stored}

    def to_save(self, index: int, job_id: str | None) -> list[Any]:
        """
        Return what `restore` has to know of an input, as JSON has it.

        :param job_id: its job.
        """
        return [self.keys[index], self.stored.get(self.leader(index)), job_id in self.borrowed]

    def _take_stored(self, stored: Mapping[str, StoredPlace]) -> None:
        self.stored = {self._leaders[key]: place for key, place in stored.items()}
        self.stored_job_ids = {place.job_id for place in stored.values()}

    # --- questions ---

    def leader(self, index: int) -> int:
        """Return the input whose job an input shares: itself, for most."""
        return self._leaders[self.keys[index]] if self.keys else index

    def is_reused(self, index: int) -> bool:
        """Return whether an equal input is stored already."""
        return self.leader(index) in self.stored

    def needs_no_job(self, index: int) -> bool:
        """Return whether no job of its own is submitted for an input."""
        return bool(self.keys) and (self.leader(index) != index or index in self.stored)

    def expand(self, ids: Sequence[str | None]) -> list[str | None]:
        """Return the job of each input, those of stored and equal inputs included."""
        return list(self._expanded(ids)) if self.keys else list(ids)

    def _expanded(self, ids: Sequence[str | None]) -> Iterator[str | None]:
        for index in range(len(ids)):
            leader = self.leader(index)
            yield self.stored[leader].job_id if leader in self.stored else ids[leader]

    def expand_refused(self, refused: Mapping[int, RunGenError]) -> Mapping[int, RunGenError]:
        """Return the refused inputs, with those that are equal to one of them."""
        if not self.keys or not refused:
            return refused
        leaders = ((index, self.leader(index)) for index in range(len(self.keys)))
        return {index: refused[leader] for index, leader in leaders if leader in refused}

    # --- what the ledger learns ---

    def save_submitted(self, app_id: str, jobs: Mapping[int, str]) -> None:
        """
        Remember jobs right after their submission.

        :param jobs: by input, the job.
        :raises RunGenOutputError: the ledger cannot be written.
        """
        if self.book is None:
            return
        new = {self.keys[index]: job_id for index, job_id in jobs.items() if job_id not in self._saved}
        if not new:
            return
        self._keys_by_job |= {job_id: key for key, job_id in new.items()}
        self.book.add_pending(app_id, new)
        self._saved |= set(new.values())

    @contextmanager
    def remembering(self, collector: Collector) -> Iterator[None]:
        """
        Remember what a collector stored, and forget what failed, also when it was interrupted.

        :raises RunGenOutputError: the ledger cannot be written.
        """
        try:
            yield
        finally:
            known = self._keys_by_job
            jobs = {known[job.job_id]: job for job in collector.stored if job.job_id in known}
            if self.book is not None and jobs:
                self.book.add_done(jobs)
            failed = {job_id: error for job_id, error in collector.errors.items() if job_id in known}
            expired = [job_id for job_id, error in failed.items() if _has_expired(error)]
            if expired:
                log.warning("Outputs expired: %s; the next attempt pays again", format_jobs(expired))
            # the others may still be stored by a later attempt
            useless = [job_id for job_id, error in failed.items() if isinstance(error, _USELESS)]
            self.forget(expired + useless)

    def forget(self, job_ids: Iterable[str]) -> None:
        """Forget jobs that failed or were canceled. A failure to do so is logged."""
        if self.book is None:
            return
        known = self._keys_by_job
        if jobs := {known[job_id]: job_id for job_id in job_ids if job_id in known}:
            self.book.remove(jobs)
