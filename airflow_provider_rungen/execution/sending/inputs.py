"""The inputs to submit: read, and looked up in the ledger, a block ahead."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeAlias

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.execution.sending.store_writer import call_store

#: A number, and its input.
Item: TypeAlias = tuple[int, Any]

# Seconds after which others may have submitted an input that was looked up.
LOOKUP_LIFETIME = 30.0
# The same while another run submits equal inputs.
_SHORT_LIFETIME = 1.0
# Seconds that a run leaves to another one to submit what both would submit next: it is drawn from this range.
_YIELD_TIME = 1.0, 4.0


class LedgerPort(Protocol):
    """The ledger, as a sender sees it."""

    #: Whether another run submits equal inputs.
    has_company: bool

    def find(self, numbers: Collection[int]) -> Any:
        """Look inputs up, right before they are announced. Blocks."""

    def note(self, found: Any) -> Collection[int]:
        """Note what was found in the table of jobs, and return the inputs that need no job any more."""

    def add_pending(self, jobs: Mapping[int, str]) -> None:
        """Remember submitted jobs, by input. Blocks."""


@dataclass
class _Block:
    """
    Inputs that were read together.

    :param look_up_at: when to look them up again (monotonic clock).
    """

    items: deque[Item] = field(default_factory=deque)
    look_up_at: float = math.inf


@dataclass(eq=False)
class Inputs:
    """
    The inputs that are to be announced next.

    :param todo: all inputs. They are read in daemon threads.
    :param block_size: returns how many to read at a time.
    :param budget: seconds in which the ledger may fail, or not answer.
    """

    todo: Iterator[Item]
    ledger: LedgerPort | None
    block_size: Callable[[], int]
    budget: float
    #: How many inputs turned out to need no job.
    settled: int = 0
    _block: _Block = field(default_factory=_Block)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # whether nobody else has submitted what was looked up last
    _is_ahead: bool = False

    def __post_init__(self) -> None:
        self._next_block = asyncio.create_task(self._read_block())

    async def take(self) -> Item | None:
        """
        Return the next input that needs a job; ``None`` after the last.

        :raises Exception: they cannot be read, or the ledger failed for too long.
        """
        async with self._lock:
            while self._block.items or await self._read_on():
                if time.monotonic() < self._block.look_up_at:
                    return self._block.items.popleft()
                await self._look_up(self._block)
            return None

    async def put_back(self, item: Item) -> None:
        """Take an input back that the service did not accept. Others may have submitted it meanwhile."""
        async with self._lock:
            self._block.items.append(item)
            if self.ledger is not None:
                self._block.look_up_at = 0.0

    async def close(self) -> None:
        """End the look-ahead."""
        self._next_block.cancel()
        await asyncio.gather(self._next_block, return_exceptions=True)

    async def _read_on(self) -> bool:
        """Go on to the next block, and return whether there is one."""
        self._block = await self._next_block
        if self._block.items:
            self._next_block = asyncio.create_task(self._read_block())
        return bool(self._block.items)

    async def _read_block(self) -> _Block:
        while True:
            read = partial(in_daemon_thread, list, islice(self.todo, self.block_size()))
            # an iterator that has failed yields nothing more
            block = _Block(deque(await call_store("read the inputs", read, self.budget, is_retried=False)))
            if not block.items:
                return block
            await self._look_up(block)
            if block.items:
                return block

    async def _look_up(self, block: _Block) -> None:
        if self.ledger is None:
            return
        if await self._find(self.ledger, block):
            self._is_ahead = False
        if block.items and self.ledger.has_company and not self._is_ahead:
            # what another run has submitted costs no time, so that both would go on in step
            await asyncio.sleep(random.uniform(*_YIELD_TIME))  # noqa: S311 - jitter
            self._is_ahead = not await self._find(self.ledger, block)
        lifetime = _SHORT_LIFETIME if self.ledger.has_company else LOOKUP_LIFETIME
        block.look_up_at = time.monotonic() + lifetime

    async def _find(self, ledger: LedgerPort, block: _Block) -> int:
        """Look a block up, and return how many of its inputs need no job any more."""
        find = partial(in_daemon_thread, ledger.find, [number for number, _ in block.items])
        settled = set(ledger.note(await call_store("look inputs up in the ledger", find, self.budget)))
        self.settled += len(settled)
        block.items = deque(item for item in block.items if item[0] not in settled)
        return len(settled)
