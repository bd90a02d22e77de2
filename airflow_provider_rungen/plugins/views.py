"""Find what the template of each page shows: a function returns the values for one template."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeAlias

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.output_urls import find_outputs, redact_value
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.pages.models import (
    JobView,
    OutputFile,
    Pager,
    Progress,
    find_facts,
    find_prompt,
    find_text,
    first_fields,
    group_failures,
    is_billed,
    shown_text,
)
from airflow_provider_rungen.pages.output_kinds import guess
from airflow_provider_rungen.plugins import live
from airflow_provider_rungen.plugins.gallery import Query
from airflow_provider_rungen.plugins.gather import Gathering, ask_service
from airflow_provider_rungen.plugins.rows import PAGE_SIZE, UNKNOWN, PageRows
from airflow_provider_rungen.plugins.stored import stored_files
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.trouble import CENTS, JOB_DIGITS, billing_of, cost, cost_of, failure_of
from airflow_provider_rungen.plugins.urls import Urls

# Failed jobs, and jobs that may still run, that a page asks the service for at most.
_MAX_ASKED = 40
# Files of a job on the page of its task.
_OUTPUTS_OF_JOB = 13
_UNSTORED = "The files of these jobs are only at RunGen. Set destination on the task to store and see them."
_NO_FILES = "Its files are only at RunGen, until a task with a destination stores them."
_NOT_THERE = "Some files are not in {place}. They were not stored, or were moved or removed since."
_NEW_LEDGER = "The ledger {ledger} was new, so that nothing was reused."
_UNCOUNTED = "The last attempt did not record its end, so that only the rows of this page are known."
_TOO_MANY = "The task has too many rows to count them while it runs."

#: The job as the service returned it, or the error; ``None`` if it was not asked.
Answer: TypeAlias = Job | RunGenError | None


# --- a task -------------------------------------------------------------------------------------------------


async def _look_up(
    gathering: Gathering, urls: Urls, rows: Sequence[JobView], more: Sequence[str] = ()
) -> tuple[Callable[[JobView], JobView], Mapping[str, Answer]]:
    """
    Return what describes the job of a row, which takes time, and the answers of the service.

    :param more: other jobs that the service is asked for.
    """
    task, manifests = gathering.task, dict[str, StoredJob]()
    if not task.is_moving:
        manifests = await gathering.manifests([row.job_id for row in rows if row.job_id])
    ended = [row.job_id for row in rows if row.job_id and row.status != UNKNOWN]
    unstored = [job_id for job_id in (*ended, *_open_jobs(task, rows)) if job_id not in manifests]
    answers: Mapping[str, Answer] = await gathering.jobs([*unstored, *more])
    if not task.is_moving:
        await run_in_threadpool(_note_unstored, gathering, list(map(answers.get, unstored)))

    def view(row: JobView) -> JobView:
        return job_view(row, task, urls, manifests.get(row.job_id), answers.get(row.job_id))

    return view, answers


async def task_page(gathering: Gathering, urls: Urls, query: Query) -> dict[str, Any]:
    """Return what the page of a task shows."""
    task = gathering.task
    jobs = await gathering.rows(1 if query.parameters else query.page)
    rows, total = jobs.rows, jobs.total
    if query.parameters:
        entries = await query.select([gathering])
        rows, total = [row for _, row in query.page_of(entries)], len(entries)
    failed = [] if query.parameters else jobs.failed
    failure = failure_of(task, jobs)
    billing = failure.still_billing if failure else []
    more = [*(row.job_id for row in failed if row.job_id)][:_MAX_ASKED] + billing[:_MAX_ASKED]
    view, answers = await _look_up(gathering, urls, rows, more)
    # not in the event loop: there may be many large inputs and results
    shown, groups = await run_in_threadpool(lambda: ([*map(view, rows)], group_failures(map(view, failed))))
    if not jobs.is_counted:
        gathering.notices.append(_TOO_MANY if task.is_moving else _UNCOUNTED)
    if ledger := task.page.new_ledger:
        gathering.notices.append(_NEW_LEDGER.format(ledger=shown_text(ledger)))
    return _list(query, total, shown) | {
        "task": task,
        "failures": groups,
        "progress": _progress(task, jobs, answers),
        "failure": failure,
        "cost": cost_of(task),
        "billing": await billing_of(gathering),
        "still_billing": [job_id for job_id in billing if not _has_ended(answers.get(job_id))],
        "notice": gathering.notice,
    }


async def run_page(gatherings: Sequence[Gathering], urls: Urls, query: Query) -> dict[str, Any]:
    """Return what the gallery of several tasks shows."""
    entries = await query.select(gatherings)
    page, are_runs = query.page_of(entries), len({each.task.run_id for each in gatherings}) > 1

    async def views_of(gathering: Gathering) -> Iterator[JobView]:
        task, rows = gathering.task, [row for each, row in page if each is gathering]
        view, _ = await _look_up(gathering, urls, rows)
        views = await run_in_threadpool(lambda: [*map(view, rows)])
        label = ("run", task.run_id) if are_runs else ("task", task.label)
        return iter([replace(each, facts=[label, *each.facts]) for each in views])

    views = dict(zip(map(id, gatherings), await asyncio.gather(*map(views_of, gatherings)), strict=True))
    costs = defaultdict[str, Decimal](Decimal)
    for gathering, row in entries:
        if paid := cost(gathering.task.page.price, row.seconds, JOB_DIGITS):
            costs[paid.currency] += paid.amount
    shown = [next(views[id(gathering)]) for gathering, _ in page]
    return _list(query, len(entries), shown) | {
        "tasks": [each.task for each in gatherings],
        "are_runs": are_runs,
        "statuses": Counter(row.status for _, row in entries),
        "costs": [f"{amount.quantize(CENTS)} {currency}" for currency, amount in costs.items()],
        "notice": " ".join(dict.fromkeys(each.notice for each in gatherings if each.notice)),
    }


def _list(query: Query, found: int, jobs: Sequence[JobView]) -> dict[str, Any]:
    """Return what a page shows of its list, of which it has some jobs."""
    columns = list(dict.fromkeys(name for job in jobs for name in job.values))
    pager = _pager(query.url(), found, query.page)
    return {"query": query, "found": found, "jobs": jobs, "columns": columns, "pager": pager}


async def task_progress(gathering: Gathering) -> Progress:
    """Return the progress of a task."""
    task = gathering.task
    jobs = await gathering.rows(1)
    answers = await gathering.jobs(_open_jobs(task, jobs.rows))
    return _progress(task, jobs, answers) or Progress(total=0, is_moving=task.is_moving)


def _open_jobs(task: TaskRecord, rows: Sequence[JobView]) -> list[str]:
    """Return the jobs of a page that may run. While the task runs, its page asks often, for fewer jobs."""
    open_jobs = [row.job_id for row in rows if row.job_id and row.status == UNKNOWN]
    return open_jobs[:_MAX_ASKED] if task.is_moving else open_jobs


def _progress(task: TaskRecord, jobs: PageRows, answers: Mapping[str, Answer]) -> Progress | None:
    """Return how many jobs of a task have each status; ``None`` if that is not known."""
    counts, copies = jobs.counts, jobs.copies
    if jobs.is_whole:
        seen = Counter(_status_of(row, answers.get(row.job_id)) for row in jobs.rows)
        # the counts of the run log are better than rows whose status is not known
        if task.is_moving or UNKNOWN not in seen or not counts:
            counts, copies = seen, 0
    total = max(jobs.total, task.page.rows) - copies
    if not total or not jobs.is_counted:
        return None
    names = ("completed", "canceled", "skipped", "running", "queued", "unknown")
    return Progress(
        total=total,
        failed=sum(counts.get(name, 0) for name in ("failed", "refused", "given up")),
        reused=jobs.reused,
        is_moving=task.is_moving,
        **{name: counts.get(name, 0) for name in names},
    )


def _note_unstored(gathering: Gathering, answers: Iterable[Answer]) -> None:
    """Explain why a page lacks files that jobs made."""
    if gathering.notice:  # the store may be down
        return
    if any(isinstance(answer, Job) and find_outputs(answer.result, 1) for answer in answers):
        place = shown_text(gathering.task.page.destination)
        gathering.notices.append(_NOT_THERE.format(place=place) if place else _UNSTORED)


def _has_ended(answer: Answer) -> bool:
    return isinstance(answer, Job) and answer.is_terminal


def _pager(here: str, total: int, page: int) -> Pager | None:
    here, pages = f"{here}{'&' if '?' in here else '?'}", max(1, -(-total // PAGE_SIZE))
    if pages == 1 and page == 1:
        return None
    return Pager(
        page=page,
        pages=pages,
        previous_href=f"{here}page={min(page - 1, pages)}" if page > 1 else "",
        next_href=f"{here}page={page + 1}" if page < pages else "",
    )


# --- a job --------------------------------------------------------------------------------------------------


async def job_page(
    gathering: Gathering, urls: Urls, job_id: str, page_of_task: int, page: int
) -> dict[str, Any] | None:
    """
    Return what the page of a job shows, or ``None`` if the task has no such job.

    :param page_of_task: the page of the task that has the job, from 1.
    :param page: the number of the page of its outputs, from 1.
    """
    task = gathering.task
    row = await gathering.row_of(job_id, page_of_task)
    if row is None:
        return None
    manifest = (await gathering.manifests([job_id])).get(job_id)
    answer = (await gathering.jobs([job_id])).get(job_id)

    def view() -> dict[str, Any]:
        if manifest is None and not task.is_moving:
            _note_unstored(gathering, [answer])
        job = answer if isinstance(answer, Job) else None
        found = manifest if manifest is not None else job
        shown = job_view(row, task, urls, manifest, answer, page=page)
        return {
            "task": task,
            "job": shown,
            "live": job,
            "pager": _pager(shown.href, 0 if manifest is None else len(manifest.outputs), page),
            "result": None if found is None else redact_value(found.result),
            "notice": gathering.notice,
        }

    return await run_in_threadpool(view)


def job_view(
    row: JobView,
    task: TaskRecord,
    urls: Urls,
    manifest: StoredJob | None = None,
    answer: Answer = None,
    *,
    page: int | None = None,
) -> JobView:
    """
    Return what is known of a job.

    :param row: what the run log or Airflow knows.
    :param manifest: what is stored of it.
    :param page: the page of its outputs, from 1, if it has a page of its own. That has the whole input, too,
        which takes time to redact.
    """
    status, error, seconds, result, given = _status_of(row, answer), row.error, row.seconds, None, None
    if isinstance(answer, Job):
        error = error or answer.error
        seconds = answer.execution_time if seconds is None else seconds
        result, given = answer.result, answer.input
    elif answer is not None and status == UNKNOWN:
        error = error or answer.message
    if manifest is not None:
        status = "completed" if status == UNKNOWN else status
        seconds = manifest.execution_seconds if seconds is None else seconds
        result, given = manifest.result, manifest.input or given
    if status == UNKNOWN and task.is_moving:
        status = "waiting"
    count = 0 if manifest is None else len(manifest.outputs)
    start, most = (0, _OUTPUTS_OF_JOB) if page is None else ((page - 1) * PAGE_SIZE, PAGE_SIZE)
    files = [] if manifest is None else stored_files(manifest, start, start + most)
    is_bare = manifest is None and bool(find_outputs(result, 1))
    return replace(
        row,
        status=status,
        key=shown_text(row.key, 300),
        seconds=seconds,
        error="" if status == "completed" else shown_text(error),
        prompt=find_prompt(given),
        input=redact_value(given) if page is not None and isinstance(given, Mapping) else None,
        facts=find_facts(given),
        outputs=[
            OutputFile(
                name=file.name,
                href=urls.job(task, row.job_id, "files", str(number), row=row.index),
                # its first bytes decide when it is served
                kind=guess(file.name, file.claimed_type),
                size=file.size,
            )
            for number, file in enumerate(files, start)
        ],
        more_outputs=count - len(files) if page is None else 0,
        text=_NO_FILES if is_bare else None if count else find_text(result) or first_fields(result),
        cost=cost(task.page.price, seconds, JOB_DIGITS),
        href=urls.job(task, row.job_id, row=row.index) if row.job_id else "",
    )


def _status_of(row: JobView, answer: Answer) -> str:
    if not isinstance(answer, Job) or row.status not in (UNKNOWN, "failed", "completed"):
        return row.status
    if row.status == "failed" and answer.status is JobStatus.COMPLETED:
        return row.status  # it completed, but its result cannot be used
    return answer.status.value.lower()


# --- apps ---------------------------------------------------------------------------------------------------


async def app_page(conn_id: str, app_id: str) -> dict[str, Any] | None:
    """Return what the page of an app shows, or ``None`` if there is no such app."""
    app, notice = await ask_service(conn_id, live.find_app, app_id)
    if app is None and not notice:
        return None
    return {"app": app or App(id=app_id), "conn_id": conn_id, "task": None, "notice": notice}


async def app_page_of_task(gathering: Gathering) -> dict[str, Any]:
    """Return what the page of the app of a task shows."""
    task, app = gathering.task, await gathering.app()
    shown = app or App(id=task.page.app)
    return {"app": shown, "conn_id": task.page.connection, "task": task, "notice": gathering.notice}


async def apps_page(conn_ids: Sequence[str]) -> dict[str, Any]:
    """Return what the page of all apps shows: one row for each, billed first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    notices, totals = {}, defaultdict[str, Decimal](Decimal)
    answers = await asyncio.gather(*(ask_service(conn_id, live.get_apps) for conn_id in conn_ids))
    for conn_id, (found, notices[conn_id]) in zip(conn_ids, answers, strict=True):
        if found is None:
            continue
        settings, apps = found
        for app in apps:
            row = rows.setdefault((settings.base_url, app.id), {"app": app, "conn_ids": [], "an_hour": ""})
            row["conn_ids"].append(conn_id)
            if (price := settings.price) and app.active_workers and not row["an_hour"]:
                amount = price.cost(Decimal(3600 * app.active_workers), CENTS)
                row["an_hour"] = f"{amount} {price.currency}"
                totals[price.currency] += amount
    shown = sorted(
        rows.values(), key=lambda row: (not is_billed(row["app"]), row["app"].name or row["app"].id)
    )
    an_hour = [f"{amount} {currency}" for currency, amount in totals.items()]
    return {"rows": shown, "notices": notices, "an_hour": an_hour}
