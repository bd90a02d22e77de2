"""What the triggers have in common: when they fire, that they never raise, and what a kill does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, fields
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.outcomes import error_to_json

log = logging.getLogger(__name__)

# Airflow loses a deferred task whose trigger fires before the process that deferred it has exited
# (apache/airflow #72716, #71580).
SETTLING_TIME = 6.0
# Airflow gives on_kill 30 s.
CANCEL_TIME = 20.0
_kills: set[asyncio.Task[None]] = set()


@dataclass(kw_only=True, eq=False, repr=False)
class RunGenBaseTrigger(BaseTrigger):
    """A trigger whose fields are its arguments."""

    rungen_conn_id: str
    app_id: str | None
    deferred_at: float
    _clock_skew: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        BaseTrigger.__init__(self)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return f"airflow_provider_rungen.triggers.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        # a deferral in the future means that the clock of the worker is ahead of this one
        self._clock_skew = max(self.deferred_at - time.time(), 0.0)
        try:
            event = await self._event()
            await asyncio.sleep(self._local_time(self.deferred_at) + SETTLING_TIME - time.time())
        except asyncio.CancelledError:
            if not hasattr(BaseTrigger, "on_kill"):  # before Airflow 3.3 nobody else would call it
                await self.on_kill()
            raise
        yield TriggerEvent(event)

    def _local_time(self, at: float) -> float:
        """Convert a time by the clock of the worker to a time by this clock, as far as the skew is known."""
        return at - self._clock_skew

    async def _event(self) -> dict[str, Any]:
        event: dict[str, Any] = {"app_id": self.app_id or ""}
        try:
            await self._wait(event)
        except RunGenError as error:
            event |= {"outcome": "error", "error": error_to_json(error)}
        except Exception as error:
            # a trigger that raises reaches the task as a bare TaskDeferralError
            log.exception("Waiting for RunGen failed")
            failure = RunGenError(f"{type(error).__name__} in the triggerer: {clean_text(str(error))}")
            event |= {"outcome": "error", "error": error_to_json(failure)}
        return event

    async def _wait(self, event: dict[str, Any]) -> None:
        """Wait, and add the result to the event."""
        raise NotImplementedError

    async def on_kill(self) -> None:
        """
        Undo what a kill makes useless, if the task is no longer deferred.

        A trigger also ends if its triggerer stops, or if it moves to another one. Then the task is still
        deferred, and nothing is undone.
        """
        if not self._has_undo:
            return
        work = asyncio.create_task(self._undo_if_killed())
        _kills.add(work)
        work.add_done_callback(_kills.discard)
        while not work.done():
            # Airflow cancels an ending trigger each second, in on_kill, too (seen on 3.3.2)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(work)

    @property
    def _has_undo(self) -> bool:
        """Whether there is anything to undo."""
        raise NotImplementedError

    async def _undo_if_killed(self) -> None:
        try:
            state = await ask_airflow(attempts.task_state, self.task_instance)
        except Exception:
            log.exception("Could not read the state of the task: nothing is canceled or scaled down")
            return
        try:
            async with asyncio.timeout(CANCEL_TIME), RunGenHook(self.rungen_conn_id) as hook:
                await self._undo(hook, state)
        except Exception as error:
            log.error("%s: %s", self._remains(), str(error) or type(error).__name__)

    def _remains(self) -> str:
        """Return what may still run or be billed if it could not be undone, for the log."""
        raise NotImplementedError

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Undo what the state of the task makes useless."""
        raise NotImplementedError


async def ask_airflow(question: Callable[[Any], Any], ti: Any) -> Any:
    # not asyncio.to_thread: Airflow 3.1 asks on this loop, which only asgiref finds there
    return await sync_to_async(question, thread_sensitive=False)(ti)
