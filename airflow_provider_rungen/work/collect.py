"""Takes the jobs of an attempt as they end: stores what completed, and records how each ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RejectRow,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.outputs.kept import kept_value
from airflow_provider_rungen.outputs.output_store import OutputStore
from airflow_provider_rungen.results.check import ResultCheck
from airflow_provider_rungen.results.values import ResultReader
from airflow_provider_rungen.store.records import Record, Status

if TYPE_CHECKING:
    from airflow_provider_rungen.outputs.storage import Storage
    from airflow_provider_rungen.schemas import OutputType
    from airflow_provider_rungen.store.store import Store
    from airflow_provider_rungen.task.options import JobOptions
    from airflow_provider_rungen.work.rows import Rows
    from airflow_provider_rungen.work.wait import JobWait

_STATUSES = {JobStatus.FAILED: Status.FAILED, JobStatus.CANCELED: Status.CANCELED}


class Attempt(Protocol):
    """What a collector needs of its attempt."""

    @property
    def known_app_id(self) -> str: ...
    @property
    def options(self) -> JobOptions: ...
    @property
    def collects(self) -> bool:
        """Whether somebody else has submitted the jobs of the rows."""

    @property
    def wait(self) -> JobWait: ...
    @property
    def rows(self) -> Rows: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def reader(self) -> ResultReader: ...
    @property
    def output(self) -> OutputType | None: ...


@dataclass
class Strays:
    """
    Jobs that no row of the attempt needs.

    :param open: the purchase of each.
    """

    open: dict[str, Record]
    unstored: dict[str, RunGenError] = field(default_factory=dict)

    def note_end(self, record: Record) -> None:
        """Note how a job ended."""
        del self.open[record.job]


class Collector:
    """
    Collects the jobs of one attempt.

    :param run: the attempt.
    :param store: what is known of purchases.
    :param strays: what is collected in place of its rows. What its task demands of results says nothing of
        them.
    """

    def __init__(self, run: Attempt, store: Store, strays: Strays | None = None) -> None:
        self._run, self._store, self._strays = run, store, strays
        self._collects = run.collects and strays is None
        reader = run.reader if strays is None else ResultReader(run.storage, None)
        check = ResultCheck(run.options.check, run.storage, reader)
        self.outputs = OutputStore(
            run,
            run.storage,
            reader,
            self._on_stored,
            output=run.output if strays is None else None,
            check=check if check.is_set and strays is None else None,
            keeps_input=self._collects,
        )
        # the jobs that completed, and whose outputs are to be stored
        self._completed: list[str] = []
        # of collected jobs, those that did not, and whose inputs are to be asked for
        self._others: dict[str, Job] = {}

    @property
    def _rows(self) -> Rows | Strays:
        return self._run.rows if self._strays is None else self._strays

    def look(self, jobs: Sequence[str]) -> None:
        """
        Look at each of these jobs once, and store what has completed.

        :raises RunGenError: the service does not answer, or refuses the key.
        """
        ended: list[Job] = []

        def take(job_id: str, found: Job | RunGenError) -> None:
            job = job_of(found, app_id, job_id)
            if job.is_terminal:
                ended.append(strip_payloads(job))

        app_id = self._run.known_app_id
        self._run.wait.refetch(app_id, jobs, take, have_ended=False)
        self.note_ended(ended)
        self.store_some()

    def note_ended(self, jobs: Collection[Job]) -> None:
        """Note how jobs ended."""
        for job in jobs:
            if job.id not in self._rows.open:
                continue
            if job.is_usable:
                self._completed.append(job.id)
            elif self._collects and job.cause is None:
                self._others[job.id] = job
            else:
                self._end_job(job)

    def store_some(self) -> None:
        """
        Store the outputs of what has completed.

        :raises RunGenError: nothing can be stored now, or the check failed.
        """
        others, self._others = self._others, {}
        self._run.wait.refetch(
            self._run.known_app_id,
            [*others],
            lambda job_id, found: self._end_job(found if isinstance(found, Job) else others[job_id]),
        )
        jobs, self._completed = self._completed, []
        rows = self._rows
        if records := {job: rows.open[job] for job in jobs if job in rows.open}:
            for job, error in self.outputs.store(self._run.known_app_id, records).items():
                self._note_error(records[job], error)

    def _end_job(self, job: Job) -> None:
        """Record how a job ended that did not complete as it should."""
        why = job.error if job.cause is None else reason_of(job.cause, job.app_id, job.id)
        # one whose answer is too large has completed, and is of no use
        status = _STATUSES.get(job.status, Status.INVALID)
        self.end(
            self._rows.open[job.id].model_copy(
                update={
                    "status": status,
                    "why": why or str(status),
                    "seconds": job.execution_time,
                    "created_at": "" if job.created_at is None else job.created_at.isoformat(),
                    "input": kept_value(job.input) if self._collects else None,
                }
            )
        )

    def end(self, record: Record) -> None:
        """Record how a job ended. One that somebody else has submitted was bought when it was created."""
        if self._collects and record.created_at:
            at = datetime.fromisoformat(record.created_at).timestamp()
            record = record.model_copy(update={"at": at})
        self._store.end(record)
        self._rows.note_end(record)

    async def _on_stored(self, record: Record, rejection: RunGenError | None) -> None:
        if rejection is None:
            self.end(record)
        elif isinstance(rejection, RejectRow):
            self.end(record.model_copy(update={"status": Status.REJECTED, "why": rejection.message}))
        else:  # the check failed: the next attempt asks again
            self._rows.unstored[record.job] = rejection
        if self._store.is_flush_due:  # what many jobs returned may not fit into memory
            await self._store.flush()

    def _note_error(self, record: Record, error: RunGenError) -> None:
        """Record why a job is of no use, or keep it open for the next attempt."""
        status = _status_of(error)
        if status is None:
            self._rows.unstored[record.job] = error
            return
        why = reason_of(error, record.app, record.job)
        change = {"status": status, "why": why, "seconds": getattr(error, "execution_time", None)}
        self.end(record.model_copy(update={**change, "result": getattr(error, "returned", None)}))


def reason_of(error: RunGenError, app_id: str, job_id: str) -> str:
    """Return why a job cannot be used, without its ids."""
    if isinstance(error, RunGenJobError):
        return error.message if error.reason is None else error.reason
    return error.message.removesuffix(f" {format_ids(app_id, job_id)}")


def _status_of(error: RunGenError) -> Status | None:
    """Return how a job ended that cannot be used; ``None`` if it may be at the next try."""
    match error:
        case RunGenJobCanceledError():
            return Status.CANCELED
        case RunGenResultError():
            return Status.INVALID
        case RunGenOutputError():
            return Status.INVALID if error.is_expired or not error.retryable else None
        case RunGenJobFailedError():
            return Status.FAILED
        case RunGenNotFoundError():
            return Status.LOST
    return None
