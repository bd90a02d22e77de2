"""Waits for an app as a sensor does: by pokes, or in the triggerer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen.client.models import normalize_status
from airflow_provider_rungen.client.scaling import AppTarget, poll_app_once
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError
from airflow_provider_rungen.execution.task.outcomes import raise_for_app_event
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
            self._target = self._target or AppTarget(self.app_id, self._status)
            if not self.links:
                self.link_to(self._target.app_id)
            is_ready = hook.perform(poll_app_once(self._target)) is not None
            self.late = None if is_ready else self._target.timeout_error()
            return is_ready

    def wait(
        self, timeout: float, poll_interval: float, defer: Callable[[dict[str, Any], float], NoReturn]
    ) -> None:
        """
        Wait in the triggerer, unless the first poll finds the app ready.

        :param timeout: seconds to wait at most.
        :param poll_interval: seconds between two polls.
        :param defer: defers the task with these arguments of `RunGenAppTrigger`, and seconds to the deadline.
        """
        deadline = self.deadline(time.time() + timeout)
        if self.poke():
            return
        now = time.time()
        defer(
            {
                "rungen_conn_id": self.options.rungen_conn_id,
                "app_id": self.app_id,
                "status": self._status,
                "poll_interval": poll_interval,
                "deadline": deadline,
                "deferred_at": now,
            },
            deadline - now,
        )

    def complete(self, event: Mapping[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        self.is_about(event.get("app_id") or self.known_app_id)
        with fail_without_retry():
            raise_for_app_event(event)
