"""Perform a task as Airflow does: render its templates, execute it, run its trigger after each deferral."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.emulator import upstreams
from airflow_provider_rungen.emulator.fakes import RETURN_VALUE
from airflow_provider_rungen.emulator.timelimit import interrupting, run_apart

if TYPE_CHECKING:
    from airflow_provider_rungen.emulator.server import Emulator
    from airflow_provider_rungen.emulator.testing import TaskResult

_SECONDS_TO_END = 10.0


class Performance:
    """
    One attempt of a task.

    :param operator: its operator.
    :param context: what Airflow gives it.
    :param result: gets its events and time limits.
    :param emulator: stands still until a deferrable task has deferred.
    """

    def __init__(
        self, operator: Any, context: dict[str, Any], result: TaskResult, emulator: Emulator | None
    ) -> None:
        self.task = operator
        self._context = context
        self._result = result
        self._emulator = emulator
        self._trigger: Any = None

    def run(self, pulled: Mapping[str, Mapping[str, Any]], replace: Mapping[str, Any]) -> Any:
        """
        Return what the task returns.

        :param pulled: the XComs of earlier tasks, by task id and key.
        :param replace: the attributes that are set once the templates are rendered.
        """
        self.task = upstreams.render(self.task, self._context, pulled)
        for name, value in replace.items():
            if not hasattr(self.task, name):
                raise TypeError(f"{type(self.task).__name__} has no parameter {name!r} to replace")
            setattr(self.task, name, value)
        return self._execute()

    def _execute(self) -> Any:
        from airflow_provider_rungen._airflow import TaskDeferred

        task, context = self.task, self._context
        step: Callable[[], Any] = partial(task.execute, context, **_as_task_runner(task))
        pause: Any = contextlib.nullcontext()
        if self._emulator is not None and getattr(task, "deferrable", False):
            pause = self._emulator.service.paused()
            task.defer_after = 0.0  # no job ends before, and the pause is short
        while True:
            try:
                with pause:
                    return step()
            except TaskDeferred as deferral:
                pause = contextlib.nullcontext()
                self._result.timeouts.append(deferral.timeout)
                method, kwargs = deferral.method_name, dict(deferral.kwargs or {})
                self._trigger = deferral.trigger
                try:
                    event = run_apart(partial(_first_event, deferral.trigger, deferral.timeout))
                except Exception as error:  # as the triggerer reports it
                    reason = "Trigger timeout" if isinstance(error, TimeoutError) else "Trigger failure"
                    method, kwargs = (
                        "__fail__",
                        {"error": reason, "traceback": traceback.format_exception(error)},
                    )
                else:
                    self._result.events.append(event.payload)
                    if (state := getattr(event, "task_instance_state", None)) is not None:
                        return _end_from_trigger(event, str(state), context["ti"])
                    kwargs["event"] = event.payload
                self._trigger = None
                step = partial(task.resume_execution, method, kwargs, context)

    @property
    def state(self) -> str:
        """What it does: ``executing``, or where it waits."""
        return "executing" if self._trigger is None else f"deferred to {type(self._trigger).__name__}"

    def end(self) -> None:
        """End what the task began, as Airflow does when its time has passed."""
        from airflow_provider_rungen._airflow import AirflowTaskTimeout

        with contextlib.suppress(Exception, AirflowTaskTimeout), interrupting(_SECONDS_TO_END):
            if self._trigger is None:
                self.task.on_kill()
            else:
                self.task.resume_execution("__fail__", {"error": "Trigger timeout"}, self._context)


async def _first_event(trigger: Any, limit: timedelta | None) -> Any:
    """Run a trigger as the triggerer does, made again from what is stored of it, until it fires."""
    path, kwargs = trigger.serialize()
    if "deferred_at" in kwargs:  # no process that deferred is still to end
        kwargs["deferred_at"] = time.time() - 60
    module, _, name = path.rpartition(".")
    stream = getattr(import_module(module), name)(**kwargs).run()
    try:
        async with asyncio.timeout(None if limit is None else limit.total_seconds()):
            return await anext(stream)
    finally:
        await stream.aclose()


def _end_from_trigger(event: Any, state: str, ti: Any) -> Any:
    """Do what Airflow does when an event ends the task, and return what the task returned."""
    for key, value in (event.xcoms or {}).items():
        ti.xcom_push(key=key, value=value)
    if state != "success":
        raise RuntimeError(f"the trigger ended the task: {state}")
    return ti.xcoms.get(RETURN_VALUE)


def _as_task_runner(operator: Any) -> dict[str, Any]:
    """Return the argument by which Airflow knows that a task is executed by itself."""
    from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS

    if not hasattr(operator.execute, "__wrapped__"):
        return {}
    if AIRFLOW_V_3_0_PLUS:
        from airflow.sdk.bases.operator import ExecutorSafeguard

        sentinel: Any = ExecutorSafeguard.sentinel_value
    else:
        sentinel = vars(import_module("airflow.models.base"))["_sentinel"]
    return {f"{type(operator).__name__}__sentinel": sentinel}
