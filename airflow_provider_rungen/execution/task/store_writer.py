"""Calls to a store that may fail or hang: retried, and gathered if they write."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.daemon_threads import LOOK_EVERY
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.runs.place import DamagedLogError, SupersededError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds in which a store may fail, or not answer, before the attempt ends. Nothing is sent meanwhile.
STORE_RETRY_BUDGET = 60.0
# Seconds between two tries, at most.
_MAX_PAUSE = 5.0
# Seconds that a write waits for more to write, and between checks whether there will be more.
_GATHERING_TIME = 0.1
_GATHERING_POLL = 0.005


def reason_of(error: Exception) -> str:
    """Return why a store failed, for the log."""
    return clean_text(f"{type(error).__name__}: {error}", 300)


async def call_store(
    purpose: str,
    call: Callable[[], Awaitable[T]],
    budget: float,
    *,
    is_retried: bool = True,
    hurry: asyncio.Event | None = None,
) -> T:
    """
    Call a store until it works.

    :param purpose: what the call is for, as an infinitive for log and errors.
    :param call: makes one try.
    :param budget: seconds in which the store may fail, or not answer.
    :param is_retried: whether a failed call can be made again.
    :param hurry: set it to try again at once.
    :raises Exception: it failed for too long, or a later attempt has begun.
    """
    patience, hurry = Patience(purpose, budget), hurry or asyncio.Event()
    while True:
        try:
            async with asyncio.timeout(budget + 1) as limit:
                return await call()
        except Exception as error:
            if limit.expired():
                raise RunGenError(f"Could not {purpose}: it does not answer") from None
            if not is_retried or (pause := patience.pause_after(error)) is None:
                raise
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):  # wait_for would swallow a cancel on Python 3.11
                await hurry.wait()
        hurry.clear()


class Patience:
    """
    How long a store that fails is called again.

    :param purpose: see `call_store`.
    :param budget: the seconds in which it may fail.
    """

    def __init__(self, purpose: str, budget: float) -> None:
        self._purpose, self._budget = purpose, budget
        self._pause = retry.BACKOFF
        self._give_up_at: float | None = None

    def pause_after(self, error: Exception) -> float | None:
        """Return the seconds until the next try; ``None`` if there is to be none."""
        if isinstance(error, SupersededError):
            return None
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + self._budget
            log.warning("Could not %s: %s; retrying", self._purpose, reason_of(error))
        pause, self._pause = self._pause, min(2 * self._pause, _MAX_PAUSE)
        return pause if time.monotonic() + pause <= self._give_up_at else None


def call_patiently(
    purpose: str,
    call: Callable[[], T],
    gives_up: Callable[[], bool],
    kind: type[Exception] = Exception,
) -> T:
    """
    Call Airflow or a store, and block, until it works.

    :param purpose: see `call_store`.
    :param call: makes one try.
    :param gives_up: returns whether to make no other try.
    :param kind: the errors that may pass. By default all, since that of an XCom backend may be any.
    :raises Exception: it failed for too long, or will always fail.
    """
    patience = Patience(purpose, STORE_RETRY_BUDGET)
    while True:
        try:
            return call()
        except kind as error:
            failure = error
        # not while it is handled: another error may be, which says that the time is up
        is_final = isinstance(failure, DamagedLogError) or not getattr(failure, "retryable", True)
        if is_final or gives_up() or (pause := patience.pause_after(failure)) is None:
            raise failure
        wake_at = time.monotonic() + pause
        while time.monotonic() < wake_at:
            time.sleep(LOOK_EVERY)  # a signal that is deferred interrupts no sleep
            if gives_up():
                raise failure


@dataclass(eq=False)
class StoreWriter:
    """
    Writes to one store, one write at a time. All who ask before a write begins share it.

    A store that failed for too long is given up: every later write fails in the same way.

    :param purpose: see `call_store`.
    :param write: tries to write what is due at this moment.
    :param budget: see `call_store`.
    :param is_more_due_soon: returns whether a write waits a moment for more.
    """

    purpose: str
    write: Callable[[], Awaitable[None]]
    budget: float
    is_more_due_soon: Callable[[], bool] = lambda: False
    _hurry: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    #: The write that began last, and the one that begins after it.
    _last: asyncio.Task[None] | None = field(init=False, default=None)
    _next: asyncio.Task[None] | None = field(init=False, default=None)

    def flush(self) -> asyncio.Task[None]:
        """Return a write of all that is due now. Shield it where the waiter may be canceled."""
        if self._next is None:
            self._next = asyncio.create_task(self._write_after(self._last))
            # nobody may look at its failure
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._next

    def retry_now(self) -> None:
        """Wait no longer to retry a write that failed, and use the store again if it was given up."""
        self._hurry.set()
        last = self._last
        # one that succeeded stays: a write that waits for it has to be the only one
        if last is not None and last.done() and (last.cancelled() or last.exception() is not None):
            self._last = self._next = None

    async def stop(self) -> None:
        """End, whether or not all is written."""
        tasks = [task for task in (self._last, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write_after(self, last: asyncio.Task[None] | None) -> None:
        if last is not None:
            await last
        give_up_at = time.monotonic() + _GATHERING_TIME
        # no event: many things make more due
        while self.is_more_due_soon() and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(_GATHERING_POLL)
        self._last, self._next = self._next, None
        await call_store(self.purpose, self.write, self.budget, hurry=self._hurry)
