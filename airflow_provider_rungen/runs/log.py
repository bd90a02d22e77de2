"""The log of a task run: what its attempts announced, submitted and learned, in files that each replaces."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
) -> Iterator[tuple[int, list[PartFile]]]:
    """
    Yield what all writers know of the parts of a plan, part by part. Exhaust it before anything is sent.

    :param writers: the attempts: a file of anybody else is none of the log.
    :param only: the parts to read; all if left out. Only then is it noticed that a file is missing.
    :param least: how often writers have begun parts of the plan, at least.
    :raises DamagedLogError: a file is missing, or cannot be read.
    """
    listed: defaultdict[int, list[PartName]] = defaultdict(list)
    for text in place.list(_folder(plan)):
        name = PartName.parse(text)
        if name is not None and (only is None or name.number in only):
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
    """Return the error of a part that was saved, and of which no file is there."""
    return _damaged(f"{_folder(plan)}/{part:06d}.*", "it is missing")


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
            # the writer gave up the other names, so that they may be anything
            if last[name.writer] == name:
                raise _damaged(path, error) from None
            continue
        if (file.plan, file.number, file.writer) != (plan, name.number, name.writer):
            raise _damaged(path, "it is that of another part")
        if name.writer not in writers:
            raise _damaged(path, "there is no record of its attempt")
        yield replace(file, is_trusted=place.vouches(path))


@dataclass(frozen=True)
class Writes:
    """
    What is due: files to put, as they were at one moment.

    :param files: their contents, by name.
    :param parts: the snapshots in them, in the same order.
    """

    files: Mapping[str, bytes]
    parts: Sequence[PartFile]


@dataclass
class RunLog:
    """
    What one attempt writes into the log.

    :param place: where the log is.
    :param attempt: the attempt, which has to be noted first.
    :param clock: returns the time (seconds since 1970).
    :param saves: how often it has saved a part.
    :param begun: how often it has begun parts.
    """

    place: Place
    attempt: AttemptRecord
    clock: Callable[[], float]
    saves: int = 0
    begun: int = 0
    _names: dict[int, PartName] = field(default_factory=dict)
    _nth: dict[int, int] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)

    def note(self, **changes: Any) -> None:
        """Write the record of the attempt, with changes. It fences off all earlier attempts."""
        # so that a later attempt notices if the newest parts are missing
        attempt = replace(self.attempt, begun=self.begun, **changes)
        self.place.put({_attempt_path(attempt): attempt.encode()})
        self.attempt = attempt

    def announce(self, jobs: Jobs, numbers: Collection[int]) -> None:
        """
        Make the intent to submit inputs durable, together with all that is due. Then they may be sent.

        :raises SupersededError: a later attempt has begun, so nothing may be sent.
        """
        jobs.announce(numbers)
        try:
            self.save(jobs)
            # only now: of two attempts, at least one sees the other's file
            self.fence()
        except BaseException:
            jobs.withdraw(numbers)
            with suppress(Exception):
                self.save(jobs, jobs.unsaved.parts)
            raise

    def fence(self) -> None:
        """
        Raise an error if a later attempt has begun, or if nobody can tell.

        :raises SupersededError: one has.
        :raises DamagedLogError: the record of this attempt is not listed, so that of a later one may not be.
        """
        writers = set(map(parse_attempt_name, self.place.list(ATTEMPTS)))
        if later := max((each for each in writers if each and each > self.attempt.writer), default=None):
            raise SupersededError(
                f"Attempt {self.attempt.try_number} is cut off: attempt {later.try_number} has begun"
            )
        if self.attempt.writer not in writers:
            raise _damaged(_attempt_path(self.attempt), "it is missing")

    def save(self, jobs: Jobs, parts: Iterable[int] | None = None) -> None:
        """
        Save parts, and wait for it.

        :param parts: see `writes`.
        """
        writes = self.writes(jobs, parts)
        if not writes.files:
            return
        try:
            self.place.put(writes.files)
        except BaseException:
            self.note_doubt(writes)
            raise
        self.note_written(jobs, writes)

    # --- a save in three steps, of which only the second blocks: in between, the jobs may change ---

    def writes(self, jobs: Jobs, parts: Iterable[int] | None = None) -> Writes:
        """
        Return what to put. The fate of it is to be noted before the next call.

        :param parts: the parts; those that are due if left out.
        """
        files: dict[str, bytes] = {}
        snapshots = []
        at = math.ceil(self.clock())  # no earlier than the last submission
        for part in jobs.unsaved.due if parts is None else list(parts):
            name = self._names.setdefault(part, PartName(part, self.attempt.writer))
            self.saves += 1
            # those that begin together share a number, since a kill may leave any of them
            nth = self._nth.get(part, self.begun)
            snapshots.append(jobs.snapshot(part, save=self.saves, nth=nth, at=at))
            files[_path(jobs.plan, name)] = snapshots[-1].encode()
        return Writes(files, snapshots)

    def note_written(self, jobs: Jobs, writes: Writes) -> None:
        """Note that all of it is durable."""
        self.begun += any(file.number not in self._nth for file in writes.parts)
        for file, content in zip(writes.parts, writes.files.values(), strict=True):
            self._nth[file.number] = file.nth
            self._digests[file.number] = _digest(content)
            jobs.note_saved(file)

    def note_doubt(self, writes: Writes) -> None:
        """Abandon the names, since each file may be there, or may appear after what is put next."""
        for file in writes.parts:
            self._names[file.number] = self._names[file.number].next_copy()

    # --- a deferral ---

    def missing(self, jobs: Jobs, parts: Iterable[int]) -> list[int]:
        """Return the parts of which only the files of earlier attempts know something."""
        unwritten = (part for part in parts if part not in self._digests)
        return [part for part in unwritten if any(row != Row() for _, row in jobs.table.part(part))]

    def handover(self, parts: Iterable[int], carried: Writes | None = None) -> dict[str, Any]:
        """
        Return what this attempt has to know after a deferral, as JSON has it.

        :param parts: the parts that are not over.
        :param carried: those of them to hand over themselves. All others are to be saved before.
        """
        files = {} if carried is None else {file.number: file for file in carried.parts}
        kept = {
            str(part): [self._names[part].copy, self._nth.get(part), self._digests.get(part), file]
            for part in parts
            for file in [files[part].encode().decode() if part in files else None]
            if part in self._digests or file
        }
        return {"saves": self.saves, "begun": self.begun, "parts": kept}

    def take_over(self, jobs: Jobs, handed: Mapping[str, Any], unsaved: Collection[int] = ()) -> None:
        """
        Go on after a deferral: read the parts that are not over, and nothing else.

        An error comes after all that can be read was loaded.

        :param unsaved: the parts that were handed over, and are not saved yet.
        :raises DamagedLogError: a file is not as this attempt left it.
        """
        self.saves, self.begun = handed["saves"], handed["begun"]
        digests, carried = {}, []
        for text, (copy, nth, digest, content) in handed["parts"].items():
            part = int(text)
            self._names[part] = PartName(part, self.attempt.writer, copy)
            if digest is not None:
                self._nth[part], self._digests[part] = nth, digest
            if content is None:
                digests[_path(jobs.plan, self._names[part])] = digest
            else:
                jobs.load((), replace(PartFile.decode(content.encode()), is_trusted=True))
                carried.append(_path(jobs.plan, self._names[part]))
        for part in unsaved:
            jobs.note_unsaved(part)
        damage: DamagedLogError | None = None
        try:
            contents = _get(self.place, list(digests))
        except DamagedLogError as error:
            # the jobs in the other files still have to be left to the next attempt, or canceled
            damage, contents = error, _get_each(self.place, digests)
        for path, content in contents.items():
            if _digest(content) == digests[path]:
                jobs.load((), replace(PartFile.decode(content), is_trusted=True))
            else:
                damage = damage or _damaged(path, "it was changed since the deferral")
        # Airflow may go on twice from one deferral, if the first worker is lost
        if changed := next((path for path in carried if self._has_newer(path)), None):
            damage = damage or _damaged(changed, "it was changed since the deferral")
        if damage is not None:
            raise damage

    def _has_newer(self, path: str) -> bool:
        """Return whether a file was saved after the deferral. An outage is no reason to believe so."""
        try:
            return PartFile.decode(self.place.get([path])[path]).save > self.saves
        except Exception:
            return False


def _attempt_path(attempt: AttemptRecord) -> str:
    return f"{ATTEMPTS}/{attempt_name(attempt.writer)}"


def _folder(plan: str) -> str:
    return f"jobs/{plan}"


def _path(plan: str, name: PartName) -> str:
    return f"{_folder(plan)}/{name}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _get(place: ReadablePlace, paths: Sequence[str]) -> dict[str, bytes]:
    try:
        return place.get(paths) if paths else {}
    except FileNotFoundError as error:
        raise _damaged(str(error), "it is missing") from None


def _get_each(place: Place, paths: Iterable[str]) -> dict[str, bytes]:
    """Return the files that are not missing."""
    found: dict[str, bytes] = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found |= place.get([path])
    return found


def _damaged(path: str, reason: object) -> DamagedLogError:
    return DamagedLogError(f"Could not read the log of the task run: {path}: {reason}; nothing more is sent")
