"""The plan of a task run: its rows and inputs, written once, in parts that are named by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.records import InvalidRecordError

#: Rows in a part of the plan: a whole number of parts of the log.
PLAN_ROWS = 16 * PART_ROWS
_INPUT_DIGEST_BYTES = 12


def input_digest(job_input: Any) -> str:
    """Return the fingerprint of an input. The order of its fields does not matter."""
    text = json.dumps(job_input, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=_INPUT_DIGEST_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """
    A row of the source.

    :param values: its key, and the columns that the results repeat.
    :param digest: the fingerprint of its input; empty if it has none.
    :param status: why it has none, in a word.
    :param why: the same in a sentence.
    """

    values: Sequence[Any] = ()
    digest: str = ""
    status: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class PlanPart:
    """
    The content of a part. The inputs are a file of their own, since they are deleted when the run is over.

    :param rows: JSON Lines, one a row.
    :param inputs: JSON Lines, one for each row with an input.
    """

    rows: bytes
    inputs: bytes

    @property
    def names(self) -> tuple[str, str]:
        """The names of both files, as the manifest has them."""
        return _name(self.rows), _name(self.inputs)

    @classmethod
    def of(cls, rows: Iterable[tuple[PlannedRow, Any]]) -> PlanPart:
        """
        Return a part.

        :param rows: each with its input, or ``None``.
        """
        pairs = list(rows)
        lines = [[list(row.values), row.digest, row.status, row.why] for row, _ in pairs]
        inputs = [job_input for row, job_input in pairs if row.digest]
        return cls(records.to_lines(_trimmed(line) for line in lines), records.to_lines(inputs))


def plan_parts(rows: Iterable[tuple[PlannedRow, Any]]) -> Iterator[PlanPart]:
    """Yield the parts of a plan, one at a time in memory."""
    iterator = iter(rows)
    while pairs := list(islice(iterator, PLAN_ROWS)):
        yield PlanPart.of(pairs)


def read_rows(content: bytes, name: str) -> list[PlannedRow]:
    """
    Return the rows of a part.

    :param name: the name that the manifest has for it.
    :raises InvalidRecordError: it is not the content that was planned.
    """
    return [PlannedRow(*line) for line in _checked_lines(content, name)]


def read_inputs(content: bytes, name: str) -> list[Any]:
    """
    Return the inputs of a part, in the order of the rows that have one.

    :param name: the name that the manifest has for it.
    :raises InvalidRecordError: it is not the content that was planned.
    """
    return _checked_lines(content, name)


@dataclass(frozen=True)
class Manifest:
    """
    What a plan consists of. It is written last, and its digest is the plan's name.

    :param count: the number of rows.
    :param parts: the names of the two files of each part.
    :param columns: the names of the values of a row.
    :param types: their types.
    :param sources: the URIs that were read.
    """

    count: int
    parts: Sequence[tuple[str, str]]
    columns: Sequence[str] = ()
    types: Sequence[str] = ()
    sources: Sequence[str] = ()

    def encode(self) -> bytes:
        return records.to_lines([{"version": records.VERSION, **asdict(self)}])

    @property
    def digest(self) -> str:
        """The name of the plan."""
        return _name(self.encode())

    @classmethod
    def decode(cls, content: bytes, digest: str) -> Manifest:
        """
        Return a manifest.

        :param digest: the plan that was written, as Airflow knows it.
        :raises InvalidRecordError: it is another plan.
        """
        [values] = _checked_lines(content, digest)
        records.check_version(values)
        return cls(**{name: value for name, value in values.items() if name != "version"})


def _trimmed(line: list[Any]) -> list[Any]:
    while line and line[-1] == "":
        line.pop()
    return line


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _checked_lines(content: bytes, name: str) -> list[Any]:
    if _name(content) != name:
        raise InvalidRecordError("it was changed since it was planned")
    return [json.loads(line) for line in content.splitlines()]
