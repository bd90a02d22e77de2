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
from airflow_provider_rungen.pages.failures import group_failures
from airflow_provider_rungen.pages.models import (
    FailureGroup,
    JobPage,
    JobView,
    Link,
    Pager,
    Progress,
    TaskPage,
)
from airflow_provider_rungen.plugins import views
from airflow_provider_rungen.plugins.gather import Gathering, rows_of_page
from airflow_provider_rungen.plugins.job_rows import (
    MAX_ASKED,
    JobRow,
    JobRows,
    merge_failures,
    page_count,
    progress_by_counters,
    progress_of,
    shown_text,
)
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.urls import Urls

# So many jobs are asked for one by one, to see how far they are. Of more, the counters of the app tell.
MAX_POLLED = 24
_UNSTORED = "The files of these jobs are only at RunGen. Set destination on the task to store and see them."
_NOT_THERE = "Some files are not in {place}. They were not stored, or were moved or removed since."
_SUBMITTING = "The jobs are being submitted."
_NEW_LEDGER = "The ledger {ledger} was new, so that nothing was reused."
_IN_FLIGHT = "The app has jobs of other tasks, too, so that more may be done than is shown."


async def task_page(task: TaskRecord, urls: Urls, page: int) -> TaskPage:
    """
    Return the page of a task.

    :param page: the number of the page of jobs, from 1.
    """
    gathering = Gathering(task)
    jobs = await gathering.rows(page)
    progress = await _progress(gathering, jobs)
    shown = [row.job_id for row in jobs.rows if row.job_id]
    manifests = {} if task.is_moving else await gathering.manifests(shown)
    unstored = [job_id for job_id in shown if job_id not in manifests]
    unexplained = [row.job_id for row in jobs.unexplained]
    examples = [job.job_id for group in jobs.failures for job in group.examples if job.job_id]
    found = await gathering.jobs([*unstored, *unexplained, *examples[:MAX_ASKED]])
    if not task.is_moving:
        _note_unstored(gathering, [job for job_id, job in found.items() if job_id in unstored])
    if jobs.is_partly_counted:
        gathering.notices.append(f"Only the first {jobs.total} rows are counted.")
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
        jobs=[
            views.job_view(
                row, task=task, urls=urls, manifest=manifests.get(row.job_id), live=found.get(row.job_id)
            )
            for row in jobs.rows
        ],
        pager=_pager(task, urls, jobs, page),
        failures=_failures(task, urls, jobs, found),
        usage=views.usage_facts(task),
        bill=views.bill_facts(task.xcoms.get("bill")),
        files=[Link(label=shown_text(place)) for place in (task.results, task.destination) if place],
        notice=gathering.notice,
        refresh_href=urls.progress(task) if task.is_moving else "",
        airflow_href=urls.in_airflow(task),
    )


async def task_progress(task: TaskRecord) -> Progress:
    """Return how far a task is."""
    gathering = Gathering(task)
    jobs = await run_in_threadpool(rows_of_page, task, 1)
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


def _pager(task: TaskRecord, urls: Urls, jobs: JobRows, page: int) -> Pager | None:
    pages = page_count(jobs.total)
    if pages == 1 and page == 1:
        return None
    here = urls.task(task)
    return Pager(
        page=page,
        pages=pages,
        total=jobs.total,
        previous_href=f"{here}?page={min(page - 1, pages)}" if page > 1 else "",
        next_href=f"{here}?page={page + 1}" if page < pages else "",
    )


def _note_unstored(gathering: Gathering, jobs: Iterable[Job | RunGenError | None]) -> None:
    """Explain why a page lacks files that jobs made."""
    if gathering.notices or not any(map(views.has_unstored_files, jobs)):  # it may be the store that is down
        return
    place = shown_text(gathering.task.destination)
    gathering.notices.append(_NOT_THERE.format(place=place) if place else _UNSTORED)


def _failures(
    task: TaskRecord, urls: Urls, jobs: JobRows, found: Mapping[str, Job | RunGenError]
) -> list[FailureGroup]:
    """Return the failures by reason, with what the service says about the examples."""

    def example(job: JobView) -> JobView:
        row = JobRow(index=job.index, status=job.status, job_id=job.job_id, key=job.key)
        view = views.job_view(row, task=task, urls=urls, live=found.get(job.job_id))
        return replace(view, status=job.status, error=job.error)

    known = [replace(group, examples=list(map(example, group.examples))) for group in jobs.failures]
    explained = (
        views.job_view(row, task=task, urls=urls, live=found.get(row.job_id)) for row in jobs.unexplained
    )
    return merge_failures(known, group_failures(explained))


# --- a job --------------------------------------------------------------------------------------------------


async def job_page(task: TaskRecord, urls: Urls, job_id: str) -> JobPage | None:
    """Return the page of a job, or ``None`` if it is none of the task's."""
    gathering = Gathering(task)
    row = await gathering.row_of(job_id)
    if row is None:
        return None
    manifest = (await gathering.manifests([job_id])).get(job_id)
    live = (await gathering.jobs([job_id])).get(job_id)
    if manifest is None and not task.is_moving:
        _note_unstored(gathering, [live])
    return await run_in_threadpool(_job_page, gathering, urls, row, manifest, live)


def _job_page(
    gathering: Gathering,
    urls: Urls,
    row: JobRow,
    manifest: Manifest | None,
    live: Job | RunGenError | None,
) -> JobPage:
    task = gathering.task
    view = views.job_view(row, task=task, urls=urls, manifest=manifest, live=live, is_whole=True)
    job = live if isinstance(live, Job) else None
    result = manifest.result if manifest is not None else job.result if job is not None else row.result
    return JobPage(
        job=view,
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
