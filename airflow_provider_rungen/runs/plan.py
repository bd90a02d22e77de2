"""The plan of a task run: its rows and inputs, written once, in parts that are named by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.records import InvalidRecordError

#: Rows in a part of the plan, if their inputs are small.
PLAN_ROWS = 1024
# With more bytes of inputs, a part is closed earlier.
_MAX_INPUT_BYTES = 1 << 22
_INPUT_DIGEST_BYTES = 12


#: A part in a manifest: the number of its rows, and the names of its two files.
PartEntry: TypeAlias = tuple[int, str, str]


def input_digest(job_input: Any) -> str:
    """Return the fingerprint of an input. Equal inputs have equal ones."""
    text = canonical_json(job_input)
    return hashlib.blake2b(text.encode(), digest_size=_INPUT_DIGEST_BYTES).hexdigest()


def canonical_json(value: Any, change_text: Callable[[str], str] = str) -> str:
    """
    Return the same text for equal JSON values: neither the order of fields matters, nor ``1.0`` for ``1``.

    :param change_text: changes each text of the value before.
    """
    return json.dumps(_canonical(value, change_text), sort_keys=True, separators=(",", ":"))


def _canonical(value: Any, change_text: Callable[[str], str]) -> Any:
    """Return a JSON value in which equal numbers are of one type, as in RFC 8785."""
    if isinstance(value, str):
        return change_text(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: _canonical(item, change_text) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, change_text) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """
    A row of the source.

    :param values: its key, and the columns that the results repeat.
    :param digest: the fingerprint of its input; empty if it gets no job.
    :param status: why it gets none, as a status of the results.
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

    @property
    def has_input(self) -> bool:
        """Whether it has an input, which may be refused."""
        return bool(self.digest or self.why)


def plan_parts(rows: Iterable[tuple[PlannedRow, Any]]) -> Iterator[tuple[PartEntry, dict[str, bytes]]]:
    """
    Yield the parts of a plan: the entry of each in the manifest, and its files by name.

    Both files are JSON Lines: one has a line for each row, the other one for each row with an input. The
    inputs are apart, since they are deleted at the end of the run.

    :param rows: each row with its input, or ``None``. They are read as the parts are yielded.
    """
    lines: list[bytes] = []
    inputs: list[bytes] = []
    size = 0
    for row, job_input in rows:
        lines.append(_line([list(row.values), row.digest, row.status, row.why, row.first]))
        if row.has_input:
            inputs.append(_line(job_input))
            size += len(inputs[-1])
        if len(lines) == PLAN_ROWS or size > _MAX_INPUT_BYTES:
            yield _part(lines, inputs)
            lines, inputs, size = [], [], 0
    if lines:
        yield _part(lines, inputs)


def _part(lines: list[bytes], inputs: list[bytes]) -> tuple[PartEntry, dict[str, bytes]]:
    contents = b"".join(lines), b"".join(inputs)
    names = _name(contents[0]), _name(contents[1])
    return (len(lines), *names), dict(zip(names, contents, strict=True))


def read_rows(content: bytes, name: str) -> list[PlannedRow]:
    """
    Return the rows of a part.

    :param name: its name in the manifest.
    :raises InvalidRecordError: it is not the content that was planned.
    """
    return [PlannedRow(*line) for line in read_lines(content, name)]


def read_lines(content: bytes, name: str) -> list[Any]:
    """
    Return the values of a file of a plan, such as the inputs of a part.

    :param name: its name, which is a fingerprint of its content.
    :raises InvalidRecordError: it is not the content that was planned.
    """
    if _name(content) != name:
        raise InvalidRecordError("it was changed since it was planned")
    return [json.loads(line.decode("utf-8", "surrogatepass")) for line in content.split(b"\n")[:-1]]


@dataclass(frozen=True)
class Manifest:
    """
    What a plan consists of. It is written last, and its digest is the plan's name.

    :param app_id: the app that is to run.
    :param parts: its parts, in order.
    :param columns: the names of the values of a row.
    :param types: their types.
    :param sources: the URIs that were read.
    """

    app_id: str
    parts: Sequence[PartEntry]
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
        [values] = read_lines(content, digest)
        records.check_version(values)
        return cls(**{name: value for name, value in values.items() if name != "version"})


def _line(value: Any) -> bytes:
    # unlike a record, a value may be NaN
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def are_of_one_kind(*digests: Iterable[str]) -> bool:
    """Return whether fingerprints are all keys of a ledger, which are longer, or none of them is."""
    return len({len(digest) for some in digests for digest in some if digest}) < 2
