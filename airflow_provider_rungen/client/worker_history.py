"""How many workers an app had, and since when: what its bill is computed from. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.scaling import ScaleRecord
from airflow_provider_rungen.client.workers import workers_of
from airflow_provider_rungen.exceptions import RunGenError, RunGenNotFoundError

# Seconds that a poll may take which only the bill needs.
_SEE_TIME = 10.0
# Seconds by which the clock of the service may differ from this one.
_CLOCK_SKEW = 60.0
# An earlier change than this many is not kept apart: no app is scaled that often for one task.
MAX_CHANGES = 1000


@dataclass(frozen=True, slots=True)
class WorkerHistory:
    """
    The numbers of workers that an app had, as far as they were set and seen.

    :param changes: pairs of a time (seconds since 1970) and the number from then on, in order.
    """

    changes: tuple[tuple[float, int], ...] = ()

    @property
    def workers(self) -> int | None:
        """The last known number."""
        return self.changes[-1][1] if self.changes else None

    @property
    def most(self) -> int:
        """The largest number."""
        return max((workers for _, workers in self.changes), default=0)

    @property
    def up_at(self) -> float | None:
        """The time of the first worker."""
        return next((at for at, workers in self.changes if workers), None)

    @property
    def down_at(self) -> float | None:
        """The time since when there is no worker; ``None`` if there still is one, or never was."""
        last_up = max((index for index, (_, workers) in enumerate(self.changes) if workers), default=None)
        after = () if last_up is None else self.changes[last_up + 1 :]
        return after[0][0] if after else None

    def changed(self, workers: int, at: float) -> WorkerHistory:
        """Return the history with a number from a time on."""
        return self if workers == self.workers else self.confirmed(workers, at)

    def confirmed(self, workers: int, at: float) -> WorkerHistory:
        """Return the history with a number that is certain: what was set before is no longer in doubt."""
        return WorkerHistory((*self.changes[: MAX_CHANGES - 1], (at, workers)))

    def seen(self, app: App, now: float, record: ScaleRecord | None = None) -> WorkerHistory:
        """
        Return the history with what an answer shows.

        The service says when it last changed an app. That may have been another change, so it is only the
        latest time at which the number can have changed.

        :param app: the answer.
        :param now: its time (seconds since 1970).
        :param record: a scaling that may have come to nothing.
        """
        workers, history = workers_of(app), self
        changed_at = None if app.updated_at is None else app.updated_at.timestamp()
        if record is not None and (
            workers in (None, record.active_workers) or _is_after(changed_at, record.at)
        ):
            history = self._with(record)
        if workers is None:
            return history
        if history.changes and _is_after(changed_at, last := history.changes[-1][0]):
            now = min(max(changed_at, last), now)
        return history.changed(workers, now)

    def _with(self, record: ScaleRecord) -> WorkerHistory:
        """Return the history with what a scaling has set, unless something later is known."""
        # what the app had before may have been seen at that very time
        is_known = self.changes and self.changes[-1][0] > record.at
        return self if is_known else self.changed(record.active_workers, record.at)

    def worker_seconds(self, until: float) -> float:
        """Return the number of workers times the seconds that the app had it."""
        return sum(workers * seconds for workers, seconds in self._spans(until))

    def seconds_up(self, until: float) -> float:
        """Return the seconds in which the app had any worker."""
        return sum(seconds for workers, seconds in self._spans(until) if workers)

    def _spans(self, until: float) -> list[tuple[int, float]]:
        ends = (*self.changes, (until, 0))
        return [(workers, max(end - start, 0.0)) for (start, workers), (end, _) in pairwise(ends)]


def see_app(app_id: str) -> Flow[App]:
    """Poll an app once for its bill: an app that is gone has no workers, one without an answer no number."""
    try:
        return (yield from get_app(app_id, attempts=1, timeout=_SEE_TIME))
    except RunGenNotFoundError:
        return App(app_id, configuration={"active_workers": 0})
    except RunGenError:
        return App(app_id)


def _is_after(changed_at: float | None, at: float) -> TypeGuard[float]:
    return changed_at is not None and changed_at >= at - _CLOCK_SKEW
