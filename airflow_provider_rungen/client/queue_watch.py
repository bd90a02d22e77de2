"""Watches for jobs that nobody works on: warns about an app without workers, limits the time in the queue.

No I/O.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow, Gather, Sleep
from airflow_provider_rungen.client.models import App, JobStatus
from airflow_provider_rungen.client.poll_state import PollState, in_flight
from airflow_provider_rungen.client.workers import workers_of

if TYPE_CHECKING:
    from airflow_provider_rungen.client.job_poller import JobPoller

# Seconds between two questions for the workers while a job is queued, and the most that one may take.
ASK_INTERVAL = 60.0
ASK_TIME = 5.0
# Seconds between two warnings.
WARN_INTERVAL = 3600.0


@dataclass(eq=False)
class QueueWatch:
    """
    Knows the workers of an app, and warns if it has none for the jobs in its queue.

    The poller often asks for the app anyway, for its counters. Otherwise it is asked for once a minute, while
    a job is queued.

    :param poller: polls the jobs.
    """

    poller: JobPoller
    #: The last answer about the app.
    app: App | None = None
    _asked_at: float = -math.inf
    _warned_at: float = -math.inf
    _state: PollState = field(default_factory=lambda: PollState(0.0))

    def look(self, now: float) -> Flow[None]:
        """Look after the queue at the end of a round."""
        if isinstance(self.poller.app, App):
            self._note(self.poller.app, now)
        elif now >= self._asked_at + ASK_INTERVAL and self._queued():
            yield from self.ask(now)

    def ask(self, now: float, *, patience: float = 0.0) -> Flow[None]:
        """Ask for the app. An answer that does not come is not worth an error."""
        if not self._state.is_in_flight:
            self._asked_at = now
            yield Gather([self._ask()], patience=patience if self.poller.is_shared else None)

    def _ask(self) -> Flow[None]:
        request = get_app(self.poller.app_id, attempts=1, timeout=ASK_TIME, is_lean=True)
        answer = yield from in_flight(self._state, request)
        if isinstance(answer, App):
            self._note(answer, (yield Sleep(0)))

    def _note(self, app: App, now: float) -> None:
        self.app = app
        if workers_of(app) != 0:
            self._warned_at = -math.inf
            return
        queued = app.jobs.get("in_queue", self._queued())
        if queued and now >= self._warned_at + WARN_INTERVAL:
            self._warned_at = now
            jobs = "1 job stays" if queued == 1 else f"{queued} jobs stay"
            line = f"App {app.id} has no active workers: {jobs} queued until it is scaled up"
            self.poller.log(logging.WARNING, line, None)

    def _queued(self) -> int:
        return sum(
            state.job is not None and state.job.status is JobStatus.QUEUED
            for state in self.poller.waiting.values()
        )


@dataclass(eq=False)
class QueueTimer:
    """
    Limits how long jobs may stay queued while none of them starts.

    :param limit: the seconds.
    :param moved_at: when a job was last seen to start or to end, at first the beginning of the wait.
    """

    limit: float
    moved_at: float
    _finished: int = 0
    _is_stuck: bool = False

    def is_over(self, poller: JobPoller, job_ids: Collection[str], now: float) -> bool:
        """
        Note what a round has found; return whether the jobs have been queued for too long.

        :param job_ids: the jobs, finished or not.
        """
        waiting = [state for job_id in job_ids if (state := poller.waiting.get(job_id)) is not None]
        known = [state.job.status for state in waiting if state.job is not None]
        app = poller.app if isinstance(poller.app, App) else None
        finished = len(job_ids) - len(waiting)
        is_moving = finished > self._finished or any(status is not JobStatus.QUEUED for status in known)
        if is_moving or (app is not None and app.jobs.get("in_progress")):
            self._finished, self.moved_at, self._is_stuck = finished, now, False
        elif (known or app is not None) and not poller.outages.failed_rounds:
            was_stuck, self._is_stuck = self._is_stuck, now >= self.moved_at + self.limit
            # counters must say so twice, since a job may be between two states
            return self._is_stuck and (was_stuck or (app is None and len(known) == len(waiting)))
        return False
