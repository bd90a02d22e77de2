"""Waits for an app as a sensor does: by pokes, or in the triggerer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import normalize_status
from airflow_provider_rungen.client.scaling import AppTarget, poll_app_once
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError
from airflow_provider_rungen.execution.apps.app_wait import Defer, wait_or_defer
from airflow_provider_rungen.execution.task.outcomes import raise_for_event
from airflow_provider_rungen.execution.task.run import TaskRun, fail_without_retry

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.task.options import RunOptions


class AppSensorRun(TaskRun["RunOptions"]):
    """
    An attempt of a sensor that waits for an app.

    :param task: the sensor.
    :param context: Airflow's context of the attempt.
    :param options: the sensor's parameters.
    :param status: the status to wait for.
    """

    def __init__(self, task: BaseOperator, context: Context, options: RunOptions, status: str) -> None:
        super().__init__(task, context, options)
        self._status = normalize_status(status or "RUNNING")
        self._target: AppTarget | None = None
        #: What the last poke found not to be so.
        self.late: RunGenAppTimeoutError | None = None

    def poke(self) -> bool:
        """Poll the app once, and return whether it has the status."""
        with fail_without_retry(), self.opened() as hook:
            target = self._known_target()
            is_ready = hook.perform(poll_app_once(target)) is not None
            self.late = None if is_ready else target.timeout_error()
            return is_ready

    def wait(self, timeout: float, poll_interval: float, defer: Defer) -> None:
        """
        Wait in the triggerer, unless the first poll finds the app ready.

        :param timeout: seconds to wait at most.
        :param poll_interval: seconds between two polls.
        :param defer: defers the task; see `wait_or_defer`.
        :raises RunGenAppTimeoutError: the time has passed.
        """
        now = time.time()
        ends: dict[str, float] = {"defer_at": now, "deadline": self.deadline(now + timeout)}
        with fail_without_retry(), self.opened():
            wait_or_defer(self, self._known_target(), defer, poll_interval=poll_interval, **ends)

    def _known_target(self) -> AppTarget:
        """Return what to wait for, with what earlier polls have seen."""
        self._target = self._target or AppTarget(self.app_id, self._status)
        if not self.links:
            self.link_to(self._target.app_id)
        return self._target

    def complete(self, event: Mapping[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        self.note_app(event.get("app_id") or self.known_app_id)
        with fail_without_retry():
            raise_for_event(event)
