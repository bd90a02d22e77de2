"""Decides which waiting jobs a round polls, so that a wait costs few requests a job. No I/O.

A full round polls all running jobs, then the others, oldest first, until one is queued. Without counters, all
rounds are full. Most apps count their jobs: they report how many have ended, though not which. Then a round
polls the oldest jobs, until it has found as many ends as were reported.

Counters are only a hint, and never decide how a job ended. They may lag, freeze, or count the jobs of others.
So now and then a round checks some running jobs. If a round finds more ends than were reported, it becomes a
full one. Counters that were wrong are not trusted for some minutes: all rounds are full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App, Job, JobStatus

if TYPE_CHECKING:
    from airflow_provider_rungen.client.job_poller import JobPoller
    from airflow_provider_rungen.client.poll_state import PollState

# Asking for the counters costs a request, so as few jobs are simply polled.
COUNTER_THRESHOLD = 4
# Queued jobs among which a round looks for one that has overtaken the others.
LOOK_AHEAD = 4
# Seconds from one check of the counters to the next, at least, and without any poll.
CHECK_PAUSE = 5.0
# Running jobs that a check polls.
CHECK_SIZE = 32
# Seconds for which the counters are not trusted once they were wrong.
DISTRUST_TIME = 300.0
# While the counters miss jobs, every job is polled within so many seconds. Each round polls at most so many
# times as many jobs for that as for the rest.
SWEEP_TIME = 40.0
SWEEP_FACTOR = 3


def read_counters(app: App) -> tuple[int, int] | None:
    """Return how many jobs of an app have ended, and how many are queued or running, if it counts them."""
    try:
        ended = app.jobs["completed"] + app.jobs["failed"]
        return ended, app.jobs["in_progress"] + app.jobs["in_queue"]
    except KeyError:
        return None


class JobSearch:
    """
    Searches for the jobs that have ended.

    :param poller: polls the jobs.
    """

    def __init__(self, poller: JobPoller) -> None:
        self._poller = poller
        # ended jobs in the last report of the counters
        self._reported: int | None = None
        # reported ends that no poll has found, or less than zero: found ends that are not reported yet
        self._unlocated = 0
        # since when the counters are trusted; in the future after they were wrong
        self._trusted_from = 0.0
        self._checked_at = self._last_poll_at = 0.0
        # the place in the queue of the youngest job that has started
        self._youngest_started = -1
        # the jobs that were polled in this round
        self._polled: set[str] = set()

    def note_job(self, state: PollState, job: Job) -> None:
        """Note what a poll has found."""
        if job.status in (JobStatus.COMPLETED, JobStatus.FAILED):  # counters do not count other ends
            self._unlocated -= 1
        if job.status is JobStatus.QUEUED:
            if state.place < self._youngest_started:  # it was overtaken, or has lost its worker
                state.place = self._poller.next_place()
        elif job.status is not JobStatus.CANCELED:
            self._youngest_started = max(self._youngest_started, state.place)

    def search(
        self, due: Iterable[str], counters: tuple[int, int] | None, *, poll_interval: float, asked_at: float
    ) -> Flow[None]:
        """
        Poll those of the jobs that may have ended.

        :param due: the jobs that may be polled.
        :param counters: what the app counts, see `read_counters`.
        :param poll_interval: seconds to the next round.
        :param asked_at: when the counters were asked for (seconds since 1970). They know older jobs.
        """
        order = sorted(due, key=lambda job_id: self._poller.waiting[job_id].place)
        running = [job_id for job_id in order if self._is_running(job_id)]
        queue = [job_id for job_id in order if not self._is_running(job_id)]
        self._polled = set()
        is_check = counters is None or self._is_check_due(counters, poll_interval, asked_at)
        is_full = counters is None or asked_at < self._trusted_from
        if not is_full:
            yield from self._search(running)
            yield from self._advance(queue, is_full=is_check)
            is_idle = not self._polled and asked_at >= self._last_poll_at + CHECK_PAUSE - 0.1
            size = CHECK_SIZE if is_check else int(is_idle)
            yield from self._poll(sorted(self._unpolled(running), key=self._polled_at)[:size])
            is_full = self._unlocated < 0
        if is_full:
            yield from self._poll(self._unpolled(running))
            yield from self._advance(self._unpolled(queue), is_full=True)
        if is_full or is_check:
            self._checked_at = asked_at
        if self._polled:
            self._last_poll_at = asked_at
        missing = 0 if counters is None else self._compare(counters[1], asked_at, is_full=is_full)
        if missing:
            size = max(math.ceil(len(order) * poll_interval / SWEEP_TIME), LOOK_AHEAD)
            size = min(size, SWEEP_FACTOR * len(self._polled))
        else:  # the service may start jobs in another order
            size = 1 + len(self._polled) // 16 if is_check else 0
        yield from self._poll(sorted(self._unpolled(order), key=self._polled_at)[:size])

    # --- counters ---

    def _is_check_due(self, counters: tuple[int, int], poll_interval: float, now: float) -> bool:
        """Note what the counters report; return whether it is time to check them."""
        ended, active = counters
        if self._reported is None:
            # those that ended before the first report
            self._unlocated = max(self._known_by(now) - active, 0)
            self._trusted_from = self._checked_at = self._last_poll_at = now
        else:
            self._unlocated += ended - self._reported
            if self._unlocated < 0 or ended < self._reported:
                self._unlocated = 0
                self._trusted_from = now + DISTRUST_TIME
        self._reported = ended
        # the longer the counters are right, the less often they are checked
        pause = max(CHECK_PAUSE, 2 * poll_interval, (self._checked_at - self._trusted_from) / 2)
        return now >= self._checked_at + pause - 0.1

    def _compare(self, active: int, asked_at: float, *, is_full: bool) -> int:
        """Compare the counters with what polls have found; return how many jobs have ended in another way."""
        seen = sum(state.polled_at >= asked_at for state in self._poller.waiting.values())
        uncounted = -self._unlocated if is_full else 0
        if active < seen or uncounted > max(1, len(self._polled) // 16):  # a few ended after the report
            self._trusted_from = asked_at + DISTRUST_TIME
        missing = max(self._known_by(asked_at) - active, 0)
        self._unlocated = min(self._unlocated, missing)  # the others are ends of foreign jobs
        return missing if asked_at >= self._trusted_from else 0

    def _known_by(self, at: float) -> int:
        return sum(state.added_at <= at for state in self._poller.waiting.values())

    # --- polling ---

    def _search(self, job_ids: Sequence[str]) -> Flow[None]:
        """Poll jobs, in this order, until all reported ends are found."""
        poller = self._poller
        polled, found, answers = 0, poller.found, poller.answers
        while polled < len(job_ids) and self._unlocated > 0 and not poller.outages.failed_rounds:
            # half as many more as found nothing: few if the jobs end in order, soon all if they do not
            step = max(self._unlocated, (polled - (poller.found - found)) // 2)
            if polled and poller.answers == answers:
                step = len(job_ids)  # a step takes long when none of its jobs answers
            yield from self._poll(job_ids[polled : polled + step])
            polled += step

    def _advance(self, queue: Sequence[str], *, is_full: bool) -> Flow[None]:
        """Poll jobs that may have started, until one is queued, or all reported ends are found."""
        places = {job_id: self._poller.waiting[job_id].place for job_id in self._unpolled(queue)}
        is_slow = False
        while places and (is_full or self._unlocated > 0) and not self._poller.outages.failed_rounds:
            polled = len(queue) - len(places)
            step = max(polled // 4, 2) if is_full else min(self._unlocated, max(polled, LOOK_AHEAD))
            if is_slow:
                step = len(places)
            batch = {job_id: places.pop(job_id) for job_id in list(places)[:step]}
            yield from self._poll(list(batch))
            # a step takes long when one of its jobs does not answer
            is_slow = any(self._is_silent(job_id) for job_id in batch)
            if any(self._is_queued(job_id) and batch[job_id] > self._youngest_started for job_id in batch):
                # one that is queued again must not hide those behind it
                ahead = sorted(list(places)[:LOOK_AHEAD], key=self._polled_at)[:1]
                yield from self._poll(ahead)
                if all(map(self._is_queued, ahead)):
                    return
                del places[ahead[0]]

    def _poll(self, job_ids: Sequence[str]) -> Flow[None]:
        if not self._poller.outages.failed_rounds:
            self._polled.update(job_ids)
            yield from self._poller.poll(job_ids)

    def _unpolled(self, job_ids: Iterable[str]) -> list[str]:
        return self._poller.pollable(job_id for job_id in job_ids if job_id not in self._polled)

    def _polled_at(self, job_id: str) -> float:
        return self._poller.waiting[job_id].polled_at

    def _is_running(self, job_id: str) -> bool:
        state = self._poller.waiting.get(job_id)
        return state is not None and state.job is not None and state.job.status is not JobStatus.QUEUED

    def _is_silent(self, job_id: str) -> bool:
        state = self._poller.waiting.get(job_id)
        return state is not None and (state.failures > 0 or state.is_cut_off or state.is_in_flight)

    def _is_queued(self, job_id: str) -> bool:
        state = self._poller.waiting.get(job_id)
        return state is not None and state.job is not None and state.job.status is JobStatus.QUEUED
