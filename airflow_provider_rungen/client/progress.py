"""Logs what happens to jobs, and how far a wait for many has come. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import clean_text, format_duration, format_ids

log = logging.getLogger(__name__)

# So few jobs are each polled in every round, and logged one by one.
FEW_JOBS = 4
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
    if job.is_usable:
        return logging.INFO, f"Completed {took}{ids}"
    level = logging.ERROR if job.status is JobStatus.FAILED else logging.WARNING
    return level, f"{job.end_text}{', ' if took else ' '}{took}{ids}"


# Seconds between two progress lines.
PROGRESS_INTERVAL = 30.0


#: So many failures stop a run if there was no success before, and so many in a row if there was one.
FIRST_FAILURES = 20
FAILURES_IN_A_ROW = 100


def are_too_many(failures: int, *, has_success: bool) -> bool:
    """Return whether so many failures in a row stop a run."""
    return failures >= (FAILURES_IN_A_ROW if has_success else FIRST_FAILURES)


@dataclass
class WaitGoal:
    """
    What a wait is for: few enough jobs in flight, or the proof that all of them fail.

    :param left: how many jobs may still be in flight when the wait ends.
    :param failures: how many jobs failed since the last success; ``None`` if any number may.
    :param has_success: whether a job completed before.
    :param shared: the jobs that other runs submitted. They are never canceled, and say nothing about those
        of this run.
    """

    left: int = 0
    failures: int | None = None
    has_success: bool = False
    shared: Collection[str] = ()
    #: Whether too many jobs failed in a row.
    is_broken: bool = field(default=False, init=False)

    def note(self, job: Job) -> None:
        """Note a job that is over. One that was canceled says nothing about the others."""
        if job.id in self.shared or self.failures is None:
            return
        if job.is_usable:
            self.failures, self.has_success = 0, True
        elif job.status is JobStatus.FAILED:
            self.failures += 1
        self.is_broken |= are_too_many(self.failures, has_success=self.has_success)

    def is_reached(self, in_flight: int) -> bool:
        """Return whether the wait is over while so many jobs are in flight."""
        return in_flight <= self.left or self.is_broken


@dataclass(frozen=True)
class OtherInputs:
    """The inputs of a batch that a wait for some of its jobs is not about. Some of those done failed."""

    done: int = 0
    failed: int = 0
    unsent: int = 0


@dataclass
class Progress:
    """
    The progress of a wait.

    :param begun_at: the time at which the wait begins, in seconds of any clock.
    :param total: how many jobs are waited for.
    :param others: returns what is counted, too.
    """

    begun_at: float
    total: int = 0
    others: Callable[[], OtherInputs] = OtherInputs
    #: How many of the jobs are over, and how many of these did not complete.
    ended: int = field(default=0, init=False)
    unsuccessful: int = field(default=0, init=False)
    _logged_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._logged_at = self.begun_at

    def note(self, job: Job) -> None:
        """Note a job that is over."""
        self.ended += 1
        self.unsuccessful += not job.is_usable

    def line(self, now: float, queued: int = 0, why_queued: str = "") -> str | None:
        """
        Return the line to log now; ``None`` if the last one is recent, or each job has its own lines.

        :param queued: how many of the jobs are known to be queued.
        :param why_queued: says so in words, if nobody works on them.
        """
        if self.total <= FEW_JOBS or now - self._logged_at < PROGRESS_INTERVAL:
            return None
        self._logged_at = now
        others, unfinished = self.others(), self.total - self.ended
        unsent = f"{others.unsent} not submitted yet, " if others.unsent else ""
        active = f"{unfinished} queued or running"
        if why_queued:
            running = unfinished - queued
            active = f"{why_queued}, {running} running" if running else why_queued
        return (
            f"{others.done + self.ended} of {others.done + self.total + others.unsent} done, "
            f"{active}, {unsent}{others.failed + self.unsuccessful} failed"
            + pace(self.ended, unfinished + others.unsent, now - self.begun_at)
        )


def pace(done: int, unfinished: int, seconds: float) -> str:
    """Return how fast it goes and how long the rest may take, or nothing if that is unknown."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    per_second = f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"
    return f"; {per_second}/s, about {format_duration(unfinished / rate)} left"
