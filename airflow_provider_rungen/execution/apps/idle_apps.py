"""Scales apps to zero that are idle: polls them, waits, and polls them again."""

from __future__ import annotations

import logging
import time
from typing import Any

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.idleness import IdleEvent, IdleWatch, check_app_ids, poll_idle_app
from airflow_provider_rungen.client.texts import clean_text, format_count, format_ids
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenError, RunGenNotFoundError
from airflow_provider_rungen.execution.task.job_ids import untemplated
from airflow_provider_rungen.execution.task.run import TaskRun, fail_without_retry

log = logging.getLogger(__name__)


class IdleAppsRun(TaskRun[Any]):
    """An attempt that scales idle apps to zero."""

    def execute(self) -> list[IdleEvent]:
        """
        Poll the apps, wait, poll those again that were idle, and scale down those that still are.

        :return: the events of the apps that were idle.
        :raises RunGenAppError: an app may be idle and billed. The others are dealt with.
        """
        idle_for = self.task.idle_for
        failures: dict[str, str] = {}
        with fail_without_retry(), self.opened():
            app_ids = check_app_ids(untemplated(self.task.app_ids))
            self.link_to(app_ids[0])
            watches = [IdleWatch(app_id, idle_for) for app_id in app_ids]
            self._poll(watches, failures)
            idle = [watch for watch in watches if watch.since is not None]
            if idle:
                line = "Polling %d of %d apps again in %s"
                log.info(line, len(idle), len(app_ids), format_duration(idle_for))
                last_poll = max(watch.since or 0 for watch in idle)
                self.hook.sleep(max(last_poll + idle_for - time.time(), 0))
            events = self._poll(idle, failures)
            if failures:
                apps, reasons = format_count(len(failures), "app"), clean_text("; ".join(failures.values()))
                message = f"STILL BILLED: {apps} may be idle: {reasons}"
                raise RunGenAppError(message, app_id=next(iter(failures)))
            return events

    def _poll(self, watches: list[IdleWatch], failures: dict[str, str]) -> list[IdleEvent]:
        """Poll apps, and return the events of those that have been idle for long enough."""
        events = []
        for watch in watches:
            try:
                event = self.hook.perform(poll_idle_app(watch, scale_down=self.task.scale_down))
            except RunGenNotFoundError:
                log.info("Gone already %s", format_ids(watch.app_id))
            except RunGenError as error:
                failures[watch.app_id] = error.message
            else:
                events += [event] if event is not None else []
        return events
