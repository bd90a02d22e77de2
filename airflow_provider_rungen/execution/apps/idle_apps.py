"""Scales apps to zero that are idle: polls them, waits, and polls them again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

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
from airflow_provider_rungen.runs import records

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context

log = logging.getLogger(__name__)

#: The XCom key of what the first polls have seen.
KEY = "idle_since"
_MAX_NAMED = 3
_LONGEST_REASON = 10_000


@dataclass(frozen=True, kw_only=True)
class IdleAppsOptions(RunOptions):
    """Which apps are scaled down, and when. The fields are named and described as the parameters are."""

    app_id: str | None = None
    app_ids: Any
    idle_for: float
    scale_down: bool
    deferrable: bool


class IdleAppsRun(TaskRun[IdleAppsOptions]):
    """
    An attempt that scales idle apps to zero.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: the operator's parameters.
    :param defer: defers the task for so many seconds.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        options: IdleAppsOptions,
        defer: Callable[[float], NoReturn],
    ) -> None:
        super().__init__(task, context, options)
        self._defer = defer
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
            seen = [watch for watch in watches if self._is_idle_at_first(watch)]
            if seen:
                idle_for = format_duration(self.options.idle_for)
                log.info("Polling %d of %d apps again in %s", len(seen), len(app_ids), idle_for)
                if self.options.deferrable:
                    self._save(seen)
                    self._defer(self.options.idle_for)
            return self._finish(seen)

    def complete(self) -> list[IdleEvent]:
        """
        Go on after the wait in the triggerer.

        :return: the events of the apps that were idle.
        """
        with fail_without_retry(), self.opened():
            return self._finish(self._load())

    def _is_idle_at_first(self, watch: IdleWatch) -> bool:
        try:
            return self.hook.perform(first_poll(watch))
        except RunGenError as error:
            self._failures[watch.app_id] = error.message
            return False

    def _finish(self, watches: list[IdleWatch]) -> list[IdleEvent]:
        if watches:
            # after a deferral, too: the clocks of two workers may differ
            polled_at = max(watch.since or 0 for watch in watches)
            self.hook.sleep(max(polled_at + self.options.idle_for - time.time(), 0))
        events = [event for watch in watches if (event := self._scale_down(watch)) is not None]
        if self._failures:
            raise self._failure()
        return events

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

    # --- over a deferral ---

    def _save(self, watches: list[IdleWatch]) -> None:
        """Push what was seen: `dag.test()` drops the arguments of a deferral."""
        apps = {watch.app_id: {"since": watch.since, "figures": watch.figures} for watch in watches}
        self.ti.xcom_push(
            key=KEY, value={"version": records.VERSION, "apps": apps, "failures": self._failures}
        )

    def _load(self) -> list[IdleWatch]:
        loaded = records.parse(KEY, self.xcom_pull(KEY), self._read, "no app is scaled down")
        if loaded is None:
            raise RunGenAppError("It is not known which apps were idle before the wait")
        return loaded

    def _read(self, fields: Mapping[str, Any]) -> list[IdleWatch]:
        apps, failures = fields["apps"], fields["failures"]
        if not isinstance(apps, Mapping) or not isinstance(failures, Mapping):
            raise records.InvalidRecordError("it holds no apps")
        self._failures = {
            app_id: records.text(reason, "failures", most=_LONGEST_REASON)
            for app_id, reason in failures.items()
        }
        return [self._read_watch(app_id, seen) for app_id, seen in apps.items()]

    def _read_watch(self, app_id: str, seen: Any) -> IdleWatch:
        figures = seen["figures"]
        if not isinstance(figures, list | tuple) or not all(isinstance(figure, int) for figure in figures):
            raise records.InvalidRecordError("figures are not numbers")
        since = records.seconds(seen["since"], "since")
        return IdleWatch(app_id, self.options.idle_for, since, tuple(figures))
