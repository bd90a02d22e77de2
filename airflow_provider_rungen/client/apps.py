"""Wait for an app, and bring it to zero workers. No I/O."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.endpoints import get_app, list_apps, scale_app
from airflow_provider_rungen.client.flow import Flow, Sleep
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
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.client.workers import KNOWN_STATUSES, describe, workers_of
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError, RunGenError, RunGenNotFoundError

log = logging.getLogger(__name__)

# Seconds in which an app must report that it has no workers, and between polls.
DOWN_TIME = 60.0
PAUSE = 5.0


@dataclass
class AppTarget:
    """
    What an app is waited for to be.

    :param app_id: the app.
    :param status: the status that it must have, such as ``RUNNING``.
    :param active_workers: the number of workers to set again whenever the app says that it has none.
    :param is_known: whether the service has answered for it before, so that a refusal may pass.
    """

    app_id: str
    status: str = "RUNNING"
    active_workers: int | None = None
    is_known: bool = False
    outages: Outages = field(default_factory=lambda: Outages(log_line), repr=False)
    _state: PollState = field(default_factory=lambda: PollState(0.0), repr=False)
    _app: App | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._state.is_known = self.is_known

    def poll_once(self, seconds_left: float | None = None) -> Flow[App | None]:
        """
        Poll the app once; return it if it is as it must be.

        :param seconds_left: seconds to the deadline. Without it, the poll stands alone: it outlasts a stray
            refusal.
        :raises RunGenError: no waiting can change it.
        """
        if seconds_left is None:
            poll = partial(self.poll_once, retry.PATIENCE)
            return (yield from poll_alone(poll, self.outages, lambda: self._state.is_in_doubt))
        end_by = polls_end_by((yield Sleep(0)), seconds_left)
        answer = yield from in_flight(self._state, self._look(end_by))
        now, state = (yield Sleep(0)), self._state
        if isinstance(answer, App):
            self.outages.note_answer(state, answer, now)
            state.is_known = True
        elif isinstance(answer, retry.NOT_FOUND) and state.may_appear(answer, now):
            log.warning("%s; polling continues", answer.message)
        elif self.outages.outlasts(state, answer, now):
            self.outages.note_failed_round([answer])
        else:
            raise answer
        self.outages.end_round(now)
        return answer if isinstance(answer, App) and self._is_met(answer) else None

    def _look(self, end_by: float) -> Flow[App]:
        timeout = poll_timeout(end_by, (yield Sleep(0)))
        app = yield from get_app(self.app_id, attempts=1, timeout=timeout)
        if self._is_lowered(app):  # by a teardown that came between, or the number never got there
            workers = format_count(self.active_workers, "worker")
            log.info("Has no workers: scaling to %s again %s", workers, format_ids(self.app_id))
            yield from scale_app(self.app_id, self.active_workers or 0, attempts=1)
        return app

    def _is_lowered(self, app: App) -> bool:
        return bool(self.active_workers) and workers_of(app) == 0

    def _is_met(self, app: App) -> bool:
        if self._app is None or describe(app) != describe(self._app):
            level = logging.INFO if app.status in KNOWN_STATUSES else logging.WARNING
            log.log(level, "%s %s", describe(app), format_ids(self.app_id))
        self._app = app
        return app.has_status(self.status) and not self._is_lowered(app)

    def timeout_error(self) -> RunGenAppTimeoutError:
        """Return the error for an app that did not get there in time, with what was last seen."""
        seen = "the service did not answer" if self._app is None else f"it is {describe(self._app)}"
        message = f"Not {self.status} in time: {seen} {format_ids(self.app_id)}"
        return RunGenAppTimeoutError(message, app_id=self.app_id)


def wait_for_app(target: AppTarget, *, poll_interval: float, deadline: float) -> Flow[App]:
    """
    Wait until an app is as it must be; a poll that fails and may succeed later does not end the wait.

    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop at; one that has passed allows a single poll.
    :raises RunGenAppTimeoutError: the deadline passed.
    """
    polls = poll_until(target.poll_once, target.outages, pauses=repeat(poll_interval), deadline=deadline)
    if (app := (yield from polls)) is None:
        raise target.timeout_error()
    return app


def take_down(app_id: str, *, within: float | None = None, pause: float | None = None) -> Flow[bool]:
    """
    Set an app to zero workers, whatever it says that it has, and again until it says that it has none.

    :param within: seconds after which it is not tried again; `DOWN_TIME` by default.
    :param pause: seconds between two tries; `PAUSE` by default.
    :return: whether the app exists.
    :raises RunGenError: it may still have workers.
    """
    give_up_at = (yield Sleep(0)) + (DOWN_TIME if within is None else within)
    while True:
        failure = yield from _try_to_take_down(app_id)
        if failure is None:
            return True
        if isinstance(failure, RunGenNotFoundError) and not failure.retryable:
            if all(app.id != app_id for app in (yield from list_apps(attempts=1))):
                log.info("The app does not exist %s", format_ids(app_id))
                return False
            failure.retryable = True  # it was a stray answer
        now = yield Sleep(0)
        delay = max(PAUSE if pause is None else pause, failure.retry_after or 0.0)
        if not failure.retryable or now + delay > give_up_at:
            raise failure
        yield Sleep(delay)


def _try_to_take_down(app_id: str) -> Flow[RunGenError | None]:
    """Set the number once, and look; return why it is not certain that the app is down."""
    refusal: RunGenError | None = None
    try:
        yield from scale_app(app_id, 0, attempts=1)
    except RunGenError as error:
        refusal = error
    try:
        app = yield from get_app(app_id, attempts=1)
        # what the service refuses for good changes nothing: then the app's word counts
        if workers_of(app) == 0 and (refusal is None or not refusal.retryable):
            return None
        still = f"Set to no workers, and it is {describe(app)} {format_ids(app_id)}"
        return refusal or RunGenAppTimeoutError(still, app_id=app_id)
    except RunGenNotFoundError as error:
        return error
    except RunGenError as error:
        return refusal or error
