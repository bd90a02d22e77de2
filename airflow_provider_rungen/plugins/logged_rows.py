"""
The jobs of a task as rows, from its run log.

It blocks, in bounded memory, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.jobs.places import RUNS, without_seal
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.task.outcomes import MAX_FAILED
from airflow_provider_rungen.pages.models import FAILED, JobView, shown_text
from airflow_provider_rungen.plugins.limits import CACHE, FRESH, LASTING
from airflow_provider_rungen.plugins.rows import (
    ALL,
    IN_DOUBT,
    MAX_ROWS,
    NOT_SUBMITTED,
    PAGE_SIZE,
    UNKNOWN,
    PageRows,
    failed_rows,
    has_end,
    numbers_of,
)
from airflow_provider_rungen.plugins.stored import BoundedStorage
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.runs.attempt_record import AttemptRecord
from airflow_provider_rungen.runs.log import read_attempts, read_parts
from airflow_provider_rungen.runs.part_files import PART_ROWS, Table
from airflow_provider_rungen.runs.plan import PlannedRow
from airflow_provider_rungen.runs.rows import InputState, JobState, Row, Totals

# Of all files that one page reads.
_MAX_BYTES = 8 << 20
# Up to so many rows are counted if no attempt recorded its end: that takes a hundred small files.
_MAX_COUNTED = 100 * PART_ROWS
_MAX_VALUE_CHARS = 1000
# What an entry of the cache takes besides its texts.
_BYTES_OF_ROW = 500
_STATUS = {
    InputState.COMPLETED: "completed",
    InputState.REFUSED: "refused",
    InputState.FAILED: "failed",
    InputState.TO_REPEAT: "failed",
}
_FATE_UNKNOWN = "RunGen may have created a job whose id is not known."
_NO_LOG = (
    "there is no run log in {place}: it was removed, the task failed before it submitted anything, or "
    "[api] base_url is another one than that of the workers. This page shows what Airflow knows"
)


def logged_rows(task: TaskRecord, page: int, within: float) -> PageRows | None:
    """
    Return the rows of a page of a task from its log, or ``None`` while there is no log yet.

    :param page: its number, from 1, or `ALL`.
    :param within: seconds that it may take.
    :raises RunGenError: there is no log, or it cannot be read.
    :raises TooSlowError: it was not read in time.
    """
    key = ("log", task.log, task.token, task.try_number, task.is_moving, page)
    known: PageRows | None = CACHE.get(key)
    if known is None:
        log = _Log(task, within)
        attempts = read_attempts(log)
        if not attempts and (task.is_moving or _is_explained(task)):
            return None
        if not attempts:
            raise RunGenError(_NO_LOG.format(place=shown_text(task.log, 200)))
        known = _read_rows(log, attempts, task, page)
        texts = (text for row in known.rows for text in (row.key, row.error, *row.values.values()))
        size = _BYTES_OF_ROW * max(len(known.rows), len(known.seconds)) + sum(map(len, texts))
        CACHE.put(key, known, FRESH if task.is_moving else LASTING, size)
    return known


def _is_explained(task: TaskRecord) -> bool:
    """Return whether a task has reported why it failed before it had a log."""
    failure, has_jobs = task.failure, task.known_job_ids or task.usage.get("jobs")
    return failure is not None and not failure.inputs and not has_jobs


class _Log:
    """
    The log of a task in storage, as a page reads it.

    :param task: the task.
    :param within: seconds that reading may take.
    :raises RunGenError: it cannot be opened.
    """

    def __init__(self, task: TaskRecord, within: float) -> None:
        self._storage = BoundedStorage(task.log, _MAX_BYTES, within)
        self._root = f"{RUNS}/{task.token}"

    def vouches(self, name: str) -> bool:
        """Return ``False``: nothing is submitted or canceled because of what a page reads."""
        return False

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """
        Return the contents of files, by name. Those that are missing are left out.

        :raises RunGenError: one is larger than a page reads.
        """
        files = {name: (f"{self._root}/{name}".rpartition("/")[::2]) for name in names}
        contents = self._storage.read(list(files.values()))
        for name, file in files.items():
            if contents.get(file, b"") is None:
                raise RunGenError(f"the run log has a file that is too large for this page: {name}")
        return {name: without_seal(contents[file] or b"") for name, file in files.items() if file in contents}

    def list(self, folder: str) -> Collection[str]:
        """Return the names of the files in a folder, without those that are being written."""
        return [name for name in self._storage.list(f"{self._root}/{folder}") if not name.startswith(".")]


def _read_rows(log: _Log, attempts: Sequence[AttemptRecord], task: TaskRecord, page: int) -> PageRows:
    """Read one part of the plan, or two, and those parts of its jobs that the page needs."""
    attempt, table = attempts[-1], Table()
    plan = Plan.saved(log.get, attempt.plan)
    if page == ALL and plan.count > MAX_ROWS:
        raise RunGenError(f"no page filters or sorts more than {MAX_ROWS:,} rows")
    numbers = numbers_of(page, plan.count)
    planned = dict(zip(numbers, plan.rows(numbers.start, numbers.stop), strict=True))
    # equal inputs share the job of the first
    inputs = {number: number if row.first is None else row.first for number, row in planned.items()}
    parts: Collection[int] = {inputs[number] // PART_ROWS for number, row in planned.items() if row.digest}
    is_open = task.is_moving or not has_end(attempt)
    if is_counted := is_open and PAGE_SIZE < plan.count <= _MAX_COUNTED:
        parts = range(plan.count // PART_ROWS + 1)
    for _, files in read_parts(log, plan.digest, {each.writer for each in attempts}, only=parts):
        for file in files:
            table.merge(file)
    rows = []
    for number, row in planned.items():
        values = dict(zip(plan.manifest.columns, map(_text, row.values), strict=False))
        key = ", ".join(values.get(name, "") for name in task.page.key)
        found = _row(row, table.row(inputs[number]), attempt, is_moving=task.is_moving)
        # of rows that share a job, the first has bought it
        is_reused = found.reused or (bool(found.job_id) and row.first is not None)
        rows.append(replace(found, index=number, key=key, values=values, reused=is_reused))
    totals = attempt.totals
    if is_counted or not has_end(attempt):
        of_rows = (Totals.of(row, attempt.writer, attempt.since) for row in table.rows.values())
        totals = sum(of_rows, Totals())
    failed, failed_scope = _failures(task, rows, is_whole=len(rows) == plan.count)
    known = [job for row in table.rows.values() for job in row.jobs]
    jobs = PageRows(
        rows=rows,
        total=plan.count,
        failed=failed,
        failed_scope=failed_scope,
        reused=sum(row.reused for row in rows),
        attempt=attempt,
        totals=totals,
        open_jobs=[
            job.id
            for _, row in sorted(table.rows.items())
            for job in row.jobs
            if job.state is JobState.OPEN and not job.is_shared
        ],
        seconds={job.id: job.seconds for job in known if not job.is_shared},
        shared={job.id for job in known if job.is_shared},
    )
    if not is_counted and not has_end(attempt):
        return jobs
    skipped, refused = task.page.skipped, task.page.refused
    running = max(0, totals.submitted - totals.jobs_completed - totals.jobs_failed)
    others = totals.inputs - totals.completed - totals.failed - totals.refused - running
    counts = {
        "completed": totals.completed,
        "failed": totals.failed - totals.canceled,
        "canceled": totals.canceled,
        UNKNOWN: running,
        # an input that was submitted again may have a job besides
        IN_DOUBT: max(0, min(totals.unknown, others)),
        "refused": totals.refused + refused,
        "skipped": skipped,
    }
    # while the task runs, the others are not submitted yet
    copies = 0 if is_counted and task.is_moving else _copies(plan, task, totals)
    return replace(jobs, counts=counts, reused=totals.shared, copies=copies)


def _failures(task: TaskRecord, rows: Sequence[JobView], *, is_whole: bool) -> tuple[list[JobView], str]:
    """
    Return the rows that failed, and which ones these are: the same on each page if the task reported them.

    :param rows: those of the page.
    """
    reported, shown = failed_rows(task), {row.index: row for row in rows}
    found = [
        # the reasons of the log are cut elsewhere
        replace(shown[row.index], status=row.status, error=row.error) if row.index in shown else row
        for row in reported
    ]
    if len(reported) >= MAX_FAILED:
        return found, f"the first {len(reported):,}"
    known = {row.index for row in reported}
    others = (row for row in rows if row.status in FAILED and row.index not in known)
    scope = "" if is_whole or task.failed is not None else "on this page"
    return sorted([*found, *others], key=lambda row: row.index), scope


def _copies(plan: Plan, task: TaskRecord, totals: Totals) -> int:
    """Return how many rows share the job of another one. Those that were never read have no totals."""
    most = plan.count - totals.inputs - task.page.skipped - task.page.refused
    if most <= 0:
        return 0
    if plan.count <= MAX_ROWS:
        return sum(row.first is not None for row in plan.rows())
    inputs = task.failure.inputs if task.failure else None
    return min(most, max(0, most + totals.inputs - inputs)) if inputs else most


def _text(value: Any) -> str:
    # redacted before it is cut, since a part of a URL is not recognized
    return "" if value is None else redact(str(value), most=2 * _MAX_VALUE_CHARS)[:_MAX_VALUE_CHARS]


def _row(planned: PlannedRow, row: Row, attempt: AttemptRecord, *, is_moving: bool) -> JobView:
    """Return a row of the plan, without its number and its key."""
    if planned.status:
        return JobView(index=0, status=planned.status, error=planned.why)
    state, job = row.state(attempt.writer, attempt.since), row.current(attempt.since)
    status, error = _STATUS.get(state, UNKNOWN), "" if job is None else job.why
    if job is not None and status == "failed" and job.state is JobState.CANCELED:
        status = "canceled"
    elif state is InputState.REFUSED:
        intent = row.intent_of(attempt.writer)
        error = (intent and intent.refusal) or ""
        status = "given up" if intent and intent.is_given_up else status
    elif state is InputState.UNSENT and not is_moving:
        status = NOT_SUBMITTED
    elif state is InputState.UNKNOWN or (state is InputState.ANNOUNCED and not is_moving):
        status, error = UNKNOWN if is_moving else IN_DOUBT, _FATE_UNKNOWN
    view = JobView(index=0, status=status, error=error)
    return view if job is None else replace(view, job_id=job.id, seconds=job.seconds, reused=job.is_shared)
