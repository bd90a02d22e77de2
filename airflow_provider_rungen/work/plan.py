"""The plan of a task run: its rows and inputs, written once, in files that are named by their content."""

from __future__ import annotations

import gzip
import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.table.inputs import PlannedRow
from airflow_provider_rungen.table.spool import Spool

if TYPE_CHECKING:
    from airflow_provider_rungen.table.inputs import KeyOf, Source

# Rows in a part of the plan, which is in memory at a time. With more bytes of inputs, it has fewer.
_PART_ROWS, _PART_BYTES = 1024, 1 << 22
# A file of a saved plan has so many bytes, uncompressed; the one that names the others, what is left.
_FILE_BYTES = 8 << 20

#: A part in a manifest: the number of its rows, the bytes of their lines, and the bytes of their inputs.
PartEntry: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Manifest:
    """
    What a plan consists of. It is the first line of the file by which a saved plan is named.

    :param app_id: the app that is to run.
    :param parts: its parts, in order.
    :param columns: the names of the values of a row.
    :param types: their types.
    :param sources: the URIs that were read.
    :param files: the files that come before what follows this line.
    """

    app_id: str
    parts: Sequence[PartEntry]
    columns: Sequence[str] = ()
    types: Sequence[str] = ()
    sources: Sequence[str] = ()
    files: Sequence[str] = ()


class Plan:
    """
    The rows of a task run, and their inputs. A part at a time is in memory.

    :param manifest: what it consists of.
    :param read: returns so many bytes of its content, from an offset on: the rows of all parts, then their
        inputs.
    :param name: the name under which it is saved; empty if it is not.
    """

    def __init__(self, manifest: Manifest, read: Callable[[int, int], bytes], name: str = "") -> None:
        self.manifest, self._read, self._name = manifest, read, name
        self._ends = list(accumulate(rows for rows, _, _ in manifest.parts))
        self._rows_at = list(accumulate((size for _, size, _ in manifest.parts), initial=0))
        sizes = (size for _, _, size in manifest.parts)
        self._inputs_at = list(accumulate(sizes, initial=self._rows_at[-1]))
        self.count = self._ends[-1] if self._ends else 0  #: The number of rows.
        # several threads may ask
        self._rows_of = lru_cache(1)(self._read_rows)
        self._inputs_of = lru_cache(1)(self._read_inputs)

    @classmethod
    def read(cls, app_id: str, source: Source, key_of: KeyOf) -> Self:
        """
        Read a source once.

        :param app_id: the app that is to run.
        :param key_of: returns the key of an input.
        :raises RunGenError: the source, or the folder for temporary files, cannot be read.
        """
        rows, inputs, parts = Spool(), Spool(), list[PartEntry]()
        for count, lines, job_inputs in _parts(source.read(key_of)):
            rows.add(lines)
            inputs.add(job_inputs)
            parts.append((count, len(lines), len(job_inputs)))
        rows_size = sum(size for _, size, _ in parts)

        def read(size: int, offset: int) -> bytes:
            content = rows.read((size, offset))
            return content + inputs.read((size - len(content), max(offset - rows_size, 0)))

        columns, types = list(source.types), list(source.types.values())
        return cls(Manifest(app_id, parts, columns, types, list(source.uris)), read)

    @classmethod
    def saved(cls, folder: PlanFolder, name: str) -> Self:
        """
        Return a plan that was saved. Of a large one, inputs are read only if they are asked for.

        :param name: what `save` returned, as the deferral carried it.
        :raises RunGenOutputError: it is missing, or is another one.
        """
        line, _, rest = folder.read(name).partition(b"\n")
        [fields] = _values_in(line)
        files = fields["files"]

        @lru_cache(2)
        def file(number: int) -> bytes:
            return folder.read(files[number]) if number < len(files) else rest

        def read(size: int, offset: int) -> bytes:
            numbers = range(offset // _FILE_BYTES, (offset + size - 1) // _FILE_BYTES + 1)
            start = offset % _FILE_BYTES
            return b"".join(map(file, numbers))[start : start + size]

        return cls(Manifest(**fields), read, name)

    def save(self, folder: PlanFolder) -> str:
        """Write it unless it is saved: in one file, or if it is large, in several and then that one."""
        if not self._name:
            size, files = self._inputs_at[-1], list[str]()
            while (at := len(files) * _FILE_BYTES) + _FILE_BYTES < size:
                files.append(folder.write(self._read(_FILE_BYTES, at)))
            manifest = _line(asdict(replace(self.manifest, files=files)))
            self._name = folder.write(manifest + self._read(size - at, at))
        return self._name

    def rows(self) -> Iterator[PlannedRow]:
        """Yield the rows, in order."""
        for part in range(len(self._ends)):
            yield from self._rows_of(part)

    def row(self, number: int) -> PlannedRow:
        """Return a row."""
        part, place = self._place_of(number)
        return self._rows_of(part)[place]

    def input(self, number: int) -> Any:
        """Return the input of a row."""
        part, place = self._place_of(number)
        return self._inputs_of(part)[place]

    def _place_of(self, number: int) -> tuple[int, int]:
        part = bisect_right(self._ends, number)
        return part, number - (self._ends[part - 1] if part else 0)

    def _read_rows(self, part: int) -> list[PlannedRow]:
        _, size, _ = self.manifest.parts[part]
        return [PlannedRow(*line) for line in _values_in(self._read(size, self._rows_at[part])[:-1])]

    def _read_inputs(self, part: int) -> dict[int, Any]:
        _, _, size = self.manifest.parts[part]
        places = (place for place, row in enumerate(self._rows_of(part)) if row.has_input)
        return dict(zip(places, _values_in(self._read(size, self._inputs_at[part])[:-1]), strict=True))


class PlanFolder:
    """
    Where a run has its plan: beside its views in the store.

    :param storage: the destination.
    :param run: the token of the task run.
    """

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage, self._folder = storage, f".rungen/runs/{run}"

    def read(self, name: str) -> bytes:
        """
        Return a file.

        :raises RunGenOutputError: it is missing, is another one, or cannot be read.
        """
        place = (self._folder, f"plan-{name}.jsonl.gz")
        content = self._storage.read_all([place]).get(place)
        if content is None:
            raise _damaged(name, "is missing")
        if _name(content) != name:
            raise _damaged(name, "was changed")
        return gzip.decompress(content)

    def write(self, content: bytes) -> str:
        """Write a file, and return its name: a fingerprint of its content."""
        content = gzip.compress(content, 3, mtime=0)
        name = _name(content)
        self._storage.write(self._folder, f"plan-{name}.jsonl.gz", content)
        return name


def _parts(rows: Iterable[tuple[PlannedRow, Any]]) -> Iterator[tuple[int, bytes, bytes]]:
    """
    Yield the parts of a plan: the number of its rows, a line for each, and one for each of their inputs.

    :param rows: each row with its input, or ``None``. They are read as the parts are yielded.
    """
    lines, inputs, size = list[bytes](), list[bytes](), 0
    for row, job_input in rows:
        lines.append(_line([list(row.values), row.digest, row.status, row.why, row.first]))
        if row.has_input:
            inputs.append(_line(job_input))
            size += len(inputs[-1])
        if len(lines) == _PART_ROWS or size > _PART_BYTES:
            yield len(lines), b"".join(lines), b"".join(inputs)
            lines, inputs, size = [], [], 0
    if lines:
        yield len(lines), b"".join(lines), b"".join(inputs)


def _values_in(lines: bytes) -> list[Any]:
    # as one array: to parse each line by itself takes longer than to read it
    text = lines.replace(b"\n", b",").decode("utf-8", "surrogatepass")
    values: list[Any] = json.loads(f"[{text}]")
    return values


# unlike a record, a value may be NaN
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _line(value: Any) -> bytes:
    return _to_json(value).encode("utf-8", "surrogatepass") + b"\n"


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _damaged(name: str, what: str) -> RunGenOutputError:
    return RunGenOutputError(
        f"could not go on after the deferral: the plan {name} {what}",
        hint="A retry reads the table again, and adopts the jobs that run",
    )
