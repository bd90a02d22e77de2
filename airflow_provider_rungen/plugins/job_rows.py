"""The jobs of a task as rows: all are counted, and those of one page are kept. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.pages.models import Progress
from airflow_provider_rungen.plugins.task_record import TaskRecord

#: Jobs on one page.
PAGE_SIZE = 100
#: So many failures, and so many jobs that may still run, the service is asked for.
MAX_ASKED = 40
MAX_PAGE = 10_000_000
#: More seconds than any job takes.
MAX_SECONDS = 1e11
#: The status of a job of which no more is known.
UNKNOWN = "unknown"
NOT_SUBMITTED = "not submitted"
FAILED = frozenset({"failed", "canceled", "refused"})


@dataclass(slots=True, kw_only=True)  # not frozen: a page may count a hundred thousand
class JobRow:
    """
    A job, or a row or an input without one.

    :param status: see `JobView`; ``unknown`` for a job whose state Airflow does not know.
    :param key: what identifies its row.
    """

    index: int
    status: str
    job_id: str = ""
    key: str = ""
    error: str = ""
    seconds: float | None = None
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class JobRows:
    """
    The jobs of a task, as far as one page shows them.

    :param total: how many there are.
    :param statuses: how many have each status.
    :param rows: those of the page.
    :param failed: all that failed.
    :param copies: how many rows share the job of another one, and are in no status.
    :param is_uncounted: whether nobody knows how many have each status.
    """

    total: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    rows: tuple[JobRow, ...] = ()
    failed: Sequence[JobRow] = ()
    copies: int = 0
    is_uncounted: bool = False

    @classmethod
    def count(cls, rows: Iterable[JobRow], page: int) -> JobRows:
        """
        Count rows, and keep those of a page.

        :param page: its number, from 1.
        """
        start, end = (page - 1) * PAGE_SIZE, page * PAGE_SIZE
        shown: list[JobRow] = []
        failed: list[JobRow] = []
        statuses: Counter[str] = Counter()
        total = reused = 0
        for row in rows:
            statuses[row.status] += 1
            reused += row.reused
            if start <= total < end:
                shown.append(row)
            if row.status in FAILED:
                failed.append(row)
            total += 1
        return cls(total=total, statuses=statuses, reused=reused, rows=tuple(shown), failed=failed)


def rows_of_task(task: TaskRecord) -> Iterable[JobRow]:
    """Yield the jobs that a task has pushed, in the order of its inputs."""
    failures = task.failures
    others = "completed" if task.has_reported and task.page.get("waits") is not False else UNKNOWN
    without_job = UNKNOWN if task.is_moving else NOT_SUBMITTED
    for index, job_id in enumerate(task.job_ids):
        if index in failures:
            status = "refused" if job_id is None else "failed"
        else:
            status = without_job if job_id is None else others
        yield JobRow(index=index, status=status, job_id=job_id or "", error=failures.get(index, ""))


def is_duration(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number of seconds that a page can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_SECONDS


def page_count(total: int) -> int:
    return max(1, -(-total // PAGE_SIZE))


def progress_of(jobs: JobRows, task: TaskRecord) -> Progress | None:
    """Return how the jobs of a task ended, or how far they are by what Airflow knows."""
    total = max(jobs.total, task.count("rows") or 0) - jobs.copies
    if not total:
        return None
    statuses = jobs.statuses
    return Progress(
        total=total,
        completed=statuses.get("completed", 0),
        failed=statuses.get("failed", 0) + statuses.get("refused", 0),
        canceled=statuses.get("canceled", 0),
        skipped=statuses.get("skipped", 0),
        running=statuses.get("running", 0),
        queued=statuses.get("queued", 0),
        reused=jobs.reused,
        is_moving=task.is_moving,
    )


def progress_by_counters(
    total: int, task: TaskRecord, *, queued: int | None, running: int | None
) -> Progress | None:
    """
    Return how far jobs are by the counters of their app.

    The jobs of others are among the counted, so that at least as many are done.

    :param total: the jobs that the task waits for.
    """
    rows = max(task.count("rows") or 0, total)
    if not rows:
        return None
    done_before = sum(task.count(name) or 0 for name in ("skipped", "refused", "reused"))
    waiting = max(0, min(total, rows - done_before)) if total else max(0, rows - done_before)
    running = min(running or 0, waiting)
    queued = min(queued or 0, waiting - running)
    skipped, refused = task.count("skipped") or 0, task.count("refused") or 0
    return Progress(
        total=rows,
        completed=max(0, rows - queued - running - skipped - refused),
        failed=refused,
        running=running,
        queued=queued,
        skipped=skipped,
        reused=task.count("reused") or 0,
        is_moving=task.is_moving,
    )


def shown_text(text: Any, limit: int = 1000) -> str:
    """Return a text of a stranger as a page may show it."""
    return clean_text(str(text or ""), limit)
