"""How an app is polled until it is gone, or as it must be. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.endpoints import get_app, list_apps
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
from airflow_provider_rungen.client.texts import format_count, format_duration, format_ids
from airflow_provider_rungen.client.workers import KNOWN_STATUSES, describe
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenBadRequestError,
    RunGenError,
)

log = logging.getLogger(__name__)


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
    :param is_known: whether the service has answered for it before, so that a refusal may pass.
    """

    app_id: str
    is_known: bool = field(default=False, kw_only=True)
    outages: Outages = field(default_factory=lambda: Outages(log_line), repr=False, kw_only=True)
    _state: PollState = field(default_factory=lambda: PollState(0.0), repr=False, kw_only=True)

    def __post_init__(self) -> None:
        self._state.is_known = self.is_known

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
