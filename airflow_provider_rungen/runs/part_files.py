"""
The file of one writer about one part of the plan, and the table that merges such files.

A file has all that its writer knows of the part, and is replaced as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import Intent, Job, JobState, Row, Writer

#: Inputs in a part. Fewer make more files, more make each replacement larger.
PART_ROWS = 64
#: Jobs that one input may have had.
MAX_JOBS = 1000
MAX_PART_BYTES = 1 << 22
_NAME = re.compile(r"(\d{6,9})\.([^.]+)\.(\d{1,9})\.jsonl")
# The fields of a job that may be left out at its end, if these are all that follows.
_DEFAULTS: list[Any] = [int(JobState.OPEN), None, "", "", 0]


@dataclass(frozen=True)
class PartFile:
    """
    What one writer knows of a part.

    :param plan: the digest of the plan.
    :param number: the number of the part, from 0.
    :param writer: who wrote it.
    :param save: how often the writer had saved anything before, so that a later file replaces an earlier one.
    :param nth: how many other parts the writer had begun before: a gap shows that a file is missing.
    :param at: when it was saved (whole seconds since 1970). Its jobs were submitted before.
    :param rows: what is known, by input, with the intents of this writer only.
    :param is_trusted: whether that writer certainly wrote it. This is not part of the file.
    """

    plan: str
    number: int
    writer: Writer
    save: int
    nth: int
    at: int
    rows: Mapping[int, Row]
    is_trusted: bool = False

    def encode(self) -> bytes:
        """Return the content of the file."""
        header = {
            "version": records.VERSION,
            "plan": self.plan,
            "part": self.number,
            "writer": str(self.writer),
            "save": self.save,
            "nth": self.nth,
            "at": self.at,
            "rows": len(self.rows),
        }
        return records.to_lines([header, *(_line(number, row) for number, row in sorted(self.rows.items()))])

    @classmethod
    def decode(cls, content: bytes) -> PartFile:
        """
        Return what a file says.

        :raises InvalidRecordError: it is not such a file, or not a complete one.
        """
        if len(content) > MAX_PART_BYTES:
            raise InvalidRecordError("it is too large")
        return records.decode(content, _read, cls.encode)


@dataclass(frozen=True)
class PartName:
    """
    The name of a part's file.

    :param copy: how many names the writer gave up, since it is unknown whether a write succeeded.
    """

    number: int
    writer: Writer
    copy: int = 0

    def __str__(self) -> str:
        return f"{self.number:06d}.{self.writer}.{self.copy}.jsonl"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """Return the parts of a name; ``None`` for other files, such as the temporary ones of a store."""
        found = _NAME.fullmatch(name)
        if found is None or (writer := Writer.parse(found[2])) is None:
            return None
        parsed = cls(int(found[1]), writer, int(found[3]))
        return parsed if str(parsed) == name else None


def _line(number: int, row: Row) -> list[Any]:
    intent = row.intents[0] if row.intents else None
    mark: Any = 0 if intent is None else 1 if intent.refusal is None else intent.refusal
    if intent is not None and intent.is_given_up:
        mark = [mark]
    return [number, mark, *map(_job_values, row.jobs)]


def _job_values(job: Job) -> list[Any]:
    values = [int(job.state), job.seconds, job.stored, job.why, int(job.is_shared)]
    while values and values[-1] == _DEFAULTS[len(values) - 1]:
        values.pop()
    return [job.id, job.turn, *values]


def _read(lines: list[Any]) -> PartFile:
    header, *body = lines
    records.check_version(header)
    writer = Writer.parse(header["writer"])
    if writer is None:
        raise InvalidRecordError("writer is no attempt")
    plan, number, save, nth, at = (header[name] for name in ("plan", "part", "save", "nth", "at"))
    rows = dict(_read_row(line, number * PART_ROWS, writer) for line in body)
    return records.checked(PartFile(plan, number, writer, save, nth, at, rows))


def _read_row(line: list[Any], first: int, writer: Writer) -> tuple[int, Row]:
    number, mark, *jobs = line
    records.count(number, "input", least=first, most=first + PART_ROWS - 1)
    if len(jobs) > MAX_JOBS:
        raise InvalidRecordError(f"an input has more than {MAX_JOBS} jobs")
    row = Row()
    for job in jobs:
        row = row.with_job(_read_job(writer, *job))
    if is_given_up := isinstance(mark, list):
        [mark] = mark
    if mark != 0:
        refusal = None if mark == 1 else records.text(mark, "refusal")
        row = row.with_intent(writer, Intent(writer, refusal, is_given_up))
    return number, row


def _read_job(writer: Writer, job_id: Any, turn: Any, *values: Any) -> Job:
    state, seconds, stored, why, is_shared = [*values, *_DEFAULTS[len(values) :]]
    return Job(
        id=records.identifier(job_id, "id"),
        turn=records.count(turn, "turn", least=1, most=writer.turn),
        state=JobState(records.count(state, "state")),
        seconds=None if seconds is None else records.seconds(seconds, "seconds"),
        stored=records.text(stored, "stored", most=2048),
        why=records.text(why, "why"),
        is_shared=bool(is_shared),
    )


@dataclass
class Table:
    """
    A row for each input. The files of writers are merged in any order, and may be merged again.

    :param rows: by input.
    :param input_of: by job.
    :param unchecked: jobs that only storage names. The service has not confirmed that they have the input.
    :param foreign: jobs that have another input at the service.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    input_of: dict[str, int] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    _newest: dict[tuple[int, Writer], int] = field(default_factory=dict)

    def row(self, number: int) -> Row:
        """Return the row of an input, which is empty if nothing is known of it."""
        return self.rows.get(number, Row())

    def part(self, part: int) -> Iterator[tuple[int, Row]]:
        """Yield the rows of a part."""
        first = part * PART_ROWS
        numbers = (number for number in range(first, first + PART_ROWS) if number in self.rows)
        return ((number, self.rows[number]) for number in numbers)

    def job(self, job_id: str) -> Job:
        """Return a job."""
        return next(job for job in self.rows[self.input_of[job_id]].jobs if job.id == job_id)

    def put(self, number: int, job: Job) -> None:
        """Set what is known of a job."""
        self.input_of[job.id] = number
        self.rows[number] = self.row(number).with_job(job)

    def drop(self, job_id: str) -> int:
        """Remove a job, and return its input."""
        number = self.input_of.pop(job_id)
        self.rows[number] = self.rows[number].without_job(job_id)
        self.unchecked.discard(job_id)
        return number

    def merge(self, file: PartFile) -> None:
        """Add what a writer knows of a part."""
        for number, row in file.rows.items():
            for job in row.jobs:
                self.merge_job(number, job, is_trusted=file.is_trusted)
        key = file.number, file.writer
        if file.save < self._newest.get(key, 0):
            return
        self._newest[key] = file.save
        # a writer withdraws an intent by leaving it out
        for number in {number for number, _ in self.part(file.number)}.union(file.rows):
            intent = file.rows.get(number, Row()).intent_of(file.writer)
            self.rows[number] = self.row(number).with_intent(file.writer, intent)

    def merge_job(self, number: int, job: Job, *, is_trusted: bool = False) -> None:
        """Add an account of a job. If two inputs claim it, the first one of them has it."""
        if job.id in self.foreign:
            return
        owner = self.input_of.get(job.id)
        if owner is None:
            if not is_trusted:
                self.unchecked.add(job.id)
        else:
            job = self.job(job.id).merged(job)
            if number < owner:
                self.rows[owner] = self.rows[owner].without_job(job.id)
            number = min(number, owner)
        if is_trusted:
            self.unchecked.discard(job.id)
        self.put(number, job)

    def forget(self, number: int) -> None:
        """Drop a row."""
        for job in self.rows.pop(number).jobs:
            del self.input_of[job.id]
            self.unchecked.discard(job.id)
