"""The record of one attempt: its numbers, what it ran, and how it ended. No other attempt writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.place import SupersededError
from airflow_provider_rungen.runs.rows import Totals, Writer

_SUFFIX = ".json"


class End(StrEnum):
    """How an attempt ended, as far as it could record it."""

    UNKNOWN = ""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: A user cleared the task while it ran.
    CLEARED = "cleared"


@dataclass(frozen=True)
class AttemptRecord:
    """
    One attempt of a task run.

    :param turn: its number in this run, from 1. Unlike Airflow's, it never starts again.
    :param nonce: see `Writer`.
    :param since: the first attempt whose jobs count for this one.
    :param try_number: this and the next three are Airflow's numbers, by which a retry differs from a clear.
    :param plan: the digest of the plan; empty until the source is read.
    :param began: when it began (seconds since 1970).
    :param deadline: when its jobs are canceled (seconds since 1970).
    :param end: how it ended.
    :param begun: how often it had begun parts of the log (see `PartFile.nth`), as far as the record knows.
    :param totals: the totals of its inputs at its end; empty until then.
    """

    turn: int
    nonce: str
    since: int
    try_number: int = 1
    max_tries: int = 0
    retries: int | None = None
    clear_number: int | None = None
    app_id: str = ""
    model: str = ""
    plan: str = ""
    began: float = 0.0
    deadline: float = 0.0
    end: End = End.UNKNOWN
    begun: int = 0
    totals: Totals = Totals()  # noqa: RUF009 - it is frozen

    @property
    def writer(self) -> Writer:
        return Writer(self.turn, self.try_number, self.nonce)

    def encode(self) -> bytes:
        """Return the content of the file."""
        values = asdict(self)
        values |= {name: float(values[name]) for name in ("began", "deadline")}
        return records.to_lines([{"version": records.VERSION} | values])

    @classmethod
    def decode(cls, content: bytes) -> AttemptRecord:
        """
        Return what a file says.

        :raises InvalidRecordError: it is not such a file, or not a complete one.
        """
        return records.decode(content, _read, cls.encode)

    @classmethod
    def of_fields(cls, values: Mapping[str, Any]) -> AttemptRecord:
        """
        Return the record with these fields, as JSON has them.

        :raises InvalidRecordError: a field has another value than this version writes.
        """
        record = cls(**{name: value for name, value in values.items() if name != "version"})
        return replace(
            records.checked(record),
            # it names a folder
            plan=record.plan and records.hexadecimal(record.plan, "plan"),
            end=End(record.end),
            totals=records.checked(Totals(**values["totals"])),
        )


def next_turn(earlier: Sequence[AttemptRecord], try_number: int, run_began: float) -> int:
    """
    Return the turn of an attempt that begins.

    :param earlier: the attempts so far.
    :param try_number: Airflow's number of the attempt.
    :param run_began: when the DAG run began (seconds since 1970). Earlier attempts are those of a deleted run
        with the same id.
    :raises SupersededError: Airflow has started a later attempt. This one was cut off before it began.
    """
    for record in earlier:
        if record.try_number > try_number and record.began >= run_began:
            raise SupersededError(
                f"Attempt {try_number} is cut off: attempt {record.try_number} has begun; nothing was sent"
            )
    return 1 + max((record.turn for record in earlier), default=0)


def attempt_name(writer: Writer) -> str:
    """Return the name of the record of an attempt."""
    return f"{writer}{_SUFFIX}"


def parse_attempt_name(name: str) -> Writer | None:
    """Return the attempt whose record has a name; ``None`` for other files."""
    return Writer.parse(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None


def _read(lines: list[Any]) -> AttemptRecord:
    [values] = lines
    records.check_version(values)
    return AttemptRecord.of_fields(values)
