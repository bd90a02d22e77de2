"""Make the pages of a task and of its jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.pages.describe import group_failures
from airflow_provider_rungen.pages.models import (
    JobPage,
    JobView,
    Link,
    Pager,
    Progress,
    TaskEnd,
    TaskPage,
)
from airflow_provider_rungen.plugins import views
from airflow_provider_rungen.plugins.gather import Gathering
from airflow_provider_rungen.plugins.rows import PAGE_SIZE, UNKNOWN, JobRows, shown_text
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.urls import Urls
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, End

# So many failures, and so many jobs that may still run, the service is asked for.
_MAX_ASKED = 40
_UNSTORED = "The files of these jobs are only at RunGen. Set destination on the task to store and see them."
_NOT_THERE = "Some files are not in {place}. They were not stored, or were moved or removed since."
_NEW_LEDGER = "The ledger {ledger} was new, so that nothing was reused."
_UNCOUNTED = "The last attempt did not record its end, so that only the rows of this page are known."
_TOO_MANY = "The task has too many rows to count them while it runs."
_AGAIN = "A retry submits {:,} of {:,} rows, a clear {:,}."
_NO_RECORD = "The last attempt did not record its end: it was killed, or its worker was lost."

Live = Mapping[str, Job | RunGenError]


async def task_page(gathering: Gathering, urls: Urls, page: int) -> TaskPage:
    """
    Return the page of a task.

    :param page: the number of the page of jobs, from 1.
    """
    task = gathering.task
    jobs = await gathering.rows(page)
    shown = [row.job_id for row in jobs.rows if row.job_id]
    manifests = {} if task.is_moving else await gathering.manifests(shown)
    ended = [row.job_id for row in jobs.rows if row.job_id and row.status != UNKNOWN]
    unstored = [job_id for job_id in (*ended, *_open_jobs(task, jobs)) if job_id not in manifests]
    failed = [row.job_id for row in jobs.failed if row.job_id]
    attempt = _unsuccessful(task, jobs)
    billing = () if attempt is None else attempt.still_billing[:_MAX_ASKED]
    live = await gathering.jobs([*unstored, *failed[:_MAX_ASKED], *billing])
    if not task.is_moving:
        _note_unstored(gathering, map(live.get, unstored))
    if not jobs.is_counted:
        gathering.notices.append(_TOO_MANY if task.is_moving else _UNCOUNTED)
    if ledger := task.page.new_ledger:
        gathering.notices.append(_NEW_LEDGER.format(ledger=shown_text(ledger)))
    # not in the event loop: there may be many large inputs and results
    return await run_in_threadpool(
        _task_page, gathering, urls, page, jobs=jobs, manifests=manifests, live=live
    )


def _task_page(
    gathering: Gathering,
    urls: Urls,
    page: int,
    *,
    jobs: JobRows,
    manifests: Mapping[str, Manifest],
    live: Live,
) -> TaskPage:
    task = gathering.task

    def view(row: JobView) -> JobView:
        manifest, outcome = manifests.get(row.job_id), live.get(row.job_id)
        return views.job_view(row, task=task, urls=urls, manifest=manifest, live=outcome)

    return TaskPage(
        dag_id=task.dag_id,
        task_id=task.task_id,
        run_id=task.run_id,
        state=task.state,
        map_index=task.map_index,
        try_number=task.try_number,
        operator=task.operator,
        app_id=task.page.app,
        app_href=urls.app(task, task.page.app) if task.page.app else "",
        conn_id=task.page.connection,
        progress=_progress(task, jobs, live),
        jobs=list(map(view, jobs.rows)),
        pager=_pager(urls.task(task), jobs.total, page),
        end=_end(task, jobs, urls, live),
        failures=group_failures(map(view, jobs.failed)),
        usage=views.figures(task.usage),
        bill=views.figures(task.bill),
        files=[
            Link(label=shown_text(place)) for place in (task.page.results, task.page.destination) if place
        ],
        notice=gathering.notice,
        refresh_href=urls.progress(task) if task.is_moving else "",
        airflow_href=urls.in_airflow(task),
    )


def _unsuccessful(task: TaskRecord, jobs: JobRows) -> AttemptRecord | None:
    """Return the record of the last attempt of a task that did not succeed, once it has ended."""
    return None if task.is_moving or task.is_successful else jobs.attempt


def _end(task: TaskRecord, jobs: JobRows, urls: Urls, live: Live) -> TaskEnd | None:
    attempt = _unsuccessful(task, jobs)
    if attempt is None:
        return None
    error = attempt.error or (_NO_RECORD if attempt.end is End.UNKNOWN else "")
    if error and attempt.try_number != task.try_number:
        error = f"Attempt {attempt.try_number}: {error}"
    ended = {job_id for job_id, job in live.items() if isinstance(job, Job) and job.is_terminal}
    again = _AGAIN.format(attempt.retry_submits, jobs.total, attempt.clear_submits)
    billing = [job_id for job_id in attempt.still_billing if job_id not in ended]
    return TaskEnd(
        error=shown_text(error),
        hint=shown_text(attempt.hint),
        again=again if attempt.error else "",
        still_billing=[Link(label=job_id, href=urls.job(task, job_id)) for job_id in billing[:_MAX_ASKED]],
        more_billing=max(0, len(billing) - _MAX_ASKED),
    )


def _note_unstored(gathering: Gathering, jobs: Iterable[Job | RunGenError | None]) -> None:
    """Explain why a page lacks files that jobs made."""
    if gathering.notices or not any(map(views.has_unstored_files, jobs)):  # it may be the store that is down
        return
    place = shown_text(gathering.task.page.destination)
    gathering.notices.append(_NOT_THERE.format(place=place) if place else _UNSTORED)


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


# --- progress -----------------------------------------------------------------------------------------------


async def task_progress(gathering: Gathering) -> Progress:
    """Return how far a task is."""
    task = gathering.task
    jobs = await gathering.rows(1)
    live = await gathering.jobs(_open_jobs(task, jobs))
    return _progress(task, jobs, live) or Progress(total=0, is_moving=task.is_moving)


def _open_jobs(task: TaskRecord, jobs: JobRows) -> Sequence[str]:
    """Return the jobs of a page that may run. Of many, the first: a page of a task that moves asks often."""
    open_jobs = [row.job_id for row in jobs.rows if row.job_id and row.status == UNKNOWN]
    return open_jobs[:_MAX_ASKED] if task.is_moving else open_jobs


def _progress(task: TaskRecord, jobs: JobRows, live: Live) -> Progress | None:
    """Return how the jobs of a task ended, as far as the page, its log or Airflow knows."""
    counts, copies = jobs.counts, jobs.copies
    if jobs.is_whole:
        seen = Counter(views.status_of(row, live.get(row.job_id)) for row in jobs.rows)
        # what the log knows of the end is more than what the service did not say
        if task.is_moving or UNKNOWN not in seen or not counts:
            counts, copies = seen, 0
    total = max(jobs.total, task.page.rows) - copies
    if not total or not jobs.is_counted:
        return None
    progress = Progress(
        total=total,
        completed=counts.get("completed", 0),
        failed=counts.get("failed", 0) + counts.get("refused", 0),
        canceled=counts.get("canceled", 0),
        skipped=counts.get("skipped", 0),
        running=counts.get("running", 0),
        queued=counts.get("queued", 0),
        reused=jobs.reused,
        is_moving=task.is_moving,
    )
    done = progress.done - progress.reused - progress.skipped
    seconds = (datetime.now(UTC) - task.started_at).total_seconds() if task.started_at else 0
    if done <= 0 or seconds <= 0:
        return progress
    rate = done / seconds
    return replace(progress, rate=rate, seconds_left=(total - progress.done) / rate)


# --- a job --------------------------------------------------------------------------------------------------


async def job_page(
    gathering: Gathering, urls: Urls, job_id: str, page_of_task: int, page: int
) -> JobPage | None:
    """
    Return the page of a job, or ``None`` if it is none of the task's.

    :param page_of_task: the page of the task that has the job, from 1.
    :param page: the number of the page of its outputs, from 1.
    """
    task = gathering.task
    row = await gathering.row_of(job_id, page_of_task)
    if row is None:
        return None
    manifest = (await gathering.manifests([job_id])).get(job_id)
    live = (await gathering.jobs([job_id])).get(job_id)
    if manifest is None and not task.is_moving:
        _note_unstored(gathering, [live])
    return await run_in_threadpool(_job_page, gathering, urls, row, page=page, manifest=manifest, live=live)


def _job_page(
    gathering: Gathering,
    urls: Urls,
    row: JobView,
    *,
    page: int,
    manifest: Manifest | None,
    live: Job | RunGenError | None,
) -> JobPage:
    task = gathering.task
    view = views.job_view(row, task=task, urls=urls, manifest=manifest, live=live, is_whole=True, page=page)
    job = live if isinstance(live, Job) else None
    result = manifest.result if manifest is not None else None if job is None else job.result
    return JobPage(
        job=view,
        pager=_pager(view.href, 0 if manifest is None else len(manifest.entries), page),
        app_id=task.page.app,
        app_href=urls.app(task, task.page.app) if task.page.app else "",
        conn_id=task.page.connection,
        created_at=None if job is None else job.created_at,
        result_text=views.result_text(result),
        advice=views.ADVICE.get(view.status, ""),
        notice=gathering.notice,
        task=urls.link(task),
        airflow_href=urls.in_airflow(task),
        is_moving=job is not None and not job.is_terminal,
    )
