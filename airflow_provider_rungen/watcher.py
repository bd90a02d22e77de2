"""One poll loop per connection and app in a process, shared by everything that waits in its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from airflow_provider_rungen.api import seg
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.models import Job
from airflow_provider_rungen.watch import Watch, log_line, wait_for_jobs


@dataclass(eq=False)
class _Waiter:
    """Somebody who waits for jobs, and the context of its log."""

    waiting: set[str]
    poll_interval: float
    done: asyncio.Future[None]
    over: dict[str, Job] = field(default_factory=dict)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class Watcher:
    """The loop that polls the jobs of one app for all who wait for them; it ends with the last of them."""

    def __init__(self, rungen_conn_id: str, app_id: str) -> None:
        self._hook = RunGenHook(rungen_conn_id)
        self._watch = Watch(app_id, self._say)
        self._waiters: dict[str, set[_Waiter]] = defaultdict(set)
        self._looked_at = 0.0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, job_ids: Iterable[str], *, poll_interval: float, deadline: float) -> list[Job]:
        """
        Wait until every job is over, however it ended; return the jobs in the order given.

        :param poll_interval: seconds between two looks.
        :param deadline: the time (seconds since 1970) to stop waiting at.
        :raises RunGenJobTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change.
        """
        job_ids = list(job_ids)
        for job_id in job_ids:
            seg(job_id, "job_id")
        waiter = _Waiter(set(job_ids), poll_interval, asyncio.get_running_loop().create_future())
        for job_id in job_ids:
            self._waiters[job_id].add(waiter)
        self._watch.add(job_ids, time.time())
        self._changed.set()
        if self._task is None:
            # in a context of its own: what it logs belongs to no waiter alone
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            async with asyncio.timeout(max(deadline - time.time(), 0)):
                if waiter.waiting:
                    await waiter.done
                return [waiter.over[job_id] for job_id in job_ids]
        except TimeoutError:
            pass
        finally:
            self._leave(waiter)
        # a last look: the deadline may have passed while the triggerer was down
        async with RunGenHook(self._hook.rungen_conn_id) as hook:
            flow = wait_for_jobs(self._watch.app_id, job_ids, poll_interval=poll_interval, deadline=0)
            return await hook.aperform(flow)

    @property
    def is_closing(self) -> bool:
        """Whether the last waiter has left, or the loop has ended."""
        return self._task is not None and (not self._waiters or self._task.done())

    def _leave(self, waiter: _Waiter) -> None:
        for job_id in waiter.waiting:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
                self._watch.forget([job_id])
        if self.is_closing and self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async with self._hook as hook:
                while self._waiters:
                    self._looked_at = time.monotonic()
                    self._deliver(await hook.aperform(self._watch.round(self._interval())))
                    await self._sleep()
        except Exception as error:
            for waiter in set().union(*self._waiters.values()):
                _fail(waiter, error)

    async def _sleep(self) -> None:
        """Sleep until the next look is due, which a new waiter may bring forward."""
        while self._waiters:
            self._changed.clear()
            left = self._looked_at + self._watch.pause(self._interval()) - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _interval(self) -> float:
        waiters = (waiter for waiters in self._waiters.values() for waiter in waiters)
        return min((waiter.poll_interval for waiter in waiters), default=60.0)

    def _deliver(self, errors: Mapping[str, RunGenError]) -> None:
        for job_id, job in self._watch.over.items():
            for waiter in self._waiters.pop(job_id, ()):
                waiter.over[job_id] = job
                waiter.waiting.discard(job_id)
                if not waiter.waiting and not waiter.done.done():
                    waiter.done.set_result(None)
        self._watch.over.clear()
        for job_id, error in errors.items():
            for waiter in self._waiters.get(job_id, ()):
                _fail(waiter, error)

    def _say(self, level: int, line: str, job_id: str | None) -> None:
        """Say it in the log of everyone it is of use to."""
        everyone: set[_Waiter] = set().union(*self._waiters.values())
        for waiter in everyone if job_id is None else self._waiters.get(job_id, ()):
            waiter.context.run(log_line, level, line, job_id)


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.done.done():
        waiter.done.set_exception(error)


_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Watcher]] = WeakKeyDictionary()


def watcher_of(rungen_conn_id: str, app_id: str) -> Watcher:
    """Give the watcher of an app in the running event loop, a new one if there is none."""
    watchers = _watchers.setdefault(asyncio.get_running_loop(), {})
    watcher = watchers.get((rungen_conn_id, app_id))
    if watcher is None or watcher.is_closing:
        watcher = watchers[rungen_conn_id, app_id] = Watcher(rungen_conn_id, app_id)
    return watcher
