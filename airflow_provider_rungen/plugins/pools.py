"""
Run what may hang in threads of its own, for a limited time.

Airflow serves its own pages from a pool of threads, which a service or a store that hangs must not fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8


class TooSlowError(Exception):
    """It did not end in time."""


@lru_cache
def _pool(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix=f"rungen-{name}")


async def run_within(
    seconds: float,
    pool: Literal["service", "store", "tables", "files"],
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """
    Call a function in a thread.

    :param seconds: how long to wait for it. If it has not begun by then, it never does. If it has, its thread
        is not interrupted.
    :param pool: what it may hang for.
    :raises TooSlowError: it did not end in time.
    """
    future = asyncio.wrap_future(_pool(pool).submit(function, *args, **kwargs))
    try:
        return await asyncio.wait_for(future, seconds)
    except TimeoutError:
        raise TooSlowError from None
