"""What the run log of a task says of the rows of a page. It blocks, in bounded memory, and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.many_files import read_unlisted
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.jobs.storage_place import RUNS, without_seal
from airflow_provider_rungen.plugins.bounded_json import MAX_VALUES, count_values
from airflow_provider_rungen.plugins.cache import FRESH, LASTING, Cache
from airflow_provider_rungen.plugins.job_rows import (
    NOT_SUBMITTED,
    PAGE_SIZE,
    UNKNOWN,
    JobRow,
    JobRows,
    rows_of_task,
)
from airflow_provider_rungen.plugins.pools import TooSlowError
from airflow_provider_rungen.plugins.task_record import TaskRecord, well_formed
from airflow_provider_rungen.runs.attempt_record import AttemptRecord
from airflow_provider_rungen.runs.log import read_attempts, read_parts
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.plan import PlannedRow
from airflow_provider_rungen.runs.rows import InputState, JobState, Row
from airflow_provider_rungen.runs.table import Table
from airflow_provider_rungen.runs.totals import Totals

# Of all files that one page reads.
_MAX_BYTES = 8 << 20
_MAX_KEY_CHARS = 1000
_STATUS = {
    InputState.COMPLETED: "completed",
    InputState.REFUSED: "refused",
    InputState.FAILED: "failed",
    InputState.TO_REPEAT: "failed",
}
_FATE_UNKNOWN = "RunGen may have created a job that nobody knows."
_NO_LOG = (
    "there is no run log in {place}: it was removed, the task failed before it submitted anything, or "
    "[api] base_url is another one than that of the workers. This page shows what Airflow knows"
)
# By the characters of their rows.
_known = Cache(max_size=8 << 20)


@dataclass(frozen=True)
class LoggedRows:
    """
    The rows of a page.

    :param attempt: the record of the last attempt.
    :param total: how many rows the task has.
    :param rows: those of the page.
    """

    attempt: AttemptRecord
    total: int
    rows: Sequence[JobRow]

    def counted(self, task: TaskRecord) -> JobRows:
        """Return the rows with the numbers of all of them, which the last attempt recorded at its end."""
        # of a batch, Airflow knows the failures of other pages
        elsewhere = task.failures.keys() - {row.index for row in self.rows}
        others = (row for row in rows_of_task(task) if row.index in elsewhere)
        found = replace(JobRows.count(chain(self.rows, others), 1), rows=tuple(self.rows), total=self.total)
        totals, is_whole = self.attempt.totals, len(self.rows) == self.total
        if is_whole and (UNKNOWN not in found.statuses or totals == Totals()):
            return found
        if totals == Totals():
            return replace(found, statuses={}, is_uncounted=True)
        skipped, refused = task.count("skipped") or 0, task.count("refused") or 0
        statuses = {
            "completed": totals.completed,
            "failed": totals.failed,
            "refused": totals.refused + refused,
            "skipped": skipped,
        }
        copies = max(0, self.total - totals.inputs - skipped - refused)
        return replace(found, statuses=statuses, reused=totals.shared, copies=copies)


def read_page(task: TaskRecord, page: int, within: float) -> LoggedRows | None:
    """
    Return the rows of a page of a task, or ``None`` while the task has no log yet.

    :param page: its number, from 1.
    :param within: seconds. Whoever asked waits no longer.
    :raises RunGenError: there is no log, or it cannot be read.
    :raises TooSlowError: it was not read in time.
    """
    key = (task.log, task.token, task.try_number, task.is_moving, page)
    known: LoggedRows | None = _known.get(key)
    if known is None:
        place = _LogReader(task.log, task.token, within)
        attempts = read_attempts(place)
        if not attempts and task.is_moving:
            return None
        if not attempts:
            raise RunGenError(_NO_LOG.format(place=clean_text(task.log, 200)))
        known = _read(place, attempts, task, page)
        size = sum(len(row.key) + len(row.error) + len(row.job_id) + PAGE_SIZE for row in known.rows)
        _known.put(key, known, FRESH if task.is_moving else LASTING, size=size)
    return known


def forget_pages() -> None:
    """Remove what is known of logs, so that they are read again."""
    _known.clear()


def _read(place: _LogReader, attempts: Sequence[AttemptRecord], task: TaskRecord, page: int) -> LoggedRows:
    """Read one part of the plan, or two, and those parts of its jobs that the page needs."""
    attempt, first, table = attempts[-1], (page - 1) * PAGE_SIZE, Table()
    plan = Plan.saved(place, attempt.plan)
    planned = dict(enumerate(plan.rows(first, first + PAGE_SIZE), first))
    # equal inputs share the job of the first
    inputs = {number: number if row.first is None else row.first for number, row in planned.items()}
    parts = {inputs[number] // PART_ROWS for number, row in planned.items() if row.digest}
    writers = {each.writer for each in attempts}
    for _, files in read_parts(place, plan.digest, writers, only=parts):
        for file in files:
            table.merge(file)
    names = plan.manifest.columns
    rows = []
    for number, row in planned.items():
        values = dict(zip(names, row.values, strict=False))
        key = ", ".join(str(values.get(name, ""))[:_MAX_KEY_CHARS] for name in task.key)
        job = _job_row(number, row, table.row(inputs[number]), attempt, is_moving=task.is_moving)
        rows.append(replace(job, key=well_formed(key)))
    return LoggedRows(attempt, plan.count, rows)


def _job_row(
    number: int, planned: PlannedRow, row: Row, attempt: AttemptRecord, *, is_moving: bool
) -> JobRow:
    if planned.status:
        return JobRow(index=number, status=well_formed(planned.status), error=well_formed(planned.why))
    state, job = row.state(attempt.writer, attempt.since), row.current(attempt.since)
    intent = row.intent_of(attempt.writer)
    status, error = _STATUS.get(state, UNKNOWN), "" if job is None else job.why
    if job is not None and status == "failed" and job.state is JobState.CANCELED:
        status = "canceled"
    elif state is InputState.REFUSED:
        error = (intent and intent.refusal) or ""
    elif state is InputState.UNSENT and not is_moving:
        status = NOT_SUBMITTED
    elif state is InputState.UNKNOWN or (state is InputState.ANNOUNCED and not is_moving):
        error = _FATE_UNKNOWN
    return JobRow(
        index=number,
        status=status,
        job_id="" if job is None else job.id,
        error=well_formed(error),
        seconds=None if job is None else job.seconds,
        reused=job is not None and job.is_shared,
    )


class _LogReader:
    """
    A log in storage, as a page reads it.

    :param folder: the folder that has it, as the task pushed it.
    :param token: the token of the task run.
    :param within: seconds. Whoever asked waits no longer.
    :raises RunGenError: it cannot be opened.
    """

    def __init__(self, folder: str, token: str, within: float) -> None:
        self._storage = Storage(folder, read_only=True)
        self._root = f"{RUNS}/{token}"
        self._left = _MAX_BYTES
        self._ends_at = time.monotonic() + within

    def vouches(self, name: str) -> bool:
        """Return that anybody may have written it: nothing is sent or canceled because of it."""
        return False

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """
        Return the contents of files, by name.

        :raises FileNotFoundError: one is missing.
        :raises RunGenError: one is larger than a page reads.
        """
        self._check_time()
        files = {name: self._file(name) for name in names}
        # so that all of them together are no more than what is left
        limit = self._left // len(files)
        contents = read_unlisted(self._storage, list(files.values()), limit)
        found = {}
        for name, file in files.items():
            if file not in contents:
                raise FileNotFoundError(name)
            content = contents[file]
            if len(content) > limit or count_values(content) > MAX_VALUES:
                raise RunGenError(f"the run log has a file that is too large for this page: {name}")
            self._left -= len(content)
            found[name] = without_seal(content)
        return found

    def list(self, folder: str) -> Collection[str]:
        """Return the names of the files in a folder, without those that are being written."""
        self._check_time()
        names = self._storage.list_folder(f"{self._root}/{folder}") or ()
        return [name for name in names if not name.startswith(".")]

    def _file(self, name: str) -> tuple[str, str]:
        folder, _, file = f"{self._root}/{name}".rpartition("/")
        return folder, file

    def _check_time(self) -> None:
        if time.monotonic() > self._ends_at:
            raise TooSlowError
