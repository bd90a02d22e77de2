"""The trigger that waits for an app."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.app_polling import AppTarget, wait_for_app
from airflow_provider_rungen.client.scaling import restore_workers
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.execution.apps.block import Block, Needs, decide, read_scale_record
from airflow_provider_rungen.execution.task.outcomes import GO_ON
from airflow_provider_rungen.hooks.rungen import RunGenHook
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
    :param active_workers: the number of workers that the app has to be set to at least, if that matters.
    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param deferred_at: the time (seconds since 1970) of the deferral.
    :param raised: the number of workers to restore if a user marks or clears the task: see `ScaleRecord`.
    :param blocks: the blocks of the DAG, as `Block` has them, which may need the app then: see `decide`.
    """

    rungen_conn_id: str = RunGenHook.default_conn_name
    app_id: str = ""
    status: str = "RUNNING"
    active_workers: int | None = None
    poll_interval: float = 5
    deadline: float = 0
    deferred_at: float = 0
    raised: dict[str, Any] | None = None
    blocks: list[dict[str, Any]] = field(default_factory=list)

    async def _wait(self, event: dict[str, Any]) -> None:
        is_known = bool(self.deferred_at)  # a worker has looked at it
        target = AppTarget(self.app_id or "", self.status, self.active_workers, is_known=is_known)
        async with RunGenHook(self.rungen_conn_id) as hook:
            deadline = self._local_time(self.deadline)
            await hook.aperform(wait_for_app(target, poll_interval=self.poll_interval, deadline=deadline))
        event["outcome"] = GO_ON

    @property
    def _has_undo(self) -> bool:
        return self.raised is not None

    def _remains(self) -> str:
        return f"STILL BILLED: app {self.app_id} may still have the workers of this task"

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Restore the number of workers."""
        raised = read_scale_record(self.raised)
        if raised is None:
            return
        if state in (TaskInstanceState.DEFERRED, TaskInstanceState.RUNNING):
            log.info("Not scaled down, since another attempt waits for the app %s", format_ids(raised.app_id))
            return
        down, needs = await self._decide(raised.app_id)
        if down:
            log.info("Left to %s, which asks who needs it %s", down, format_ids(raised.app_id))
            return
        needs.warn(raised.app_id)
        await hook.asettings()
        within = base.CANCEL_TIME * 0.8
        flow = restore_workers(raised, needed=needs.workers, within=within)
        # a request without an answer must not take all the time
        await asyncio.to_thread(hook.perform_with_deadline, flow, within=within)

    async def _decide(self, app_id: str) -> tuple[str, Needs]:
        """Find out who undoes it. Without an answer, this trigger does: nobody else may."""
        blocks = [Block(**{**each, "jobs": tuple(each["jobs"])}) for each in self.blocks]
        ask = partial(decide, blocks=blocks, app_id=app_id)
        try:
            async with asyncio.timeout(base.CANCEL_TIME / 4):
                decided: tuple[str, Needs] = await base.ask_airflow(ask, self.task_instance)
        except Exception as error:
            log.warning("Could not ask who else needs app %s: %s", app_id, type(error).__name__)
            return "", Needs()
        return decided
