"""
Watches for jobs that take too long: warns about an app without workers, limits the time in the queue, and
explains time-outs. No I/O.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.poll_state import Outages, PollState
from airflow_provider_rungen.client.progress import LogCallback
from airflow_provider_rungen.client.texts import format_duration, format_ids
from airflow_provider_rungen.client.workers import describe_workers, has_no_worker, workers_of
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobQueuedTimeoutError, RunGenJobTimeoutError

# Seconds between two questions for the workers while a job is queued, and the most that one may take.
ASK_INTERVAL = 60.0
ASK_TIME = 2.0
# Seconds between two warnings.
WARN_INTERVAL = 3600.0


class Poller(Protocol):
    """What polls the jobs of one app, as far as their queue is concerned."""

    app_id: str
    waiting: dict[str, PollState]

    @property
    def log(self) -> LogCallback:
        """Where to log what happens."""
        ...


@dataclass(eq=False)
class QueueWatch:
    """
    Knows the workers of an app, and warns if it has none for the jobs in its queue.

    The app is asked for once a minute, while a job is queued.

    :param poller: polls the jobs.
    """

    poller: Poller
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
        if self._queued():
            yield from self.ask(now)

    def look(self, job_ids: Iterable[str]) -> tuple[int, str]:
        """Return how many of these jobs are known to be queued, and why in words if the app has no worker."""
        states = [self.poller.waiting[job_id] for job_id in job_ids if job_id in self.poller.waiting]
        if self.app is None or not has_no_worker(self.app):
            return sum(state.status is JobStatus.QUEUED for state in states), ""
        queued = sum(not state.has_started for state in states)
        return queued, f"{queued} queued: app {self.poller.app_id} has no worker" if queued else ""

    def ask(self, now: float) -> Flow[None]:
        """Ask for the app, unless that was a moment ago. Without an answer, nothing is known."""
        if now < self._asked_at + self.ask_every:
            return
        self._asked_at = now
        try:
            app = yield from get_app(self.poller.app_id, attempts=1, timeout=ASK_TIME, is_lean=True)
        except RunGenError:
            return
        self._note(app, now)

    def _note(self, app: App, now: float) -> None:
        self.app = app
        if not has_no_worker(app):
            self.down_since, self._warned_at = math.inf, -math.inf
            return
        self.down_since, self.down_at = min(self.down_since, now), now
        queued = app.jobs.get("in_queue", self._queued())
        if queued and now >= self._warned_at + WARN_INTERVAL:
            self._warned_at = now
            jobs = "1 job stays" if queued == 1 else f"{queued} jobs stay"
            line = f"App {app.id} has no active workers: {jobs} queued until it is scaled up"
            self.poller.log(logging.WARNING, line, None)

    def _queued(self) -> int:
        return sum(state.status is JobStatus.QUEUED for state in self.poller.waiting.values())


class WatchedPoller(Poller, Protocol):
    """A poller whose queue is watched."""

    finished: dict[str, Job]
    outages: Outages
    queue: QueueWatch


# --- the errors of waits that took too long ---


def explain_timeout(poller: WatchedPoller, job_ids: Iterable[str]) -> Flow[RunGenJobTimeoutError]:
    """Return the error for those of the jobs that did not finish in time, after a look at the workers."""
    if poller.queue.app is None and not poller.outages.failed_rounds:
        yield from poller.queue.ask((yield Sleep(0)))
    return timeout_error(poller, job_ids)


def timeout_error(
    poller: WatchedPoller, job_ids: Iterable[str], *, no_worker_since: float | None = None
) -> RunGenJobTimeoutError:
    """
    Return the error for those of the jobs that did not finish in time; it names the first.

    :param no_worker_since: since when they wait while the app has no worker, if that is the reason.
    """
    waiting = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in poller.finished]
    state, app, failure = poller.waiting.get(waiting[0]), poller.queue.app, poller.outages.last_failure
    status = None if state is None else state.status
    has_workers = app is None or workers_of(app) != 0
    kind: type[RunGenJobTimeoutError]
    kind, event, option = RunGenJobTimeoutError, "Not over in time", "timeout or execution_timeout"
    reasons = ["status unknown"]
    if no_worker_since is not None:
        kind, event, option = RunGenJobQueuedTimeoutError, "Queued for too long", "queued_timeout"
        reasons = [f"no worker since {datetime.fromtimestamp(no_worker_since, UTC):%Y-%m-%d %H:%M} UTC"]
    elif state is not None and status is not None:
        seen_for = max(state.polled_at - state.status_since, 0)
        ran_for = state.job.execution_time if state.job and status is JobStatus.RUNNING else None
        reasons = [f"{status} for {format_duration(seen_for if ran_for is None else ran_for)}"]
    if app is not None and no_worker_since is None:
        reasons.append(describe_workers(app) if has_workers else "no active workers")
    if failure is not None:
        reasons.append(f"the last poll failed: {failure.message}")
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    message = f"{event}: {', '.join(filter(None, reasons))} {format_ids(poller.app_id, waiting[0] + more)}"
    hint = None  # that of the error's class
    if no_worker_since is not None or not has_workers:
        hint = f"Scale the app up, with scaled_app or in its console. Raise {option} if it needs longer"
    elif status is JobStatus.QUEUED:
        hint = f"Give the app more workers. Raise {option} if it needs longer"
    return kind(message, app_id=poller.app_id, job_id=waiting[0], hint=hint)
