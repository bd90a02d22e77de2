"""
Limit how much the pages read and keep in memory, and how many of their threads may hang.

Airflow serves its own pages from a pool of threads, which a service or a store that hangs must not fill. Nor
may one user, DAG, store or connection take all threads of the pages: each has a limit. A thread counts until
it ends, even if nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin

P = ParamSpec("P")
T = TypeVar("T")
#: What a thread may hang for.
Pool: TypeAlias = Literal["service", "store", "files"]
Kind: TypeAlias = Literal["all", "user", "dag", "store", "connection"]

#: Values of a text that is parsed. The manifest of ten thousand outputs has 60,000.
MAX_VALUES = 400_000
#: Seconds to keep what changes, and errors.
FRESH = 3.0
#: Seconds to keep what does not change.
LASTING = 60.0
# Threads of a pool. The pages of one DAG cannot take all threads of a user.
_LIMITS: dict[Kind, int] = {"all": 48, "user": 8, "dag": 4, "store": 12, "connection": 12}
# Seconds until it is checked again whether a thread may begin.
_PAUSE = 0.02


class TooLargeError(Exception):
    """A value is larger than a page needs."""


class TooSlowError(Exception):
    """A call did not end in time."""


# --- memory -------------------------------------------------------------------------------------------------


def count_values(text: str | bytes) -> int:
    """Return the number of values that a JSON text has at most. This is much faster than to parse it."""
    # json.loads() holds the interpreter until it ends, and each "[]" takes 60 bytes
    marks: tuple[Any, ...] = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    return sum(map(text.count, marks))


def parse_bounded(text: str | bytes) -> Any:
    """
    Parse JSON that has no more values than a page needs.

    :raises TooLargeError: it may have more.
    :raises ValueError: it is not JSON.
    :raises RecursionError: it is nested too deeply.
    """
    if count_values(text) > MAX_VALUES:
        raise TooLargeError
    return json.loads(text)


class Cache:
    """
    Values by key, for some seconds each. The oldest make room.

    :param max_size: the sum of the sizes of its values. What is larger by itself is not kept.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._size = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, tuple[float, int, Any]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """Return a value, or ``None`` if it is not there, or too old."""
        expires_at, _, value = self._entries.get(key, (0.0, 0, None))
        return value if time.monotonic() < expires_at else None

    def put(self, key: Any, value: Any, seconds: float, size: int) -> None:
        """
        Keep a value.

        :param seconds: for how long.
        :param size: about how many bytes it takes.
        """
        with self._lock:
            self._remove(key)
            if size > self._max_size:
                return
            self._entries[key] = (time.monotonic() + seconds, size, value)
            self._size += size
            while self._size > self._max_size:
                self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def _remove(self, key: Any) -> None:
        self._size -= self._entries.pop(key, (0.0, 0, None))[1]


#: What pages share. Its keys begin with what a value is.
CACHE = Cache(max_size=32 << 20)


# --- threads ------------------------------------------------------------------------------------------------

_running: Counter[tuple[Pool, Kind, str]] = Counter()
_lock = threading.Lock()
# What the threads of the current request are counted for.
_charged: ContextVar[frozenset[tuple[Kind, str]]] = ContextVar("charged", default=frozenset([("all", "")]))


def charge(kind: Kind, name: str) -> None:
    """
    Count the threads of this request for a user, DAG, store or connection, from now on.

    :param kind: which of them it is.
    :param name: its name. If it is empty, nothing is counted.
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
