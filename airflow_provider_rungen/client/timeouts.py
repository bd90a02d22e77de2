"""The errors of waits that took too long: what was waited for, and what to do about it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import JobStatus
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.workers import describe_workers, workers_of
from airflow_provider_rungen.exceptions import RunGenJobQueuedTimeoutError, RunGenJobTimeoutError

if TYPE_CHECKING:
    from airflow_provider_rungen.client.job_poller import JobPoller

# Seconds that the question for the workers may hold up the error.
_PATIENCE = 2.0


def explain_timeout(poller: JobPoller, job_ids: Iterable[str]) -> Flow[RunGenJobTimeoutError]:
    """Return the error for those of the jobs that did not finish in time, after a look at the workers."""
    if poller.queue.app is None and not poller.outages.failed_rounds:
        yield from poller.queue.ask((yield Sleep(0)), patience=_PATIENCE)
    return timeout_error(poller, job_ids)


def timeout_error(
    poller: JobPoller, job_ids: Iterable[str], *, queued_for: float | None = None
) -> RunGenJobTimeoutError:
    """
    Return the error for those of the jobs that did not finish in time; it names the first.

    :param queued_for: the seconds that none of them started in, if that is the reason.
    """
    waiting = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in poller.finished]
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    ids = format_ids(poller.app_id, waiting[0] + more)
    reasons = [_status_of(poller, waiting[0])] if queued_for is None else [format_duration(queued_for)]
    if (app := poller.queue.app) is not None:
        reasons.append("no active workers" if workers_of(app) == 0 else describe_workers(app))
    if (failure := poller.outages.last_failure) is not None:
        reasons.append(f"the last poll failed: {failure.message}")
    kind = RunGenJobTimeoutError if queued_for is None else RunGenJobQueuedTimeoutError
    message = f"{'Not over in time' if queued_for is None else 'Queued for too long'}: "
    message += f"{', '.join(filter(None, reasons))} {ids}"
    hint = _advice(poller, waiting[0], queued_for is not None)
    return kind(message, app_id=poller.app_id, job_id=waiting[0], hint=hint)


def _status_of(poller: JobPoller, job_id: str) -> str:
    state = poller.waiting.get(job_id)
    if state is None or state.job is None:
        return "status unknown"
    return f"{state.job.status} for {format_duration(max(state.polled_at - state.status_since, 0))}"


def _advice(poller: JobPoller, job_id: str, is_queued: bool) -> str | None:
    """Return what helps against the cause; ``None`` for the advice of the error's class."""
    state, app = poller.waiting.get(job_id), poller.queue.app
    if app is not None and workers_of(app) == 0:
        cause = "Scale the app up"
    elif is_queued or (state and state.job and state.job.status is JobStatus.QUEUED):
        cause = "Give the app more workers"
    else:
        return None
    return f"{cause}. Raise {'queued_timeout' if is_queued else 'timeout'} if it needs longer"
