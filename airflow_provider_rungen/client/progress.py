"""Formats how far many jobs have come: how many are done, how fast, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job, JobStatus

# Seconds between two progress lines.
PROGRESS_INTERVAL = 30.0


@dataclass(frozen=True)
class OtherInputs:
    """The inputs of a batch that a wait for some of its jobs is not about. Some of those done failed."""

    done: int = 0
    failed: int = 0
    unsent: int = 0


class Progress:
    """
    The progress of a wait.

    :param total: how many jobs are waited for.
    :param now: the time at which the wait begins, in seconds of any clock.
    :param others: what is counted, too.
    """

    def __init__(self, total: int, now: float, others: OtherInputs | None = None) -> None:
        self.total = total
        self.others = others or OtherInputs()
        self._begun_at = self._logged_at = now

    def is_due(self, now: float) -> bool:
        """Return whether the last line is some time ago."""
        return now - self._logged_at >= PROGRESS_INTERVAL

    def line(self, ended: int, unsuccessful: int, now: float) -> str | None:
        """
        Return the line to log now, or ``None`` if the last one is recent.

        :param ended: how many of the jobs are over.
        :param unsuccessful: how many of these did not complete.
        """
        if not self.is_due(now):
            return None
        self._logged_at = now
        others, unfinished = self.others, self.total - ended
        failed = others.failed + unsuccessful
        total = others.done + self.total + others.unsent
        unsent = f"{others.unsent} not submitted yet, " if others.unsent else ""
        return (
            f"{others.done + ended} of {total} done, {unfinished} queued or running, {unsent}{failed} failed"
            + pace(ended, unfinished + others.unsent, now - self._begun_at)
        )


def count_ends(finished: Collection[Job]) -> tuple[int, int]:
    """Return how many jobs are over, and how many of them did not complete."""
    return len(finished), sum(job.status is not JobStatus.COMPLETED for job in finished)


def pace(done: int, left: int, seconds: float) -> str:
    """Return how fast it goes and how long the rest may take, or nothing if that is unknown."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    per_second = f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"
    return f"; {per_second}/s, about {format_duration(left / rate)} left"
