"""Calls to a store that may fail or hang: retried, and gathered if they write."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.runs.place import SupersededError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two tries, at most.
_MAX_PAUSE = 5.0
# Seconds that what is due waits for more, so that they share a write.
_GATHERING_TIME = 0.1


async def call_store(
    purpose: str, call: Callable[[], Awaitable[T]], budget: float, *, is_retried: bool = True
) -> T:
    """
    Call a store until it works.

    :param purpose: what the call is for, as an infinitive for log and errors.
    :param call: makes one try.
    :param budget: seconds in which the store may fail, or not answer.
    :param is_retried: whether a failed call can be made again.
    :raises Exception: it failed for too long, or a later attempt has begun.
    """
    give_up_at: float | None = None
    pause = retry.BACKOFF
    while True:
        try:
            async with asyncio.timeout(budget + 1) as limit:
                return await call()
        except Exception as error:
            if limit.expired():
                raise RunGenError(f"Could not {purpose}: it does not answer") from None
            if not is_retried or isinstance(error, SupersededError):
                raise
            if give_up_at is None:
                give_up_at = time.monotonic() + budget
                reason = clean_text(f"{type(error).__name__}: {error}", 300)
                log.warning("Could not %s: %s; retrying", purpose, reason)
            if time.monotonic() + pause > give_up_at:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE)


class StoreWriter:
    """
    Writes what is due to one store, one write at a time.

    :param purpose: see `call_store`.
    :param write: tries to write what is due at this moment.
    :param budget: see `call_store`.
    :param is_more_due_soon: returns whether to wait a moment for more, given how many wait for the next
        write.
    """

    def __init__(
        self,
        purpose: str,
        write: Callable[[], Awaitable[None]],
        budget: float,
        is_more_due_soon: Callable[[int], bool] = lambda waiting: False,
    ) -> None:
        self._purpose, self._write, self._budget = purpose, write, budget
        self._is_more_due_soon = is_more_due_soon
        self._due = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._is_writing = False
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write. If it has begun before, try again now, even if the store was given up."""
        if self._is_writing:
            return
        if self._task is not None:
            self._task.cancel()
            self._due.set()
        self._failure = None
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, whether or not all is written."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def note_due(self) -> None:
        """Note that there is something to write."""
        self._due.set()

    def flush(self) -> asyncio.Future[None]:
        """Return a future that is done when all that is due now is written, or when the store is given up."""
        flushed = asyncio.get_running_loop().create_future()
        self._waiting.append(flushed)
        self._due.set()
        if self._failure is not None:
            self._resolve(len(self._waiting), self._failure)
        return flushed

    async def _run(self) -> None:
        try:
            while True:
                await self._due.wait()
                await self._gather()
                self._due.clear()
                await call_store(self._purpose, self._try, self._budget)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whatever it is, somebody waits
            self._failure = error
            self._resolve(len(self._waiting), error)

    async def _gather(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_GATHERING_TIME):
                while self._is_more_due_soon(len(self._waiting)):
                    self._due.clear()
                    await self._due.wait()

    async def _try(self) -> None:
        count = len(self._waiting)
        self._is_writing = True
        try:
            await self._write()
        finally:
            self._is_writing = False
        self._resolve(count)

    def _resolve(self, count: int, failure: BaseException | None = None) -> None:
        resolved, self._waiting = self._waiting[:count], self._waiting[count:]
        for each in resolved:
            if each.done():  # whoever waited was canceled
                continue
            if failure is None:
                each.set_result(None)
            else:
                each.set_exception(failure)
                each.exception()  # nobody may look at it any more
