"""Interrupt a block after some time, as Airflow does after ``execution_timeout``."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds until the next interruption, in case that something took the first one for an error of its own.
_AGAIN = 5.0


@contextlib.contextmanager
def interrupting(seconds: float | None) -> Iterator[list[float]]:
    """
    Raise ``AirflowTaskTimeout`` in the block after some seconds, and yield the times when it was.

    Only the main thread can be interrupted. If the test runner has an alarm that rings before, it stays.

    :param seconds: never when ``None``.
    """
    began, interrupted = time.monotonic(), list[float]()
    is_main = threading.current_thread() is threading.main_thread()
    others, repeat = signal.getitimer(signal.ITIMER_REAL) if is_main else (0.0, 0.0)
    if seconds is None or not is_main or 0 < others <= seconds:
        yield interrupted
        return

    def interrupt(number: int, frame: Any) -> None:
        from airflow_provider_rungen._airflow import AirflowTaskTimeout

        if time.monotonic() < began + seconds:  # an alarm of somebody else
            if callable(before):
                before(number, frame)
            return
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


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """
    Run a coroutine in an event loop in a thread, and return what it returns.

    An interruption cancels it. In the main thread it would hit the loop between any two steps, and be taken
    for the error of a callback. A triggerer is another process, too.

    :param work: returns the coroutine.
    """
    is_over, ends = threading.Event(), list[Callable[[], Any]]()

    async def run() -> T:
        task = asyncio.ensure_future(work())
        ends.append(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        if is_over.is_set():  # interrupted before it began
            task.cancel()
        return await task

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(contextvars.copy_context().run, lambda: asyncio.run(run()))
        try:
            return future.result()
        finally:
            is_over.set()
            for end in ends:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    end()
