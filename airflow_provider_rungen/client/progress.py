"""Formats how far many jobs have come: how many are done, how fast, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job, JobStatus

# Seconds between two progress lines.
PROGRESS_INTERVAL = 30.0


class Progress:
    """
    The progress of a wait.

    :param total: how many jobs are waited for.
    :param now: the time at which the wait begins, in seconds of any clock.
    """

    def __init__(self, total: int, now: float) -> None:
        self._total = total
        self._begun_at = self._logged_at = now

    def line(self, finished: Iterable[Job], now: float) -> str | None:
        """Return the line to log now, or ``None`` if the last one is recent."""
        if now - self._logged_at < PROGRESS_INTERVAL:
            return None
        self._logged_at = now
        statuses = [job.status for job in finished]
        done, unfinished = len(statuses), self._total - len(statuses)
        failed = done - statuses.count(JobStatus.COMPLETED)
        counts = f"{done} of {self._total} done, {unfinished} queued or running, {failed} failed"
        return counts + pace(done, unfinished, now - self._begun_at)


def pace(done: int, left: int, seconds: float) -> str:
    """Return how fast it goes and how long the rest may take, or nothing if that is unknown."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    per_second = f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"
    return f"; {per_second}/s, about {format_duration(left / rate)} left"
