"""
Run what may hang in threads of its own, for a limited time.

Airflow serves its own pages from a pool of threads, which a service or a store that hangs must not fill. Nor
may one user, DAG, store or connection fill a pool of these: each has a share of its threads. A thread that
nobody waits for any more still counts for its share, but another one takes its place in the pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
PoolName: TypeAlias = Literal["service", "store", "files"]
Kind: TypeAlias = Literal["user", "dag", "store", "connection"]
Share: TypeAlias = tuple[Kind, str]

_THREADS: dict[PoolName, int] = {"service": 16, "store": 16, "files": 16}
# How much of a pool each may use: a DAG does not take all that a user may use who looks at it.
_PARTS: dict[Kind, float] = {"dag": 1 / 4, "user": 1 / 2, "store": 3 / 4, "connection": 3 / 4}
# So many threads of a pool are replaced when nobody waits for them any more.
_MAX_REPLACED = 48

# Of the request that is being answered.
_shares: ContextVar[frozenset[Share]] = ContextVar("shares", default=frozenset())


class TooSlowError(Exception):
    """It did not end in time."""


def charge(kind: Kind, name: str) -> None:
    """
    Count the rest of this request for a share.

    :param kind: what it may be that hangs.
    :param name: which one. Nothing is counted without.
    """
    if name:
        _shares.set(_shares.get() | {(kind, name)})


async def run_within(
    seconds: float, pool: PoolName, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """
    Call a function in a thread.

    :param seconds: how long to wait for it. If it has not begun by then, it never does. If it has, its thread
        is not interrupted.
    :param pool: what it may hang for.
    :raises TooSlowError: it did not end in time.
    """
    ignored = "store" if pool == "service" else "connection"
    shares = frozenset(share for share in _shares.get() if share[0] != ignored)
    call = _Call(partial(function, *args, **kwargs), shares)
    threads = _pool(pool)
    threads.add(call)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(call.future), seconds)
    except TimeoutError:
        raise TooSlowError from None
    finally:
        threads.abandon(call)


@dataclass(eq=False, slots=True)
class _Call:
    function: Callable[[], Any]
    shares: frozenset[Share]
    future: Future[Any] = field(default_factory=Future)
    is_running: bool = False
    is_abandoned: bool = False


class _Pool:
    """Threads that end with what they do. The process does not wait for them when it ends."""

    def __init__(self, name: PoolName) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._waiting: dict[_Call, None] = {}
        self._used: Counter[Share] = Counter()
        self._running = self._abandoned = 0

    def add(self, call: _Call) -> None:
        with self._lock:
            self._waiting[call] = None
            self._begin()

    def abandon(self, call: _Call) -> None:
        """Take note that nobody waits for a call any more, whether it has ended or not."""
        with self._lock:
            self._waiting.pop(call, None)
            if call.is_running:
                call.is_abandoned = True
                self._abandoned += 1
                self._begin()

    def _begin(self) -> None:
        for call in tuple(self._waiting):
            if self._running - min(self._abandoned, _MAX_REPLACED) >= _THREADS[self._name]:
                return
            if any(self._used[share] >= self._limit(share) for share in call.shares):
                continue
            del self._waiting[call]
            if call.future.set_running_or_notify_cancel():
                call.is_running = True
                self._running += 1
                self._used.update(call.shares)
                name = f"rungen-{self._name}"
                try:
                    threading.Thread(target=self._perform, args=(call,), name=name, daemon=True).start()
                except RuntimeError as error:  # the process has too many
                    self._end(call)
                    call.future.set_exception(error)

    def _end(self, call: _Call) -> None:
        call.is_running = False
        self._running -= 1
        self._abandoned -= call.is_abandoned
        self._used = +(self._used - Counter(call.shares))

    def _limit(self, share: Share) -> int:
        return int(_THREADS[self._name] * _PARTS[share[0]])

    def _perform(self, call: _Call) -> None:
        result, error = None, None
        try:
            result = call.function()
        except BaseException as raised:
            error = raised
        with self._lock:
            self._end(call)
            self._begin()
        # nobody may wait for it any more
        if error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)


@lru_cache
def _pool(name: PoolName) -> _Pool:
    return _Pool(name)
