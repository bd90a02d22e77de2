"""The rows that an attempt has loaded, and the merge of what other writers know of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile
from airflow_provider_rungen.runs.rows import Job, Row, Writer


@dataclass
class Table:
    """
    One row an input. Accounts of other writers are merged in any order, and as often as they come.

    :param rows: by input.
    :param input_of: by job.
    :param unchecked: jobs that only storage names: nobody has seen yet that they are those of their input.
    :param foreign: jobs that are not those of their input, whoever named them.
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
