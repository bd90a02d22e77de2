"""Scales apps to zero that are idle: polls them, waits, and polls them again."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.idleness import (
    IdleEvent,
    IdleWatch,
    check_app_ids,
    first_poll,
    poll_idle_app,
)
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenError, RunGenNotFoundError
from airflow_provider_rungen.execution.task.job_ids import untemplated
from airflow_provider_rungen.execution.task.options import RunOptions
from airflow_provider_rungen.execution.task.run import TaskRun, fail_without_retry

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context

log = logging.getLogger(__name__)

_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class IdleAppsOptions(RunOptions):
    """Which apps are scaled down, and when. The fields are named and described as the parameters are."""

    app_id: str | None = None
    app_ids: Any
    idle_for: float
    scale_down: bool


class IdleAppsRun(TaskRun[IdleAppsOptions]):
    """An attempt that scales idle apps to zero."""

    def __init__(self, task: BaseOperator, context: Context, options: IdleAppsOptions) -> None:
        super().__init__(task, context, options)
        # why apps could not be polled or scaled down
        self._failures: dict[str, str] = {}

    def execute(self) -> list[IdleEvent]:
        """
        Poll the apps, wait, poll those again that were idle, and scale down those that still are.

        :return: the events of the apps that were idle.
        :raises RunGenAppError: an app may be idle and billed. The others are dealt with.
        """
        with fail_without_retry(), self.opened():
            app_ids = check_app_ids(untemplated(self.options.app_ids))
            self.link_to(app_ids[0])
            watches = [IdleWatch(app_id, self.options.idle_for) for app_id in app_ids]
            idle = [watch for watch in watches if self._is_idle_at_first(watch)]
            if idle:
                self._wait(idle, len(app_ids))
            events = [event for watch in idle if (event := self._scale_down(watch)) is not None]
            if self._failures:
                raise self._failure()
            return events

    def _is_idle_at_first(self, watch: IdleWatch) -> bool:
        try:
            return self.hook.perform(first_poll(watch))
        except RunGenError as error:
            self._failures[watch.app_id] = error.message
            return False

    def _wait(self, idle: list[IdleWatch], count: int) -> None:
        """Wait until each of the idle apps has been watched for long enough."""
        idle_for = self.options.idle_for
        log.info("Polling %d of %d apps again in %s", len(idle), count, format_duration(idle_for))
        last_poll = max(watch.since or 0 for watch in idle)
        self.hook.sleep(max(last_poll + idle_for - time.time(), 0))

    def _scale_down(self, watch: IdleWatch) -> IdleEvent | None:
        try:
            return self.hook.perform(poll_idle_app(watch, scale_down=self.options.scale_down))
        except RunGenNotFoundError:
            log.info("Gone already %s", format_ids(watch.app_id))
        except RunGenError as error:
            self._failures[watch.app_id] = error.message
        return None

    def _failure(self) -> RunGenAppError:
        """Return the error for the apps that could not be polled or scaled down. A retry may always help."""
        reasons = list(self._failures.values())
        more = f"; and {len(reasons) - _MAX_NAMED} more" if len(reasons) > _MAX_NAMED else ""
        apps = format_count(len(reasons), "app")
        return RunGenAppError(
            f"STILL BILLED: {apps} may be idle: {'; '.join(reasons[:_MAX_NAMED])}{more}",
            app_id=next(iter(self._failures)),
        )
