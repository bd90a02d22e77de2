"""Run one operator in a test, without a database: `run_operator`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.emulator import fakes
from airflow_provider_rungen.emulator.fakes import RETURN_VALUE

if TYPE_CHECKING:
    from airflow_provider_rungen.emulator.server import Emulator

__all__ = ["TaskResult", "run_operator"]

_PACKAGE = "airflow_provider_rungen"


@dataclass
class TaskResult:
    """
    How a task ended.

    :param value: what it returned.
    :param error: what it raised, or ``None``.
    :param xcoms: what it pushed, by key. What it returned is ``return_value``.
    :param log: its log, with a level at the start of each line.
    :param rendered: its template fields, as they were at the end.
    :param events: what its triggers sent, an event for each deferral.
    :param timeouts: the time (a ``timedelta``, or ``None``) that Airflow would have given each deferral.
    """

    value: Any = None
    error: BaseException | None = None
    xcoms: dict[str, Any] = field(default_factory=dict, compare=False)
    log: str = field(default="", compare=False)
    rendered: dict[str, Any] = field(default_factory=dict, compare=False)
    events: list[Any] = field(default_factory=list)
    timeouts: list[Any] = field(default_factory=list)


def run_operator(
    operator: Any,
    *,
    upstream: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    emulator: Emulator | None = None,
) -> TaskResult:
    """
    Render the templates of an operator, execute it, and run its trigger after each deferral.

    An error is returned, not raised. Connections and variables come from the environment. Nothing is stored:
    the operator can be run again. A trigger fires as soon as it can, since no process has to end first.

    :param operator: the operator, or what a decorated function returned in a DAG. It needs no DAG.
    :param upstream: what earlier tasks returned, by task id, for ``.output`` and ``ti.xcom_pull``. A
        `TaskResult` also has what they pushed, and whether they failed. Other tasks have not run yet.
    :param context: entries of Airflow's context, such as ``{"ds": "2026-01-31"}``, that replace those made
        here.
    :param emulator: makes a deferrable operator defer at once, whatever its ``defer_after``. The emulator's
        clock stands still until then, so that no job ends before.
    """
    if not _is_executable(operator):
        operator = getattr(operator, "operator", operator)
    if not _is_executable(operator):
        raise TypeError(f"a {type(operator).__name__} cannot be executed: run an operator that is not mapped")
    pulled = _xcoms(upstream or {})
    ready = {**fakes.context(operator, pulled, _states(upstream or {})), **(context or {})}
    result, ti = TaskResult(), ready["ti"]
    with _restored(operator), _recorded() as lines:
        try:
            _resolve_mapped(operator, pulled)
            operator.render_template_fields(ready)
            result.value = _perform(operator, ready, result, emulator)
        except Exception as error:
            result.error = error
        result.rendered = {name: getattr(operator, name, None) for name in operator.template_fields}
    result.log = "\n".join(lines)
    result.xcoms = {**getattr(ti, "xcoms", {})}
    if result.value is not None and operator.do_xcom_push:
        result.xcoms[RETURN_VALUE] = result.value
    return result


# --- the run ------------------------------------------------------------------------------------------------


def _perform(operator: Any, context: dict[str, Any], result: TaskResult, emulator: Emulator | None) -> Any:
    """Execute an operator, and resume it after each deferral."""
    from airflow_provider_rungen._airflow import TaskDeferred

    step: Callable[[], Any] = partial(operator.execute, context, **_as_task_runner(operator))
    pause: Any = contextlib.nullcontext()
    if emulator is not None and getattr(operator, "deferrable", False):
        pause = emulator.service.paused()
        operator.defer_after = 0.0  # no job ends before, and the pause is short
    while True:
        try:
            with pause:
                return step()
        except TaskDeferred as deferral:
            pause = contextlib.nullcontext()
            result.timeouts.append(deferral.timeout)
            method, kwargs = deferral.method_name, dict(deferral.kwargs or {})
            try:
                event = asyncio.run(_first_event(deferral.trigger, deferral.timeout))
            except Exception as error:  # as the triggerer reports it
                reason = "Trigger timeout" if isinstance(error, TimeoutError) else "Trigger failure"
                method, kwargs = "__fail__", {"error": reason, "traceback": traceback.format_exception(error)}
            else:
                result.events.append(event.payload)
                if (state := getattr(event, "task_instance_state", None)) is not None:
                    return _end_from_trigger(event, str(state), context["ti"])
                kwargs["event"] = event.payload
            step = partial(operator.resume_execution, method, kwargs, context)


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


@contextlib.contextmanager
def _restored(operator: Any) -> Iterator[None]:
    """Restore what a run changes, so that the operator of a DAG file can be run again."""
    attributes = vars(operator)
    names = (*operator.template_fields, "defer_after")
    before = {name: attributes[name] for name in names if name in attributes}
    attributes["_lock_for_execution"] = True  # or Airflow would take a rendered field for one of the DAG
    try:
        yield
    finally:
        attributes["_lock_for_execution"] = False
        attributes.update(before)


@contextlib.contextmanager
def _recorded() -> Iterator[list[str]]:
    """Record what is logged: the package's messages from INFO, and others as they are configured."""
    recorder, package = _Recorder(), logging.getLogger(_PACKAGE)
    # Airflow 2.11 does not pass on what a task logs
    loggers = [logging.getLogger(name) for name in ("", "airflow.task")]
    level = package.level
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(recorder)
    try:
        yield recorder.lines
    finally:
        for logger in loggers:
            logger.removeHandler(recorder)
        package.setLevel(level)


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self.lines: list[str] = []
        self._last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record is not self._last:  # it may come from several loggers
            self._last = record
            self.lines.append(self.format(record))


def _xcoms(upstream: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the XComs of earlier tasks, by task id and key."""
    return {
        task_id: result.xcoms if isinstance(result, TaskResult) else {RETURN_VALUE: result}
        for task_id, result in upstream.items()
    }


def _states(upstream: Mapping[str, Any]) -> dict[str, str]:
    """Return the states of earlier tasks, by task id."""
    from airflow_provider_rungen._airflow import AirflowSkipException

    states = dict.fromkeys(upstream, "success")
    for task_id, result in upstream.items():
        if isinstance(result, TaskResult) and result.error is not None:
            states[task_id] = "skipped" if isinstance(result.error, AirflowSkipException) else "failed"
    return states


def _resolve_mapped(operator: Any, upstream: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the output of mapped tasks, which Airflow would look up in its database."""

    def resolve(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(resolve(each) for each in value)
        task: Any = getattr(value, "operator", None)
        is_known = not _is_executable(task) and getattr(task, "task_id", None) in upstream
        return upstream[task.task_id].get(value.key) if is_known else value

    for name in operator.template_fields:
        if hasattr(operator, name):
            setattr(operator, name, resolve(getattr(operator, name)))


def _is_executable(task: Any) -> bool:
    """Return whether this is a task, and not a mapped one, from which Airflow makes tasks."""
    return hasattr(task, "execute")
