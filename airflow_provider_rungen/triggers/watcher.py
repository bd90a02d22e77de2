"""One poll loop per connection and app in a process, shared by all that wait in its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.job_log import LogCallback, log_of
from airflow_provider_rungen.client.job_poller import JobPoller, strip_payloads
from airflow_provider_rungen.client.job_search import COUNTER_THRESHOLD
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.polling import concerns_one_job, failed_by
from airflow_provider_rungen.client.progress import Progress, count_ends
from airflow_provider_rungen.client.queue_watch import QueueTimer, explain_timeout, timeout_error
from airflow_provider_rungen.client.scaling import AppTarget
from airflow_provider_rungen.client.wait_goal import WaitGoal
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks.rungen import RunGenHook

# Seconds that the last poll of many jobs may take, and that a poll in flight at the deadline may.
LAST_LOOK_TIME = 30.0
LAST_ANSWER_TIME = 2.0


@dataclass(eq=False, kw_only=True, slots=True)
class _Waiter:
    """
    A trigger that waits for jobs, or for the app itself.

    :param poll_interval: seconds between two polls.
    :param waiting: the jobs that it still waits for, in its order.
    :param target: what it waits for the app to become.
    :param timer: limits how long its jobs may stay queued.
    :param goal: how many of its jobs have to be over.
    :param part_at: the time (seconds since 1970) before which a part of its jobs does not end the wait.
    :param finished: the jobs that have finished.
    :param context: the context of its log.
    """

    poll_interval: float
    waiting: dict[str, None] = field(default_factory=dict)
    target: AppTarget | None = None
    timer: QueueTimer | None = None
    goal: WaitGoal = field(default_factory=WaitGoal)
    part_at: float = 0.0
    finished: dict[str, Job] = field(default_factory=dict)
    progress: Progress = field(init=False)
    log: LogCallback = field(init=False)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def __post_init__(self) -> None:
        self.progress = Progress(len(self.waiting), time.monotonic())
        self.log = log_of(self.is_wide)

    @property
    def jobs(self) -> int:
        return len(self.waiting) + len(self.finished)

    @property
    def is_wide(self) -> bool:
        """Whether it waits for too many jobs to log each."""
        return self.jobs > COUNTER_THRESHOLD

    def last_poll(self, poller: JobPoller) -> Flow[Any]:
        """Poll once more, because the deadline may have passed while the triggerer was down."""
        return poller.poll_app() if self.target else poller.poll_each(self.waiting.copy())

    def explain_timeout(self, poller: JobPoller) -> Flow[RunGenError]:
        """Return the error for what was not so in time."""
        if self.target:
            return self.target.timeout_error()
        return (yield from explain_timeout(poller, self.waiting))

    def check_queue(self, poller: JobPoller) -> None:
        """Fail if the jobs have been queued for too long."""
        now, timer = time.time(), self.timer
        if timer is not None and timer.is_over(poller, [*self.waiting, *self.finished], now):
            self.fail(timeout_error(poller, self.waiting, queued_for=now - timer.moved_at))

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class SharedPoller:
    """
    The loop that polls the jobs of an app, and the app, for all that wait for them; it ends with the last.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app.
    """

    def __init__(self, rungen_conn_id: str, app_id: str) -> None:
        self._key = (rungen_conn_id, app_id)
        self._hook = RunGenHook(rungen_conn_id)
        self._poller = JobPoller(
            app_id,
            self._log,
            on_finished=metrics.counting(strip_payloads),
            on_news=self._deliver,
            is_lean=True,
            is_shared=True,
        )
        self._job_waiters: dict[str, set[_Waiter]] = defaultdict(set)
        self._app_waiters: set[_Waiter] = set()
        self._interval = 0.0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Whether it takes no more waiters.
        self.is_closed = False

    async def wait(
        self,
        job_ids: Iterable[str],
        *,
        poll_interval: float,
        deadline: float,
        visible_by: float = 0.0,
        not_before: float = 0.0,
        timer: QueueTimer | None = None,
        goal: WaitGoal | None = None,
        part_at: float = 0.0,
    ) -> list[Job]:
        """
        Wait until all jobs have finished, however they ended; return them in order, without results.

        :param poll_interval: seconds between two polls.
        :param deadline: the time (seconds since 1970) to stop at.
        :param visible_by: the time (seconds since 1970) until which the service may not know the jobs.
        :param not_before: the time (seconds since 1970) before which the service asked not to be polled.
        :param timer: limits how long the jobs may stay queued.
        :param goal: what to wait for, if not for all jobs. Only those that have finished are returned.
        :param part_at: the time (seconds since 1970) before which a part of the jobs does not end the wait.
        :raises RunGenJobTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        job_ids = list(job_ids)
        waiting = dict.fromkeys(job_ids)
        self._poller.add(waiting, time.time(), visible_by, not_before)
        if not job_ids:
            return []
        goal = goal or WaitGoal()
        waiter = _Waiter(
            waiting=waiting, poll_interval=poll_interval, timer=timer, goal=goal, part_at=part_at
        )
        for job_id in waiting:
            self._job_waiters[job_id].add(waiter)
        await self._until_done(waiter, deadline)
        return [waiter.finished[job_id] for job_id in job_ids if job_id in waiter.finished]

    async def wait_for_app(self, target: AppTarget, *, poll_interval: float, deadline: float) -> None:
        """
        Wait until the app is as it must be.

        :param poll_interval: seconds between two polls.
        :param deadline: the time (seconds since 1970) to stop at.
        :raises RunGenAppTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        waiter = _Waiter(target=target, poll_interval=poll_interval)
        self._app_waiters.add(waiter)
        await self._until_done(waiter, deadline)

    async def _until_done(self, waiter: _Waiter, deadline: float) -> None:
        if waiter.poll_interval < self._interval:
            self._changed.set()
        if self._task is None:
            # in an empty context: what it logs belongs to no waiter alone
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            await asyncio.wait([waiter.done], timeout=max(deadline - time.time(), 0))
            if not waiter.done.done():
                await self._poll_last(waiter)
            if not waiter.done.done():
                raise await self._hook.aperform(waiter.explain_timeout(self._poller))
            waiter.done.result()
        finally:
            self._leave(waiter)

    async def _poll_last(self, waiter: _Waiter) -> None:
        poll = asyncio.ensure_future(self._hook.aperform(waiter.last_poll(self._poller)))
        try:
            await asyncio.wait(
                [poll, waiter.done], timeout=LAST_LOOK_TIME, return_when=asyncio.FIRST_COMPLETED
            )
            if poll.done() and not waiter.done.done():
                answer, is_in_flight = poll.result(), self._poller.is_in_flight(waiter.waiting)
                if waiter.target:
                    self._deliver_app(answer)
                    is_in_flight = answer is None and self._poller.is_app_in_flight
                if is_in_flight:
                    await asyncio.wait([waiter.done], timeout=LAST_ANSWER_TIME)
        finally:
            poll.cancel()

    def _leave(self, waiter: _Waiter) -> None:
        waiter.done.cancel()
        self._app_waiters.discard(waiter)
        for job_id in waiter.waiting:
            self._job_waiters[job_id].discard(waiter)
            if not self._job_waiters[job_id]:
                del self._job_waiters[job_id]
                self._poller.forget([job_id])
        if not self._everyone() and not self.is_closed:
            self.is_closed = True
            if self._task is not None:
                self._task.cancel()

    async def _run(self) -> None:
        try:
            async with self._hook:
                try:
                    await self._poll()
                except Exception as error:
                    self.is_closed = True  # later waits get a poller of their own
                    for waiter in self._everyone():
                        waiter.fail(error)
        finally:
            self.is_closed = True
            pollers = _pollers.get(asyncio.get_running_loop(), {})
            if pollers.get(self._key) is self:
                del pollers[self._key]
            _gauge_size()

    async def _poll(self) -> None:
        await asyncio.to_thread(metrics.prepare_in_triggerer)
        while not self.is_closed:
            started = time.monotonic()
            self._interval = self._shortest_interval()
            await self._hook.aperform(self._poller.poll_once(self._interval))
            self._deliver()
            self._finish_parts()
            for waiter in set().union(*self._job_waiters.values()):
                waiter.check_queue(self._poller)
            if self._app_waiters:
                if self._poller.app is None:  # the round did not need the counters
                    await self._hook.aperform(self._poller.poll_app())
                self._deliver_app(self._poller.app)
            self._log_progress()
            _gauge_size()
            self.is_closed = not self._everyone()
            await self._sleep(started, time.monotonic() + self._poller.outages.pause)

    async def _sleep(self, started: float, not_before: float) -> None:
        """Sleep until the next round is due, which a new waiter or a deadline may bring forward."""
        while not self.is_closed:
            self._interval = self._shortest_interval()
            left = max(started + self._interval, not_before) - time.monotonic()
            if left <= 0:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _shortest_interval(self) -> float:
        return min((waiter.poll_interval for waiter in self._everyone()), default=60.0)

    def _everyone(self) -> set[_Waiter]:
        return set().union(self._app_waiters, *self._job_waiters.values())

    def _deliver_app(self, app: App | RunGenError | None) -> None:
        """Hand the answer about the app, if there is one, to those that wait for it."""
        if app is None:
            return
        for waiter in self._app_waiters:
            try:
                if waiter.target and waiter.context.run(waiter.target.note, app, time.time()):
                    waiter.finish()
            except RunGenError as error:
                waiter.fail(error)

    def _deliver(self) -> None:
        """Hand what polls found to those that wait for it."""
        finished = dict(self._poller.finished)
        for job_id, error in self._poller.take_errors().items():
            if concerns_one_job(error):
                finished[job_id] = failed_by(error, self._poller.app_id, job_id)
                continue
            for waiter in self._job_waiters.get(job_id, ()):
                waiter.fail(error)
        for job_id, job in finished.items():
            for waiter in self._job_waiters.pop(job_id, ()):
                waiter.finished[job_id] = job
                del waiter.waiting[job_id]
                waiter.goal.note(job)
                if not waiter.waiting or waiter.goal.is_broken:
                    waiter.finish()
        self._poller.forget(finished)

    def _finish_parts(self) -> None:
        """End the waits for a part of their jobs: after a round, so that all that it found is in them."""
        for waiter in set().union(*self._job_waiters.values()):
            if time.time() >= waiter.part_at and waiter.goal.is_reached(len(waiter.waiting)):
                waiter.finish()

    def _log_progress(self) -> None:
        for waiter in set().union(*self._job_waiters.values()):
            ends = count_ends(waiter.finished.values())
            if waiter.is_wide and (line := waiter.progress.line(*ends, time.monotonic())):
                waiter.context.run(waiter.log, logging.INFO, line, None)

    def _log(self, level: int, line: str, job_id: str | None) -> None:
        """Log a line for everyone that it concerns."""
        for waiter in self._everyone() if job_id is None else self._job_waiters.get(job_id, ()):
            waiter.context.run(waiter.log, level, line, job_id)


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], SharedPoller]] = (
    WeakKeyDictionary()
)


def _gauge_size() -> None:
    pollers = _pollers.get(asyncio.get_running_loop(), {})
    metrics.gauge("watched_jobs", sum(len(poller._job_waiters) for poller in pollers.values()))


def shared_poller(rungen_conn_id: str, app_id: str) -> SharedPoller:
    """Return the poller of an app in the running event loop, a new one if there is none."""
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller = pollers.get((rungen_conn_id, app_id))
    if poller is None or poller.is_closed:
        poller = pollers[rungen_conn_id, app_id] = SharedPoller(rungen_conn_id, app_id)
    return poller
