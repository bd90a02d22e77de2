"""The rows of a results table: one for each input or job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS
from airflow_provider_rungen.task.outcomes import MAX_FAILED, MAX_FAILED_ERROR

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price

#: The values of a row by column, as JSON has them.
Values: TypeAlias = dict[str, Any]


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
    def named(cls, names: Collection[str]) -> set[str]:
        """Return the statuses that a filter names: ``failed`` is all but ``completed`` and ``skipped``."""
        return {*names, *({*cls} - {cls.COMPLETED, cls.SKIPPED} if cls.FAILED in names else ())}


@dataclass(slots=True, kw_only=True)
class ResultRow:
    """
    A row of the results table.

    :param index: its place in the source, from 0.
    :param values: of the table's own columns, JSON values by name. A missing one is null.
    :param error: why it is not completed.
    :param is_equal: whether it shares the job of an earlier row.
    :param reused: whether another task run or row bought its job, or a collecting task found it stored.
    :param outputs: the URIs of its stored files.
    :param input: its input, as JSON text without the secrets of its URLs.
    :param result: what the model returned, as JSON text without the secrets of its URLs.
    :param cost: what its job cost, in the currency of the price.
    :param seconds: how long its job ran.
    :param bought_at: when it was bought (ISO 8601, in UTC).
    :param typed: the properties of the result that have columns.
    """

    index: int
    status: Status
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    job_id: str | None = None
    is_equal: bool = False
    reused: bool = False
    outputs: Sequence[str] = ()
    input: str | None = None
    result: str | None = None
    seconds: float | None = None
    cost: Decimal | None = None
    bought_at: str | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)

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

    def written(self, source: Iterable[str], columns: Collection[str]) -> dict[str, Any]:
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
            self.reused += row.reused and row.status is Status.COMPLETED
            self.by_status[row.status] += 1
            if row.is_failed and len(self.first_failed) < MAX_FAILED:
                self.first_failed.append(row.failure(self._key))
            if not row.is_equal:
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
            amount = price.cost(seconds)
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
