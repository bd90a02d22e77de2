"""The plan of a task run as one attempt has it: in a temporary file, and where its log is."""

from __future__ import annotations

import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, repeat
from typing import Any, Self

from airflow_provider_rungen.execution.jobs.storage_place import StoragePlace
from airflow_provider_rungen.execution.spool import named_errors
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.place import DamagedLogError, Place, ReadablePlace
from airflow_provider_rungen.runs.plan import Manifest, PlannedRow, plan_parts, read_inputs, read_rows
from airflow_provider_rungen.runs.records import InvalidRecordError

_FOLDER = "plans"
# So many bytes of parts are put at a time.
_PUT_BYTES = 8 << 20
#: Returns the rows of a part (0), or its inputs (1).
Load = Callable[[int, int], bytes]


class Plan:
    """
    The rows of a task run, and their inputs. A part at a time is in memory.

    :param manifest: what it consists of.
    :param load: returns the rows of a part (0), or its inputs (1).
    """

    def __init__(self, manifest: Manifest, load: Load) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.count = manifest.count
        self._load = load
        self._ends = list(accumulate(rows for rows, _, _ in manifest.parts))
        self._rows: tuple[int, list[PlannedRow]] = (-1, [])
        self._inputs: tuple[int, dict[int, Any]] = (-1, {})

    @classmethod
    def of_source(
        cls,
        app_id: str,
        rows: Iterable[tuple[PlannedRow, Any]],
        about: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> Self:
        """
        Read a source once.

        :param app_id: the app that is to run.
        :param rows: its rows, each with its input, or ``None``.
        :param about: returns the other fields of the manifest, when all is read.
        :raises RunGenOutputError: the folder for temporary files cannot be used.
        """
        file = _TemporaryParts()
        parts = []
        for count, part in plan_parts(rows):
            file.add(part.rows, part.inputs)
            parts.append((count, *part.names))
        return cls(Manifest(app_id, parts, **about()), file.load)

    @classmethod
    def saved(cls, place: ReadablePlace, digest: str) -> Self:
        """
        Return a plan that was saved. Its inputs are read only if they are asked for.

        :param digest: its name, as Airflow knows it.
        :raises DamagedLogError: it is missing, or is another one.
        """
        path = f"{_FOLDER}/{digest}"
        with _damage(path):
            manifest = Manifest.decode(_get(place, path), digest)

        def load(number: int, kind: int) -> bytes:
            return _get(place, f"{_FOLDER}/{manifest.parts[number][1 + kind]}")

        return cls(manifest, load)

    @classmethod
    def unread(cls, digest: str, count: int) -> Self:
        """Return a plan of which only the number of its inputs is known."""

        def load(number: int, kind: int) -> bytes:
            raise RuntimeError("the plan was not read again")

        self = cls(Manifest("", ()), load)
        self.digest, self.count = digest, count
        return self

    def save(self, place: Place, *, with_inputs: bool) -> None:
        """
        Put what is not there yet, the manifest last.

        :param with_inputs: whether a later wave needs the inputs, too.
        """
        there = set(place.list(_FOLDER))
        files: dict[str, bytes] = {}
        for number, (_, *names) in enumerate(self.manifest.parts):
            for kind, name in enumerate(names[: 1 + with_inputs]):
                if name not in there:
                    files[f"{_FOLDER}/{name}"] = self._load(number, kind)
            if sum(map(len, files.values())) > _PUT_BYTES:
                place.put(files)
                files = {}
        if files:
            place.put(files)
        if self.digest not in there:
            place.put({f"{_FOLDER}/{self.digest}": self.manifest.encode()})

    def remove_inputs(self, place: StoragePlace) -> None:
        """Remove the inputs from where they were saved."""
        place.remove([f"{_FOLDER}/{name}" for _, _, name in self.manifest.parts])

    # --- reading ---

    def rows(self, first: int = 0, end: int | None = None) -> Iterator[PlannedRow]:
        """Yield rows, in order."""
        if not self.manifest.parts and self.count:
            yield from repeat(PlannedRow(digest=self.digest), min(end or self.count, self.count) - first)
            return
        for number in range(first, self.count if end is None else min(end, self.count)):
            part, begin = self._part_of(number)
            yield self._rows_of(part)[number - begin]

    def numbers(self, part: int) -> list[int]:
        """Return the rows of a part of the log that need a job."""
        first = part * PART_ROWS
        rows = self.rows(first, first + PART_ROWS)
        return [number for number, row in enumerate(rows, first) if row.needs_job]

    def row(self, number: int) -> PlannedRow:
        """Return a row."""
        part, begin = self._part_of(number)
        return self._rows_of(part)[number - begin]

    def input(self, number: int) -> Any:
        """Return the input of a row."""
        part, begin = self._part_of(number)
        known = self._inputs
        if known[0] != part:
            rows = self._rows_of(part)
            numbers = [begin + place for place, row in enumerate(rows) if row.digest]
            name = self.manifest.parts[part][2]
            content = self._load(part, 1)
            with _damage(name):
                known = (part, dict(zip(numbers, read_inputs(content, name), strict=True)))
            self._inputs = known
        return known[1][number]

    def _part_of(self, number: int) -> tuple[int, int]:
        part = bisect_right(self._ends, number)
        return part, self._ends[part - 1] if part else 0

    def _rows_of(self, part: int) -> list[PlannedRow]:
        # several threads may ask
        known = self._rows
        if known[0] != part:
            name = self.manifest.parts[part][1]
            content = self._load(part, 0)
            with _damage(name):
                known = (part, read_rows(content, name))
                if len(known[1]) != self.manifest.parts[part][0]:
                    raise InvalidRecordError("it has another number of rows")
            self._rows = known
        return known[1]


def read_digests(place: Place, digest: str) -> list[str] | None:
    """
    Return the fingerprints of the inputs of a plan, or ``None`` if it was not saved.

    :raises DamagedLogError: it is another plan.
    """
    if digest not in place.list(_FOLDER):
        return None
    path = f"{_FOLDER}/{digest}"
    with _damage(path):
        manifest = Manifest.decode(_get(place, path), digest)
    digests = []
    for _, name, _ in manifest.parts:
        path = f"{_FOLDER}/{name}"
        with _damage(path):
            digests += [row.digest for row in read_rows(_get(place, path), name)]
    return digests


class _TemporaryParts:
    """Parts of a plan in a temporary file that no other process can open."""

    def __init__(self) -> None:
        with named_errors():
            self._file = tempfile.TemporaryFile(prefix="rungen-")  # noqa: SIM115 - closed below
        # otherwise Python warns that it is left open
        self.close = weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, int, int]] = []

    def add(self, rows: bytes, inputs: bytes) -> None:
        with named_errors():
            self._places.append((self._file.seek(0, 2), len(rows), len(inputs)))
            self._file.write(rows)
            self._file.write(inputs)

    def load(self, number: int, kind: int) -> bytes:
        position, rows, inputs = self._places[number]
        with named_errors():
            self._file.flush()
            return os.pread(self._file.fileno(), *((inputs, position + rows) if kind else (rows, position)))


@contextmanager
def _damage(path: str) -> Iterator[None]:
    """Name the file that is not what was planned."""
    try:
        yield
    except InvalidRecordError as error:
        raise DamagedLogError(f"Could not read the plan of the task run: {path}: {error}") from None


def _get(place: ReadablePlace, path: str) -> bytes:
    content = place.get([path]).get(path)
    if content is None:
        raise DamagedLogError(f"Could not read the plan of the task run: {path}: it is missing")
    return content
