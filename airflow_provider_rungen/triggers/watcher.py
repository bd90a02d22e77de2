"""One poll loop per connection and app in a process, shared by all that waits for them in its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.polling import (
    COUNTER_THRESHOLD,
    JobPoller,
    concerns_one_job,
    failed_by,
    log_line,
    log_quietly,
    strip_payloads,
    timeout_error,
)
from airflow_provider_rungen.client.progress import Progress
from airflow_provider_rungen.client.scaling import AppTarget
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks.rungen import RunGenHook

# Seconds that the last look at many jobs may take, and that a look that is under way at the deadline may.
LAST_LOOK_TIME = 30.0
LAST_ANSWER_TIME = 2.0


@dataclass(eq=False, kw_only=True, slots=True)
class _Waiter:
    """Somebody who waits: for which jobs (in their order), if for any, and the context of its log."""

    poll_interval: float
    waiting: dict[str, None] = field(default_factory=dict)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    @property
    def is_wide(self) -> bool:
        """Whether there is too much to say of each job."""
        return False

    def last_look(self, watch: JobPoller) -> Flow[Any]:
        """Look once more, for the deadline may have passed while the triggerer was down."""
        raise NotImplementedError

    def timeout_error(self, watch: JobPoller) -> RunGenError:
        """Give the error that says what was not so in time."""
        raise NotImplementedError


@dataclass(eq=False, kw_only=True, slots=True)
class _AppWaiter(_Waiter):
    """Somebody who waits for the app itself."""

    goal: AppTarget

    def last_look(self, watch: JobPoller) -> Flow[Any]:
        return watch.look_at_app()

    def timeout_error(self, watch: JobPoller) -> RunGenError:
        return self.goal.timeout_error()


@dataclass(eq=False, kw_only=True, slots=True)
class _JobWaiter(_Waiter):
    """Somebody who waits for jobs."""

    progress: Progress
    over: dict[str, Job] = field(default_factory=dict)

    def last_look(self, watch: JobPoller) -> Flow[Any]:
        return watch.look(self.waiting.copy())

    def timeout_error(self, watch: JobPoller) -> RunGenError:
        return timeout_error(watch, self.waiting)

    @property
    def is_alone(self) -> bool:
        return len(self.waiting) + len(self.over) == 1

    @property
    def is_wide(self) -> bool:
        return len(self.waiting) + len(self.over) > COUNTER_THRESHOLD


class SharedPoller:
    """The loop that polls the jobs of one app for all who wait for them; it ends with the last of them."""

    def __init__(self, rungen_conn_id: str, app_id: str) -> None:
        self._key = (rungen_conn_id, app_id)
        self._hook = RunGenHook(rungen_conn_id)
        self._watch = JobPoller(
            app_id,
            self._say,
            take=metrics.counting(strip_payloads),
            is_lean=True,
            is_shared=True,
            on_news=self._deliver,
        )
        self._waiters: dict[str, set[_JobWaiter]] = defaultdict(set)
        self._app_waiters: set[_AppWaiter] = set()
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
        known_by: float = 0.0,
        held_back: Mapping[str, float] = MappingProxyType({}),
    ) -> list[Job]:
        """
        Wait until every job is over, however it ended; return the jobs, without results, in the order given.

        :param poll_interval: seconds between two looks.
        :param deadline: the time (seconds since 1970) to stop waiting at.
        :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
        :param held_back: until when the service asked not to be asked, as `JobPoller.held_back` gives it.
        :raises RunGenJobTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        job_ids = list(job_ids)
        for job_id in job_ids:
            path_segment(job_id, "job_id")
        if not job_ids:
            return []
        progress = Progress(len(set(job_ids)), time.monotonic())
        waiting = dict.fromkeys(job_ids)
        waiter = _JobWaiter(waiting=waiting, poll_interval=poll_interval, progress=progress)
        for job_id in job_ids:
            self._waiters[job_id].add(waiter)
        self._watch.add(job_ids, time.time(), known_by, held_back)
        await self._until_done(waiter, deadline)
        return [waiter.over[job_id] for job_id in job_ids]

    async def wait_for_app(self, goal: AppTarget, *, poll_interval: float, deadline: float) -> None:
        """
        Wait until the app is as it has to be.

        :param poll_interval: seconds between two looks.
        :param deadline: the time (seconds since 1970) to stop waiting at.
        :raises RunGenAppTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        waiter = _AppWaiter(goal=goal, poll_interval=poll_interval)
        self._app_waiters.add(waiter)
        await self._until_done(waiter, deadline)

    async def _until_done(self, waiter: _Waiter, deadline: float) -> None:
        if waiter.poll_interval < self._interval:
            self._changed.set()
        if self._task is None:
            # in a context of its own: what it logs belongs to no waiter alone
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            await asyncio.wait([waiter.done], timeout=max(deadline - time.time(), 0))
            if not waiter.done.done():
                await self._look_last(waiter)
            if not waiter.done.done():
                raise waiter.timeout_error(self._watch)
            waiter.done.result()
        finally:
            self._leave(waiter)

    async def _look_last(self, waiter: _Waiter) -> None:
        look = asyncio.ensure_future(self._hook.aperform(waiter.last_look(self._watch)))
        try:
            await asyncio.wait(
                [look, waiter.done], timeout=LAST_LOOK_TIME, return_when=asyncio.FIRST_COMPLETED
            )
            if look.done() and not waiter.done.done():
                look.result()
                if isinstance(waiter, _AppWaiter):
                    self._show(self._watch.app)
                if self._watch.is_under_way(waiter.waiting):
                    await asyncio.wait([waiter.done], timeout=LAST_ANSWER_TIME)
        finally:
            look.cancel()

    def _leave(self, waiter: _Waiter) -> None:
        waiter.done.cancel()
        if isinstance(waiter, _AppWaiter):
            self._app_waiters.discard(waiter)
        elif isinstance(waiter, _JobWaiter):
            self._leave_jobs(waiter)
        if not self._everyone() and not self.is_closed:
            self.is_closed = True
            if self._task is not None:
                self._task.cancel()

    def _leave_jobs(self, waiter: _JobWaiter) -> None:
        for job_id in waiter.waiting:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
                self._watch.forget([job_id])

    async def _run(self) -> None:
        try:
            async with self._hook:
                try:
                    await self._poll()
                except Exception as error:
                    self.is_closed = True  # who comes now begins a new one
                    for waiter in self._everyone():
                        _fail(waiter, error)
        finally:
            self.is_closed = True
            watchers = _watchers.get(asyncio.get_running_loop(), {})
            if watchers.get(self._key) is self:
                del watchers[self._key]
            _tell_size()

    async def _poll(self) -> None:
        # not for each who waits: they would overtake each other, and the oldest is looked at first
        await asyncio.to_thread(metrics.prepare_in_triggerer)
        while not self.is_closed:
            started = time.monotonic()
            self._interval = self._shortest_interval()
            await self._hook.aperform(self._watch.round(self._interval))
            self._deliver()
            if self._app_waiters:
                app = self._watch.app  # the round asked, if it needed the counters
                if app is None:
                    app = await self._hook.aperform(self._watch.look_at_app())
                self._show(app)
            self._say_progress()
            _tell_size()
            self.is_closed = not self._everyone()
            await self._sleep(started, time.monotonic() + self._watch.pause())

    async def _sleep(self, started: float, not_before: float) -> None:
        """Sleep until the next look is due, which a new waiter or a deadline may bring forward."""
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
        return set().union(self._app_waiters, *self._waiters.values())

    def _show(self, app: App | RunGenError | None) -> None:
        """Show what was said of the app, if anything, to those who wait for it."""
        for waiter in self._app_waiters:
            try:
                if isinstance(app, RunGenError):
                    waiter.context.run(waiter.goal.outlast, app, time.time())
                    continue
                if app is not None and waiter.context.run(waiter.goal.look, app) and not waiter.done.done():
                    waiter.done.set_result(None)
            except RunGenError as error:
                _fail(waiter, error)

    def _deliver(self) -> None:
        """Hand what has come to those who wait for it."""
        over = dict(self._watch.over)
        for job_id, error in self._watch.take_errors().items():
            waiters = self._waiters.get(job_id, set())
            hit = {waiter for waiter in waiters if waiter.is_alone or not concerns_one_job(error)}
            for waiter in hit:
                _fail(waiter, error)
            if not hit:
                over[job_id] = failed_by(error, self._watch.app_id, job_id)
        for job_id, job in over.items():
            for waiter in self._waiters.pop(job_id, ()):
                waiter.over[job_id] = job
                del waiter.waiting[job_id]
                if not waiter.waiting and not waiter.done.done():
                    waiter.done.set_result(None)
        self._watch.forget(over)

    def _say_progress(self) -> None:
        for waiter in set().union(*self._waiters.values()):
            if waiter.is_wide and (line := waiter.progress.line(waiter.over.values(), time.monotonic())):
                waiter.context.run(log_line, logging.INFO, line, None)

    def _say(self, level: int, line: str, job_id: str | None) -> None:
        """Say it in the log of everyone it is of use to."""
        for waiter in self._everyone() if job_id is None else self._waiters.get(job_id, ()):
            waiter.context.run(log_quietly if waiter.is_wide else log_line, level, line, job_id)


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.done.done():
        waiter.done.set_exception(error)


_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], SharedPoller]] = (
    WeakKeyDictionary()
)


def _tell_size() -> None:
    watchers = _watchers.get(asyncio.get_running_loop(), {})
    metrics.gauge("watched_jobs", sum(len(watcher._waiters) for watcher in watchers.values()))


def shared_poller(rungen_conn_id: str, app_id: str) -> SharedPoller:
    """Give the watcher of an app in the running event loop, a new one if there is none."""
    watchers = _watchers.setdefault(asyncio.get_running_loop(), {})
    watcher = watchers.get((rungen_conn_id, app_id))
    if watcher is None or watcher.is_closed:
        watcher = watchers[rungen_conn_id, app_id] = SharedPoller(rungen_conn_id, app_id)
    return watcher
