"""Make the pages of a task and of its jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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
from airflow_provider_rungen.plugins.job_rows import (
    MAX_ASKED,
    JobRow,
    JobRows,
    page_count,
    progress_by_counters,
    progress_of,
    shown_text,
)
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.urls import Urls
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, End

# So many jobs are asked for one by one, to see how far they are. Of more, the counters of the app tell.
MAX_POLLED = 24
_UNSTORED = "The files of these jobs are only at RunGen. Set destination on the task to store and see them."
_NOT_THERE = "Some files are not in {place}. They were not stored, or were moved or removed since."
_SUBMITTING = "The jobs are being submitted."
_NEW_LEDGER = "The ledger {ledger} was new, so that nothing was reused."
_UNCOUNTED = "The last attempt did not record its end, so that only the rows of this page are known."
_NO_RECORD = "The last attempt did not record its end: it was killed, or its worker was lost."
_IN_FLIGHT = "The app has jobs of other tasks, too, so that more may be done than is shown."


async def task_page(gathering: Gathering, urls: Urls, page: int) -> TaskPage:
    """
    Return the page of a task.

    :param page: the number of the page of jobs, from 1.
    """
    task = gathering.task
    jobs = await gathering.rows(page)
    progress = await _progress(gathering, jobs)
    shown = [row.job_id for row in jobs.rows if row.job_id]
    manifests = {} if task.is_moving else await gathering.manifests(shown)
    unstored = [job_id for job_id in shown if job_id not in manifests]
    failed = [row.job_id for row in jobs.failed if row.job_id]
    end = _end_of(gathering)
    billing = () if end is None else end.still_billing[:MAX_ASKED]
    found = await gathering.jobs([*unstored, *failed[:MAX_ASKED], *billing])
    if not task.is_moving:
        _note_unstored(gathering, [job for job_id, job in found.items() if job_id in unstored])
        if jobs.is_uncounted:
            gathering.notices.append(_UNCOUNTED)
    if task.new_ledger:
        gathering.notices.append(_NEW_LEDGER.format(ledger=shown_text(task.new_ledger)))
    # not in the event loop: there may be many large inputs and results
    return await run_in_threadpool(
        _task_page, gathering, urls, page, jobs=jobs, progress=progress, manifests=manifests, found=found
    )


def _task_page(
    gathering: Gathering,
    urls: Urls,
    page: int,
    *,
    jobs: JobRows,
    progress: Progress | None,
    manifests: Mapping[str, Manifest],
    found: Mapping[str, Job | RunGenError],
) -> TaskPage:
    task = gathering.task

    def view(row: JobRow) -> JobView:
        manifest, live = manifests.get(row.job_id), found.get(row.job_id)
        return views.job_view(row, task=task, urls=urls, manifest=manifest, live=live)

    return TaskPage(
        dag_id=task.dag_id,
        task_id=task.task_id,
        run_id=task.run_id,
        state=task.state,
        map_index=task.map_index,
        try_number=task.try_number,
        operator=task.operator,
        app_id=task.app_id,
        app_href=urls.app(task, task.app_id) if task.app_id else "",
        conn_id=task.conn_id,
        progress=progress,
        jobs=list(map(view, jobs.rows)),
        pager=_pager(urls.task(task), jobs.total, page),
        end=_shown_end(gathering, urls, found),
        failures=group_failures(map(view, jobs.failed)),
        usage=views.usage_facts(task),
        bill=views.bill_facts(task.xcoms.get("bill")),
        files=[Link(label=shown_text(place)) for place in (task.results, task.destination) if place],
        notice=gathering.notice,
        refresh_href=urls.progress(task) if task.is_moving else "",
        airflow_href=urls.in_airflow(task),
    )


def _end_of(gathering: Gathering) -> AttemptRecord | None:
    """Return the record of the last attempt of a task that did not succeed, once it is over."""
    task = gathering.task
    return None if task.is_moving or task.is_successful else gathering.attempt


def _shown_end(gathering: Gathering, urls: Urls, found: Mapping[str, Job | RunGenError]) -> TaskEnd | None:
    task, attempt = gathering.task, _end_of(gathering)
    if attempt is None:
        return None
    error = attempt.error or (_NO_RECORD if attempt.end is End.UNKNOWN else "")
    if error and attempt.try_number != task.try_number:
        error = f"Attempt {attempt.try_number}: {error}"
    over = {job_id for job_id, job in found.items() if isinstance(job, Job) and job.is_terminal}
    billing = [job_id for job_id in attempt.still_billing if job_id not in over]
    return TaskEnd(
        error=shown_text(error),
        hint=shown_text(attempt.hint),
        still_billing=[Link(label=job_id, href=urls.job(task, job_id)) for job_id in billing[:MAX_ASKED]],
        more_billing=max(0, len(billing) - MAX_ASKED),
    )


async def task_progress(gathering: Gathering) -> Progress:
    """Return how far a task is."""
    task = gathering.task
    jobs = await gathering.rows(1)
    found = await _progress(gathering, jobs)
    return found or Progress(total=0, is_moving=task.is_moving)


async def _progress(gathering: Gathering, jobs: JobRows) -> Progress | None:
    task = gathering.task
    if not task.is_moving:
        return progress_of(jobs, task)
    if 0 < jobs.total <= MAX_POLLED and jobs.total >= (task.count("rows") or 0):
        statuses: Counter[str] = Counter()
        found = await gathering.jobs([row.job_id for row in jobs.rows if row.job_id])
        for row in jobs.rows:
            outcome = found.get(row.job_id)
            statuses[outcome.status.value.lower() if isinstance(outcome, Job) else row.status] += 1
        return _with_pace(progress_of(replace(jobs, statuses=statuses), task), task)
    total = len(task.job_ids)
    if not total:
        gathering.notices.extend([_SUBMITTING] if task.count("rows") else [])
        return progress_of(jobs, task)
    app = await gathering.app(task.app_id)
    if app is None:
        return progress_of(jobs, task)
    queued, running = app.jobs.get("in_queue"), app.jobs.get("in_progress")
    if queued is None and running is None:
        return progress_of(jobs, task)
    if (queued or 0) + (running or 0) > total:
        gathering.notices.append(_IN_FLIGHT)
    return _with_pace(progress_by_counters(total, task, queued=queued, running=running), task)


def _with_pace(progress: Progress | None, task: TaskRecord) -> Progress | None:
    if progress is None or task.started_at is None:
        return progress
    done = progress.done - progress.reused - progress.skipped
    seconds = (datetime.now(UTC) - task.started_at).total_seconds()
    if done <= 0 or seconds <= 0:
        return progress
    rate = done / seconds
    return replace(progress, rate=rate, seconds_left=(progress.total - progress.done) / rate)


def _pager(here: str, total: int, page: int) -> Pager | None:
    here, pages = f"{here}{'&' if '?' in here else '?'}", page_count(total)
    if pages == 1 and page == 1:
        return None
    return Pager(
        page=page,
        pages=pages,
        previous_href=f"{here}page={min(page - 1, pages)}" if page > 1 else "",
        next_href=f"{here}page={page + 1}" if page < pages else "",
    )


def _note_unstored(gathering: Gathering, jobs: Iterable[Job | RunGenError | None]) -> None:
    """Explain why a page lacks files that jobs made."""
    if gathering.notices or not any(map(views.has_unstored_files, jobs)):  # it may be the store that is down
        return
    place = shown_text(gathering.task.destination)
    gathering.notices.append(_NOT_THERE.format(place=place) if place else _UNSTORED)


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
    row: JobRow,
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
        app_id=task.app_id,
        app_href=urls.app(task, task.app_id) if task.app_id else "",
        conn_id=task.conn_id,
        timeline=() if job is None else views.timeline(job),
        result_text=views.result_text(result),
        advice=views.advice(view),
        notice=gathering.notice,
        task=urls.link(task),
        airflow_href=urls.in_airflow(task),
        is_moving=job is not None and not job.is_terminal,
    )
