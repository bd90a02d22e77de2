"""Decides when a wait for many jobs may stop before all are over. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice

from airflow_provider_rungen.client.models import Job, JobStatus


@dataclass
class WaitGoal:
    """
    What a wait is for: few enough jobs in flight, or the proof that all of them fail.

    :param left: how many jobs may still be in flight when the wait ends.
    :param stop_after: so many jobs that failed in a row end the wait, too. Never when left out.
    :param failures: how many jobs failed since the last success.
    """

    left: int = 0
    stop_after: int | None = None
    failures: int = 0
    #: Whether too many jobs failed in a row.
    is_broken: bool = field(default=False, init=False)
    _noted: int = field(default=0, init=False)

    def note(self, job: Job) -> None:
        """Note a job that is over. One that was canceled says nothing about the others."""
        if job.status is JobStatus.COMPLETED:
            self.failures = 0
        elif job.status is JobStatus.FAILED:
            self.failures += 1
        self.is_broken |= self.stop_after is not None and self.failures >= self.stop_after

    def note_new(self, finished: Collection[Job]) -> None:
        """Note the jobs that were added to ``finished`` since the last call."""
        for job in islice(finished, self._noted, None):
            self.note(job)
        self._noted = len(finished)

    def is_reached(self, in_flight: int) -> bool:
        """Return whether the wait is over while so many jobs are in flight."""
        return in_flight <= self.left or self.is_broken
