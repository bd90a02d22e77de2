"""How a job ended: what the log keeps of it, and the job that it stands for when it is read."""

from __future__ import annotations

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RejectRow,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenResultError,
)
from airflow_provider_rungen.runs import rows
from airflow_provider_rungen.runs.rows import JobState

ENDS = {
    JobStatus.COMPLETED: JobState.COMPLETED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.CANCELED: JobState.CANCELED,
}
_VERDICTS: dict[JobState, type[RunGenError]] = {
    JobState.INVALID: RunGenResultError,
    JobState.REJECTED: RejectRow,
}


def end_of(error: RunGenError) -> JobState:
    """Return how a job ended, given why it cannot be used."""
    if isinstance(error, RunGenJobFailedError):
        return JobState.FAILED
    if isinstance(error, RunGenJobCanceledError):
        return JobState.CANCELED
    if isinstance(error, RejectRow):
        return JobState.REJECTED
    return JobState.LOST if isinstance(error, RunGenNotFoundError) else JobState.COMPLETED


def reason_of(error: RunGenError, app_id: str, job_id: str) -> str:
    """Return why a job cannot be used, as the log keeps it: `job_at_end` adds how it ended, and its ids."""
    if isinstance(error, RunGenJobError):
        return error.message if error.reason is None else error.reason
    return error.message.removesuffix(f" {format_ids(app_id, job_id)}")


def job_at_end(job: rows.Job, app_id: str) -> Job:
    """Return a job that has no result as the log knows it."""
    verdict = _VERDICTS.get(job.state)
    status = JobStatus.CANCELED if job.state is JobState.CANCELED else JobStatus.FAILED
    return Job(
        id=job.id,
        app_id=app_id,
        status=status,
        error=job.why,
        execution_time=job.seconds,
        raw_status=str(status),
        cause=None if verdict is None else verdict(job.why, app_id=app_id, job_id=job.id),
    )
