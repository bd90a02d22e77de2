"""Whether an app has anything left to do, or is idle: it has workers, and is billed. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.app_polling import outlast
from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.scaling import set_workers
from airflow_provider_rungen.client.texts import format_count, format_duration, format_ids
from airflow_provider_rungen.client.workers import describe, is_down, workers_of
from airflow_provider_rungen.exceptions import (
    RunGenAppTimeoutError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
)

log = logging.getLogger(__name__)

# An app is never taken for idle without these.
_FIGURES = (
    "active_workers",
    *("jobs.in_queue", "jobs.in_progress", "jobs.completed", "jobs.failed"),
    "workers.running",
)
# Seconds by which the counters of jobs may lag.
COUNTER_LAG = 10.0
# Answers that must lack the job counters before an app is taken for one that does not count its jobs.
MAX_MISSING_COUNTERS = 4
_UNKNOWN = "the service does not report"
# Counters of jobs that ended. Not every answer has the last one.
_ENDS = ("completed", "failed", "retried")


class IdleEvent(TypedDict):
    """
    What a watchdog reports of an app.

    :param app_id: the app.
    :param idle_seconds: how long it has been idle at least.
    :param active_workers: the number of workers that it had.
    :param scaled_down: whether it was scaled to zero.
    """

    app_id: str
    idle_seconds: float
    active_workers: int
    scaled_down: bool


def check_app_ids(app_ids: Any) -> list[str]:
    """
    Return the ids of apps, each once. A text is one id.

    :raises RunGenInputError: there is none, or one of them cannot be an id.
    """
    is_one = isinstance(app_ids, str) or not isinstance(app_ids, Iterable)
    ids: list[str] = [app_ids] if is_one else list(app_ids)
    if not ids:
        raise RunGenInputError("app_ids is empty. Name the apps that may be scaled to zero")
    for app_id in ids:
        path_segment(app_id, "app_ids")
    return list(dict.fromkeys(ids))


def why_not_idle(app: App) -> str | None:
    """
    Return the reason why an app is not idle, or ``None`` if it seems to be.

    A single answer proves nothing: see `IdleWatch`.
    """
    if workers_of(app) == 0:
        return "it has no workers"
    if app.status == "INITIALIZING" or app.workers.get("initializing"):
        return "it is initializing"
    known = {*(f"jobs.{name}" for name in app.jobs), *(f"workers.{name}" for name in app.workers)}
    known |= set() if app.active_workers is None else {"active_workers"}
    if missing := [name for name in _FIGURES if name not in known]:
        return f"{_UNKNOWN} {', '.join(missing)}"
    if app.pending_jobs:
        return f"{app.pending_jobs} jobs are queued or running"
    # the counters of jobs may be frozen, or lag behind
    if app.workers["running"]:
        return f"{app.workers['running']} workers are running"
    is_up = app.has_status("RUNNING") or app.workers.get("idle") or app.workers.get("ready")
    return None if is_up else f"no worker is up, and the status is {app.status or 'not reported'}"


@dataclass
class IdleWatch:
    """
    Watches an app until it has been idle for long enough. Times are in seconds since 1970.

    At each poll of the period, nothing was queued or running, no job had ended since the first one, and the
    number of workers was the same. Two polls are the least, ``idle_for`` apart.

    :param app_id: the app.
    :param idle_for: the seconds.
    :param since: the first poll of the period, or ``None`` if the app is not idle.
    :param figures: what must not change during the period.
    :param is_reported: whether an event of the period was sent.
    :param reason: why the app was not idle at the last poll.
    :param taken: what to report of the workers that were taken from it, unless a job needs them back.
    """

    app_id: str
    idle_for: float
    since: float | None = None
    figures: tuple[int, ...] = ()
    is_reported: bool = False
    reason: str | None = None
    taken: IdleEvent | None = None

    @property
    def is_down(self) -> bool:
        """Whether the app was scaled to zero, and may need its workers back."""
        return self.taken is not None and self.since is None

    def note(self, app: App, now: float) -> bool:
        """Record an answer, and return whether the app has been idle for long enough."""
        before, self.reason = self.reason or "", why_not_idle(app)
        if self.reason is not None:
            is_unknown = self.reason.startswith(_UNKNOWN)
            if not before or (is_unknown and not before.startswith(_UNKNOWN)):
                level = logging.WARNING if is_unknown else logging.INFO
                log.log(level, "Not idle: %s %s", self.reason, format_ids(self.app_id))
            self.restart()
            return False
        figures = (app.active_workers or 0, *(app.jobs.get(name, 0) for name in _ENDS))
        if self.since is None or figures != self.figures:
            workers = format_count(figures[0], "active worker")
            log.info("Idle: %s, no job queued or running %s", workers, format_ids(self.app_id))
            self.restart()
            self.since, self.figures = now, figures
        return now - self.since >= self.idle_for

    def restart(self) -> None:
        """Begin a new period with the next poll."""
        self.since, self.is_reported = None, False


def poll_idle_app(
    watch: IdleWatch, *, scale_down: bool, attempts: int = retry.ATTEMPTS
) -> Flow[IdleEvent | None]:
    """
    Poll an app, and scale it to zero if it has been idle for long enough; return what to report.

    :param watch: what earlier polls have seen.
    :param scale_down: whether to scale it to zero, or only to report it.
    :param attempts: how many times to send a poll at most.
    """
    app_id, poll = watch.app_id, partial(get_app, watch.app_id, attempts=attempts)
    if watch.taken and (event := (yield from _settle(watch, watch.taken, poll))):
        return event
    # an app that was not seen yet may never have existed: that is an error soon
    within = math.inf if watch.since is not None else retry.GONE_GRACE / 3 if attempts > 1 else 0.0
    # the second poll is sent since a single answer may be old, and a job may have come in
    for _ in range(2 if scale_down else 1):
        app = yield from outlast(app_id, poll, within=within)
        now = yield Sleep(0)
        if not watch.note(app, now) or watch.is_reported:
            return None
    idle_seconds, before = round(now - (watch.since or now), 1), watch.figures[0]
    event = IdleEvent(app_id=app_id, idle_seconds=idle_seconds, active_workers=before, scaled_down=scale_down)
    if not scale_down:
        watch.is_reported = True
        return event
    watch.taken = event
    try:
        app = yield from set_workers(app_id, 0)
        if not is_down(app):
            raise RunGenAppTimeoutError(f"Set to 0 workers, and still {describe(app)}", app_id=app_id)
    except RunGenNotFoundError:
        raise
    except RunGenError as error:
        log.error("STILL BILLED: app %s is idle, and may still have workers: %s", app_id, error)
        raise
    watch.restart()
    if not app.pending_jobs:
        yield Sleep(COUNTER_LAG)
    return (yield from _settle(watch, event, poll))


def _settle(watch: IdleWatch, taken: IdleEvent, poll: Callable[[], Flow[App]]) -> Flow[IdleEvent | None]:
    """
    Return the event of workers that were taken, or give them back if a job came in meanwhile.

    They stay on record until that is done, or somebody else has given the app workers.
    """
    app_id, workers = watch.app_id, format_count(taken["active_workers"], "worker")
    app = yield from outlast(app_id, poll)
    if workers_of(app) or app.pending_jobs is None:  # a single answer may be old, or without counters
        app = yield from outlast(app_id, poll)
    has_workers = bool(workers_of(app))
    if app.pending_jobs and not has_workers:
        jobs = format_count(app.pending_jobs, "job")
        log.warning("Scaling back to %s: %s came in meanwhile %s", workers, jobs, format_ids(app_id))
        try:
            yield from set_workers(app_id, taken["active_workers"])
        except RunGenNotFoundError:
            raise
        except RunGenError as error:
            log.error("NOT SCALED BACK: app %s has %s, and may have no worker: %s", app_id, jobs, error)
            raise
        has_workers = True
    watch.taken = None
    if has_workers:
        return None
    idle = format_duration(taken["idle_seconds"])
    log.info("Scaled from %s to 0, idle for %s %s", workers, idle, format_ids(app_id))
    return taken
