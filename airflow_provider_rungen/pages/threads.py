"""
Wait for what may hang: a store, a service, an XCom backend.

Airflow serves its own pages from a pool of threads, which must not hang with them. So each call has a thread
of its own, and what hangs together (a bucket, a connection) has a limit of threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin

P = ParamSpec("P")
T = TypeVar("T")
# Threads of what hangs together. A thread counts until it ends, even if nobody waits for it any more.
MAX_THREADS = 8
# Seconds until it is checked again whether a thread may begin.
_PAUSE = 0.02
_running: Counter[str] = Counter()
_lock = threading.Lock()


class TooSlowError(Exception):
    """A call did not end in time."""


async def run_within(
    seconds: float, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """
    Call a function in a thread.

    :param seconds: how long to wait for it. Its thread is not interrupted.
    :param what: the name of what may hang.
    :raises TooSlowError: it did not end in time.
    """
    try:
        async with asyncio.timeout(seconds):
            while not _take(what):  # noqa: ASYNC110 - threads of any event loop make room
                await asyncio.sleep(_PAUSE)
            try:
                future = begin(partial(function, *args, **kwargs))
            except BaseException:  # the process has too many threads
                _release(what)
                raise
            future.add_done_callback(lambda _: _release(what))
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise TooSlowError from None


def _take(what: str) -> bool:
    with _lock:
        is_free = _running[what] < MAX_THREADS
        _running[what] += is_free
        return is_free


def _release(what: str) -> None:
    with _lock:
        _running[what] -= 1
        if not _running[what]:
            del _running[what]
