"""How an app is brought to a number of workers and back, and waited for. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.endpoints import get_app, list_apps, scale_app
from airflow_provider_rungen.client.flow import Flow, Sleep, T
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.poll_state import (
    Outages,
    PollState,
    in_flight,
    poll_timeout,
    polls_end_by,
)
from airflow_provider_rungen.client.polling import poll_alone, poll_until
from airflow_provider_rungen.client.progress import log_line
from airflow_provider_rungen.client.retry import ATTEMPTS, RETRY_BUDGET
from airflow_provider_rungen.client.texts import format_count, format_duration, format_ids
from airflow_provider_rungen.client.workers import KNOWN_STATUSES, ScaleRecord, describe, is_down, workers_of
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenBadRequestError,
    RunGenError,
    RunGenNotFoundError,
)

log = logging.getLogger(__name__)

# Seconds within which a changed number of workers must be confirmed, and between two attempts.
CONFIRM_TIME = 60.0
PAUSE = 5.0


class LoweredError(RunGenAppError):
    """Somebody else took away workers that an app had; ``active_workers`` are left."""

    active_workers = 0


def outlast(app_id: str, request: Callable[[], Flow[T]], *, within: float = math.inf) -> Flow[T]:
    """
    Send a request about an app, and again until it is known whether it is refused, or the app is gone.

    A replica may lag behind, and a proxy may know no app for a while. So an app is gone only if the 404 lasts
    for `GONE_GRACE`, and the list of apps does not have it. A 400 must last as long.

    :param app_id: the app.
    :param request: makes the flow of the request.
    :param within: seconds after the first such answer at which to give up.
    :raises RunGenNotFoundError: the app is gone.
    :raises RunGenBadRequestError: the request is refused.
    :raises RunGenAPIError: the answer is still the same, but the app may exist.
    """
    within = max(min(within, retry.GONE_GRACE), 0.0)
    pause, give_up_at = within / 6, None
    while True:
        try:
            return (yield from request())
        except retry.NOT_FOUND as error:
            failure = error
        now = yield Sleep(0)
        give_up_at = now + within if give_up_at is None else give_up_at
        if now >= give_up_at:
            break
        log.warning("%s; retrying in %s", failure.message, format_duration(pause))
        yield Sleep(pause)
    apps = None
    if within >= retry.GONE_GRACE:
        if isinstance(failure, RunGenBadRequestError):
            raise failure
        with suppress(RunGenError):
            apps = yield from list_apps()
    if apps is None or any(app.id == app_id for app in apps):
        raise RunGenAPIError(failure.message, status_code=failure.status_code, hint=failure.hint)
    raise failure.revised(failure.message, hint=failure.hint, retryable=False)


@dataclass
class AppPoller:
    """
    Polls an app until something holds.

    :param app_id: the app.
    """

    app_id: str
    outages: Outages = field(default_factory=lambda: Outages(log_line), repr=False, kw_only=True)
    _state: PollState = field(default_factory=lambda: PollState(0.0), repr=False, kw_only=True)

    def is_met(self, app: App, now: float) -> bool:
        """Record an answer at a time (seconds since 1970), and return whether the wait is over."""
        raise NotImplementedError

    def poll_once(self, seconds_left: float | None = None) -> Flow[App | None]:
        """
        Poll the app once; return it if the wait is over.

        :param seconds_left: seconds to the deadline. Without it, the poll stands alone: it outlasts a stray
            refusal of the key.
        :raises RunGenError: no waiting can change it.
        """
        if seconds_left is None:
            poll = partial(self.poll_once, retry.GONE_GRACE)
            return (yield from poll_alone(poll, self.outages, lambda: self._state.is_in_doubt))
        now = yield Sleep(0)
        end_by = polls_end_by(now, seconds_left)

        def request() -> Flow[App]:
            timeout = poll_timeout(end_by, (yield Sleep(0)))
            return (yield from get_app(self.app_id, attempts=1, timeout=timeout))

        answer = yield from in_flight(self._state, outlast(self.app_id, request, within=seconds_left))
        now = yield Sleep(0)
        if isinstance(answer, App):
            self.outages.note_answer(self._state, answer, now)
        elif self.outages.outlasts(self._state, answer, now):
            self.outages.note_failed_round([answer])
        else:
            raise answer
        self.outages.end_round(now)
        return answer if isinstance(answer, App) and self.is_met(answer, now) else None


@dataclass
class AppTarget(AppPoller):
    """
    The status and the workers that an app is waited for to have.

    :param app_id: the app.
    :param status: the status that it must have, such as ``RUNNING``.
    :param active_workers: how many workers it must be set to at least, if that matters.
    """

    status: str = "RUNNING"
    active_workers: int | None = None
    _app: App | None = field(default=None, repr=False)
    _had_workers: bool = field(default=False, repr=False)
    # since when answers name fewer workers: those of a replica that lags behind may do so
    _lowered_since: float | None = field(default=None, repr=False)

    def is_met(self, app: App, now: float) -> bool:
        """
        Log what has changed, and return whether the app is as it must be.

        :raises LoweredError: somebody took away the workers that are waited for, `GONE_GRACE` ago or more.
        """
        if self._app is None or describe(app) != describe(self._app):
            level = logging.INFO if app.status in KNOWN_STATUSES else logging.WARNING
            log.log(level, "%s %s", describe(app), format_ids(self.app_id))
        self._app = app
        wanted, workers = self.active_workers, app.active_workers
        if wanted is None or workers is None or workers >= wanted:
            self._had_workers, self._lowered_since = self._had_workers or workers is not None, None
            return app.has_status(self.status)
        self._lowered_since = now if self._lowered_since is None else self._lowered_since
        if self._had_workers and now >= self._lowered_since + retry.GONE_GRACE:
            count, ids = format_count(workers, "worker"), format_ids(self.app_id)
            message = f"Somebody else set the app to {count} on its way to {wanted} {ids}"
            lowered = LoweredError(message, app_id=self.app_id)
            lowered.active_workers = workers
            raise lowered
        return False

    def timeout_error(self) -> RunGenAppTimeoutError:
        """Return the error for an app that did not get there in time, with what was last seen."""
        missed, seen = f"Not {self.status}", "the service did not answer"
        if self._app is not None:
            seen = f"it is {describe(self._app)}"
            workers, wanted = self._app.active_workers or 0, self.active_workers or 0
            if 0 < workers < wanted:
                missed = f"Only {workers} of {wanted} workers"
        message = f"{missed} in time: {seen} {format_ids(self.app_id)}"
        return RunGenAppTimeoutError(message, app_id=self.app_id)


def wait_for_app(target: AppTarget, *, poll_interval: float, deadline: float) -> Flow[App]:
    """
    Wait until an app is as it must be; a poll that fails and may succeed later does not end the wait.

    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop at; one that has passed allows a single poll.
    :raises RunGenAppTimeoutError: the deadline passed.
    :raises RunGenAppError: somebody took away the workers that are waited for.
    """
    polls = poll_until(target.poll_once, target.outages, pauses=repeat(poll_interval), deadline=deadline)
    if (app := (yield from polls)) is None:
        raise target.timeout_error()
    return app


# --- up and down -------------------------------------------------------------------------------------------


def ask_app(app_id: str, *, attempts: int = 1, within: float = 0.0) -> Flow[App]:
    """
    Ask for an app. Without an answer, its number of workers is unknown.

    :param attempts: how many times to send the request at most.
    :param within: how long to outlast a 404, see `outlast`.
    :raises RunGenNotFoundError: the app is gone.
    """
    try:
        return (yield from outlast(app_id, partial(get_app, app_id, attempts=attempts), within=within))
    except RunGenNotFoundError:
        raise
    except RunGenError:
        return App(app_id)


def get_app_to_raise(app_id: str, wanted: int) -> Flow[App]:
    """Get an app, and again if it has the workers already: a single answer may be old, and raises nothing."""
    get = partial(outlast, app_id, partial(get_app, app_id))
    app = yield from get()
    return (yield from get()) if workers_of(app) == wanted > 0 else app


def restore_workers(
    raised: ScaleRecord, *, needed: int = 0, within: float | None = None
) -> Flow[ScaleRecord]:
    """
    Set an app back to what it was before it was raised, unless somebody else has set yet another number.

    :param needed: how many workers others need: it is not set to fewer.
    :param within: seconds that all of it may take, as at a kill. They are left to the caller to enforce.
    :return: what is known then. If it is not certain that the app was set back, the log says so, and it is
        still raised.
    """
    app_id, before, record = raised.app_id, raised.before, raised
    if needed >= (raised.active_workers or 0):
        return raised
    target = max(before or 0, needed)
    # the last request needs time for its answer
    retry_budget = RETRY_BUDGET if within is None else within * 0.75
    pause, confirm_within = retry_budget / 4, CONFIRM_TIME if within is None else retry_budget
    # what somebody else has set is not to be lost for a single answer, if there is time
    attempts, outlasting = (ATTEMPTS, retry.GONE_GRACE) if within is None else (1, 0.0)
    try:
        app = yield from ask_app(app_id, attempts=attempts, within=outlasting)
        now, workers = (yield Sleep(0)), workers_of(app)
        record = raised.seen(app, now)
        if workers is not None and not raised.covers(workers):
            log.warning("%s", raised.left_at(workers))
            return record.settled(workers, now)
        if needed and workers is not None and workers <= needed:
            return record
        if before is None:
            raise RunGenAppError("The number of workers before is unknown", app_id=app_id)
        app = yield from set_workers(
            app_id, target, poll_interval=pause, within=confirm_within, retry_budget=retry_budget
        )
    except RunGenNotFoundError:
        log.info("Gone already %s", format_ids(app_id))
        return record.settled(0, (yield Sleep(0)))
    except RunGenError as error:
        log.error("%s", raised.still_billed(error.message))
        return record
    if target or is_down(app):
        log.info("Scaled back to %s %s", format_count(target, "worker"), format_ids(app_id))
        record = record.settled(target, (yield Sleep(0)))
    return record


def set_workers(
    app_id: str,
    active_workers: int,
    *,
    before: int | None = None,
    poll_interval: float = PAUSE,
    within: float = CONFIRM_TIME,
    retry_budget: float = RETRY_BUDGET,
) -> Flow[App]:
    """
    Set the number of an app's workers, again until an answer confirms it, where answers name a number.

    An app that is set to none is down when `is_down` says so. If it does not, the log says what it still is.

    :param before: the number that it had, to leave it to a third that somebody else sets meanwhile.
    :param poll_interval: seconds between two attempts, `PAUSE` at most.
    :param within: seconds after which no further attempt is made.
    :param retry_budget: seconds after which a request that fails is not sent again.
    :raises RunGenAppTimeoutError: the answers named another number until then.
    :raises RunGenNotFoundError: the app is gone.
    """
    deadline, answer = (yield Sleep(0)) + within, App(app_id)
    has: int | None = -1
    scale = partial(scale_app, app_id, active_workers, retry_budget=retry_budget)
    within = min(within, retry_budget)
    while True:
        if has != active_workers:
            answer = yield from outlast(app_id, scale, within=within)
        try:  # the answer may only repeat the request
            app = yield from outlast(app_id, partial(get_app, app_id), within=within)
        except RunGenNotFoundError:
            raise
        except RunGenError:
            if answer.active_workers != active_workers:
                raise
            app = answer
        has = answer.active_workers if workers_of(app) is None else workers_of(app)
        if before not in (None, has):
            return app
        # an app that is to stop may name the number, or none, and still have its workers
        if has in (None, active_workers) and (active_workers or is_down(app)):
            return app
        now = yield Sleep(0)
        if now >= deadline:
            if has in (None, active_workers):
                line = "STILL BILLED: app %s may still have workers: it was set to none, and is %s"
                log.warning(line, app_id, describe(app))
                return app
            wanted = format_count(active_workers, "worker")
            message = f"Not scaled to {wanted}: still {describe(app)} {format_ids(app_id)}"
            raise RunGenAppTimeoutError(message, app_id=app_id)
        yield Sleep(min(poll_interval, PAUSE, deadline - now))


def stop_app(app_id: str, *, poll_interval: float, deadline: float) -> Flow[None]:
    """
    Stop an app, and wait until its workers are gone.

    :param poll_interval: seconds between two polls or attempts.
    :param deadline: the time (seconds since 1970) to stop at.
    :raises RunGenNotFoundError: it is gone already.
    :raises RunGenAppTimeoutError: it did not stop by the deadline.
    """
    within = deadline - (yield Sleep(0))
    # also if it says STOPPED: it may be about to start
    yield from set_workers(app_id, 0, poll_interval=poll_interval, within=within)
    yield from wait_for_app(AppTarget(app_id, "STOPPED"), poll_interval=poll_interval, deadline=deadline)
