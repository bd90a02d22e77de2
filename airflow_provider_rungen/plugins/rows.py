"""The jobs of a task as rows: some on a page, and how many there are of each status. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.pages.models import FAILED, JobView
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.runs.attempt_record import AttemptRecord

#: Jobs on one page.
PAGE_SIZE = 100
MAX_PAGE = 10_000_000
#: The status of a job of which no more is known.
UNKNOWN = "unknown"
NOT_SUBMITTED = "not submitted"


@dataclass(frozen=True, kw_only=True)
class JobRows:
    """
    The jobs of a task, as far as one page shows them.

    :param rows: those of the page.
    :param total: how many rows all pages have.
    :param failed: those that are known to have failed, on any page.
    :param counts: how many of all rows have each status; empty if nobody knows.
    :param reused: how many of them an earlier run paid for.
    :param copies: how many rows share the job of another one, and are in none of the counts.
    :param attempt: the record of the last attempt, if the task has a run log.
    """

    rows: Sequence[JobView]
    total: int
    failed: Sequence[JobView] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    copies: int = 0
    attempt: AttemptRecord | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the page has all rows."""
        return len(self.rows) == self.total

    @property
    def is_counted(self) -> bool:
        """Whether it is known how many rows have each status."""
        return self.is_whole or bool(self.counts)


def pushed_rows(task: TaskRecord, page: int) -> JobRows:
    """
    Return the jobs that a task has pushed.

    :param page: the number of the page, from 1.
    """
    ids = task.known_job_ids
    failed = {row.index: row for row in failed_rows(task) if row.index < len(ids)}
    with_job = "completed" if task.has_reported and task.page.waits else UNKNOWN
    without_job = UNKNOWN if task.is_moving else NOT_SUBMITTED
    start = (page - 1) * PAGE_SIZE
    rows = [
        failed.get(index)
        or JobView(index=index, status=with_job if job_id else without_job, job_id=job_id or "")
        for index, job_id in enumerate(ids[start : start + PAGE_SIZE], start)
    ]
    counts = Counter(row.status for row in failed.values())
    absent = ids.count(None) - counts["refused"]
    counts[without_job] += absent
    counts[with_job] += len(ids) - len(failed) - absent
    return JobRows(rows=rows, total=len(ids), failed=list(failed.values()), counts=counts)


def failed_rows(task: TaskRecord) -> list[JobView]:
    """Return the inputs that a task has pushed as failed."""
    return [
        JobView(
            index=failure.index,
            status="failed" if failure.job_id else "refused",
            job_id=failure.job_id or "",
            error=failure.error,
        )
        for failure in task.failed or ()
    ]


def failed_of(rows: Sequence[JobView]) -> list[JobView]:
    return [row for row in rows if row.status in FAILED]


def shown_text(text: str | None, limit: int = 1000) -> str:
    """Return a text of a stranger as a page may show it."""
    return clean_text(text or "", limit)
