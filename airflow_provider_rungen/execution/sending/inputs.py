"""The inputs to submit: read, and looked up in the ledger, a block ahead."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.execution.task.store_writer import call_store

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sending.paid import PaidInputs

#: A number, and its input.
Item: TypeAlias = tuple[int, Any]

# Seconds after which an input that was put back is noticed.
_POLL = 2.0
# Seconds in which a look-ahead ends, so that what it claims is known, and can be released.
_END_TIME = 0.5


@dataclass(eq=False)
class Inputs:
    """
    The inputs that are to be announced next.

    :param todo: all inputs. They are read in daemon threads.
    :param block_size: returns how many to read at a time.
    :param budget: seconds in which the ledger may fail, or not answer.
    """

    todo: Iterator[Item]
    ledger: PaidInputs | None
    block_size: Callable[[], int]
    budget: float
    #: How many inputs turned out to need no job.
    settled: int = 0
    #: Those that another run is about to submit.
    claimed_elsewhere: set[int] = field(default_factory=set)
    _ready: deque[Item] = field(default_factory=deque)
    # those to submit once more, in the order of their times (monotonic clock)
    _later: deque[tuple[float, Item]] = field(default_factory=deque)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._next_block = asyncio.create_task(self._read_block())

    async def take(self) -> Item | None:
        """
        Return the next input that may be submitted; ``None`` after the last.

        :raises Exception: they cannot be read, or the ledger failed for too long.
        """
        async with self._lock:
            while True:
                while self._ready:
                    if self.may_submit(self._ready[0][0]):
                        return self._ready.popleft()
                    self._ready.extend(await self._look_up(self._ready))
                if self._next_block.done():
                    self._ready.extend(self._next_block.result())
                    if not self._ready and not self._later:
                        return None
                    if not self._ready:
                        await asyncio.sleep(min(max(self._later[0][0] - time.monotonic(), 0), _POLL))
                        self._ready.extend(self._take_due())
                        continue
                    self._next_block = asyncio.create_task(self._read_block())
                else:  # an input may be put back meanwhile
                    await asyncio.wait([self._next_block], timeout=_POLL)

    def may_submit(self, number: int) -> bool:
        """Return whether no other run submits an input at the moment."""
        return self.ledger is None or self.ledger.is_claimed(number)

    def put_back(self, item: Item, pause: float = 0.0) -> None:
        """
        Take an input back that the service did not accept.

        :param pause: seconds until it may be submitted once more. Others are submitted meanwhile.
        """
        if pause:
            self._later.append((time.monotonic() + pause, item))
        else:
            self._ready.append(item)

    def _take_due(self) -> list[Item]:
        """Return the inputs that are to be submitted once more by now."""
        due = []
        while self._later and self._later[0][0] <= time.monotonic():
            due.append(self._later.popleft()[1])
        return due

    async def close(self) -> None:
        """End the look-ahead. What it is about to claim should be known before claims are released."""
        await asyncio.wait([self._next_block], timeout=_END_TIME)
        self._next_block.cancel()
        await asyncio.gather(self._next_block, return_exceptions=True)

    async def _read_block(self) -> Collection[Item]:
        """Return the next inputs: none after the last."""
        while True:
            read = partial(in_daemon_thread, list, islice(self.todo, self.block_size()))
            # an iterator that has failed yields nothing more
            block = deque(await call_store("read the inputs", read, self.budget, is_retried=False))
            if not block:
                return block
            if ready := await self._look_up(block):
                return ready

    async def _look_up(self, block: deque[Item]) -> Collection[Item]:
        """
        Look the inputs of a block up, and empty it.

        :return: those that may be submitted.
        """
        items = list(block)
        block.clear()
        if self.ledger is None or not items:
            return items
        find = partial(in_daemon_thread, self.ledger.find, [number for number, _ in items])
        settled = set(self.ledger.note(await call_store("look inputs up in the ledger", find, self.budget)))
        self.settled += len(settled)
        items = [item for item in items if item[0] not in settled]
        ready = [item for item in items if self.may_submit(item[0])]
        self.claimed_elsewhere |= {number for number, _ in items} - {number for number, _ in ready}
        return ready
