"""The trigger that waits for an app."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.apps.sharing import Block, is_left_to, other_run
from airflow_provider_rungen.client.apps import AppTarget, take_down, wait_for_app
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.task.outcomes import GO_ON
from airflow_provider_rungen.triggers import base
from airflow_provider_rungen.triggers.base import RunGenBaseTrigger

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class RunGenAppTrigger(RunGenBaseTrigger):
    """
    Waits until an app has a status.

    The event is ``{"outcome": "go on", "app_id"}`` or ``{"outcome": "error", "app_id", "error"}``, with the
    error as `error_to_json` returns it.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app.
    :param status: the status to wait for, such as ``RUNNING``.
    :param active_workers: how many workers the task gave the app. They are set again if the app says that it
        has none. The app is taken down if a user marks or clears the task.
    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param deferred_at: the time (seconds since 1970) of the deferral.
    :param down: the teardown of the task, if it has one.
    """

    rungen_conn_id: str = RunGenHook.default_conn_name
    app_id: str = ""
    status: str = "RUNNING"
    active_workers: int | None = None
    poll_interval: float = 5
    deadline: float = 0
    deferred_at: float = 0
    down: str = ""

    async def _wait(self, event: dict[str, Any]) -> None:
        is_known = bool(self.deferred_at)  # a worker has looked at it
        target = AppTarget(self.app_id, self.status, self.active_workers, is_known=is_known)
        async with RunGenHook(self.rungen_conn_id) as hook:
            deadline = self._local_time(self.deadline)
            await hook.aperform(wait_for_app(target, poll_interval=self.poll_interval, deadline=deadline))
        event["outcome"] = GO_ON

    @property
    def _has_undo(self) -> bool:
        return bool(self.active_workers)

    def _remains(self) -> str:
        return f"STILL BILLED: app {self.app_id} may still have the workers of this task"

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Take the app down, unless another attempt waits for it, or another run uses it."""
        if state in (TaskInstanceState.DEFERRED, TaskInstanceState.RUNNING):
            log.info("Not scaled down: another attempt waits for the app %s", format_ids(self.app_id))
            return
        if self.down and await self._is_left():
            return
        await hook.asettings()
        within = base.CANCEL_TIME * 0.6
        # a request without an answer must not take all the time
        flow = take_down(self.app_id, within=within * 0.75, pause=within / 4)
        await asyncio.to_thread(hook.perform_with_deadline, flow, within=within)
        log.info("Scaled to 0 workers %s", format_ids(self.app_id))

    async def _is_left(self) -> bool:
        ti: Any = self.task_instance
        answer = ""
        try:
            async with asyncio.timeout(base.CANCEL_TIME / 4):
                question = partial(other_run, block=Block(ti.task_id, self.down))
                answer = await base.ask_airflow(question, ti)
        except Exception as error:
            log.warning("Airflow did not say who else uses app %s: %s", self.app_id, type(error).__name__)
        return is_left_to(self.app_id, lambda: answer)
