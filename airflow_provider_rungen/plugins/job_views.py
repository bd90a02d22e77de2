"""Find what is shown of a job: on its own page, and in lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import find_outputs, redact_value
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.pages.models import (
    JobView,
    OutputFile,
    Pager,
    find_facts,
    find_prompt,
    find_text,
    first_fields,
    shown_text,
)
from airflow_provider_rungen.pages.output_kinds import guess
from airflow_provider_rungen.plugins.gather import Answer, Gathering, status_of
from airflow_provider_rungen.plugins.rows import PAGE_SIZE, UNKNOWN, numbers_of
from airflow_provider_rungen.plugins.stored import stored_files
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.trouble import JOB_DIGITS, cost, what_a_clear_submits
from airflow_provider_rungen.plugins.urls import Urls

# Files of a job on the page of its task.
_OUTPUTS_OF_JOB = 13
_UNSTORED = "The files of these jobs are only at RunGen. Set destination on the task to store and see them."
_NO_FILES = "Its files are only at RunGen, until a task with a destination stores them."
_NOT_YET = "Not stored yet."
_NOT_STORED = "Its files are not in the destination."
_NOT_THERE = "Some files are not in {place}. They were not stored, or were moved or removed since."


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
    clear = what_a_clear_submits(task, await gathering.rows(page_of_task))

    def view() -> dict[str, Any]:
        if manifest is None and not task.is_moving:
            note_unstored(gathering, [answer])
        job = answer if isinstance(answer, Job) else None
        found = manifest if manifest is not None else job
        shown = job_view(row, task, urls, manifest, answer, page=page)
        return {
            "task": task,
            "job": shown,
            "clear": clear,
            "live": job,
            "pager": make_pager(shown.href, 0 if manifest is None else len(manifest.outputs), page),
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
    status, error, seconds = status_of(row, manifest, answer), row.error, row.seconds
    result = given = None
    if isinstance(answer, Job):
        error = error or answer.error
        seconds = answer.execution_time if seconds is None else seconds
        result, given = answer.result, answer.input
    elif answer is not None and status == UNKNOWN:
        error = error or answer.message
    if manifest is not None:
        seconds = manifest.execution_seconds if seconds is None else seconds
        result, given = manifest.result, manifest.input or given
    if status == UNKNOWN and task.is_moving:
        status = "waiting"
    count = 0 if manifest is None else len(manifest.outputs)
    shown = range(count)[:_OUTPUTS_OF_JOB] if page is None else numbers_of(page, count)
    files = [] if manifest is None else stored_files(manifest, shown.start, shown.stop)
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
            for number, file in enumerate(files, shown.start)
        ],
        more_outputs=count - len(files) if page is None else 0,
        text=_unstored(task) if is_bare else None if count else find_text(result) or first_fields(result),
        cost=None if row.reused else cost(task.page.price, seconds, JOB_DIGITS),
        href=urls.job(task, row.job_id, row=row.index) if row.job_id else "",
    )


def _unstored(task: TaskRecord) -> str:
    """Return what is shown in place of files that a job has, and that are not stored."""
    if not task.page.destination:
        return _NO_FILES
    return _NOT_YET if task.is_moving else _NOT_STORED


def note_unstored(gathering: Gathering, answers: Iterable[Answer]) -> None:
    """Explain why a page lacks files that jobs made."""
    if gathering.notice:  # the store may be down
        return
    if any(isinstance(answer, Job) and find_outputs(answer.result, 1) for answer in answers):
        place = shown_text(gathering.task.page.destination)
        gathering.notices.append(_NOT_THERE.format(place=place) if place else _UNSTORED)


def make_pager(here: str, total: int, page: int) -> Pager | None:
    """Return which part of a list a page shows; ``None`` if it shows all."""
    here, pages = f"{here}{'&' if '?' in here else '?'}", max(1, -(-total // PAGE_SIZE))
    page = min(page, pages)  # beyond the last one, that is shown
    if pages == 1:
        return None
    return Pager(
        page=page,
        pages=pages,
        previous_href=f"{here}page={page - 1}" if page > 1 else "",
        next_href=f"{here}page={page + 1}" if page < pages else "",
    )
