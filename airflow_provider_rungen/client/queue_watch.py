"""
Watches for jobs that take too long: warns about an app without workers, limits the time in the queue, and
explains time-outs. No I/O.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow, Gather, Sleep
from airflow_provider_rungen.client.models import App, JobStatus
from airflow_provider_rungen.client.poll_state import PollState, in_flight
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.workers import describe_workers, workers_of
from airflow_provider_rungen.exceptions import RunGenJobQueuedTimeoutError, RunGenJobTimeoutError

if TYPE_CHECKING:
    from airflow_provider_rungen.client.job_poller import JobPoller

# Seconds between two questions for the workers while a job is queued, and the most that one may take.
ASK_INTERVAL = 60.0
ASK_TIME = 5.0
# Seconds that the question for the workers may hold up the error of a time-out.
ERROR_ASK_TIME = 2.0
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

    def ask(self, now: float, *, wait_at_most: float = 0.0) -> Flow[None]:
        """Ask for the app. An answer that does not come is not worth an error."""
        if not self._state.is_in_flight:
            self._asked_at = now
            yield Gather([self._ask()], wait_at_most=wait_at_most if self.poller.is_shared else None)

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


# --- the errors of waits that took too long ---


def explain_timeout(poller: JobPoller, job_ids: Iterable[str]) -> Flow[RunGenJobTimeoutError]:
    """Return the error for those of the jobs that did not finish in time, after a look at the workers."""
    if poller.queue.app is None and not poller.outages.failed_rounds:
        yield from poller.queue.ask((yield Sleep(0)), wait_at_most=ERROR_ASK_TIME)
    return timeout_error(poller, job_ids)


def timeout_error(
    poller: JobPoller, job_ids: Iterable[str], *, queued_for: float | None = None
) -> RunGenJobTimeoutError:
    """
    Return the error for those of the jobs that did not finish in time; it names the first.

    :param queued_for: the seconds that none of them started in, if that is the reason.
    """
    waiting = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in poller.finished]
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    ids = format_ids(poller.app_id, waiting[0] + more)
    reasons = [_status_of(poller, waiting[0])] if queued_for is None else [format_duration(queued_for)]
    if (app := poller.queue.app) is not None:
        reasons.append("no active workers" if workers_of(app) == 0 else describe_workers(app))
    if (failure := poller.outages.last_failure) is not None:
        reasons.append(f"the last poll failed: {failure.message}")
    kind = RunGenJobTimeoutError if queued_for is None else RunGenJobQueuedTimeoutError
    message = f"{'Not over in time' if queued_for is None else 'Queued for too long'}: "
    message += f"{', '.join(filter(None, reasons))} {ids}"
    hint = _advice(poller, waiting[0], queued_for is not None)
    return kind(message, app_id=poller.app_id, job_id=waiting[0], hint=hint)


def _status_of(poller: JobPoller, job_id: str) -> str:
    state = poller.waiting.get(job_id)
    if state is None or state.job is None:
        return "status unknown"
    return f"{state.job.status} for {format_duration(max(state.polled_at - state.status_since, 0))}"


def _advice(poller: JobPoller, job_id: str, is_queued: bool) -> str | None:
    """Return what helps against the cause; ``None`` for the advice of the error's class."""
    state, app = poller.waiting.get(job_id), poller.queue.app
    if app is not None and workers_of(app) == 0:
        cause = "Scale the app up"
    elif is_queued or (state and state.job and state.job.status is JobStatus.QUEUED):
        cause = "Give the app more workers"
    else:
        return None
    return f"{cause}. Raise {'queued_timeout' if is_queued else 'timeout'} if it needs longer"
