"""Reads inputs, and looks them up in the ledger, a block before they are announced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol

from airflow_provider_rungen.execution.sending.log_writer import IdStore, Item
from airflow_provider_rungen.execution.sending.store_calls import StoreCalls


class LedgerPort(IdStore, Protocol):
    """The ledger, as a sender sees it."""

    def find(self, numbers: Collection[int]) -> Any:
        """Look inputs up, right before they are announced. Blocks."""

    def note(self, found: Any) -> Collection[int]:
        """Note what was found in the table of jobs, and return the inputs that need no job any more."""


class Lookahead:
    """
    The inputs that are to be announced next.

    The owner polls, in the thread that changes the jobs. Inputs are read in daemon threads.

    :param budget: seconds in which the ledger may fail, or an answer may take.
    :param wake: called in another thread when there is news.
    """

    def __init__(self, ledger: LedgerPort | None, *, budget: float, wake: Callable[[], None]) -> None:
        self._ledger, self._wake = ledger, wake
        #: The inputs, with their numbers.
        self.todo: Iterator[Item] = iter(())
        # an iterator that has failed is over
        self._reads = StoreCalls("read the inputs", budget, wake, is_retried=False)
        self._lookups = StoreCalls("look inputs up in the ledger", budget, wake)
        self._is_exhausted = False
        self._repeated: deque[Item] = deque()
        self._read: list[Item] = []
        self._found: deque[Item] = deque()
        #: How many inputs turned out to need no job.
        self.settled = 0

    def __len__(self) -> int:
        """Return how many inputs can be announced now."""
        return len(self._found)

    @property
    def is_over(self) -> bool:
        """Whether no input is left."""
        is_busy = self._reads.is_busy or self._lookups.is_busy
        return self._is_exhausted and not (is_busy or self._repeated or self._read or self._found)

    def pop(self, count: int) -> list[Item]:
        """Remove the next inputs, and return them."""
        return [self._found.popleft() for _ in range(min(count, len(self._found)))]

    def repeat(self, item: Item) -> None:
        """Look up an input again that was not accepted."""
        self._repeated.append(item)

    def take(self) -> None:
        """Handle the calls that have ended."""
        self._reads.take()
        self._lookups.take()

    def check(self) -> None:
        """
        Raise what keeps inputs from being read.

        :raises Exception: they cannot be read, or the ledger failed for too long.
        """
        self._reads.check()
        self._lookups.check()

    def advance(self, size: int) -> None:
        """
        Begin to read the next block, or to look it up, unless there is one already.

        :param size: how many inputs it has.
        """
        if self._read:
            self._look_up()
        elif not (len(self._found) >= size or self._lookups.is_busy or self._reads.is_busy):
            if self._repeated:
                self._note_read([self._repeated.popleft() for _ in range(min(size, len(self._repeated)))])
            elif not self._is_exhausted and self._reads.is_ready:
                self._reads.begin(lambda: list(islice(self.todo, size)), self._note_read_on)

    def _look_up(self) -> None:
        if self._ledger is not None and self._lookups.is_ready:
            numbers = [number for number, _ in self._read]
            self._lookups.begin(partial(self._ledger.find, numbers), self._note_found)

    def _note_read_on(self, items: list[Item]) -> None:
        self._is_exhausted = not items
        self._note_read(items)

    def _note_read(self, items: list[Item]) -> None:
        if self._ledger is None:
            self._found.extend(items)
        else:
            self._read = items
        self._wake()

    def _note_found(self, found: Any) -> None:
        if self._ledger is None:
            return
        settled, items, self._read = set(self._ledger.note(found)), self._read, []
        self.settled += len(settled)
        self._found.extend(item for item in items if item[0] not in settled)
