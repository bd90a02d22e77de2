"""Logs what happens to jobs: each line begins with the event or its cause, and ends with the ids. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import clean_text, format_duration, format_ids

log = logging.getLogger(__name__)

# Takes a log level, a line, and the id of the job it is about, or ``None``.
LogCallback = Callable[[int, str, str | None], None]

# Among many jobs, so many problems of single ones are logged.
MAX_LOGGED_PROBLEMS = 10


def log_line(level: int, line: str, job_id: str | None) -> None:
    """Log a line."""
    log.log(level, "%s", line)


class QuietLog:
    """Logs what concerns all jobs, but of single ones, of which there are many, only the first problems."""

    def __init__(self) -> None:
        self._problems = 0

    def __call__(self, level: int, line: str, job_id: str | None) -> None:
        if job_id is not None:
            self._problems += level > logging.INFO
            if level <= logging.INFO or self._problems > MAX_LOGGED_PROBLEMS:
                level = logging.DEBUG
        log_line(level, line, job_id)
        if job_id is not None and level > logging.INFO and self._problems == MAX_LOGGED_PROBLEMS:
            log_line(logging.WARNING, "More problems of single jobs are logged at DEBUG", None)


def log_of(is_wide: bool) -> LogCallback:
    """Return what logs the lines of a wait: for many jobs (``is_wide``), or for a few."""
    return QuietLog() if is_wide else log_line


def status_line(job: Job) -> tuple[int, str]:
    """Return the level and the line to log when a job has a new status."""
    ids = format_ids(job.app_id, job.id)
    if not job.is_known_status:
        return logging.WARNING, f"Unknown status {clean_text(job.raw_status, 50)} counts as running {ids}"
    if not job.is_terminal:
        return logging.INFO, f"{job.status.capitalize()} {ids}"
    took = "" if job.execution_time is None else f"after {format_duration(job.execution_time)} "
    if job.status is JobStatus.COMPLETED:
        return logging.INFO, f"Completed {took}{ids}"
    level = logging.ERROR if job.status is JobStatus.FAILED else logging.WARNING
    return level, f"{job.end_text}{', ' if took else ' '}{took}{ids}"
