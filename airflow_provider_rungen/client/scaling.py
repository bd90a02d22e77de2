"""How an app is brought to a number of workers, and back. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.app_polling import AppTarget, outlast, wait_for_app
from airflow_provider_rungen.client.endpoints import get_app, scale_app
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.retry import ATTEMPTS, RETRY_BUDGET
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.client.workers import ScaleRecord, describe, is_down, workers_of
from airflow_provider_rungen.exceptions import (
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenError,
    RunGenNotFoundError,
)

log = logging.getLogger(__name__)

# Seconds within which a changed number of workers must be confirmed, and between two attempts.
CONFIRM_TIME = 60.0
PAUSE = 5.0


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
    raised: ScaleRecord,
    *,
    needed: int = 0,
    ask: Callable[[], int] | None = None,
    within: float | None = None,
) -> Flow[ScaleRecord]:
    """
    Set an app back to what it was before it was raised, unless somebody else has set yet another number.

    :param needed: how many workers others need: it is not set to fewer.
    :param ask: returns how many they need by then: see `set_workers`.
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

    def ask_again() -> int:
        nonlocal target
        target = max(before or 0, needed if ask is None else ask())
        return target

    try:
        app = yield from ask_app(app_id, attempts=attempts, within=outlasting)
        now, workers = (yield Sleep(0)), workers_of(app)
        record = raised.seen(app, now)
        if workers is not None and not raised.covers(workers):
            log.warning("%s", raised.left_at(workers))
            return record.settled(workers, now)
        if workers is not None and workers < needed:  # just as many may be old news
            return record
        if before is None:
            raise RunGenAppError("The number of workers before is unknown", app_id=app_id)
        app = yield from set_workers(
            app_id,
            target,
            ask=ask_again,
            poll_interval=pause,
            within=confirm_within,
            retry_budget=retry_budget,
        )
    except RunGenNotFoundError:
        log.info("Gone already %s", format_ids(app_id))
        return record.settled(0, (yield Sleep(0)))
    except RunGenError as error:
        log.error("%s", raised.still_billed(error.message))
        return record
    if target or is_down(app):
        log.info("Scaled to %s %s", format_count(target, "worker"), format_ids(app_id))
        # what others have set beyond that is theirs; what they leave when they end is still to be restored
        least = min(target, raised.active_workers or 0)
        record = replace(record.settled(least, (yield Sleep(0))), before=min(before or 0, least))
    return record


def set_workers(
    app_id: str,
    active_workers: int,
    *,
    ask: Callable[[], int] | None = None,
    before: int | None = None,
    poll_interval: float = PAUSE,
    within: float | None = None,
    retry_budget: float = RETRY_BUDGET,
) -> Flow[App]:
    """
    Set the number of an app's workers, again until an answer confirms it, where answers name a number.

    An app that is set to none is down when `is_down` says so. If it does not, the log says what it still is.

    :param ask: returns the number that is wanted by then. It is called before the request is sent once more,
        and at the end, and may block. Another number has all of the time again.
    :param before: the number that it had, to leave it to a third that somebody else sets meanwhile.
    :param poll_interval: seconds between two attempts, `PAUSE` at most.
    :param within: seconds after which no further attempt is made; `CONFIRM_TIME` by default.
    :param retry_budget: seconds after which a request that fails is not sent again.
    :raises RunGenAppTimeoutError: the answers named another number until then.
    :raises RunGenNotFoundError: the app is gone.
    """
    within = CONFIRM_TIME if within is None else within
    deadline, outlasting = (yield Sleep(0)) + within, min(within, retry_budget)
    wanted, answer, is_new = active_workers, App(app_id), True
    has: int | None = -1

    def is_changed() -> Flow[bool]:
        """Return whether another number is wanted now. The time of the question does not count."""
        nonlocal wanted, deadline
        if ask is None:
            return False
        last, begun_at = wanted, (yield Sleep(0))
        wanted = ask()
        now = yield Sleep(0)
        deadline = now + within if wanted != last else deadline + now - begun_at
        return wanted != last

    def put(_: int) -> Flow[App]:
        nonlocal is_new
        if not is_new:
            yield from is_changed()
        is_new = False
        return (yield from scale_app(app_id, wanted, attempts=1))

    request = partial(retry.retry, put, _may_retry, retry_budget=retry_budget)
    while True:
        if has != wanted:
            answer = yield from outlast(app_id, request, within=outlasting)
        app = yield from _see(app_id, answer, wanted, outlasting)
        has = answer.active_workers if workers_of(app) is None else workers_of(app)
        if before not in (None, has):
            return app
        now = yield Sleep(0)
        # an app that is to stop may name the number, or none, and still have its workers
        if has in (None, wanted) and (wanted or is_down(app) or now >= deadline):
            if not (yield from is_changed()):
                break
            has, is_new = -1, True
        elif now >= deadline:
            count = format_count(wanted, "worker")
            message = f"Not scaled to {count}: still {describe(app)} {format_ids(app_id)}"
            raise RunGenAppTimeoutError(message, app_id=app_id)
        else:
            yield Sleep(min(poll_interval, PAUSE, deadline - now))
    if not wanted and not is_down(app):
        line = "STILL BILLED: app %s may still have workers: it was set to none, and is %s"
        log.warning(line, app_id, describe(app))
    return app


def _may_retry(error: RunGenError) -> bool:
    # what stays up is billed, and a key may be about to be replaced
    return retry.is_transient(error) or retry.is_refusal(error)


def _see(app_id: str, answer: App, wanted: int, within: float) -> Flow[App]:
    """Get an app, for an answer may only repeat the request. Without any, one that has the number counts."""
    try:
        return (yield from outlast(app_id, partial(get_app, app_id), within=within))
    except RunGenNotFoundError:
        raise
    except RunGenError:
        if answer.active_workers != wanted:
            raise
        return answer


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
    target = AppTarget(app_id, "STOPPED", is_known=True)
    yield from wait_for_app(target, poll_interval=poll_interval, deadline=deadline)
