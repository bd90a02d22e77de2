"""The jobs of a task as rows: what a page has of them, and those that the task has pushed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_rungen.client.endpoints import FATE_UNKNOWN
from airflow_provider_rungen.execution.sinks.batch_result import NOT_SUBMITTED as WAS_NOT_SUBMITTED
from airflow_provider_rungen.pages.models import JobView
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, End
from airflow_provider_rungen.runs.rows import Totals

#: Jobs on one page.
PAGE_SIZE = 100
#: Rows that are read together, to filter and sort them.
MAX_ROWS = 10_000
#: The number of the page that has all rows.
ALL = 0
#: The status of a job whose status is not known.
UNKNOWN = "unknown"
#: The status of an input that may have a job whose id is not known.
IN_DOUBT = "fate unknown"
#: The status of an input that has no job.
NOT_SUBMITTED = "not submitted"


@dataclass(frozen=True, kw_only=True)
class PageRows:
    """
    The jobs of a task, as far as one page shows them.

    :param rows: those of the page.
    :param total: how many rows all pages have.
    :param failed: those that are known to have failed, on any page.
    :param failed_scope: which ones these are, if they may not be all.
    :param counts: how many of all rows have each status; empty if that is not known.
    :param reused: how many of them an earlier run paid for.
    :param copies: how many rows share the job of another one, and are in none of the counts.
    :param attempt: the record of the last attempt, if the task has a run log.
    :param totals: the totals of its log: those of its end, or else of the parts that the page has read.
    :param open_jobs: the jobs that may still run, as far as the page has read.
    :param seconds: how long each job ran that the page knows of, if that is known. It has those of earlier
        attempts, too.
    :param shared: the jobs that another run paid for, which are not among these.
    """

    rows: Sequence[JobView]
    total: int
    failed: Sequence[JobView] = ()
    failed_scope: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    copies: int = 0
    attempt: AttemptRecord | None = None
    totals: Totals = Totals()  # noqa: RUF009 - it is frozen
    open_jobs: Sequence[str] = ()
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    shared: Collection[str] = ()

    @property
    def has_end(self) -> bool:
        """Whether the last attempt recorded its totals. One that had nothing to submit has none."""
        return self.attempt is not None and has_end(self.attempt)

    @property
    def is_whole(self) -> bool:
        """Whether the page has all rows."""
        return len(self.rows) == self.total

    @property
    def is_counted(self) -> bool:
        """Whether it is known how many rows have each status."""
        return self.is_whole or bool(self.counts)


def has_end(attempt: AttemptRecord) -> bool:
    """Return whether an attempt recorded its end."""
    return attempt.end is not End.UNKNOWN or attempt.totals != Totals()


def pushed_rows(task: TaskRecord, page: int) -> PageRows:
    """
    Return the jobs that a task has pushed.

    :param page: the number of the page, from 1, or `ALL`.
    """
    ids, times = task.known_job_ids, task.times
    failed = {
        row.index: replace(row, seconds=times.get(row.job_id))
        for row in failed_rows(task)
        if row.index < len(ids)
    }
    with_job = "completed" if task.has_reported and task.page.waits else UNKNOWN
    without_job = UNKNOWN if task.is_moving else NOT_SUBMITTED
    rows = [
        failed.get(index)
        or JobView(
            index=index,
            status=with_job if job_id else without_job,
            job_id=job_id or "",
            seconds=times.get(job_id or ""),
        )
        for index, job_id in enumerate(ids)
    ]
    shown = [rows[index] for index in numbers_of(page, len(rows))]
    counts, failures = Counter(row.status for row in rows), [*failed.values()]
    may_run = [row.job_id for row in rows if row.job_id and row.status == UNKNOWN]
    return PageRows(
        rows=shown,
        total=len(rows),
        failed=failures,
        counts=counts,
        open_jobs=may_run,
        seconds={job_id: times.get(job_id) for job_id in {*filter(None, ids), *times}},
    )


def numbers_of(page: int, count: int) -> range:
    """
    Return which of some rows are on a page; `ALL` has all.

    :param page: its number, from 1. If it is beyond the last one, that is meant.
    """
    page = min(page, max(1, -(-count // PAGE_SIZE)))
    return range(count) if page == ALL else range(count)[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]


def failed_rows(task: TaskRecord) -> list[JobView]:
    """Return the rows that a task has reported to have failed."""
    return [
        JobView(
            index=failure.index,
            status="failed" if failure.job_id else _status_without_job(failure.error),
            job_id=failure.job_id or "",
            error=failure.error,
        )
        for failure in task.failed or ()
    ]


def _status_without_job(error: str) -> str:
    if error.startswith(FATE_UNKNOWN):
        return IN_DOUBT
    return NOT_SUBMITTED if NOT_SUBMITTED in error[: len(WAS_NOT_SUBMITTED)] else "refused"
