"""Says how far many jobs are: how many run, completed or failed, how fast, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job, JobStatus

EVERY = 30.0


class Progress:
    """
    The progress of a wait.

    :param total: how many jobs are waited for.
    :param now: the time (seconds since any moment) at which it begins.
    """

    def __init__(self, total: int, now: float) -> None:
        self._total = total
        self._begun_at = self._said_at = now

    def line(self, over: Iterable[Job], now: float) -> str | None:
        """Give what to say now, if it is time to."""
        if now - self._said_at < EVERY:
            return None
        self._said_at = now
        statuses = [job.status for job in over]
        completed = statuses.count(JobStatus.COMPLETED)
        running, failed = self._total - len(statuses), len(statuses) - completed
        told = f"Of {self._total} RunGen jobs {running} run, {completed} completed, {failed} failed"
        return told + pace(len(statuses), running, now - self._begun_at)


def pace(done: int, left: int, seconds: float) -> str:
    """Say how fast it goes, and how long the rest may take, as far as that can be told."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    told = f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"
    return f"; {told} a second, some {format_duration(left / rate)} left"
