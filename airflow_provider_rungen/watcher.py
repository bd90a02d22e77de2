"""One poll loop per connection and app in a process, shared by everything that waits in its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from airflow_provider_rungen.api import seg
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.models import Job
from airflow_provider_rungen.progress import Progress
from airflow_provider_rungen.watch import (
    HANDFUL,
    Watch,
    concerns_one_job,
    failed_by,
    log_line,
    say_less,
    timeout_error,
    without_contents,
)

# Seconds that a last look after the deadline may take.
LAST_LOOK_TIME = 30.0


@dataclass(eq=False, slots=True)
class _Waiter:
    """Somebody who waits for jobs (in their order), and the context of its log."""

    waiting: dict[str, None]
    poll_interval: float
    done: asyncio.Future[None]
    progress: Progress
    over: dict[str, Job] = field(default_factory=dict)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    @property
    def is_alone(self) -> bool:
        return len(self.waiting) + len(self.over) == 1

    @property
    def is_wide(self) -> bool:
        return len(self.waiting) + len(self.over) > HANDFUL


class Watcher:
    """The loop that polls the jobs of one app for all who wait for them; it ends with the last of them."""

    def __init__(self, rungen_conn_id: str, app_id: str) -> None:
        self._key = (rungen_conn_id, app_id)
        self._hook = RunGenHook(rungen_conn_id)
        self._watch = Watch(app_id, self._say, take=without_contents)
        self._waiters: dict[str, set[_Waiter]] = defaultdict(set)
        # those whose deadline has passed, and who are owed a last look
        self._late: set[_Waiter] = set()
        self._interval = 0.0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Whether it takes no more waiters.
        self.is_closed = False

    async def wait(
        self, job_ids: Iterable[str], *, poll_interval: float, deadline: float, known_by: float = 0.0
    ) -> list[Job]:
        """
        Wait until every job is over, however it ended; return the jobs, without results, in the order given.

        :param poll_interval: seconds between two looks.
        :param deadline: the time (seconds since 1970) to stop waiting at.
        :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
        :raises RunGenJobTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        job_ids = list(job_ids)
        for job_id in job_ids:
            seg(job_id, "job_id")
        if not job_ids:
            return []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        progress = Progress(len(set(job_ids)), time.monotonic())
        waiter = _Waiter(dict.fromkeys(job_ids), poll_interval, done, progress)
        for job_id in job_ids:
            self._waiters[job_id].add(waiter)
        self._watch.add(job_ids, time.time(), known_by)
        if poll_interval < self._interval:
            self._changed.set()
        if self._task is None:
            # in a context of its own: what it logs belongs to no waiter alone
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            await asyncio.wait([waiter.done], timeout=max(deadline - time.time(), 0))
            if not waiter.done.done():
                # a last look: the deadline may have passed while the triggerer was down
                self._late.add(waiter)
                self._changed.set()
                await asyncio.wait([waiter.done], timeout=LAST_LOOK_TIME)
            if not waiter.done.done():
                raise timeout_error(self._watch.app_id, list(waiter.waiting))
            waiter.done.result()
            return [waiter.over[job_id] for job_id in job_ids]
        finally:
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        waiter.done.cancel()
        self._late.discard(waiter)
        for job_id in waiter.waiting:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
                self._watch.forget([job_id])
        if not self._waiters and not self.is_closed:
            self.is_closed = True
            if self._task is not None:
                self._task.cancel()

    async def _run(self) -> None:
        try:
            async with self._hook as hook:
                while not self.is_closed:
                    started = time.monotonic()
                    self._interval = self._shortest_interval()
                    late = self._late.copy()
                    urgent: set[str] = set().union(*(waiter.waiting for waiter in late))
                    self._deliver(await hook.aperform(self._watch.round(self._interval, urgent)))
                    self._let_go(late)
                    self._say_progress()
                    self.is_closed = not self._waiters
                    await self._sleep(started, time.monotonic() + self._watch.pause())
        except Exception as error:
            for waiter in self._everyone():
                _fail(waiter, error)
        finally:
            self.is_closed = True
            watchers = _watchers.get(asyncio.get_running_loop(), {})
            if watchers.get(self._key) is self:
                del watchers[self._key]

    async def _sleep(self, started: float, not_before: float) -> None:
        """Sleep until the next look is due, which a new waiter or a deadline may bring forward."""
        while not self.is_closed:
            self._interval = self._shortest_interval()
            due = started if self._late else started + self._interval
            left = max(due, not_before) - time.monotonic()
            if left <= 0:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _shortest_interval(self) -> float:
        return min((waiter.poll_interval for waiter in self._everyone()), default=60.0)

    def _everyone(self) -> set[_Waiter]:
        return set().union(*self._waiters.values())

    def _deliver(self, errors: Mapping[str, RunGenError]) -> None:
        over = dict(self._watch.over)
        for job_id, error in errors.items():
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

    def _let_go(self, late: Iterable[_Waiter]) -> None:
        """End the wait of those who have had their last look."""
        for waiter in late:
            self._late.discard(waiter)
            if waiter.waiting:
                _fail(waiter, timeout_error(self._watch.app_id, list(waiter.waiting)))

    def _say_progress(self) -> None:
        for waiter in self._everyone():
            if waiter.is_wide and (line := waiter.progress.line(waiter.over.values(), time.monotonic())):
                waiter.context.run(log_line, logging.INFO, line, None)

    def _say(self, level: int, line: str, job_id: str | None) -> None:
        """Say it in the log of everyone it is of use to."""
        for waiter in self._everyone() if job_id is None else self._waiters.get(job_id, ()):
            waiter.context.run(say_less if waiter.is_wide else log_line, level, line, job_id)


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.done.done():
        waiter.done.set_exception(error)


_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Watcher]] = WeakKeyDictionary()


def watcher_of(rungen_conn_id: str, app_id: str) -> Watcher:
    """Give the watcher of an app in the running event loop, a new one if there is none."""
    watchers = _watchers.setdefault(asyncio.get_running_loop(), {})
    watcher = watchers.get((rungen_conn_id, app_id))
    if watcher is None or watcher.is_closed:
        watcher = watchers[rungen_conn_id, app_id] = Watcher(rungen_conn_id, app_id)
    return watcher
