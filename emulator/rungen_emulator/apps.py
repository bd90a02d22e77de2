"""Apps, their workers and their queues, brought up to date at each request, and how the API shows them."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
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

    def shown(self, now: float, result: Any) -> dict[str, Any]:
        """Return the answer to a request for the job."""
        answer: dict[str, Any] = {
            "id": self.id,
            "created_at": format_time(self.created),
            "request": {"input": self.input},
            "result": result,
            "status": self.state,
        }
        if self.started is not None:
            answer["execution_time"] = str(round((self.finished or now) - self.started, 3))
        if self.state is State.FAILED:
            answer["error"] = self.error
        return answer


@dataclass(eq=False)
class App:
    """
    A deployed model with its queue: first come, first served, one job per ready worker.

    :param kind: ``flux`` or ``text``.
    :param details: its name, description, configuration and workflow, as the API shows them.
    """

    id: str
    kind: str
    created: float
    details: dict[str, Any]
    owner_team_id: str | None = None
    init_seconds: float | None = None
    max_workers: int | None = None
    result: Any = None
    updated: float = 0.0
    active_workers: int = 0
    ready: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    _queue: deque[Job] = field(default_factory=deque)
    _running: list[tuple[float, int, Job]] = field(default_factory=list)
    _loading: list[float] = field(default_factory=list)
    _serial: itertools.count[int] = field(default_factory=itertools.count)
    _billed: float = 0.0
    _billed_until: float = 0.0

    def __post_init__(self) -> None:
        self.updated = self._billed_until = self.created

    def worker_seconds(self, now: float) -> float:
        """Return the bill: active workers times seconds, whether or not they had jobs."""
        return self._billed + self.active_workers * (now - self._billed_until)

    def advance(self, now: float) -> None:
        """Apply everything that was due until now, in order."""
        while True:
            ready_at = self._loading[0] if self._loading else inf
            done_at = self._running[0][0] if self._running else inf
            if min(ready_at, done_at) > now:
                return
            if ready_at <= done_at:
                heapq.heappop(self._loading)
                self.ready += 1
            else:
                _, _, job = heapq.heappop(self._running)
                job.state, job.finished = State.COMPLETED if job.error is None else State.FAILED, done_at
                self.counts[job.state] += 1
            self._start(min(ready_at, done_at))

    def submit(self, job: Job, now: float) -> None:
        self._queue.append(job)
        self._start(now)

    def cancel(self, job: Job, now: float) -> bool:
        """Cancel a job, which frees its worker at once. Return whether it was still queued or running."""
        if job.state is State.QUEUED:
            self._queue.remove(job)
        elif job.state is State.RUNNING:
            self._running = [entry for entry in self._running if entry[2] is not job]
            heapq.heapify(self._running)
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
        while len(self._running) < self.ready and self._queue:
            job = self._queue.popleft()
            job.state, job.started = State.RUNNING, at
            heapq.heappush(self._running, (at + job.seconds, next(self._serial), job))

    def _requeue(self) -> None:
        self.counts["retried"] += len(self._running)
        for _, _, job in sorted(self._running, key=lambda entry: entry[1], reverse=True):
            job.state, job.started = State.QUEUED, None
            self._queue.appendleft(job)
        self._running.clear()

    def shown(self, *, is_new: bool = False) -> dict[str, Any]:
        """
        Return an answer about the app.

        :param is_new: whether it is the answer to its creation, which lacks counters.
        """
        status = "STOPPED" if not self.active_workers else "RUNNING" if self.ready else "INITIALIZING"
        answer = {
            "id": self.id,
            "status": status,
            **self.details,
            "configuration": {**self.details["configuration"], "active_workers": self.active_workers},
            "created_at": format_time(self.created),
            "created_by": "emulator",
            "owner_team_id": self.owner_team_id,
            "owner_user_id": "00000000-0000-4000-8000-000000000001",
            "updated_at": format_time(self.updated),
        }
        jobs = {
            "completed": self.counts[State.COMPLETED],
            "failed": self.counts[State.FAILED],
            "in_progress": len(self._running),
            "in_queue": len(self._queue),
            "retried": self.counts["retried"],
        }
        workers = {
            "idle": max(0, self.ready - len(self._running)),
            "initializing": len(self._loading),
            "ready": self.ready,
            "running": len(self._running),
            "throttled": 0,
            "unhealthy": 0,
        }
        return answer if is_new else {**answer, "jobs": jobs, "workers": workers}


def format_time(when: float) -> str:
    """Return a time as the API writes it."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S")
