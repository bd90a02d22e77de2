"""Watches the queue of an app: which jobs are in it, and whether the app has a worker for them. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App, JobStatus
from airflow_provider_rungen.client.poll_state import PollState
from airflow_provider_rungen.client.progress import LogCallback
from airflow_provider_rungen.client.workers import has_no_worker
from airflow_provider_rungen.exceptions import RunGenError

# Seconds between two questions for the workers while a job is queued, and the most that one may take.
ASK_INTERVAL = 60.0
ASK_TIME = 2.0
# Seconds between two warnings.
WARN_INTERVAL = 3600.0


@dataclass(eq=False)
class QueueWatch:
    """
    Knows the workers of an app, and warns if it has none for the jobs in its queue.

    The app is asked for once a minute, while a job is queued.

    :param app_id: the app.
    :param waiting: the jobs that are waited for.
    :param log: where to log what happens.
    """

    app_id: str
    waiting: dict[str, PollState]
    log: LogCallback
    #: The last answer about the app.
    app: App | None = None
    #: Since when the app has no worker (seconds since 1970): 0 until an answer says that it has one, and
    #: infinity from then until one says that it has none.
    down_since: float = 0.0
    #: When the last answer came that says that it has none.
    down_at: float = 0.0
    #: Seconds between two questions.
    ask_every: float = ASK_INTERVAL
    _asked_at: float = -math.inf
    _warned_at: float = -math.inf

    def check(self, now: float) -> Flow[None]:
        """Check the queue at the end of a round."""
        if self.look(self.waiting)[0]:
            yield from self.ask(now)

    def look(self, job_ids: Iterable[str]) -> tuple[int, str]:
        """Return how many of these jobs are known to be queued, and why in words if the app has no worker."""
        states = [self.waiting[job_id] for job_id in job_ids if job_id in self.waiting]
        if self.app is None or not has_no_worker(self.app):
            return sum(state.status is JobStatus.QUEUED for state in states), ""
        queued = sum(not state.has_started for state in states)
        return queued, f"{queued} queued: app {self.app_id} has no worker" if queued else ""

    def ask(self, now: float) -> Flow[None]:
        """Ask for the app, unless that was a moment ago. Without an answer, nothing is known."""
        if now < self._asked_at + self.ask_every:
            return
        self._asked_at = now
        try:
            app = yield from get_app(self.app_id, attempts=1, timeout=ASK_TIME, is_lean=True)
        except RunGenError:
            return
        self._note(app, now)

    def _note(self, app: App, now: float) -> None:
        self.app = app
        if not has_no_worker(app):
            self.down_since, self._warned_at = math.inf, -math.inf
            return
        self.down_since, self.down_at = min(self.down_since, now), now
        queued = app.jobs.get("in_queue", self.look(self.waiting)[0])
        if queued and now >= self._warned_at + WARN_INTERVAL:
            self._warned_at = now
            jobs = "1 job stays" if queued == 1 else f"{queued} jobs stay"
            line = f"App {app.id} has no active workers: {jobs} queued until it is scaled up"
            self.log(logging.WARNING, line, None)
