"""The rows of a results table: one for each input or job."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.codec import to_time
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RejectRow,
    RunGenBadRequestError,
    RunGenError,
    RunGenGivenUpError,
    RunGenJobCanceledError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.spool import Position, Spool
from airflow_provider_rungen.execution.table.results_table import Values, json_text
from airflow_provider_rungen.execution.task.outcomes import MAX_FAILED, MAX_FAILED_ERROR
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price

# The digits of a cost.
_COST = Decimal("0.0001")


class Status(StrEnum):
    """How a row ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REFUSED = "refused"
    SKIPPED = "skipped"
    INVALID = "invalid"
    REJECTED = "rejected"
    GIVEN_UP = "given_up"

    @classmethod
    def without_job(cls, error: RunGenError) -> Status:
        """Return the status of a row that has no job, given why."""
        if isinstance(error, RunGenGivenUpError):
            return cls.GIVEN_UP
        return cls.REFUSED if isinstance(error, RunGenBadRequestError) else cls.FAILED

    @classmethod
    def named(cls, names: Collection[str]) -> set[str]:
        """Return the statuses that a filter names: ``failed`` is all but ``completed`` and ``skipped``."""
        return {*names, *({*cls} - {cls.COMPLETED, cls.SKIPPED} if cls.FAILED in names else ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """
    A row of the results table.

    :param index: its place in the source, from 0.
    :param values: of the table's own columns, JSON values by name. A missing one is null.
    :param error: why it is not completed.
    :param reused: whether another task run or row bought its job, or a collecting task found it stored.
    :param outputs: the URIs of its stored files.
    :param sha256: the digest of the first file.
    :param input: its input, as JSON text without the secrets of its URLs.
    :param result: what the model returned, as JSON text without the secrets of its URLs.
    :param cost: what its job cost, in the currency of the price.
    :param created_at: when its job was created (ISO 8601, in UTC).
    :param typed: the properties of the result that have columns.
    :param about: what only a contact sheet shows; see `contact_sheet.describe_job`.
    """

    index: int
    status: Status
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    job_id: str | None = None
    reused: bool = False
    outputs: Sequence[str] = ()
    sha256: str | None = None
    input: str | None = None
    result: str | None = None
    execution_seconds: float | None = None
    cost: Decimal | None = None
    created_at: str | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] | None = None

    @property
    def output(self) -> str | None:
        """The URI of the first file."""
        return self.outputs[0] if self.outputs else None

    @property
    def is_failed(self) -> bool:
        """Whether it was to have a result, and has none."""
        return self.status not in (Status.COMPLETED, Status.SKIPPED)

    def failure(self, key: Sequence[str]) -> dict[str, Any]:
        """
        Return what XCom and callbacks get of a row that failed.

        :param key: the columns that identify it. If there are several, their values are a list; without any,
            its number is its key.
        """
        values = [_short(self.values.get(name)) for name in key] or [self.index]
        return {
            "index": self.index,
            "key": values[0] if len(values) == 1 else values,
            "status": str(self.status),
            "job_id": self.job_id,
            "error": _short(self.error or ""),
        }

    def written(self, source: Iterable[str], columns: Collection[str]) -> Values:
        """
        Return what is written of the row.

        :param source: the columns of the source.
        :param columns: the other columns: those that every row has, and the properties of the result.
        """
        written = {name: self.values.get(name) for name in source}
        for name in columns:
            written[name] = getattr(self, name) if name in FIXED_COLUMNS else self.typed.get(name)
        if self.cost is not None and "cost" in columns:
            written["cost"] = f"{self.cost:f}"
        return written


def _short(value: Any) -> Any:
    is_number = isinstance(value, int | float)
    return value if is_number else clean_text(str(value), MAX_FAILED_ERROR)


class ResultCounts:
    """
    The rows of a table, by how they ended.

    :param key: the columns that identify a row.
    """

    def __init__(self, key: Sequence[str] = ()) -> None:
        self._key = key
        self.rows = self.reused = self.file_count = 0
        self.by_status: Counter[Status] = Counter()
        #: The first rows that failed: see `ResultRow.failure`.
        self.first_failed: list[dict[str, Any]] = []
        # several rows may have one job
        self._jobs: set[str] = set()

    @property
    def runnable(self) -> int:
        """The rows that were to have a result."""
        return self.rows - self.by_status[Status.SKIPPED]

    @property
    def failed(self) -> int:
        """The rows that were to have a result, and have none."""
        return self.runnable - self.by_status[Status.COMPLETED]

    def count(self, rows: Iterable[ResultRow]) -> Iterator[ResultRow]:
        """Yield rows as they are, and count them."""
        for row in rows:
            self.rows += 1
            self.reused += row.reused
            self.by_status[row.status] += 1
            if row.is_failed and len(self.first_failed) < MAX_FAILED:
                self.first_failed.append(row.failure(self._key))
            if row.job_id is not None and row.job_id not in self._jobs:
                self._jobs.add(row.job_id)
                self.file_count += len(row.outputs)
            yield row

    def summary(self, uri: str, used: Mapping[str, Any], price: Price | None = None) -> dict[str, Any]:
        """
        Return what the task returns.

        :param uri: the table.
        :param used: what the jobs of the task run used, in all of its attempts: the XCom ``usage``.
        :param price: what a worker costs, if it is known.
        """
        seconds, cost = used["execution_seconds"], {}
        if price is not None and seconds is not None:
            amount = price.cost(Decimal(str(seconds)), _COST)
            cost = {"cost": float(amount), "currency": price.currency}
        return {
            "results": redact(uri),
            "rows": self.rows,
            "completed": self.by_status[Status.COMPLETED],
            "failed": self.failed,
            "skipped": self.by_status[Status.SKIPPED],
            "reused": self.reused,
            "jobs": used["jobs"],
            "execution_seconds": seconds,
            **cost,
        }


#: Returns what to keep of the input, the outputs and the result of a job.
Describe: TypeAlias = Callable[[Any, Sequence[Mapping[str, Any]], Any], Any]


class JobRows:
    """
    The rows of jobs, by job id, in a temporary file, since results may be large. Close it at the end.

    :param describe: what else to keep of each job.
    :param typed: the properties of results that have columns.
    :param keeps_inputs: whether to keep the inputs, which no plan has.
    :raises RunGenOutputError: a method could not use the folder for temporary files.
    """

    def __init__(
        self, describe: Describe | None = None, typed: Sequence[str] = (), *, keeps_inputs: bool = False
    ) -> None:
        self._describe = describe
        self._typed = typed
        self._keeps_inputs = keeps_inputs
        self._spool = Spool()
        # by job, where its row is
        self._positions: dict[str, Position] = {}

    def close(self) -> None:
        """Remove the file."""
        self._spool.close()

    def add_stored(self, stored: StoredJob, rejection: RunGenError | None = None) -> None:
        """
        Add a job whose outputs are stored.

        :param rejection: why its row is not completed.
        """
        uris = {output["uri"]: without_connection(output["uri"]) for output in stored.outputs}
        fields = {
            "outputs": list(uris.values()),
            "sha256": stored.outputs[0]["sha256"] if stored.outputs else None,
            "result": redact_value(stored.result, uris),
            "execution_seconds": stored.execution_seconds,
            "created_at": stored.created_at,
        }
        self._add(stored.job_id, fields, rejection, stored.input, stored.outputs)

    def add_job(self, job: Job, rejection: RunGenError | None = None) -> None:
        """
        Add a job that ended, and whose outputs are not stored.

        :param rejection: why its row is not completed.
        """
        created_at = None if job.created_at is None else job.created_at.isoformat()
        fields = {"execution_seconds": job.execution_time, "created_at": created_at}
        if rejection is None:
            fields["result"] = redact_value(job.result)
        self._add(job.id, fields, rejection, job.input)

    def row(
        self,
        index: int,
        job_id: str,
        error: RunGenError,
        *,
        values: Mapping[str, Any],
        is_reused: bool,
        seconds: float | None = None,
    ) -> ResultRow:
        """
        Return a row.

        :param error: why the job has no result, if it was not added.
        :param is_reused: whether the job was paid for before.
        :param seconds: how long it ran, if it was not added with that.
        """
        position = self._positions.get(job_id)
        fields = _failure(error) if position is None else json.loads(self._spool.read(position))
        fields["status"] = Status(fields["status"])
        if fields.get("execution_seconds") is None:
            seconds = getattr(error, "execution_time", None) if seconds is None else seconds
            fields["execution_seconds"] = seconds
        return ResultRow(index=index, job_id=job_id, values=values, reused=is_reused, **fields)

    def _add(
        self,
        job_id: str,
        fields: dict[str, Any],
        rejection: RunGenError | None,
        input: Any,
        files: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        fields |= {"status": Status.COMPLETED} if rejection is None else _failure(rejection)
        # signed URLs are removed before anything is on a disk
        redacted = redact_value(input)
        if self._describe is not None:
            fields["about"] = self._describe(redacted, files, fields.get("result"))
        if self._keeps_inputs and redacted is not None:
            fields["input"] = json_text(redacted)
        if "result" in fields:
            result = fields["result"]
            if isinstance(result, Mapping):
                fields["typed"] = {name: result.get(name) for name in self._typed}
            fields["result"] = json_text(result)
        fields["created_at"] = (at := to_time(fields["created_at"])) and at.isoformat()
        self._positions[job_id] = self._spool.add(json.dumps(fields).encode())


def without_connection(uri: str) -> str:
    """Return a URI that other programs than Airflow can open."""
    return re.sub(r"^([\w.+-]+://)[^/@]*@", r"\1", uri)


def _failure(error: RunGenError) -> dict[str, Any]:
    match error:
        case RunGenJobCanceledError():
            status = Status.CANCELED
        case RejectRow():
            status = Status.REJECTED
        case RunGenResultError() | RunGenOutputError(is_expired=True):
            status = Status.INVALID
        case _:
            status = Status.FAILED
    return {"status": status, "error": error.message}
