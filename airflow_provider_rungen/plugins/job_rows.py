"""The jobs of a task as rows: all are counted, and those of one page are kept. No I/O."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeGuard

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.pages.failures import MAX_EXAMPLES, group_failures
from airflow_provider_rungen.pages.models import FailureGroup, JobView, Progress
from airflow_provider_rungen.plugins.task_record import TaskRecord, well_formed

#: Jobs on one page.
PAGE_SIZE = 100
# How many failures without a reason the service is asked for.
MAX_ASKED = 40
# Rows after these are neither counted nor shown.
MAX_COUNTED = 100_000
MAX_PAGE = MAX_COUNTED // PAGE_SIZE
#: Of the id of a job.
MAX_ID_CHARS = 200
# A larger result is not kept: a page has many.
_MAX_RESULT_CHARS = 50_000
#: More seconds than any job takes.
MAX_SECONDS = 1e11
#: The status of a job of which no more is known.
UNKNOWN = "unknown"
FAILED = frozenset({"failed", "canceled", "refused"})


@dataclass(slots=True, kw_only=True)  # not frozen: a page may count a hundred thousand
class JobRow:
    """
    A job, or a row or an input without one.

    :param status: see `JobView`; ``unknown`` for a job whose state Airflow does not know.
    :param key: what identifies its row.
    :param result: its result, if the results table has it.
    """

    index: int
    status: str
    job_id: str = ""
    key: str = ""
    error: str = ""
    seconds: float | None = None
    reused: bool = False
    result: Any = None


@dataclass(frozen=True, kw_only=True)
class JobRows:
    """
    The jobs of a task, as far as one page shows them.

    :param total: how many there are.
    :param statuses: how many have each status.
    :param rows: those of the page.
    :param failures: those that failed, by reason.
    :param unexplained: some that failed for a reason that only the service knows. They are in no group.
    :param is_partly_counted: whether there are more than were counted.
    """

    total: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    rows: tuple[JobRow, ...] = ()
    failures: Sequence[FailureGroup] = ()
    unexplained: tuple[JobRow, ...] = ()
    is_partly_counted: bool = False

    @classmethod
    def count(cls, rows: Iterable[JobRow], page: int) -> JobRows:
        """
        Count rows, and keep those of a page.

        :param page: its number, from 1.
        """
        start, end = (page - 1) * PAGE_SIZE, page * PAGE_SIZE
        shown: list[JobRow] = []
        unexplained: list[JobRow] = []
        statuses: Counter[str] = Counter()
        total = reused = 0
        rows = iter(rows)

        def failed() -> Iterator[JobView]:
            nonlocal total, reused
            for row in islice(rows, MAX_COUNTED):
                statuses[row.status] += 1
                reused += row.reused
                if start <= total < end:
                    shown.append(row)
                total += 1
                if row.status not in FAILED:
                    continue
                if row.job_id and not row.error and len(unexplained) < MAX_ASKED:
                    unexplained.append(row)
                else:
                    yield _failed_view(row)

        failures = group_failures(failed())
        return cls(
            total=total,
            statuses=statuses,
            reused=reused,
            rows=tuple(shown),
            failures=failures,
            unexplained=tuple(unexplained),
            is_partly_counted=next(rows, None) is not None,
        )


def _failed_view(row: JobRow) -> JobView:
    return JobView(
        index=row.index,
        status=row.status,
        key=shown_text(row.key, 300),
        job_id=row.job_id,
        error=shown_text(row.error),
    )


def rows_of_task(task: TaskRecord) -> Iterable[JobRow]:
    """Yield the jobs that a task has pushed, in the order of its inputs."""
    failures = task.failures
    others = "completed" if task.has_reported and task.page.get("waits") is not False else UNKNOWN
    for index, job_id in enumerate(task.job_ids):
        if job_id is None:
            status = "refused" if index in failures else "failed"
        else:
            status = "failed" if index in failures else others
        yield JobRow(index=index, status=status, job_id=job_id or "", error=failures.get(index, ""))


def rows_of_table(rows: Iterable[Mapping[str, Any]], key: list[str]) -> Iterable[JobRow]:
    """
    Yield the rows of a results table. In CSV all values are text.

    :param key: the columns that identify a row.
    """
    for number, row in enumerate(rows):
        yield JobRow(
            index=_number(row.get("index"), number),
            status=_text(row.get("status") or UNKNOWN, 50),
            job_id=job_id_of(row),
            key=", ".join(_text(row.get(name, ""), 1000) for name in key),
            error=_text(row.get("error"), 4000),
            seconds=_seconds(row.get("execution_seconds")),
            reused=str(row.get("reused")).lower() == "true",
            result=_result(row.get("result")),
        )


def job_id_of(row: Mapping[str, Any]) -> str:
    """Return the id of the job of a row of a results table."""
    return _text(row.get("job_id"), MAX_ID_CHARS)


def _text(value: Any, limit: int) -> str:
    """Return a value as text, of which a page keeps many."""
    return well_formed(str("" if value is None else value)[:limit])


def _number(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if is_duration(seconds) else None


def is_duration(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number of seconds that a page can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_SECONDS


def _result(value: Any) -> Any:
    """Return the value of a result, which is JSON text in every format, unless it is large."""
    if not isinstance(value, str) or len(value) > _MAX_RESULT_CHARS:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value or None


def page_count(total: int) -> int:
    return max(1, -(-total // PAGE_SIZE))


def progress_of(jobs: JobRows, task: TaskRecord) -> Progress | None:
    """Return how the jobs of a task ended, or how far they are by what Airflow knows."""
    total = max(jobs.total, task.count("rows") or 0)
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


def merge_failures(*parts: Sequence[FailureGroup]) -> list[FailureGroup]:
    """Return groups of failures, those with the same reason as one."""
    merged: dict[str, FailureGroup] = {}
    for group in (group for part in parts for group in part):
        known = merged.setdefault(group.reason, group)
        if known is not group:
            count, examples = known.count + group.count, [*known.examples, *group.examples]
            merged[group.reason] = replace(known, count=count, examples=examples[:MAX_EXAMPLES])
    return sorted(merged.values(), key=lambda group: -group.count)


def shown_text(text: Any, limit: int = 1000) -> str:
    """Return a text of a stranger as a page may show it."""
    return clean_text(str(text or ""), limit)
