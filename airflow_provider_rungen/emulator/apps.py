"""Apps, their workers and their queues, brought up to date at each request."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Any


class State(StrEnum):
    """The state of a job."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


@dataclass(eq=False, slots=True)
class Job:
    """
    One run.

    :param seconds: how long it runs.
    :param error: the text that it fails with at its end; ``None`` if it succeeds.
    """

    id: str
    app_id: str
    input: dict[str, Any]
    created: float
    seconds: float
    error: str | None = None
    state: State = State.QUEUED
    started: float | None = None
    finished: float | None = None


@dataclass(eq=False)
class App:
    """A deployed model with its queue: first come, first served, one job per ready worker."""

    id: str
    name: str
    kind: str
    created: float
    model_url: str = ""
    description: str = ""
    gpu_tier: str = "BASIC"
    location: str | None = None
    tools: dict[str, Any] = field(default_factory=dict)
    owner_team_id: str | None = None
    init_seconds: float | None = None
    max_workers: int | None = None
    updated: float = 0.0
    active_workers: int = 0
    ready: int = 0
    busy: int = 0
    waiting: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    _queue: deque[Job] = field(default_factory=deque)
    _running: list[tuple[float, int, Job]] = field(default_factory=list)
    _loading: list[float] = field(default_factory=list)
    _serial: itertools.count[int] = field(default_factory=itertools.count)
    _billed: float = 0.0
    _billed_until: float = 0.0

    def __post_init__(self) -> None:
        self.updated = self._billed_until = self.created

    @property
    def status(self) -> str:
        if not self.active_workers:
            return "STOPPED"
        return "RUNNING" if self.ready else "INITIALIZING"

    @property
    def initializing(self) -> int:
        return len(self._loading)

    def worker_seconds(self, now: float) -> float:
        """Return the bill: active workers times seconds, whether or not they had jobs."""
        return self._billed + self.active_workers * (now - self._billed_until)

    def advance(self, now: float) -> None:
        """Apply everything that was due until now, in order."""
        while True:
            # A running job that was canceled leaves its entry behind.
            while self._running and self._running[0][2].state is not State.RUNNING:
                heapq.heappop(self._running)
            ready_at = self._loading[0] if self._loading else inf
            done_at = self._running[0][0] if self._running else inf
            if min(ready_at, done_at) > now:
                return
            if ready_at <= done_at:
                heapq.heappop(self._loading)
                self.ready += 1
                self._start(ready_at)
            else:
                self._finish(heapq.heappop(self._running)[2], done_at)
                self._start(done_at)

    def submit(self, job: Job, now: float) -> None:
        self.advance(now)
        self._queue.append(job)
        self.waiting += 1
        self._start(now)

    def cancel(self, job: Job, now: float) -> bool:
        """Cancel a job, which frees its worker at once. Return whether it was still queued or running."""
        self.advance(now)
        if job.state is State.QUEUED:
            self.waiting -= 1
        elif job.state is State.RUNNING:
            self.busy -= 1
        else:
            return False
        job.state, job.finished = State.CANCELED, now
        self._start(now)
        return True

    def scale(self, workers: int, now: float, init_seconds: float) -> None:
        self.advance(now)
        workers = workers if self.max_workers is None else min(workers, self.max_workers)
        self._billed, self._billed_until = self.worker_seconds(now), now
        self.active_workers = workers
        self.ready = min(self.ready, workers)
        for _ in range(workers - self.ready - len(self._loading)):
            heapq.heappush(self._loading, now + init_seconds)
        self._loading = sorted(self._loading)[: workers - self.ready]
        if workers == 0:
            self._requeue()
        self.advance(now)

    def _start(self, at: float) -> None:
        while self.busy < self.ready and self._queue:
            job = self._queue.popleft()
            if job.state is State.CANCELED:
                continue
            job.state, job.started = State.RUNNING, at
            self.waiting -= 1
            self.busy += 1
            heapq.heappush(self._running, (at + job.seconds, next(self._serial), job))

    def _finish(self, job: Job, at: float) -> None:
        self.busy -= 1
        job.finished = at
        if job.error is None:
            job.state = State.COMPLETED
            self.completed += 1
        else:
            job.state = State.FAILED
            self.failed += 1

    def _requeue(self) -> None:
        running = [entry for entry in self._running if entry[2].state is State.RUNNING]
        for _, _, job in sorted(running, key=lambda entry: entry[1], reverse=True):
            job.state, job.started = State.QUEUED, None
            self._queue.appendleft(job)
        self._running.clear()
        self.busy = 0
        self.waiting += len(running)
        self.retried += len(running)
