"""Wait for an app, on the worker or in the triggerer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from airflow_provider_rungen.client.apps import AppTarget, wait_for_app
from airflow_provider_rungen.client.models import normalize_status
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError
from airflow_provider_rungen.task.outcomes import raise_for_event
from airflow_provider_rungen.task.run import TaskRun

log = logging.getLogger(__name__)


def wait_or_defer(
    run: TaskRun[Any], target: AppTarget, deadline: float, *, is_deferred: bool, down: str = ""
) -> None:
    """
    Wait until an app is as it must be.

    :param run: the attempt, whose hook is open.
    :param deadline: the time (seconds since 1970) to stop at.
    :param is_deferred: whether to go on in the triggerer if the first poll does not end the wait.
    :param down: the teardown of the task, if it has one.
    :raises RunGenAppTimeoutError: the deadline passed.
    """
    task, until = run.task, 0.0 if is_deferred else math.inf
    try:
        polls = wait_for_app(target, poll_interval=task.poll_interval, deadline=min(until, deadline))
        run.hook.perform(polls)
        return
    except RunGenAppTimeoutError:
        if (now := time.time()) >= deadline:
            raise
    log.info("Waiting in the triggerer for %s %s", target.status, format_ids(target.app_id))
    arguments = {
        "rungen_conn_id": task.rungen_conn_id,
        "app_id": target.app_id,
        "status": target.status,
        "active_workers": target.active_workers,
        "poll_interval": task.poll_interval,
        "deadline": deadline,
        "deferred_at": now,
        "down": down,
    }
    task.defer_for_app(arguments, deadline - now)


class AppSensorRun(TaskRun[Any]):
    """An attempt of a sensor that waits for an app."""

    _target: AppTarget | None = None
    #: The error of a time-out that may come before the next poke.
    late: RunGenAppTimeoutError | None = None

    def poke(self) -> bool:
        """Poll the app once, and return whether it has the status."""
        with self.attempt(), self.opened() as hook:
            target = self._known_target()
            is_ready = hook.perform(target.poll_once()) is not None
            self.late = None if is_ready else target.timeout_error()
            return is_ready

    def execute(self, timeout: float) -> None:
        """
        Wait in the triggerer, unless the first poll finds the app ready.

        :param timeout: seconds to wait at most.
        :raises RunGenAppTimeoutError: the time has passed.
        """
        with self.attempt(), self.opened():
            deadline = self.deadline(time.time() + timeout)
            wait_or_defer(self, self._known_target(), deadline, is_deferred=True)

    def complete(self, event: Mapping[str, Any], timeout: float) -> None:
        """Go on after the wait in the triggerer, which has taken all of the time."""
        self.note_app(event.get("app_id") or self.known_app_id)
        with self.attempt():
            raise_for_event(event)

    def _known_target(self) -> AppTarget:
        """Return what to wait for, with what earlier polls have seen."""
        status = normalize_status(self.task.status or "RUNNING")
        self._target = self._target or AppTarget(self.app_id, status)
        if not self.links:
            self.link_to(self._target.app_id)
        return self._target
