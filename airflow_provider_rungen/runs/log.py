"""The log of a task run: what its attempts announced, submitted and learned. Each replaces its own files."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from airflow_provider_rungen.runs.attempt_record import AttemptRecord, attempt_name, parse_attempt_name
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.part_files import PartFile, PartName
from airflow_provider_rungen.runs.place import DamagedLogError, Place, ReadablePlace, SupersededError
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import Row, Writer

#: The folder of the records of attempts.
ATTEMPTS = "attempts"
_MISSING = "it is missing"
_CHANGED = "it was changed since the deferral"

#: Parts that are read at a time.
_BATCH = 64


def read_attempts(place: ReadablePlace) -> list[AttemptRecord]:
    """
    Return the attempts of the task run so far, the latest last.

    :raises DamagedLogError: a record cannot be read.
    """
    writers = {
        f"{ATTEMPTS}/{name}": writer
        for name in sorted(place.list(ATTEMPTS))
        if (writer := parse_attempt_name(name)) is not None
    }
    found = []
    for path, content in _get(place, list(writers)).items():
        try:
            record = AttemptRecord.decode(content)
        except InvalidRecordError as error:
            raise _damaged(path, error) from None
        if record.writer != writers[path]:
            raise _damaged(path, "it is that of another attempt")
        found.append(record)
    return sorted(found, key=lambda record: record.writer)


def read_parts(
    place: ReadablePlace,
    plan: str,
    writers: Collection[Writer],
    *,
    only: Collection[int] | None = None,
    least: Mapping[Writer, int] = MappingProxyType({}),
    ignores_others: bool = False,
) -> Iterator[tuple[int, list[PartFile]]]:
    """
    Yield what all writers know of the parts of a plan, part by part. Read all of it before anything is sent.

    :param writers: the attempts. A file of any other writer is an error, or ignored.
    :param only: the parts to read; all if left out. A missing file is noticed only if all are read.
    :param least: how often writers have begun parts of the plan, at least.
    :param ignores_others: whether other logs may be in this place, too.
    :raises DamagedLogError: a file is missing, or cannot be read.
    """
    listed: defaultdict[int, list[PartName]] = defaultdict(list)
    for text in place.list(_folder(plan)):
        name = PartName.parse(text)
        if name is None or (ignores_others and name.writer not in writers):
            continue
        if only is None or name.number in only:
            listed[name.number].append(name)
    begun: dict[Writer, set[int]] = {writer: set() for writer in {*writers, *least}}
    numbers = sorted(listed)
    for first in range(0, len(numbers), _BATCH):
        batch = numbers[first : first + _BATCH]
        contents = _get(place, [_path(plan, name) for number in batch for name in listed[number]])
        for number in batch:
            files = list(_decode_files(place, contents, plan, listed[number], writers))
            for file in files:
                begun[file.writer].add(file.nth)
            yield number, files
    for writer, seen in begun.items():
        if only is None and len(seen) < max([least.get(writer, 0), *(nth + 1 for nth in seen)]):
            raise _damaged(_folder(plan), f"files of attempt {writer} are missing")


def missing_part(plan: str, part: int) -> DamagedLogError:
    """Return the error for a part that was saved, and has no file."""
    return _damaged(f"{_folder(plan)}/{part:06d}.*", _MISSING)


def _decode_files(
    place: ReadablePlace,
    contents: Mapping[str, bytes],
    plan: str,
    names: list[PartName],
    writers: Collection[Writer],
) -> Iterator[PartFile]:
    last = {name.writer: name for name in sorted(names, key=lambda each: each.copy)}
    for name in names:
        path = _path(plan, name)
        try:
            file = PartFile.decode(contents[path])
        except InvalidRecordError as error:
            # a writer gives up the name of a failed write, so that only its last file has to be valid
            if last[name.writer] == name:
                raise _damaged(path, error) from None
            continue
        if (file.plan, file.number, file.writer) != (plan, name.number, name.writer):
            raise _damaged(path, "it is that of another part")
        if name.writer not in writers:
            raise _damaged(path, "there is no record of its attempt")
        yield replace(file, is_trusted=place.vouches(path))


@dataclass(frozen=True)
class _Written:
    """
    What an attempt has written of a part.

    :param copy: see `PartName`.
    :param nth: see `PartFile`; ``None`` until a file is durable.
    :param digest: the fingerprint of the file that is durable under this name.
    """

    copy: int = 0
    nth: int | None = None
    digest: str = ""


@dataclass
class RunLog:
    """
    What one attempt writes into the log.

    :param place: where the log is.
    :param attempt: the attempt. Call `note` before anything else.
    :param clock: returns the time (seconds since 1970).
    :param saves: how often it has saved a part.
    :param begun: how often it has begun parts.
    """

    place: Place
    attempt: AttemptRecord
    clock: Callable[[], float]
    saves: int = 0
    begun: int = 0
    #: The files of parts that were handed over a deferral.
    carried: list[str] = field(default_factory=list, init=False)
    _written: dict[int, _Written] = field(default_factory=dict)
    # the fingerprints of those that were not
    _awaited: dict[str, str] = field(default_factory=dict, init=False)

    def note(self, **changes: Any) -> None:
        """Write the record of the attempt, with changes. It stops all earlier attempts: see `fence`."""
        # so that a later attempt notices if the newest parts are missing
        attempt = replace(self.attempt, begun=self.begun, **changes)
        self.place.put({_attempt_path(attempt): attempt.encode()})
        self.attempt = attempt

    def fence(self) -> None:
        """
        Raise an error if a later attempt has begun, or if that is not known.

        Call it after an intent is saved and before the input is sent: of two attempts, at least one sees the
        other's file.

        :raises SupersededError: one has.
        :raises DamagedLogError: the record of this attempt is not listed, so that of a later one may not be.
        """
        writers = set(map(parse_attempt_name, self.place.list(ATTEMPTS)))
        if later := max((each for each in writers if each and each > self.attempt.writer), default=None):
            raise SupersededError(
                f"Attempt {self.attempt.try_number} is cut off: attempt {later.try_number} has begun"
            )
        if self.attempt.writer not in writers:
            raise _damaged(_attempt_path(self.attempt), _MISSING)

    # --- a save ---

    def save(self, jobs: Jobs, parts: Iterable[int] | None = None) -> None:
        """
        Save parts, and return when they are durable.

        :param parts: see `snapshots`.
        """
        with self.saving(jobs, parts) as files:
            if files:
                self.place.put(files)

    @contextmanager
    def saving(self, jobs: Jobs, parts: Iterable[int] | None = None) -> Iterator[dict[str, bytes]]:
        """
        Yield the files that the block has to put. The jobs may change meanwhile.

        After an error in the block, each of the files may exist, or may appear later. So their names are not
        used again.

        :param parts: see `snapshots`.
        """
        snapshots = self.snapshots(jobs, parts)
        files = {name: file.encode() for name, file in snapshots.items()}
        try:
            yield files
        except BaseException:
            for file in snapshots.values():
                written = self._written_of(file.number)
                self._written[file.number] = replace(written, copy=written.copy + 1, digest="")
            raise
        self.begun += any(self._written_of(file.number).nth is None for file in snapshots.values())
        for name, file in snapshots.items():
            copy = self._written_of(file.number).copy
            self._written[file.number] = _Written(copy, file.nth, _digest(files[name]))
            jobs.note_saved(file)

    def snapshots(self, jobs: Jobs, parts: Iterable[int] | None = None) -> dict[str, PartFile]:
        """
        Return what is known of parts, by the names of their files.

        :param parts: the parts; those that are due if left out.
        """
        snapshots, at = {}, math.ceil(self.clock())
        for part in jobs.due_parts if parts is None else parts:
            self.saves += 1
            # those that begin together share a number, since a kill may leave any of them
            nth = self._written_of(part).nth
            nth = self.begun if nth is None else nth
            file = jobs.snapshot(part, save=self.saves, nth=nth, at=at)
            snapshots[self._path(jobs.plan, part)] = file
        return snapshots

    def reopen(self, files: Iterable[PartFile]) -> None:
        """Save again in a part that was let go, of which storage has these files."""
        for file in files:
            if file.writer == self.attempt.writer:
                # the names from before a deferral are not known, but none has so high a number
                self._written.setdefault(file.number, _Written(self.saves, file.nth))

    def _written_of(self, part: int) -> _Written:
        return self._written.get(part, _Written())

    def _path(self, plan: str, part: int) -> str:
        return _path(plan, PartName(part, self.attempt.writer, self._written_of(part).copy))

    # --- a deferral ---

    def missing(self, jobs: Jobs, parts: Iterable[int]) -> list[int]:
        """Return the parts that only files of earlier attempts have."""
        unwritten = (part for part in parts if not self._written_of(part).digest)
        return [part for part in unwritten if any(row != Row() for _, row in jobs.table.part(part))]

    def handover(self, parts: Iterable[int], carried: Iterable[PartFile] = ()) -> dict[str, Any]:
        """
        Return what this attempt needs after a deferral, as JSON.

        :param parts: the parts that are not done.
        :param carried: those of them whose contents are handed over. All others have to be saved before.
        """
        contents = {file.number: file.encode().decode() for file in carried}
        written = {part: self._written_of(part) for part in parts}
        kept = {
            str(part): [*astuple(each), contents.get(part)]
            for part, each in written.items()
            if each.digest or part in contents
        }
        return {"saves": self.saves, "begun": self.begun, "parts": kept}

    def resume(self, jobs: Jobs, handed: Mapping[str, Any], unsaved: Collection[int] = ()) -> list[str]:
        """
        Resume after a deferral: load what was handed over.

        :param unsaved: the parts that were handed over, and are not saved yet.
        :return: the files of the other parts that are not done, for `take`.
        """
        self.saves, self.begun = handed["saves"], handed["begun"]
        for text, (*values, content) in handed["parts"].items():
            self._written[int(text)] = _Written(*values)
            path = self._path(jobs.plan, int(text))
            if content is None:
                self._awaited[path] = self._written[int(text)].digest
            else:
                jobs.load((), replace(PartFile.decode(content.encode()), is_trusted=True))
                self.carried.append(path)
        for part in unsaved:
            jobs.note_unsaved(part)
        return list(self._awaited)

    def take(self, jobs: Jobs, contents: Mapping[str, bytes]) -> None:
        """
        Load the files that `resume` named.

        All that are as they were left are loaded before an error is raised, since their jobs still have to be
        left to the next attempt, or canceled.

        :param contents: those that are there, and any of `carried`.
        :raises DamagedLogError: a file is not as this attempt left it.
        """
        problems = dict.fromkeys(self._awaited.keys() - contents.keys(), _MISSING)
        for path, content in contents.items():
            if path not in self._awaited:
                with suppress(InvalidRecordError):
                    # Airflow may resume twice from one deferral, if the first worker is lost
                    if PartFile.decode(content).save > self.saves:
                        problems[path] = _CHANGED
            elif _digest(content) == self._awaited[path]:
                jobs.load((), replace(PartFile.decode(content), is_trusted=True))
            else:
                problems[path] = _CHANGED
        if problems:
            raise _damaged(*min(problems.items()))


def _attempt_path(attempt: AttemptRecord) -> str:
    return f"{ATTEMPTS}/{attempt_name(attempt.writer)}"


def _folder(plan: str) -> str:
    return f"jobs/{plan}"


def _path(plan: str, name: PartName) -> str:
    return f"{_folder(plan)}/{name}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _get(place: ReadablePlace, paths: Sequence[str]) -> dict[str, bytes]:
    contents = place.get(paths) if paths else {}
    for path in paths:
        if path not in contents:
            raise _damaged(path, _MISSING)
    return contents


def _damaged(path: str, reason: object) -> DamagedLogError:
    return DamagedLogError(f"Could not read the log of the task run: {path}: {reason}; nothing more is sent")
