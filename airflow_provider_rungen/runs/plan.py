"""The plan of a task run: its rows and inputs, written once, in parts that are named by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.records import InvalidRecordError

T = TypeVar("T")

#: Rows in a part of the plan, if their inputs are small.
PLAN_ROWS = 1024
# With more bytes of inputs, a part is closed earlier.
_MAX_INPUT_BYTES = 1 << 22
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
    :param first: the first row with an equal input, whose job it shares; ``None`` if it has a job of its own.
    """

    values: Sequence[Any] = ()
    digest: str = ""
    status: str = ""
    why: str = ""
    first: int | None = None

    @property
    def needs_job(self) -> bool:
        """Whether its input is submitted."""
        return bool(self.digest) and self.first is None


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

    @property
    def files(self) -> dict[str, bytes]:
        """The files by their names."""
        return dict(zip(self.names, (self.rows, self.inputs), strict=True))


def plan_parts(rows: Iterable[tuple[PlannedRow, Any]]) -> Iterator[tuple[int, PlanPart]]:
    """
    Yield the parts of a plan, each with the number of its rows.

    :param rows: each row with its input, or ``None``. A part in memory is no larger than it has to be.
    """
    lines: list[bytes] = []
    inputs: list[bytes] = []
    size = 0
    for row, job_input in rows:
        line = [list(row.values), row.digest, row.status, row.why, "" if row.first is None else row.first]
        lines.append(_line(_trimmed(line)))
        if row.digest:
            inputs.append(_line(job_input))
            size += len(inputs[-1])
        if len(lines) == PLAN_ROWS or size > _MAX_INPUT_BYTES:
            yield len(lines), PlanPart(b"".join(lines), b"".join(inputs))
            lines, inputs, size = [], [], 0
    if lines:
        yield len(lines), PlanPart(b"".join(lines), b"".join(inputs))


def read_rows(content: bytes, name: str) -> list[PlannedRow]:
    """
    Return the rows of a part.

    :param name: the name that the manifest has for it.
    :raises InvalidRecordError: it is not the content that was planned.
    """
    return _checked(content, name, _read_row)


def read_inputs(content: bytes, name: str) -> list[Any]:
    """
    Return the inputs of a part, in the order of the rows that have one.

    :param name: the name that the manifest has for it.
    :raises InvalidRecordError: it is not the content that was planned.
    """
    return _checked(content, name, lambda line: line)


@dataclass(frozen=True)
class Manifest:
    """
    What a plan consists of. It is written last, and its digest is the plan's name.

    :param app_id: the app that is to run.
    :param parts: of each part, the number of rows, and the names of its two files.
    :param columns: the names of the values of a row.
    :param types: their types.
    :param sources: the URIs that were read.
    """

    app_id: str
    parts: Sequence[tuple[int, str, str]]
    columns: Sequence[str] = ()
    types: Sequence[str] = ()
    sources: Sequence[str] = ()

    def encode(self) -> bytes:
        return records.to_lines([{"version": records.VERSION, **asdict(self)}])

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(rows for rows, _, _ in self.parts)

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
        [manifest] = _checked(content, digest, _read_manifest)
        return manifest


def _trimmed(line: list[Any]) -> list[Any]:
    while line and line[-1] == "":
        line.pop()
    return line


def _line(value: Any) -> bytes:
    # unlike a record, a value may be NaN
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _checked(content: bytes, name: str, read: Callable[[Any], T]) -> list[T]:
    """Return what each line says. Whoever can write the name can write any content with it."""
    if _name(content) != name:
        raise InvalidRecordError("it was changed since it was planned")
    lines = content.split(b"\n")[:-1]
    try:
        return [read(json.loads(line.decode("utf-8", "surrogatepass"))) for line in lines]
    except records.ERRORS as error:
        raise InvalidRecordError(f"it is not a part of a plan: {type(error).__name__}") from None


def _read_row(line: Any) -> PlannedRow:
    row = PlannedRow(*line)
    for field in ("digest", "status", "why"):
        records.text(getattr(row, field), field, most=_MAX_INPUT_BYTES)
    if not isinstance(row.values, list):
        raise InvalidRecordError("values are no list")
    return row if row.first is None else replace(row, first=records.count(row.first, "first"))


def _read_manifest(values: Any) -> Manifest:
    records.check_version(values)
    manifest = Manifest(**{name: value for name, value in values.items() if name != "version"})
    parts = [
        (
            records.count(count, "rows"),
            records.hexadecimal(rows, "rows"),
            records.hexadecimal(inputs, "inputs"),
        )
        for count, rows, inputs in manifest.parts
    ]
    columns = [records.text(column, "a column", most=_MAX_INPUT_BYTES) for column in manifest.columns]
    return replace(manifest, parts=parts, columns=columns)
