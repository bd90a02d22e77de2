"""Perform a task as Airflow does: render its templates, execute it, run its trigger after each deferral."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2

if TYPE_CHECKING:
    from rungen_emulator.server import Emulator
    from rungen_emulator.testing import TaskResult

T = TypeVar("T")

_SECONDS_TO_END = 10.0
# Seconds until the next interruption, in case that some code caught the first one.
_AGAIN = 5.0


class Performance:
    """
    One attempt of a task.

    :param operator: its operator.
    :param context: what Airflow gives it.
    :param result: gets its events and time limits.
    :param emulator: its clock is paused until a deferrable task has deferred.
    """

    def __init__(
        self, operator: Any, context: dict[str, Any], result: TaskResult, emulator: Emulator | None
    ) -> None:
        self.task = operator
        self._context = context
        self._result = result
        self._emulator = emulator
        self._trigger: Any = None

    def run(self, replace: Mapping[str, Any]) -> Any:
        """
        Return what the task returns.

        :param replace: the attributes that are set once the templates are rendered.
        """
        task = self.task
        _render(task, self._context)
        _replace(task, replace)
        ti = self._context["ti"]
        if getattr(task, "reschedule", False) and not hasattr(ti, "get_first_reschedule_date"):
            task.mode = "poke"  # only Airflow's database knows when its first poke was
        if self._emulator is None or not getattr(task, "deferrable", False):
            return self._perform(partial(task.execute, self._context))
        return self._perform(partial(self._pause_and_execute, self._emulator))

    def _pause_and_execute(self, emulator: Emulator) -> Any:
        with emulator.service.paused():
            return self.task.execute(self._context)

    def _perform(self, step: Callable[[], Any]) -> Any:
        from rungen_emulator.names import TaskDeferred

        while True:
            try:
                return step()
            except TaskDeferred as deferral:
                self._result.timeouts.append(deferral.timeout)
                method, kwargs = deferral.method_name, dict(deferral.kwargs or {})
                self._trigger = deferral.trigger
                try:
                    event = _run_apart(_first_event(deferral.trigger, deferral.timeout))
                except Exception as error:  # as the triggerer reports it
                    reason = "Trigger timeout" if isinstance(error, TimeoutError) else "Trigger failure"
                    method = "__fail__"
                    kwargs = {"error": reason, "traceback": traceback.format_exception(error)}
                else:
                    self._result.events.append(event.payload)
                    kwargs["event"] = event.payload
                self._trigger = None
                step = partial(self.task.resume_execution, method, kwargs, self._context)

    @property
    def state(self) -> str:
        """``executing``, or the trigger that it waits for."""
        return "executing" if self._trigger is None else f"deferred to {type(self._trigger).__name__}"

    def end(self) -> None:
        """End what the task began, as Airflow does when its time has passed."""
        from rungen_emulator.names import AirflowTaskTimeout

        with contextlib.suppress(Exception, AirflowTaskTimeout), interrupting(_SECONDS_TO_END):
            if self._trigger is None:
                self.task.on_kill()
            else:
                self.task.resume_execution("__fail__", {"error": "Trigger timeout"}, self._context)


# --- triggers ---


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


def _run_apart(work: Coroutine[Any, Any, T]) -> T:
    """
    Run a coroutine in an event loop in a thread, and return what it returns.

    An interruption cancels it. In the main thread, an interruption could be raised in a callback of the loop,
    which would only log it.
    """
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    task = loop.create_task(work)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(loop.run_until_complete, task)
        try:
            return ended.result()
        finally:
            loop.call_soon_threadsafe(task.cancel)
            pool.submit(runner.close)


# --- the time limit ---


@contextlib.contextmanager
def interrupting(seconds: float | None, note: Callable[[], object] = bool) -> Iterator[list[float]]:
    """
    Raise ``AirflowTaskTimeout`` in the block after some seconds, and yield the times when it was raised.

    Only the main thread can be interrupted. An earlier alarm of the test runner is kept.

    :param seconds: never when ``None``.
    :param note: called before each.
    """
    began, interrupted = time.monotonic(), list[float]()
    is_main = threading.current_thread() is threading.main_thread()
    others, repeat = signal.getitimer(signal.ITIMER_REAL) if is_main else (0.0, 0.0)
    if seconds is None or not is_main or 0 < others <= seconds:
        yield interrupted
        return

    def interrupt(number: int, frame: Any) -> None:
        from rungen_emulator.names import AirflowTaskTimeout

        if time.monotonic() < began + seconds:  # an alarm of somebody else
            if callable(before):
                before(number, frame)
            return
        note()
        interrupted.append(time.monotonic())
        raise AirflowTaskTimeout(f"{seconds:g} s have passed")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - began), 0.001), repeat)


# --- what a test replaces ---

# What a task writes to, and what it reads.
_PLACES = ("destination", "results")
_SOURCES = ("table", "inputs")


def _replace(task: Any, given: Mapping[str, Any]) -> None:
    """
    Set attributes of a task. Its results table follows its destination, unless it is given, too.

    :raises TypeError: the task has no such parameter.
    :raises ValueError: what it reads or writes is partly of the test, and it would write to another place.
    """
    for name in given:
        if not hasattr(task, name):
            raise TypeError(f"{type(task).__name__} has no parameter {name!r} to replace")
    places = {name: value for name in _PLACES if (value := getattr(task, name, None)) is not None}
    new = dict(given)
    destination = given.get("destination")
    if destination is not None and "results" in places and "results" not in given:
        file_name = str(places["results"]).rpartition("/")[2]
        new["results"] = f"{str(destination).rstrip('/')}/{file_name}"
    left = [name for name in places if name not in new]
    if left and not {*_PLACES, *_SOURCES}.isdisjoint(given):
        where = " and ".join(f"{name}={places[name]!r}" for name in left)
        raise ValueError(f"{task.task_id!r} would still write to {where}; replace {' and '.join(left)}, too")
    for name, value in new.items():
        setattr(task, name, value)


# --- templates ---


def _render(operator: Any, context: dict[str, Any]) -> None:
    """Render the templates of a task."""
    environment = operator.get_template_env()
    environment.undefined = jinja2.StrictUndefined if not operator.has_dag() else environment.undefined
    operator.render_template_fields(context, environment)
