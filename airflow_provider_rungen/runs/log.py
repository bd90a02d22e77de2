"""The log of a task run: what its attempts announced, submitted and learned, in files that each replaces."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from airflow_provider_rungen.runs.attempt_record import AttemptRecord, attempt_name, parse_attempt_name
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.part_files import PartFile, PartName
from airflow_provider_rungen.runs.place import DamagedLogError, Place, SupersededError
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import Writer

_ATTEMPTS = "attempts"


def read_attempts(place: Place) -> list[AttemptRecord]:
    """
    Return the attempts of the task run so far, the latest last.

    :raises DamagedLogError: a record cannot be read.
    """
    found = []
    for name in sorted(place.list(_ATTEMPTS)):
        if (writer := parse_attempt_name(name)) is not None:
            path = f"{_ATTEMPTS}/{name}"
            try:
                record = AttemptRecord.decode(_get(place, path))
            except InvalidRecordError as error:
                raise _damaged(path, error) from None
            if record.writer != writer:
                raise _damaged(path, "it is that of another attempt")
            found.append(record)
    return sorted(found, key=lambda record: record.writer)


def read_parts(
    place: Place, plan: str, writers: Collection[Writer], *, only: Collection[int] | None = None
) -> Iterator[tuple[int, list[PartFile]]]:
    """
    Yield what all writers know of the parts of a plan, part by part. Exhaust it before anything is sent.

    :param writers: the attempts: a file of anybody else is none of the log.
    :param only: the parts to read; all if left out. Only then is it noticed that a file is missing.
    :raises DamagedLogError: a file is missing, or cannot be read.
    """
    names = sorted(
        (name for each in place.list(_folder(plan)) if (name := PartName.parse(each)) is not None),
        key=lambda name: name.number,
    )
    begun: defaultdict[Writer, set[int]] = defaultdict(set)
    for number, group in groupby(names, key=lambda name: name.number):
        if only is None or number in only:
            files = list(_read_files(place, plan, list(group), writers))
            for file in files:
                begun[file.writer].add(file.nth)
            yield number, files
    for writer, numbers in begun.items():
        if only is None and len(numbers) <= max(numbers):
            raise _damaged(_folder(plan), f"files of attempt {writer} are missing")


def _read_files(
    place: Place, plan: str, names: list[PartName], writers: Collection[Writer]
) -> Iterator[PartFile]:
    copies = {name.writer: name for name in sorted(names, key=lambda each: each.copy)}
    for name in names:
        path = f"{_folder(plan)}/{name}"
        try:
            file = PartFile.decode(_get(place, path))
        except InvalidRecordError as error:
            # the writer gave up the other names, so that they may be anything
            if copies[name.writer] == name:
                raise _damaged(path, error) from None
            continue
        if (file.plan, file.number, file.writer) != (plan, name.number, name.writer):
            raise _damaged(path, "it is that of another part")
        if name.writer not in writers:
            raise _damaged(path, "there is no record of its attempt")
        yield file


@dataclass
class RunLog:
    """
    What one attempt writes into the log.

    :param place: where the log is.
    :param attempt: the attempt, which has to be noted first.
    :param saves: how often it has saved a part.
    :param begun: how often it has begun parts.
    """

    place: Place
    attempt: AttemptRecord
    saves: int = 0
    begun: int = 0
    _names: dict[int, PartName] = field(default_factory=dict)
    _nth: dict[int, int] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)

    def note(self, **changes: Any) -> None:
        """Write the record of the attempt, with changes. It fences off all earlier attempts."""
        attempt = replace(self.attempt, **changes)
        self.place.put(f"{_ATTEMPTS}/{attempt_name(attempt.writer)}", attempt.encode())
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
        Raise an error if a later attempt has begun.

        :raises SupersededError: it has.
        """
        writers = map(parse_attempt_name, self.place.list(_ATTEMPTS))
        if later := max((each for each in writers if each and each > self.attempt.writer), default=None):
            raise SupersededError(
                f"Attempt {self.attempt.try_number} is cut off: attempt {later.try_number} has begun"
            )

    def save(self, jobs: Jobs, parts: Iterable[int] | None = None) -> None:
        """
        Save parts.

        :param parts: the parts; those that are due if left out.
        """
        begins = False
        for part in jobs.unsaved.due if parts is None else list(parts):
            begins |= part not in self._nth
            self._save_part(jobs, part)
        # those that began together share a number, since a kill may leave any of them
        self.begun += begins

    def _save_part(self, jobs: Jobs, part: int) -> None:
        name = self._names.setdefault(part, PartName(part, self.attempt.writer))
        self.saves += 1
        file = jobs.snapshot(part, save=self.saves, nth=self._nth.get(part, self.begun))
        content = file.encode()
        try:
            self.place.put(f"{_folder(jobs.plan)}/{name}", content)
        except BaseException:
            # it may appear yet, even after a later one
            self._names[part] = name.next_copy()
            raise
        self._nth[part] = file.nth
        self._digests[part] = _digest(content)
        jobs.note_saved(file)

    # --- a deferral ---

    def handover(self, parts: Iterable[int]) -> dict[str, Any]:
        """
        Return what the next wave of this attempt has to know, as JSON has it. All is to be saved before.

        :param parts: the parts that are not over.
        """
        kept = {
            str(part): [self._names[part].copy, self._nth[part], self._digests[part]]
            for part in parts
            if part in self._digests
        }
        return {"saves": self.saves, "begun": self.begun, "parts": kept}

    def take_over(self, jobs: Jobs, handed: Mapping[str, Any]) -> None:
        """
        Go on after a deferral: read the parts that are not over, and nothing else.

        :raises DamagedLogError: a file is not as this attempt left it.
        """
        self.saves, self.begun = handed["saves"], handed["begun"]
        for text, (copy, nth, digest) in handed["parts"].items():
            part = int(text)
            self._names[part] = PartName(part, self.attempt.writer, copy)
            self._nth[part], self._digests[part] = nth, digest
            path = f"{_folder(jobs.plan)}/{self._names[part]}"
            content = _get(self.place, path)
            if _digest(content) != digest:
                raise _damaged(path, "it was changed since the deferral")
            jobs.load((), PartFile.decode(content), is_trusted=True)


def _folder(plan: str) -> str:
    return f"jobs/{plan}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _get(place: Place, path: str) -> bytes:
    try:
        return place.get(path)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None


def _damaged(path: str, reason: object) -> DamagedLogError:
    return DamagedLogError(f"Could not read the log of the task run: {path}: {reason}; nothing more is sent")
