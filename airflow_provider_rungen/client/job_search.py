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

from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.poll_state import Poller

# Queued jobs among which a round looks for one that has overtaken the others.
LOOK_AHEAD = 4
# Seconds from one check of the counters to the next, at least, and without any poll.
CHECK_PAUSE = 5.0
MAX_CHECK_PAUSE = 300.0
# Running jobs that a check polls.
CHECK_SIZE = 32
# Seconds for which the counters are not trusted once they were wrong.
DISTRUST_TIME = 300.0
# Jobs that others cancel are not counted. Seconds to a search for them, and how many jobs it polls at most.
SCAN_PAUSE = 50.0
SCAN_SIZE = 1000


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

    :param poller: polls the jobs. It keeps them in the order of the queue, as far as that is known.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        # ended jobs in the last report of the counters
        self._reported: int | None = None
        # reported ends that no poll has found, or less than zero: found ends that are not reported yet
        self._unfound = 0
        # since when the counters are trusted; in the future after they were wrong
        self._trusted_from = 0.0
        self._checked_at = self._last_poll_at = 0.0
        # since when jobs are missing that are neither active nor reported to have ended
        self._missing_since = math.inf
        # the jobs that were polled in this round
        self._polled: set[str] = set()

    def note_end(self, job: Job) -> None:
        """Note that a poll has found an end. Counters count no others."""
        self._unfound -= job.status in (JobStatus.COMPLETED, JobStatus.FAILED)

    def search(
        self, due: Iterable[str], counters: tuple[int, int] | None, *, poll_interval: float, asked_at: float
    ) -> Flow[None]:
        """
        Poll those of the jobs that may have ended.

        :param due: the jobs that may be polled, in the order of the queue.
        :param counters: what the app counts, see `read_counters`.
        :param poll_interval: seconds to the next round.
        :param asked_at: when the counters were asked for (seconds since 1970). They know older jobs.
        """
        waiting, due, self._polled = self._poller.waiting, list(due), set()
        running = [job_id for job_id in due if waiting[job_id].has_started]
        queue = [job_id for job_id in due if not waiting[job_id].has_started]
        is_check = counters is None or self._is_check_due(counters, poll_interval, asked_at)
        is_full = counters is None or asked_at < self._trusted_from
        if not is_full:
            yield from self._find(running, max(self._unfound, 0))
            yield from self._find(queue, len(queue) if is_check else max(self._unfound, 0), is_queue=True)
            if is_check:
                yield from self._poll(self._stale(running)[:CHECK_SIZE])
            elif not self._polled and asked_at >= self._last_poll_at + CHECK_PAUSE - 0.1:
                # the counters may be frozen: then the first in the queue starts unnoticed
                yield from self._poll([*self._stale(running)[:2], *self._unpolled(queue)[:1]])
            is_full = self._unfound < 0
        if is_full:
            yield from self._poll(running)
            yield from self._find(queue, len(queue), is_queue=True)
        if is_full or is_check:
            self._checked_at = asked_at
            # the service may start jobs in another order
            yield from self._poll(self._stale(due)[: 1 + len(self._polled) // 16])
        if self._polled:
            self._last_poll_at = asked_at
        self._move_overtaken()
        if counters is not None:
            self._compare(counters[1], asked_at, is_full=is_full)
            yield from self._scan(due, counters[1], asked_at)

    # --- counters ---

    def _is_check_due(self, counters: tuple[int, int], poll_interval: float, now: float) -> bool:
        """Note what the counters report; return whether it is time to check them."""
        ended, active = counters
        if self._reported is None:
            # those that ended before the first report
            self._unfound = max(self._known_by(now) - active, 0)
            self._trusted_from = self._checked_at = self._last_poll_at = now
        else:
            self._unfound += ended - self._reported
            if self._unfound < 0 or ended < self._reported:
                self._unfound = 0
                self._trusted_from = now + DISTRUST_TIME
        self._reported = ended
        # the longer the counters are right, the less often they are checked
        pause = min((self._checked_at - self._trusted_from) / 2, MAX_CHECK_PAUSE)
        pause = max(pause, CHECK_PAUSE, 2 * poll_interval)
        return now >= self._checked_at + pause - 0.1

    def _compare(self, active: int, asked_at: float, *, is_full: bool) -> None:
        """Compare the counters with what polls have found."""
        seen = sum(state.polled_at >= asked_at for state in self._poller.waiting.values())
        # a few may have ended after the report
        if active < seen or (is_full and -self._unfound > max(1, len(self._polled) // 16)):
            self._trusted_from = asked_at + DISTRUST_TIME
        # the others are ends of foreign jobs
        self._unfound = min(self._unfound, max(self._known_by(asked_at) - active, 0))

    def _known_by(self, at: float) -> int:
        return sum(state.added_at <= at for state in self._poller.waiting.values())

    # --- polling ---

    def _find(self, order: Sequence[str], wanted: int, *, is_queue: bool = False) -> Flow[None]:
        """
        Poll jobs in this order until so many are found to have ended.

        :param is_queue: whether to stop at a queued one, since those behind it have not started.
        """
        waiting, rest, polled, found = self._poller.waiting, self._unpolled(order), 0, 0
        is_slow = False
        while rest and found < wanted and not self._poller.outages.failed_rounds:
            lacking = wanted - found
            # half as many more as found nothing: few if the jobs end in order, soon all if they do not
            step = min(lacking, max(polled // 4, 2)) if is_queue else max(lacking, (polled - found) // 2)
            batch = rest[: len(rest) if is_slow else step]
            del rest[: len(batch)]
            yield from self._poll(batch)
            # another step would take as long
            is_slow = any(waiting[job_id].is_silent for job_id in batch if job_id in waiting)
            polled, found = polled + len(batch), found + sum(job_id not in waiting for job_id in batch)
            if is_queue and rest and found < wanted and self._is_queued(batch[-1]):
                # one that was queued again must not hide those behind it
                ahead = self._stale(rest[:LOOK_AHEAD])[:1]
                yield from self._poll(ahead)
                if all(map(self._is_queued, ahead)):
                    return
                rest.remove(ahead[0])

    def _scan(self, due: Sequence[str], active: int, asked_at: float) -> Flow[None]:
        """Poll all jobs, the longest unpolled first, some time after others have canceled one."""
        if asked_at < self._trusted_from or self._known_by(asked_at) - active <= self._unfound:
            self._missing_since = math.inf
        elif asked_at < self._missing_since + SCAN_PAUSE - 0.1:
            self._missing_since = min(self._missing_since, asked_at)
        else:
            self._missing_since = math.inf
            yield from self._poll(self._stale(due)[:SCAN_SIZE])

    def _move_overtaken(self) -> None:
        """Move queued jobs to the end that younger ones have overtaken: they have lost their worker."""
        waiting, queued, overtaken = self._poller.waiting, list[str](), list[str]()
        for job_id, state in waiting.items():
            if state.has_started:
                overtaken += queued
                queued = []
            elif job_id in self._polled and not state.was_overtaken:
                queued.append(job_id)
        for job_id in overtaken:
            waiting[job_id] = state = waiting.pop(job_id)
            state.was_overtaken = True

    def _poll(self, job_ids: Iterable[str]) -> Flow[None]:
        if not self._poller.outages.failed_rounds:
            job_ids = self._unpolled(job_ids)
            self._polled.update(job_ids)
            yield from self._poller.poll(job_ids)

    def _unpolled(self, job_ids: Iterable[str]) -> list[str]:
        return self._poller.pollable(job_id for job_id in job_ids if job_id not in self._polled)

    def _stale(self, job_ids: Iterable[str]) -> list[str]:
        """Return the jobs that were not polled in this round, the longest unpolled first."""
        return sorted(self._unpolled(job_ids), key=lambda job_id: self._poller.waiting[job_id].polled_at)

    def _is_queued(self, job_id: str) -> bool:
        state = self._poller.waiting.get(job_id)
        return state is not None and state.status is JobStatus.QUEUED
