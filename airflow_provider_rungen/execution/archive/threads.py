"""Do many small things that block, such as requests to a store: in batches, and in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from airflow_provider_rungen.client.daemon_threads import begin_all

S = TypeVar("S")
T = TypeVar("T")
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
