"""Make what pages show of jobs and apps, from what the service, the store and Airflow know. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.output_urls import find_outputs, redact_value
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.execution.costs.scale_state import KEY as SCALE_KEY
from airflow_provider_rungen.pages.describe import MAX_TEXT, cut, find_facts, find_prompt, find_text
from airflow_provider_rungen.pages.models import AppView, Facts, JobView, Link, TimelineStep
from airflow_provider_rungen.plugins.job_rows import PAGE_SIZE, UNKNOWN, JobRow, is_duration, shown_text
from airflow_provider_rungen.plugins.stored import stored_files
from airflow_provider_rungen.plugins.task_record import TaskRecord, mapping, sequence
from airflow_provider_rungen.plugins.urls import Urls

#: Files of a job on the page of its task.
OUTPUTS_OF_JOB = 13
# Of a result on the page of its job.
MAX_RESULT_CHARS = 100_000
# Of a text, before it is redacted, which takes time, and cut to what is shown.
_TO_REDACT = 2 * MAX_TEXT
_BILL = (
    ("app_id", "App"),
    ("worker_seconds", "Worker seconds"),
    ("busy_seconds", "Busy seconds"),
    ("utilization", "Utilization"),
    ("jobs", "Jobs"),
    ("up_at", "Up since"),
    ("down_at", "Down at"),
    ("price", "Price of a worker"),
)
_BILLED_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")


def job_view(
    row: JobRow,
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
    status, error, seconds, result, given = row.status, row.error, row.seconds, None, None
    if isinstance(live, Job):
        # a job may have completed with a result that is of no use
        is_useless = status == "failed" and live.status is JobStatus.COMPLETED
        if status in (UNKNOWN, "failed", "completed") and not is_useless:
            status = live.status.value.lower()
        error = error or live.error
        seconds = live.execution_time if seconds is None else seconds
        result, given = live.result, live.input
    elif isinstance(live, RunGenError) and not error and status == UNKNOWN:
        error = live.message
    if manifest is not None:
        status = "completed" if status == UNKNOWN else status
        result = manifest.result if result is None else result
        given = manifest.input if given is None else given
        seconds = manifest.execution_seconds if seconds is None else seconds
    if status == UNKNOWN and task.is_moving:
        status = "waiting"
    text = find_text(result, _TO_REDACT)
    start = (page - 1) * PAGE_SIZE
    count = 0 if manifest is None else len(manifest.entries)
    stop = start + (PAGE_SIZE if is_whole else OUTPUTS_OF_JOB)
    files = [] if manifest is None else stored_files(manifest, start, stop)
    return JobView(
        index=row.index,
        status=status,
        key=shown_text(row.key, 300),
        job_id=row.job_id,
        seconds=seconds,
        error="" if status == "completed" else shown_text(error),
        prompt=_redacted(find_prompt(given, _TO_REDACT)),
        input=redact_value(given) if is_whole and isinstance(given, Mapping) else None,
        facts=find_facts(given),
        outputs=[
            file.view(urls.job(task, row.job_id, "files", str(number), row=row.index))
            for number, file in enumerate(files, start)
        ],
        more_outputs=0 if is_whole else count - len(files),
        text=None if count or text is None else _redacted(text),
        reused=row.reused,
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
    return text if len(text) <= MAX_RESULT_CHARS else f"{text[:MAX_RESULT_CHARS]}\n…"


def timeline(job: Job) -> Sequence[TimelineStep]:
    """Return the steps of a job that its answer tells."""
    status = job.status.value.lower()
    steps = [TimelineStep(label="queued", at=job.created_at, is_current=status == "queued")]
    if status != "queued":
        steps.append(
            TimelineStep(label="running", seconds=job.execution_time, is_current=status == "running")
        )
    if job.is_terminal:
        steps.append(TimelineStep(label=status, is_current=True))
    return steps


def advice(view: JobView) -> str:
    """Return what to do about a job that failed."""
    match view.status:
        case "failed":
            return (
                "Read the error and the input. If the input is right, clear the task in Airflow: it runs "
                "only what failed. If the input is wrong, correct it first: a retry fails in the same way."
            )
        case "canceled":
            return "A timeout, a user or somebody outside of Airflow canceled it. Clear the task to run it."
        case "refused":
            return "RunGen did not accept the input. Correct it, and clear the task."
    return ""


def app_view(app: App, *, href: str = "", used_by: Sequence[Link] = (), up_since: Any = None) -> AppView:
    return AppView(
        app_id=app.id,
        name=shown_text(app.name, 200),
        status=shown_text(app.status, 50),
        is_billed=is_billed(app),
        active_workers=app.active_workers,
        workers=app.workers,
        counters=app.jobs,
        gpu_tier=shown_text(app.configuration.get("gpu_tier"), 50),
        up_since=up_since,
        used_by=used_by,
        href=href,
    )


def is_billed(app: App) -> bool | None:
    """Return whether an app is billed now, or ``None`` if its answer does not tell."""
    if app.active_workers or any(app.workers.get(name) for name in _BILLED_WORKERS):
        return True
    return None if app.active_workers is None and not app.workers else False


def usage_facts(task: TaskRecord) -> Facts:
    """Return what the jobs of a task used: the XCom ``usage``."""
    usage = mapping(task.xcoms.get("usage"))
    facts = [
        (name.capitalize(), str(usage[name]))
        for name in ("jobs", "completed", "failed", "reused")
        if isinstance(usage.get(name), int)
    ]
    seconds = usage.get("execution_seconds")
    return [*facts, ("Execution", format_duration(seconds))] if is_duration(seconds) else facts


def bill_facts(bill: Any) -> Facts:
    """Return what an app has cost: the XCom ``bill``."""
    fields = mapping(bill)
    facts = [
        (label, _bill_value(name, fields[name])) for name, label in _BILL if fields.get(name) is not None
    ]
    if fields.get("cost") is not None:
        currency, source = shown_text(fields.get("currency"), 20), shown_text(fields.get("source"), 100)
        facts.append(("Cost", f"{shown_text(fields['cost'], 30)} {currency} ({source})"))
    return facts


def _bill_value(name: str, value: Any) -> str:
    try:
        if name == "utilization":
            return f"{float(value):.0%}".replace("%", " %")
        if name.endswith("_seconds"):
            return f"{float(value):,.0f}"
        if name.endswith("_at"):
            return f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M:%S} UTC"
    except (TypeError, ValueError, OverflowError):
        pass
    return shown_text(value, 100)


def scaled_up_at(task: TaskRecord) -> datetime | None:
    """Return when a task scaled its app up, or ``None`` if it did not."""
    up_at: float | None = None
    for change in sequence(mapping(task.xcoms.get(SCALE_KEY)).get("changes")):
        at, workers = mapping(change).get("at"), mapping(change).get("workers")
        if not workers or not isinstance(at, int | float):
            up_at = None
        elif up_at is None:
            up_at = at
    try:
        return None if up_at is None else datetime.fromtimestamp(up_at, UTC)
    except (ValueError, OverflowError, OSError):  # no time at all
        return None
