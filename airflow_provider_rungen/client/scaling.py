"""How an app is brought to a number of workers and back, and waited for, as flows without I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_rungen.client.endpoints import delete_app, get_app, scale_app
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.polling import FIRST_LOOK_TIME, LOOK_TIME, REFUSAL_PAUSE
from airflow_provider_rungen.client.retry import RETRY_BUDGET, Refusals, retry_delay
from airflow_provider_rungen.exceptions import (
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenConflictError,
    RunGenError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution import records

log = logging.getLogger(__name__)

_KNOWN = ("STOPPED", "INITIALIZING", "RUNNING", "")
# How often in a row an app has to tell a lower number than it had, for a single answer may be old.
LOWERED = 2
# Seconds within which a lower number has to be told by the service, seconds between two looks, and how many
# looks until it is set again.
CONFIRM_TIME = 60.0
PAUSE = 5.0
LOOKS = 4


@dataclass
class AppTarget:
    """
    What an app is waited for to be, and what was seen of it.

    :param app_id: the app.
    :param status: the status it has to have, such as ``RUNNING``.
    :param active_workers: how many workers it has to be set to at least, if that matters.
    """

    app_id: str
    status: str = "RUNNING"
    active_workers: int | None = None
    refusals: Refusals = field(default_factory=Refusals, repr=False)
    _shown: str = field(default="", repr=False)
    _was_there: bool = field(default=False, repr=False)
    _lowered: int = field(default=0, repr=False)

    def outlast(self, error: RunGenError, now: float) -> None:
        """
        Go on in spite of an error that may pass, and log a refusal once.

        :param now: the time (seconds since 1970).
        :raises RunGenError: the error, if no waiting can change it.
        """
        is_new = not self.refusals.is_pending
        if not self.refusals.is_transient(error, now):
            raise error
        if is_new and self.refusals.is_pending:
            log.warning("%s; waiting goes on", error.message)

    def look(self, app: App) -> bool:
        """
        Say what has changed, and tell whether the app is there.

        :raises RunGenAppError: somebody took the workers away that are waited for.
        """
        self.refusals.answered()
        shown = describe(app)
        if shown != self._shown:
            level = logging.INFO if app.status in _KNOWN else logging.WARNING
            log.log(level, "RunGen app %s is %s", self.app_id, shown)
            self._shown = shown
        wanted, told = self.active_workers, app.active_workers
        if wanted is not None and told is not None:
            if told < wanted:
                self._lowered += self._was_there
                if self._lowered >= LOWERED:
                    raise RunGenAppError(
                        f"RunGen app {self.app_id} was set to {told} active workers by somebody else while "
                        f"it was on its way to {wanted}",
                        app_id=self.app_id,
                    )
                return False
            self._was_there, self._lowered = True, 0
        return app.has_status(self.status)

    def timeout_error(self) -> RunGenAppTimeoutError:
        """Give the error that says that it did not get there in time, and where it was seen last."""
        seen = f"it is {self._shown}" if self._shown else "the service did not tell what it is"
        return RunGenAppTimeoutError(
            f"RunGen app {self.app_id} was not {self.status} in time: {seen}", app_id=self.app_id
        )


def describe(app: App) -> str:
    """Say the status and the workers of an app in words."""
    status = app.status or "of no status"
    told = [status if app.status in _KNOWN else f"in the unknown status {status}"]
    if app.active_workers is not None:
        told.append(f"{app.active_workers} active workers")
    if workers := [f"{count} {state}" for state, count in sorted(app.workers.items()) if count]:
        told.append(f"of which are told: {', '.join(workers)}")
    return ", ".join(told)


def wait_for_app(goal: AppTarget, *, poll_interval: float, deadline: float) -> Flow[App]:
    """
    Wait until an app is as it has to be; a look that fails but may pass does not end the waiting.

    :param poll_interval: seconds between two looks.
    :param deadline: the time (seconds since 1970) to stop waiting at; in the past, it allows one look.
    :raises RunGenAppTimeoutError: the deadline passed.
    :raises RunGenAppError: somebody took the workers away that are waited for.
    """
    app = yield from _look_until(
        goal.app_id, goal.look, poll_interval=poll_interval, deadline=deadline, refusals=goal.refusals
    )
    if app is None:
        raise goal.timeout_error()
    return app


def _look_until(
    app_id: str,
    is_over: Callable[[App], bool],
    *,
    poll_interval: float,
    deadline: float,
    refusals: Refusals | None = None,
) -> Flow[App | None]:
    """Look at an app until something holds; ``None`` if it did not until the deadline."""
    now = yield Sleep(0)
    refusals, is_one_look, failures = refusals or Refusals(), now >= deadline, 0
    while True:
        left, begun_at, pause = deadline - now, now, 0.0
        limit = min(LOOK_TIME, left if left >= 1 else FIRST_LOOK_TIME)
        try:
            app = yield from get_app(app_id, attempts=1, timeout=limit)
            refusals.answered()
            failures = 0
            if is_over(app):
                return app
        except RunGenError as error:
            if not refusals.is_transient(error, (yield Sleep(0))):
                raise
            if not failures:
                log.warning("%s; waiting goes on", error.message)
            pause = retry_delay(failures, error)
            failures += 1
        # a single look outlasts a refusal that may be a stray one; and none follows one that hung to the end
        now = yield Sleep(0)
        if (left <= 0 and not (is_one_look and refusals.is_pending)) or (
            failures and not is_one_look and now >= deadline
        ):
            return None
        pause = max(begun_at + poll_interval - now, pause)
        now = yield Sleep(min(pause, REFUSAL_PAUSE) if is_one_look else min(pause, max(deadline - now, 0)))


# --- up and down -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleRecord:
    """
    What was done to an app.

    :param app_id: the app.
    :param active_workers: the number of workers that it was set to.
    :param before: the number that it had, where that is known.
    :param at: the time (seconds since 1970).
    """

    app_id: str
    active_workers: int
    before: int | None
    at: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ScaleRecord | None:
        """Read what was kept; ``None`` where nothing was, or something else."""
        return records.parse("scaled", value, cls._read, "it is not known what was done to the app")

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> ScaleRecord:
        return cls(
            app_id=records.identifier(fields, "app_id"),
            active_workers=records.count(fields, "active_workers"),
            before=records.optional_count(fields, "before"),
            at=records.moment(fields, "at"),
        )

    @property
    def was_raised(self) -> bool:
        """Whether there is something to lower."""
        return self.active_workers > 0 and (self.before is None or self.before < self.active_workers)


def workers_of(app: App) -> int | None:
    """Give the number of workers an app is paid for, where it can be told."""
    if app.active_workers is not None:
        return app.active_workers
    return 0 if app.has_status("STOPPED") else None


def restore_workers(raised: ScaleRecord, *, patience: float = RETRY_BUDGET) -> Flow[None]:
    """
    Set an app back to what it was before it was raised, unless somebody else has set yet another number.

    :param patience: the seconds after which no further attempt is made.
    :raises RunGenError: it is not certain that it was lowered.
    """
    app_id, before = raised.app_id, raised.before
    if before is None:
        raise RunGenAppError(
            f"it is not known how many workers RunGen app {app_id} had before", app_id=app_id
        )
    told: int | None = None
    try:
        told = (yield from get_app(app_id, attempts=1)).active_workers
    except RunGenNotFoundError:
        return
    except RunGenError:
        pass  # to lower it matters more
    if told not in (None, before, raised.active_workers):
        log.warning("RunGen app %s has %s active workers by now: it is left so", app_id, told)
        return
    now = yield Sleep(0)
    pause, by = min(patience / 4, PAUSE), now + min(2 * patience, CONFIRM_TIME)
    yield from set_workers(app_id, before, poll_interval=pause, deadline=by, patience=patience)
    log.info("RunGen app %s was lowered again to %s active workers", app_id, before)


def not_lowered(raised: ScaleRecord, error: Exception) -> str:
    """Say that an app is left as it is, and what to do."""
    return (
        f"RunGen app {raised.app_id} was raised to {raised.active_workers} active workers and could NOT be "
        f"lowered again: {str(error).rstrip('.')}. It is billed until it is scaled down: see to it"
    )


def set_workers(
    app_id: str, active_workers: int, *, poll_interval: float, deadline: float, patience: float = RETRY_BUDGET
) -> Flow[App]:
    """
    Set the number of an app's workers, and see that the app tells it, where it tells any.

    An answer may be old, or tell nothing: the app is looked at then. One that goes on telling another number
    is set again.

    :param patience: the seconds after which no further attempt is made.
    :raises RunGenAppTimeoutError: it told another number until the deadline.
    """
    told: App

    def is_set(app: App) -> bool:
        nonlocal told
        told = app
        return app.active_workers in (None, active_workers)

    while True:
        told = yield from scale_app(app_id, active_workers, patience=patience)
        if told.active_workers == active_workers:
            return told
        now = yield Sleep(0)
        by = min(now + LOOKS * poll_interval, deadline)
        if (yield from _look_until(app_id, is_set, poll_interval=poll_interval, deadline=by)):
            return told
        if (yield Sleep(0)) >= deadline:
            break
    raise RunGenAppTimeoutError(
        f"RunGen app {app_id} was to have {active_workers} active workers, but is {describe(told)}",
        app_id=app_id,
    )


def drain_app(app_id: str, *, poll_interval: float, deadline: float) -> Flow[int | None]:
    """
    Wait until no job of an app is queued or running; give how many are at the end.

    :param deadline: the time (seconds since 1970) to stop waiting at; in the past, it allows one look.
    :return: 0, the jobs that are left at the deadline, or ``None`` where the app does not count them.
    """
    left: int | None = None
    looks = 0

    def is_idle(app: App) -> bool:
        nonlocal left, looks
        looks += 1
        if app.busy and app.busy != left:
            log.info("RunGen app %s has %d jobs queued or running", app_id, app.busy)
        left = left if app.busy is None else app.busy
        return left == 0 or (left is None and looks >= LOOKS)  # a single answer may leave them out

    yield from _look_until(app_id, is_idle, poll_interval=poll_interval, deadline=deadline)
    return left


def remove_app(app_id: str, *, poll_interval: float, deadline: float) -> Flow[None]:
    """
    Stop an app, wait until its workers are gone, and delete it.

    :raises RunGenNotFoundError: it was gone before.
    :raises RunGenAppTimeoutError: it did not stop until the deadline.
    """
    goal = AppTarget(app_id, "STOPPED")
    app = yield from get_app(app_id)
    if not (goal.look(app) and app.active_workers == 0):
        # an app may be told to be STOPPED while it is not: before it begins to start
        yield from set_workers(app_id, 0, poll_interval=poll_interval, deadline=deadline)
        yield from wait_for_app(goal, poll_interval=poll_interval, deadline=deadline)
    while True:
        try:
            return (yield from delete_app(app_id))
        except RunGenConflictError:  # its workers are on their way out
            now = yield Sleep(0)
            if now >= deadline:
                raise
            yield Sleep(min(poll_interval, deadline - now))
