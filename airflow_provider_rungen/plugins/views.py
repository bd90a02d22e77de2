"""Make what pages show of jobs and apps, from what the service, the store and Airflow know. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.output_urls import find_outputs, redact_value
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.pages.describe import MAX_TEXT, cut, find_facts, find_prompt, find_text
from airflow_provider_rungen.pages.models import Facts, JobView, OutputFile
from airflow_provider_rungen.pages.output_kinds import guess
from airflow_provider_rungen.plugins.rows import PAGE_SIZE, UNKNOWN, shown_text
from airflow_provider_rungen.plugins.stored import stored_files
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.urls import Urls
from airflow_provider_rungen.plugins.xcoms import Figures

#: Files of a job on the page of its task.
OUTPUTS_OF_JOB = 13
#: What to do about a job, by how it ended.
ADVICE = {
    "failed": "Read the error and the input. If the input is right, clear the task in Airflow: it runs only "
    "what failed. If the input is wrong, correct it first: a retry fails in the same way.",
    "canceled": "A timeout, a user or somebody outside of Airflow canceled it. Clear the task to run it.",
    "refused": "RunGen did not accept the input. Correct it, and clear the task.",
}
# Of a result on the page of its job.
_MAX_RESULT_CHARS = 100_000
# Of a text, before it is redacted, which takes time, and cut to what is shown.
_TO_REDACT = 2 * MAX_TEXT
_BILLED_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")


def status_of(row: JobView, live: Job | RunGenError | None) -> str:
    """
    Return the status of a job.

    :param row: what the run log or Airflow knows.
    :param live: what the service says of it, or why it does not.
    """
    if not isinstance(live, Job) or row.status not in (UNKNOWN, "failed", "completed"):
        return row.status
    if row.status == "failed" and live.status is JobStatus.COMPLETED:
        return row.status  # it completed with a result that is of no use
    return live.status.value.lower()


def job_view(
    row: JobView,
    *,
    task: TaskRecord,
    urls: Urls,
    manifest: Manifest | None = None,
    live: Job | RunGenError | None = None,
    is_whole: bool = False,
    page: int = 1,
) -> JobView:
    """
    Return what is known of a job.

    :param row: what the run log or Airflow knows.
    :param manifest: what is stored of it.
    :param live: what the service says of it, or why it does not.
    :param is_whole: whether the view has the whole input, which takes time to redact, and a page of outputs.
    :param page: which page of outputs, from 1.
    """
    status, error, seconds, result, given = status_of(row, live), row.error, row.seconds, None, None
    if isinstance(live, Job):
        error = error or live.error
        seconds = live.execution_time if seconds is None else seconds
        result, given = live.result, live.input
    elif live is not None and status == UNKNOWN:
        error = error or live.message
    if manifest is not None:
        status = "completed" if status == UNKNOWN else status
        result = manifest.result if result is None else result
        given = manifest.input if given is None else given
        seconds = manifest.execution_seconds if seconds is None else seconds
    if status == UNKNOWN and task.is_moving:
        status = "waiting"
    text = find_text(result, _TO_REDACT)
    count = 0 if manifest is None else len(manifest.entries)
    start = (page - 1) * PAGE_SIZE
    stop = start + (PAGE_SIZE if is_whole else OUTPUTS_OF_JOB)
    files = [] if manifest is None else stored_files(manifest, start, stop)
    return replace(
        row,
        status=status,
        key=shown_text(row.key, 300),
        seconds=seconds,
        error="" if status == "completed" else shown_text(error),
        prompt=_redacted(find_prompt(given, _TO_REDACT)),
        input=redact_value(given) if is_whole and isinstance(given, Mapping) else None,
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
        more_outputs=0 if is_whole else count - len(files),
        text=None if count or text is None else _redacted(text),
        href=urls.job(task, row.job_id, row=row.index) if row.job_id else "",
    )


def _redacted(text: str) -> str:
    """Return a text of up to `_TO_REDACT` characters as a page shows it."""
    if len(text) == _TO_REDACT:
        # without the last word: redaction does not know a part of a URL for what it is
        text = f"{text.rsplit(None, 1)[0]} …"
    return cut(str(redact_value(text)))


def has_unstored_files(live: Job | RunGenError | None) -> bool:
    """Return whether a job made files that only the service has."""
    return isinstance(live, Job) and bool(find_outputs(live.result, 1))


def result_text(result: Any) -> str:
    """Return a result as indented JSON, redacted and cut; empty for none."""
    if result is None:
        return ""
    text = json.dumps(redact_value(result), indent=2, ensure_ascii=False)
    return text if len(text) <= _MAX_RESULT_CHARS else f"{text[:_MAX_RESULT_CHARS]}\n…"


def is_billed(app: App) -> bool | None:
    """Return whether an app is billed now, or ``None`` if its answer does not tell."""
    if app.active_workers or any(app.workers.get(name) for name in _BILLED_WORKERS):
        return True
    return None if app.active_workers is None and not app.workers else False


def figures(values: Figures) -> Facts:
    """Return the figures of an XCom, by the names that they have there."""
    named = ((name.replace("_", " ").capitalize(), value) for name, value in values.items())
    return [(shown_text(name, 50), shown_text(str(value), 100)) for name, value in named if value is not None]
