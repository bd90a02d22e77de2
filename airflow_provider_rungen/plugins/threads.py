"""
Run what may hang in threads, for a limited time.

Airflow serves its own pages from a pool of threads, which a service or a store that hangs must not fill. Nor
may one user, DAG, store or connection take all of these threads: each has a limit. A thread counts until it
ends, even if nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Literal, ParamSpec, TypeAlias, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin

P = ParamSpec("P")
T = TypeVar("T")
Pool: TypeAlias = Literal["service", "store", "files"]
Kind: TypeAlias = Literal["all", "user", "dag", "store", "connection"]

# Threads of a pool. A DAG does not take all that a user may take who looks at it.
_LIMITS: dict[Kind, int] = {"all": 48, "user": 8, "dag": 4, "store": 12, "connection": 12}
# Seconds until it is checked again whether a thread may begin.
_PAUSE = 0.02

_running: Counter[tuple[Pool, Kind, str]] = Counter()
_lock = threading.Lock()
# Whom the request that is being answered counts for.
_charged: ContextVar[frozenset[tuple[Kind, str]]] = ContextVar("charged", default=frozenset([("all", "")]))


class TooSlowError(Exception):
    """It did not end in time."""


def charge(kind: Kind, name: str) -> None:
    """
    Count the threads of the rest of this request for somebody, or something, that may make them hang.

    :param kind: what it is.
    :param name: which one. Nothing is counted without.
    """
    if name:
        _charged.set(_charged.get() | {(kind, name)})


async def run_within(
    seconds: float, pool: Pool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """
    Call a function in a thread.

    :param seconds: how long to wait for it. If it has not begun by then, it never does. If it has, its thread
        is not interrupted.
    :param pool: what it may hang for.
    :raises TooSlowError: it did not end in time.
    """
    unrelated = "store" if pool == "service" else "connection"
    users = Counter((pool, kind, name) for kind, name in _charged.get() if kind != unrelated)
    try:
        async with asyncio.timeout(seconds):
            while not _take(users):  # noqa: ASYNC110 - threads of any event loop make room
                await asyncio.sleep(_PAUSE)
            try:
                future = begin(partial(function, *args, **kwargs))
            except BaseException:  # the process has too many threads
                _release(users)
                raise
            future.add_done_callback(lambda _: _release(users))
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise TooSlowError from None


def _take(users: Counter[tuple[Pool, Kind, str]]) -> bool:
    with _lock:
        if any(_running[user] >= _LIMITS[user[1]] for user in users):
            return False
        _running.update(users)
        return True


def _release(users: Counter[tuple[Pool, Kind, str]]) -> None:
    with _lock:
        _running.subtract(users)
        for user in [user for user in users if not _running[user]]:
            del _running[user]
