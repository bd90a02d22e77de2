"""The plan of a task run as one attempt has it: in a temporary file, and where its log is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from airflow_provider_rungen.execution.jobs.places import StoragePlace
from airflow_provider_rungen.execution.spool import Position, Spool
from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.place import DamagedLogError, Place
from airflow_provider_rungen.runs.plan import Manifest, PlannedRow, plan_parts, read_lines, read_rows

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sources.inputs import KeyOf, Source

T = TypeVar("T")
GetFiles: TypeAlias = Callable[[Sequence[str]], Mapping[str, bytes]]

_FOLDER = "plans"
# So many bytes of parts are put at a time.
_PUT_BYTES = 8 << 20


class Plan:
    """
    The rows of a task run, and their inputs. A part at a time is in memory.

    :param manifest: what it consists of.
    :param load: returns the content of a file that the manifest names.
    """

    def __init__(self, manifest: Manifest, load: Callable[[str], bytes]) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.count = manifest.count
        self._load = load
        self._ends = list(accumulate(rows for rows, _, _ in manifest.parts))
        # several threads may ask
        self._rows_of = lru_cache(1)(self._read_rows)
        self._inputs_of = lru_cache(1)(self._read_inputs)

    @classmethod
    def of_rows(
        cls,
        app_id: str,
        rows: Iterable[tuple[PlannedRow, Any]],
        about: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> Self:
        """
        Return the plan of rows, which are read once.

        :param app_id: the app that is to run.
        :param rows: the rows, each with its input, or ``None``.
        :param about: returns the other fields of the manifest, when all is read.
        :raises RunGenOutputError: the folder for temporary files cannot be used.
        """
        spool, parts = Spool(), []
        positions: dict[str, Position] = {}
        for entry, files in plan_parts(rows):
            positions |= {name: spool.add(content) for name, content in files.items()}
            parts.append(entry)
        return cls(Manifest(app_id, parts, **about()), lambda name: spool.read(positions[name]))

    @classmethod
    def saved(cls, get: GetFiles, digest: str) -> Self:
        """
        Return a plan that was saved. Its inputs are read only if they are asked for.

        :param get: reads files, as `ReadablePlace.get` does.
        :param digest: its name, as Airflow knows it.
        :raises DamagedLogError: it is missing, or is another one.
        """
        load = partial(_get, get)
        return cls(_read(Manifest.decode, load(digest), digest), load)

    @classmethod
    def of_count(cls, digest: str, count: int) -> Self:
        """Return a plan of which only the number of its inputs is known."""

        def load(name: str) -> bytes:
            raise RuntimeError("the plan was not read again")

        self = cls(Manifest("", ()), load)
        self.digest, self.count = digest, count
        return self

    def save(self, place: Place, *, with_inputs: bool) -> None:
        """
        Put what is not there yet, the manifest last.

        :param with_inputs: whether the attempt needs the inputs after a deferral.
        """
        there = set(place.list(_FOLDER))
        files: dict[str, bytes] = {}
        for _, *names in self.manifest.parts:
            for name in names[: 1 + with_inputs]:
                if name not in there:
                    files[f"{_FOLDER}/{name}"] = self._load(name)
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
        numbers = range(first, self.count if end is None else min(end, self.count))
        if not self.manifest.parts:
            return repeat(PlannedRow(digest=self.digest), len(numbers))
        return map(self.row, numbers)

    @property
    def part_count(self) -> int:
        """How many parts the log has."""
        return -(-self.count // PART_ROWS)

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
        return self._inputs_of(part)[number - begin]

    def _part_of(self, number: int) -> tuple[int, int]:
        part = bisect_right(self._ends, number)
        return part, self._ends[part - 1] if part else 0

    def _read_rows(self, part: int) -> list[PlannedRow]:
        _, name, _ = self.manifest.parts[part]
        return _read(read_rows, self._load(name), name)

    def _read_inputs(self, part: int) -> dict[int, Any]:
        _, _, name = self.manifest.parts[part]
        inputs = _read(read_lines, self._load(name), name)
        places = (place for place, row in enumerate(self._rows_of(part)) if row.has_input)
        return dict(zip(places, inputs, strict=True))


def read_plan(app_id: str, source: Source, key_of: KeyOf) -> Plan:
    """
    Read a source once.

    :param app_id: the app that is to run.
    :raises RunGenError: see `Source.read` and `Plan.of_rows`.
    """

    def about() -> dict[str, Any]:
        types = source.types
        return {"columns": list(types), "types": list(types.values()), "sources": list(source.uris)}

    return Plan.of_rows(app_id, source.read(key_of), about)


def read_digests(place: Place, digest: str) -> list[str] | None:
    """
    Return the fingerprints of the inputs of a plan, or ``None`` if it was not saved.

    :raises DamagedLogError: it is another plan.
    """
    if digest not in place.list(_FOLDER):
        return None
    return [row.digest for row in Plan.saved(place.get, digest).rows()]


def _read(read: Callable[[bytes, str], T], content: bytes, name: str) -> T:
    try:
        return read(content, name)
    except records.ERRORS as error:
        reason = str(error) if isinstance(error, records.InvalidRecordError) else type(error).__name__
        raise _damaged(name, reason) from None


def _get(get: GetFiles, name: str) -> bytes:
    path = f"{_FOLDER}/{name}"
    content = get([path]).get(path)
    if content is None:
        raise _damaged(name, "it is missing")
    return content


def _damaged(name: str, reason: str) -> DamagedLogError:
    return DamagedLogError(f"Could not read the plan of the task run: {_FOLDER}/{name}: {reason}")
