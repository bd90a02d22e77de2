"""Do many small things that block, such as requests to a store: in batches, and in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
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
    parts = begin_all([partial(_each, function, some) for some in batches(items, size)], _MAX_THREADS)
    try:
        return [result for part in parts for result in part.result()]
    finally:
        # a kill that is raised here waits for none of them
        for part in parts:
            part.cancel()


def _each(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    return list(map(function, items))


def batches(items: Iterable[S], size: int) -> Iterator[list[S]]:
    """Yield the items in lists of a size, the last one of which may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def batches_by_size(sizes: Mapping[S, int], max_count: int, max_bytes: int) -> Iterator[list[S]]:
    """
    Yield what has a size in lists, each of which is not larger than that. What is larger comes on its own.

    :param sizes: bytes of each.
    """
    batch: list[S] = []
    total = 0
    for item, size in sizes.items():
        if batch and (len(batch) == max_count or total + size > max_bytes):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
