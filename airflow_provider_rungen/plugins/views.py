"""Find what the template of each page shows: a function returns the values for one template."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.workers import workers_of
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.pages.models import (
    JobView,
    Progress,
    group_failures,
    shown_text,
)
from airflow_provider_rungen.plugins.gallery import Query
from airflow_provider_rungen.plugins.gather import Answer, Gathering, status_of
from airflow_provider_rungen.plugins.job_views import job_view, make_pager, note_unstored
from airflow_provider_rungen.plugins.rows import ALL, IN_DOUBT, NOT_SUBMITTED, PAGE_SIZE, UNKNOWN, PageRows
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.trouble import billing_of, costs_of, outlook, trouble_of
from airflow_provider_rungen.plugins.urls import Urls

# Failed jobs, and jobs that may still run, that a page asks the service for at most.
_MAX_ASKED = 40
_NEW_LEDGER = "The ledger {ledger} was new, so that nothing was reused."
_UNCOUNTED = "The last attempt did not record its end, so that only the rows of this page are known."
_NO_WORKERS = "App {app} has no active workers: its jobs stay queued until it is scaled up."
_TOO_MANY = "The task has too many rows to count them while it runs."


# --- a task -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What the store and the service have of jobs."""

    gathering: Gathering
    urls: Urls
    manifests: Mapping[str, StoredJob]
    answers: Mapping[str, Answer]

    def view(self, row: JobView) -> JobView:
        """Describe the job of a row, which takes time."""
        manifest, answer = self.manifests.get(row.job_id), self.answers.get(row.job_id)
        return job_view(row, self.gathering.task, self.urls, manifest, answer)

    def status(self, row: JobView) -> str:
        return status_of(row, self.manifests.get(row.job_id), self.answers.get(row.job_id))

    def with_times(self, jobs: PageRows) -> PageRows:
        """Return all rows with the times that the log lacks, as those of canceled jobs."""
        if not jobs.is_whole:
            return jobs  # what a task spent must not depend on the page
        found = {row.job_id: self._seconds(row) for row in _untimed(jobs.rows)}
        times = {job_id: seconds for job_id, seconds in found.items() if seconds is not None}
        return replace(jobs, seconds={**jobs.seconds, **times})

    def _seconds(self, row: JobView) -> float | None:
        manifest, answer = self.manifests.get(row.job_id), self.answers.get(row.job_id)
        if manifest is not None:
            return manifest.execution_seconds
        return answer.execution_time if isinstance(answer, Job) and answer.is_terminal else None

    def end_of(self, job_id: str) -> str:
        """Return how a job ended; empty if that is not known."""
        answer = self.answers.get(job_id)
        if job_id in self.manifests:
            return "completed"
        return answer.status.value.lower() if isinstance(answer, Job) and answer.is_terminal else ""


def _untimed(rows: Sequence[JobView]) -> list[JobView]:
    return [row for row in rows if row.job_id and row.seconds is None and not row.reused]


async def _look_up(
    gathering: Gathering,
    urls: Urls,
    rows: Sequence[JobView],
    *,
    failed: Sequence[str] = (),
    may_run: Sequence[str] = (),
) -> _Found:
    """
    Look for the jobs of rows, and for others.

    :param failed: jobs on other pages that failed.
    :param may_run: jobs on any page that may still run.
    """
    task, of_rows = gathering.task, [row.job_id for row in rows if row.job_id]
    manifests = await gathering.manifests([*dict.fromkeys([*of_rows, *may_run[:PAGE_SIZE]])])
    ended = [row.job_id for row in rows if row.job_id and row.status != UNKNOWN]
    open_jobs = _open_jobs(task, [row for row in rows if row.job_id not in manifests])
    unstored = [job_id for job_id in (*ended, *open_jobs) if job_id not in manifests]
    open_elsewhere = [job_id for job_id in may_run if job_id not in manifests]
    more = [*failed[:_MAX_ASKED], *open_elsewhere[:_MAX_ASKED]]
    answers: Mapping[str, Answer] = await gathering.jobs([*unstored, *more])
    if not task.is_moving:
        await run_in_threadpool(note_unstored, gathering, list(map(answers.get, unstored)))
    return _Found(gathering, urls, manifests, answers)


async def task_page(gathering: Gathering, urls: Urls, query: Query) -> dict[str, Any]:
    """Return what the page of a task shows."""
    task = gathering.task
    jobs = await gathering.rows(1 if query.parameters else query.page)
    rows, total = jobs.rows, jobs.total
    if query.parameters:
        entries = await query.select([gathering])
        rows, total = [row for _, row in query.page_of(entries)], len(entries)
    failed = [] if query.parameters else jobs.failed
    trouble = trouble_of(task, jobs)
    may_run = trouble.may_run if trouble else ()
    failed_jobs = [row.job_id for row in failed if row.job_id]
    # what the task spent does not depend on what is filtered
    more = _untimed(jobs.rows) if trouble and query.parameters else []
    found = await _look_up(gathering, urls, [*rows, *more], failed=failed_jobs, may_run=may_run)
    ends = {job_id: end for job_id in may_run if (end := found.end_of(job_id))}
    # not in the event loop: there may be many large inputs and results
    shown, groups = await run_in_threadpool(
        lambda: ([*map(found.view, rows)], group_failures(map(found.view, failed)))
    )
    if not jobs.is_counted:
        gathering.notices.append(_TOO_MANY if task.is_moving else _UNCOUNTED)
    states = {answer.status for answer in found.answers.values() if isinstance(answer, Job)}
    is_idle = JobStatus.QUEUED in states and JobStatus.RUNNING not in states
    if is_idle and (app := await gathering.app()) and workers_of(app) == 0:
        gathering.notices.append(_NO_WORKERS.format(app=shown_text(app.id, 200)))
    if ledger := task.page.new_ledger:
        gathering.notices.append(_NEW_LEDGER.format(ledger=shown_text(ledger)))
    return _list(query, total, shown) | {
        "task": task,
        "failures": groups,
        "failures_scope": jobs.failed_scope,
        "progress": _progress(task, jobs, found, [*ends.values()], trouble.failure.unknown if trouble else 0),
        "failure": trouble and trouble.failure,
        "outlook": outlook(task, found.with_times(jobs), trouble) if trouble else (),
        "billing": await billing_of(gathering),
        "still_billing": [job_id for job_id in may_run if job_id not in ends],
        "is_reported": bool(trouble and trouble.is_reported),
        "may_run_elsewhere": bool(trouble and not trouble.is_reported and not jobs.is_counted),
        "notice": gathering.notice,
    }


async def run_page(gatherings: Sequence[Gathering], urls: Urls, query: Query) -> dict[str, Any]:
    """Return what the gallery of several tasks shows."""
    entries = await query.select(gatherings)
    page, are_runs = query.page_of(entries), len({each.task.run_id for each in gatherings}) > 1

    # of all rows, whatever is filtered
    known = {id(each): await each.rows(ALL) for each in gatherings}
    is_small = sum(len(jobs.rows) for jobs in known.values()) <= PAGE_SIZE

    async def views_of(gathering: Gathering) -> Iterator[JobView]:
        task, rows = gathering.task, [row for each, row in page if each is gathering]
        jobs = known[id(gathering)]
        found = await _look_up(gathering, urls, [*rows, *(_untimed(jobs.rows) if is_small else ())])
        if is_small:
            known[id(gathering)] = found.with_times(jobs)
        views = await run_in_threadpool(lambda: [*map(found.view, rows)])
        label = ("run", task.run_id) if are_runs else ("task", task.label)
        return iter([replace(each, facts=[label, *each.facts]) for each in views])

    views = dict(zip(map(id, gatherings), await asyncio.gather(*map(views_of, gatherings)), strict=True))
    blocks = {each.task.page.up: each for each in gatherings if each.task.page.up and not are_runs}
    billed = await asyncio.gather(*map(billing_of, blocks.values()))
    costs = costs_of([(each.task, known[id(each)]) for each in gatherings])
    shown = [next(views[id(gathering)]) for gathering, _ in page]
    return _list(query, len(entries), shown) | {
        "tasks": [each.task for each in gatherings],
        "are_runs": are_runs,
        "statuses": Counter(row.status for _, row in entries),
        "reused": sum(row.reused for _, row in entries),
        "costs": costs,
        "billings": billed,
        "notice": " ".join(dict.fromkeys(each.notice for each in gatherings if each.notice)),
    }


def _list(query: Query, found: int, jobs: Sequence[JobView]) -> dict[str, Any]:
    """Return what a page shows of its list, of which it has some jobs."""
    columns = list(dict.fromkeys(name for job in jobs for name in job.values))
    pager = make_pager(query.url(), found, query.page)
    return {"query": query, "found": found, "jobs": jobs, "columns": columns, "pager": pager}


async def task_progress(gathering: Gathering) -> Progress:
    """Return the progress of a task."""
    task = gathering.task
    jobs = await gathering.rows(1)
    answers: Mapping[str, Answer] = await gathering.jobs(_open_jobs(task, jobs.rows))
    found = _Found(gathering, Urls(""), {}, answers)
    return _progress(task, jobs, found) or Progress(total=0, is_moving=task.is_moving)


def _open_jobs(task: TaskRecord, rows: Sequence[JobView]) -> list[str]:
    """Return the jobs of a page that may run. While the task runs, its page asks often, for fewer jobs."""
    open_jobs = [row.job_id for row in rows if row.job_id and row.status == UNKNOWN]
    return open_jobs[:_MAX_ASKED] if task.is_moving else open_jobs


def _progress(
    task: TaskRecord, jobs: PageRows, found: _Found, ends: Sequence[str] = (), in_doubt: int = 0
) -> Progress | None:
    """
    Return how many jobs of a task have each status; ``None`` if that is not known.

    :param ends: how jobs ended that the log has as running, as far as that is known.
    :param in_doubt: how many inputs may have a job whose id is not known, as the task reported.
    """
    counts, copies = jobs.counts, jobs.copies
    if jobs.is_whole:
        seen = Counter(map(found.status, jobs.rows))
        # the counts of the run log are better than rows whose status is not known
        if task.is_moving or UNKNOWN not in seen or not counts:
            counts, copies, ends = seen, 0, ()
    total = max(jobs.total, task.page.rows) - copies
    if not total or not jobs.is_counted:
        return None
    names = ("completed", "canceled", "skipped", "running", "queued")
    rest = total - sum(count for name, count in counts.items() if name not in (IN_DOUBT, NOT_SUBMITTED))
    unknown = counts.get(UNKNOWN, 0)
    ended = Counter(ends[:unknown])
    counts = Counter(counts) + ended
    return Progress(
        total=total,
        failed=sum(counts[name] for name in ("failed", "refused", "given up")),
        reused=jobs.reused,
        is_moving=task.is_moving,
        unknown=unknown - ended.total(),
        in_doubt=max(counts[IN_DOUBT], min(in_doubt, rest)),
        **{name: counts[name] for name in names},
    )
