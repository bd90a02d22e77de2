"""The plan of a task run: its rows and inputs, written once, in parts that are named by their content."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.table.inputs import PlannedRow
from airflow_provider_rungen.table.spool import Position, Spool

if TYPE_CHECKING:
    from airflow_provider_rungen.table.inputs import KeyOf, Source

#: Rows in a part of the plan, if their inputs are small.
PLAN_ROWS = 1024
# With more bytes of inputs, a part is closed earlier.
_MAX_INPUT_BYTES = 1 << 22
# So many bytes of parts are put at a time.
_PUT_BYTES = 8 << 20

#: A part in a manifest: the number of its rows, and the names of its two files.
PartEntry: TypeAlias = tuple[int, str, str]


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

    @property
    def content(self) -> bytes:
        """The manifest as a file."""
        return _line(asdict(self))

    @property
    def digest(self) -> str:
        """The name of the plan."""
        return _name(self.content)


class Plan:
    """
    The rows of a task run, and their inputs. A part at a time is in memory.

    :param manifest: what it consists of.
    :param load: returns the content of a file that the manifest names.
    """

    def __init__(self, manifest: Manifest, load: Callable[[str], bytes]) -> None:
        self.manifest, self._load, self._is_saved = manifest, load, False
        self._ends = list(accumulate(rows for rows, _, _ in manifest.parts))
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
        spool, parts = Spool(), []
        positions: dict[str, Position] = {}
        for entry, files in plan_parts(source.read(key_of)):
            positions |= {name: spool.add(content) for name, content in files.items()}
            parts.append(entry)
        columns, types = list(source.types), list(source.types.values())
        manifest = Manifest(app_id, parts, columns, types, list(source.uris))
        return cls(manifest, lambda name: spool.read(positions[name]))

    @classmethod
    def saved(cls, folder: PlanFolder, digest: str) -> Self:
        """
        Return a plan that was saved. Its inputs are read only if they are asked for.

        :param digest: its name, as the deferral carried it.
        :raises RunGenOutputError: it is missing, or is another one.
        """
        [fields] = _read_lines(folder.read(digest), digest)
        self = cls(Manifest(**fields), folder.read)
        self._is_saved = True
        return self

    def save(self, folder: PlanFolder) -> str:
        """Write it, the manifest last, unless it was read from there. Return its name."""
        digest = self.manifest.digest
        if self._is_saved:
            return digest
        files: dict[str, bytes] = {}
        for _, *names in self.manifest.parts:
            files |= {name: self._load(name) for name in names}
            if sum(map(len, files.values())) > _PUT_BYTES:
                folder.write(files)
                files = {}
        folder.write(files)
        folder.write({digest: self.manifest.content})
        self._is_saved = True
        return digest

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
        _, name, _ = self.manifest.parts[part]
        return [PlannedRow(*line) for line in _read_lines(self._load(name), name)]

    def _read_inputs(self, part: int) -> dict[int, Any]:
        _, _, name = self.manifest.parts[part]
        places = (place for place, row in enumerate(self._rows_of(part)) if row.has_input)
        return dict(zip(places, _read_lines(self._load(name), name), strict=True))


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

        :raises RunGenOutputError: it is missing, or cannot be read.
        """
        place = (self._folder, f"plan-{name}")
        content = self._storage.read_all([place]).get(place)
        if content is None:
            raise _damaged(name, "is missing")
        return content

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, by name."""
        self._storage.write_all({(self._folder, f"plan-{name}"): each for name, each in files.items()})


def plan_parts(rows: Iterable[tuple[PlannedRow, Any]]) -> Iterator[tuple[PartEntry, dict[str, bytes]]]:
    """
    Yield the parts of a plan: the entry of each in the manifest, and its files by name.

    Both files are JSON Lines: one has a line for each row, the other one for each row with an input.

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


def _read_lines(content: bytes, name: str) -> list[Any]:
    """Return the values of a file of a plan, whose name is a fingerprint of its content."""
    if _name(content) != name:
        raise _damaged(name, "was changed")
    # as one array: to parse each line by itself takes longer than to read it
    lines = content[:-1].replace(b"\n", b",").decode("utf-8", "surrogatepass")
    values: list[Any] = json.loads(f"[{lines}]")
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
