"""The trigger that scales idle apps to zero, for an ``AssetWatcher``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from airflow_provider_rungen._airflow import BaseEventTrigger
from airflow_provider_rungen.client.idleness import IdleEvent, IdleWatch, check_app_ids, poll_idle_app
from airflow_provider_rungen.client.poll_state import Outages, PollState
from airflow_provider_rungen.client.progress import log_line
from airflow_provider_rungen.client.texts import to_seconds
from airflow_provider_rungen.exceptions import RunGenError

if TYPE_CHECKING:
    from airflow_provider_rungen.hooks.rungen import RunGenHook
    from airflow_provider_rungen.parameters import Duration

log = logging.getLogger(__name__)


class RunGenIdleAppTrigger(BaseEventTrigger):
    """
    Watches apps without end, and scales each idle one to zero. For an ``AssetWatcher``.

    An app is idle if it has workers and, at each poll for ``idle_for``, its counters report that no job is
    queued or running, none has ended, and no worker is running or initializing. An app whose counters are
    absent is never idle.

    The event is ``{"app_id", "idle_seconds", "active_workers", "scaled_down"}``, with the number of workers
    before. A poll that fails is logged and sent again: the trigger never ends by itself.

    :param app_ids: the apps that may be scaled to zero, and no others. A text is one app.
    :param idle_for: seconds that an app must have been idle.
    :param scale_down: scale to zero. Otherwise, each idle period of an app is only reported, once.
    :param rungen_conn_id: the Airflow connection.
    :param poll_interval: seconds between two polls of an app.
    """

    def __init__(
        self,
        app_ids: str | Sequence[str],
        idle_for: Duration,
        *,
        scale_down: bool = True,
        rungen_conn_id: str = "rungen_default",
        poll_interval: Duration = 60,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.app_ids = check_app_ids(app_ids)
        self.idle_for = to_seconds(idle_for, "idle_for")
        self.scale_down = scale_down
        self.rungen_conn_id = rungen_conn_id
        self.poll_interval = to_seconds(poll_interval, "poll_interval")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("app_ids", "idle_for", "scale_down", "rungen_conn_id", "poll_interval")
        arguments = {name: getattr(self, name) for name in names}
        return f"airflow_provider_rungen.triggers.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        # imported here, since DAG files import this module, too
        from airflow_provider_rungen.hooks.rungen import RunGenHook

        events: asyncio.Queue[IdleEvent] = asyncio.Queue()
        async with RunGenHook(self.rungen_conn_id) as hook:
            loops = [asyncio.create_task(self._watch(hook, app_id, events)) for app_id in self.app_ids]
            try:
                while True:
                    yield TriggerEvent(dict(await events.get()))
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

    async def _watch(self, hook: RunGenHook, app_id: str, events: asyncio.Queue[IdleEvent]) -> None:
        """Poll an app without end, so that one without an answer does not delay the others."""
        watch = IdleWatch(app_id, self.idle_for)
        outages, state = Outages(log_line), PollState(0.0)
        while True:
            try:
                event = await hook.aperform(poll_idle_app(watch, scale_down=self.scale_down))
            except RunGenError as error:
                outages.note_failure(state, error, time.time())
            except Exception:
                log.exception("Could not poll app %s; polling continues", app_id)
            else:
                outages.note_answer(state, event, time.time())
                if event is not None:
                    events.put_nowait(event)
            # the service may ask for a longer pause
            await asyncio.sleep(max(self.poll_interval, state.not_before - time.time()))
