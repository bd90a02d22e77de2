"""Do what may hang in daemon threads, which no event loop waits for at its end, nor the process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
#: Seconds after which a wait looks again whether it is to stop.
LOOK_EVERY = 0.05
# Seconds for which what is to stop goes on waiting: what does not hang has ended by then.
_GRACE = 0.25


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


def ends_within(seconds: float, work: Future[Any], is_stopping: Callable[[], bool]) -> bool:
    """
    Wait for work, in short parts: a signal that is deferred interrupts nothing. Return whether it has ended.

    :param is_stopping: returns whether to wait no longer than a moment.
    """
    give_up_at, has_grace = time.monotonic() + seconds, False
    while not work.done() and (now := time.monotonic()) < give_up_at:
        if not has_grace and is_stopping():
            give_up_at, has_grace = min(give_up_at, now + _GRACE), True
        wait([work], LOOK_EVERY)
    return work.done()


async def in_daemon_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a daemon thread, and return its result."""
    return await asyncio.wrap_future(begin(work, *args, **kwargs))


S = TypeVar("S")
# More threads slow down a local folder, and a store's client opens few connections.
_MAX_THREADS = 16
# To hand an item to a thread takes longer than to read a small local file.
_MOST_AT_A_TIME = 16


def run_concurrently(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Call a function for each item, in threads. Return the results in order, or raise the first error."""
    items = list(items)
    # few, so that all threads end at the same time
    size = max(1, min(_MOST_AT_A_TIME, len(items) // (4 * _MAX_THREADS)))
    calls = [partial(_map, function, some) for some in batches(items, size)]
    parts = begin_all(calls, _MAX_THREADS)
    try:
        return [result for part in parts for result in part.result()]
    finally:
        # a kill that is raised here waits for none of them
        for part in parts:
            part.cancel()


def _map(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    return list(map(function, items))


def batches(
    items: Iterable[S], max_count: int, size_of: Callable[[S], int] = lambda _: 0, max_size: int = 0
) -> Iterator[list[S]]:
    """
    Yield the items in lists of bounded length and size. An item that is larger comes on its own.

    :param size_of: returns the size of an item.
    """
    batch: list[S] = []
    total = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == max_count or total + size > max_size):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
