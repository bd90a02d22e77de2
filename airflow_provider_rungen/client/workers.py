"""How many workers an app has and had, and what a task has done to their number. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.texts import format_count, format_ids

# The order in which the states of workers are named.
_WORKER_STATES = ("ready", "running", "idle", "initializing", "throttled", "unhealthy")
# Those of a worker that takes jobs, or is about to.
_STARTED = ("ready", "running", "idle", "initializing")
KNOWN_STATUSES = ("STOPPED", "INITIALIZING", "RUNNING", "")
# Seconds by which the clock of the service may differ from this one.
_CLOCK_SKEW = 60.0


def workers_of(app: App) -> int | None:
    """Return how many workers an app is paid for, where that is known."""
    if app.active_workers is not None:
        return app.active_workers
    return 0 if app.has_status("STOPPED") else None


def changed_at_of(app: App) -> float:
    """Return when the service last changed an app (seconds since 1970); 0 if it does not say."""
    return 0.0 if app.updated_at is None else app.updated_at.timestamp()


def counts_workers(app: App) -> bool:
    """Return whether the counters of an app name a worker in any state."""
    return any(app.workers.get(state) for state in _WORKER_STATES)


def is_down(app: App) -> bool:
    """Return whether an app says that it has no workers, not even some on their way out."""
    return workers_of(app) == 0 and (app.has_status("STOPPED") or not counts_workers(app))


def has_no_worker(app: App) -> bool:
    """Return whether an app certainly has no worker, not even one that starts."""
    is_set_to_none = app.active_workers == 0 or app.has_status("STOPPED")
    return is_set_to_none and not any(app.workers.get(state) for state in _STARTED)


def describe(app: App) -> str:
    """Return an app's status and workers as text: ``RUNNING, 1 worker: ready, idle``."""
    status = app.status or "No status"
    if app.status not in KNOWN_STATUSES:
        status = f"Unknown status {status}"
    workers = describe_workers(app)
    return f"{status}, {workers}" if workers else status


def describe_workers(app: App) -> str:
    """Return an app's workers as text: ``3 workers: 2 running, 1 idle``. A worker may have two states."""
    states = worker_states(app)
    is_single = app.active_workers == 1 and set(states.values()) == {1}
    counts = ", ".join(state if is_single else f"{count} {state}" for state, count in states.items())
    if app.active_workers is None:
        return f"workers: {counts}" if counts else ""
    count = format_count(app.active_workers, "worker")
    return f"{count}: {counts}" if counts else count


def worker_states(app: App) -> dict[str, int]:
    """Return how many workers are in each state. One that runs or is idle is not counted as ready, too."""
    counts = {state: app.workers.get(state) or 0 for state in (*_WORKER_STATES, *app.workers)}
    counts["ready"] = max(0, counts["ready"] - counts["running"] - counts["idle"])
    return {state: count for state, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class WorkerHistory:
    """
    The numbers of workers that an app had, as far as they were set and seen.

    :param changes: pairs of a time (seconds since 1970) and the number from then on, in order.
    """

    changes: tuple[tuple[float, int], ...] = ()

    @property
    def up_at(self) -> float | None:
        """The time of the first worker."""
        return next((at for at, workers in self.changes if workers), None)

    @property
    def down_at(self) -> float | None:
        """The time since when there is no worker; ``None`` if there still is one, or nothing is known."""
        return self.changes[-1][0] if self.changes and not self.changes[-1][1] else None

    def changed(self, workers: int, at: float) -> WorkerHistory:
        """Return the history with a number from a time on."""
        is_new = not self.changes or self.changes[-1][1] != workers
        return WorkerHistory((*self.changes, (at, workers))) if is_new else self

    def worker_seconds(self, until: float) -> float:
        """Return the number of workers times the seconds that the app had it."""
        return sum(workers * seconds for workers, seconds in self._spans(until))

    def seconds_up(self, until: float) -> float:
        """Return the seconds in which the app had any worker."""
        return sum(seconds for workers, seconds in self._spans(until) if workers)

    def _spans(self, until: float) -> list[tuple[int, float]]:
        ends = (*self.changes, (until, 0))
        return [(workers, max(end - start, 0.0)) for (start, workers), (end, _) in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class ScaleRecord:
    """
    What a task has done to an app.

    :param app_id: the app.
    :param active_workers: the number of workers that it was set to, or the most that it may have until an
        answer confirms fewer; ``None`` if it was left as it is.
    :param before: the number to restore if something goes wrong, where that is known.
    :param sent_at: the time (seconds since 1970) from which the app may have the number, until that is known.
    :param history: the workers that the app had, in earlier attempts, too.
    :param was_cleared: whether the task ran before a clear, too, of which the record knows nothing.
    :param clear_number: how often tasks of the DAG run had been cleared by then, if that is known.
    """

    app_id: str
    active_workers: int | None = None
    before: int | None = None
    sent_at: float | None = None
    history: WorkerHistory = WorkerHistory()
    was_cleared: bool = False
    clear_number: int | None = None

    @property
    def was_raised(self) -> bool:
        """Whether there is something to restore."""
        wanted = self.active_workers or 0
        return wanted > 0 and (self.before is None or self.before < wanted)

    def covers(self, workers: int | None) -> bool:
        """Return whether the task may have set this number. Fewer may be all that the service had."""
        return workers is None or (self.before or 0) <= workers <= (self.active_workers or 0)

    def still_billed(self, reason: object) -> str:
        """Return the line of a log that the app may still have the workers."""
        workers = format_count(self.active_workers, "worker")
        text = str(reason).rstrip(".") or type(reason).__name__
        return f"STILL BILLED: app {self.app_id} may still have {workers}: {text}. Scale it down yourself."

    def left_at(self, workers: int) -> str:
        """Return the line of a log that somebody else has set the number, which stays."""
        count = format_count(workers, "worker")
        return f"Left at {count}, which somebody else has set {format_ids(self.app_id)}"

    def seen(self, app: App, now: float) -> ScaleRecord:
        """
        Return the record with what an answer shows.

        The service says when it last changed an app. That may have been another change, so it is only the
        latest time at which the number can have changed.

        :param app: the answer.
        :param now: its time (seconds since 1970).
        """
        workers, history = workers_of(app), self.history
        changed_at = changed_at_of(app)
        if self.sent_at is not None:
            is_changed = changed_at >= self.sent_at - _CLOCK_SKEW
            if is_changed or workers in (None, self.active_workers):
                history = history.changed(self.active_workers or 0, self.sent_at)
        if workers is not None:
            last = history.changes[-1][0] if history.changes else now
            # the very second of a confirmed change says that none has come since
            is_same = self.sent_at is None and last - 1 < changed_at <= last
            is_changed = changed_at >= last - _CLOCK_SKEW and not is_same
            history = history.changed(workers, min(max(changed_at, last), now) if is_changed else now)
        return replace(self, sent_at=None, history=history)

    @property
    def changed_at(self) -> float:
        """The time (seconds since 1970) of the last change that it knows of."""
        return max([self.sent_at or 0.0, *(at for at, _ in self.history.changes)])

    def after_clear(self, app: App | None) -> ScaleRecord:
        """
        Return a record of before a clear: what it knows counts only if the app has been up since.

        :param app: what the service says now; ``None`` if others have the app up.
        """
        if app is not None and workers_of(app) and changed_at_of(app) <= self.changed_at + _CLOCK_SKEW:
            return replace(self, was_cleared=True)
        return replace(self, sent_at=None, history=WorkerHistory(), was_cleared=True)

    def confirmed(self, at: float) -> ScaleRecord:
        """Return the record of an app that has had the number since a time."""
        return replace(self, sent_at=None, history=self.history.changed(self.active_workers or 0, at))

    def settled(self, workers: int, at: float) -> ScaleRecord:
        """Return the record of an app that has a number since a time, and needs no restoring."""
        return replace(self, active_workers=workers, before=workers).confirmed(at)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {
            "app_id": self.app_id,
            "active_workers": self.active_workers,
            "before": self.before,
            "sent_at": self.sent_at,
            "changes": [{"at": at, "workers": workers} for at, workers in self.history.changes],
            "was_cleared": self.was_cleared,
            "clear_number": self.clear_number,
        }
