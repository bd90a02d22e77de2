"""Whether an app is idle: it has workers, is billed, and has nothing to do. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from airflow_provider_rungen.client.apps import take_down
from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.texts import format_count, format_duration, format_ids
from airflow_provider_rungen.client.workers import workers_of
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError

log = logging.getLogger(__name__)

# An app is never taken for idle without these.
_FIGURES = (
    "active_workers",
    *("jobs.in_queue", "jobs.in_progress", "jobs.completed", "jobs.failed"),
    "workers.running",
)
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
    :param is_reported: whether the period was reported.
    :param reason: why the app was not idle at the last poll.
    """

    app_id: str
    idle_for: float
    since: float | None = None
    figures: tuple[int, ...] = ()
    is_reported: bool = False
    reason: str | None = None

    def note(self, app: App, now: float) -> bool:
        """Record an answer, and return whether the app has been idle for long enough."""
        before, self.reason = self.reason or "", why_not_idle(app)
        if self.reason is not None:
            is_unknown = self.reason.startswith(_UNKNOWN)
            if not before or (is_unknown and not before.startswith(_UNKNOWN)):
                level = logging.WARNING if is_unknown else logging.INFO
                log.log(level, "Not idle: %s %s", self.reason, format_ids(self.app_id))
            self.since = None
            return False
        figures = (app.active_workers or 0, *(app.jobs.get(name, 0) for name in _ENDS))
        if self.since is None or figures != self.figures:
            workers = format_count(figures[0], "active worker")
            log.info("Idle: %s, no job queued or running %s", workers, format_ids(self.app_id))
            self.since, self.figures, self.is_reported = now, figures, False
        return now - self.since >= self.idle_for


def poll_idle_app(watch: IdleWatch, *, scale_down: bool) -> Flow[IdleEvent | None]:
    """
    Poll an app, and take it down if it has been idle for long enough; return what to report.

    :param watch: what earlier polls have seen.
    :param scale_down: whether to take it down, or only to report it.
    :raises RunGenError: the poll failed, or the app may still have workers.
    """
    app_id = watch.app_id
    app = yield from get_app(app_id, attempts=1)
    now = yield Sleep(0)
    if not watch.note(app, now) or watch.is_reported:
        return None
    idle_seconds, workers = round(now - (watch.since or now), 1), watch.figures[0]
    if scale_down:
        try:
            yield from take_down(app_id)
        except RunGenError as error:
            log.error("STILL BILLED: app %s is idle, and may still have workers: %s", app_id, error)
            raise
        idle = format_duration(idle_seconds)
        before = format_count(workers, "worker")
        log.info("Scaled from %s to 0, idle for %s %s", before, idle, format_ids(app_id))
    watch.is_reported = True
    return IdleEvent(app_id=app_id, idle_seconds=idle_seconds, active_workers=workers, scaled_down=scale_down)
