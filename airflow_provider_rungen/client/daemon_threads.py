"""Do what may hang in daemon threads, which no event loop waits for at its end, nor the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def begin_all(work: Iterable[Callable[[], T]], max_threads: int) -> list[Future[T]]:
    """
    Begin work in daemon threads, and return its futures in order.

    :param work: what to do. What has not begun can be canceled by its future.
    :param max_threads: how much of it is done at a time.
    """
    calls: list[tuple[Future[T], Callable[[], T]]] = [(Future(), each) for each in work]
    rest = iter(calls)

    def perform() -> None:
        for future, call in rest:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    for _ in range(min(max_threads, len(calls))):
        context = copy_context()
        threading.Thread(target=context.run, args=(perform,), name="rungen-daemon", daemon=True).start()
    return [future for future, _ in calls]


def begin(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Begin work in a daemon thread. It can be waited for, and need not be."""
    [future] = begin_all([partial(work, *args, **kwargs)], 1)
    return future


async def in_daemon_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a daemon thread, and return its result."""
    return await asyncio.wrap_future(begin(work, *args, **kwargs))
