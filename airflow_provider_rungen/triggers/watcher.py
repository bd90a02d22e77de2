"""One poll loop per connection and app in a process, shared by all that wait in its event loop."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.job_poller import JobPoller, strip_payloads
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import Wait
from airflow_provider_rungen.client.progress import FEW_JOBS, LogCallback, WaitGoal, log_of
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks.rungen import RunGenHook

# The most seconds that the loop sleeps: a new trigger may want to poll sooner than the others.
_TICK = 1.0


@dataclass(eq=False, slots=True)
class _Waiter:
    """
    A trigger that waits for jobs.

    :param wait: what it waits for.
    :param deadline: the time (seconds since 1970) to stop at.
    :param part_at: the time (seconds since 1970) from which any part of its jobs ends the wait, if the goal
        is a part.
    :param done: becomes ready when the wait has ended.
    :param context: the context of its log.
    """

    wait: Wait
    deadline: float
    part_at: float
    log: LogCallback
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def note(self, now: float) -> None:
        """Note what polls have found, and end the wait if there is nothing left to wait for."""
        try:
            has_ended = self.wait.note(now)
        except RunGenError as error:
            self.end(error)
            return
        is_part = bool(self.wait.goal.left and self.wait.finished) and now >= self.part_at
        if has_ended or is_part:
            self.end()
        else:
            self.wait.log_progress(self.say, now)

    def say(self, level: int, line: str, job_id: str | None) -> None:
        """Log a line for the task of the trigger."""
        self.context.run(self.log, level, line, job_id)

    def end(self, error: Exception | None = None) -> None:
        """End the wait, perhaps with an error."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class SharedPoller:
    """
    The loop that polls the jobs of an app for all that wait for them; it ends with the last.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app.
    """

    def __init__(self, rungen_conn_id: str, app_id: str) -> None:
        self._key = (rungen_conn_id, app_id)
        self._hook = RunGenHook(rungen_conn_id)
        keep = metrics.counting(strip_payloads)
        self._poller = JobPoller(app_id, self._log, on_finished=keep, is_lean=True)
        self._waiters: set[_Waiter] = set()
        self._polled_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def wait(
        self,
        job_ids: Iterable[str],
        *,
        poll_interval: float,
        deadline: float,
        not_before: float = 0.0,
        are_known: bool = False,
        queued_timeout: float | None = None,
        queued_since: float = 0.0,
        goal: WaitGoal | None = None,
        part_at: float = 0.0,
    ) -> list[Job]:
        """
        Wait until all jobs have ended, however they ended; return them in order, without results.

        :param poll_interval: seconds between two polls.
        :param deadline: the time (seconds since 1970) to stop at.
        :param not_before: the time (seconds since 1970) before which the service asked not to be polled.
        :param are_known: see `JobPoller.add`.
        :param queued_timeout: seconds that the jobs may wait while the app has no worker.
        :param queued_since: see `Wait`.
        :param goal: what to wait for, if not for all jobs. Only those that have ended are returned.
        :param part_at: the time (seconds since 1970) from which any part of the jobs ends the wait, if the
            goal is a part.
        :raises RunGenJobTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        job_ids, now = list(job_ids), time.time()
        self._poller.add(job_ids, queued_since or now, not_before, are_known=are_known)
        if not job_ids:
            return []
        goal = goal or WaitGoal()
        wait = Wait(self._poller, job_ids, poll_interval, now, queued_timeout, goal, queued_since)
        waiter = _Waiter(wait, deadline, part_at, log_of(len(wait.waiting) > FEW_JOBS))
        self._waiters.add(waiter)
        if self._task is None:
            # in an empty context, since its log lines belong to several waiters
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            await waiter.done
        finally:
            self._waiters.discard(waiter)
            if not self._waiters:
                self._close()
                self._task.cancel()
        return [wait.finished[job_id] for job_id in job_ids if job_id in wait.finished]

    def _close(self) -> None:
        """Accept no more waiters. Later ones get a new poller."""
        pollers = _pollers.get(asyncio.get_running_loop(), {})
        if pollers.get(self._key) is self:
            del pollers[self._key]
        _gauge_size()

    async def _run(self) -> None:
        try:
            async with self._hook:
                await asyncio.to_thread(metrics.prepare_in_triggerer)
                while True:
                    await self._poll_overdue()
                    if time.time() >= self._round_at():
                        self._polled_at = time.time()
                        await self._poll()
                    next_at = min([self._round_at(), *(waiter.deadline for waiter in self._waiters)])
                    await asyncio.sleep(max(min(next_at - time.time(), _TICK), 0))
        except Exception as error:
            self._close()
            for waiter in self._waiters:
                waiter.end(error)

    def _interval(self) -> float:
        return min((waiter.wait.poll_interval for waiter in self._waiters), default=_TICK)

    def _round_at(self) -> float:
        """Return the time (seconds since 1970) of the next round."""
        return max(self._polled_at + self._interval(), self._poller.outages.quiet_until)

    async def _poll_overdue(self) -> None:
        """End the waits whose deadline has passed, after a last poll: the triggerer may have been down."""
        now = time.time()
        if overdue := [waiter for waiter in self._waiters if now >= waiter.deadline]:
            await self._poll(0.0, set().union(*(waiter.wait.waiting for waiter in overdue)))
        for waiter in overdue:
            if not waiter.done.done():
                waiter.end(await self._hook.aperform(waiter.wait.explain_timeout()))

    async def _poll(self, seconds_left: float = math.inf, only: Collection[str] | None = None) -> None:
        """Poll once, and pass what was found to the waiters."""
        await self._hook.aperform(self._poller.poll_once(self._interval(), seconds_left, only))
        for waiter in list(self._waiters):
            waiter.note(time.time())
        wanted = set().union(*(waiter.wait.waiting for waiter in self._waiters))
        self._poller.forget({*self._poller.waiting, *self._poller.finished} - wanted)
        _gauge_size()

    def _log(self, level: int, line: str, job_id: str | None) -> None:
        """Log a line for each waiter that it concerns."""
        for waiter in self._waiters:
            if job_id is None or job_id in waiter.wait.waiting:
                waiter.say(level, line, job_id)


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], SharedPoller]] = (
    WeakKeyDictionary()
)


def _gauge_size() -> None:
    pollers = _pollers.get(asyncio.get_running_loop(), {})
    metrics.gauge("watched_jobs", sum(len(poller._poller.waiting) for poller in pollers.values()))


def shared_poller(rungen_conn_id: str, app_id: str) -> SharedPoller:
    """Return the poller of an app in the running event loop, a new one if there is none."""
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller = pollers.get((rungen_conn_id, app_id))
    if poller is None:
        poller = pollers[rungen_conn_id, app_id] = SharedPoller(rungen_conn_id, app_id)
    return poller
