"""One store is written to by one write at a time."""

from __future__ import annotations

import asyncio

from airflow_provider_rungen.execution.sending.store_writer import StoreWriter


class Store:
    """A store that fails so many times, and counts the writes that it has at a time."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.writing = self.most = self.writes = 0

    async def write(self) -> None:
        self.writing += 1
        self.writes += 1
        self.most = max(self.most, self.writing)
        await asyncio.sleep(0.01)
        self.writing -= 1
        if self.writes <= self.failures:
            raise OSError("it is down")


async def _flush_twice_and_hurry(store: Store) -> list[BaseException | None]:
    writer = StoreWriter("save", store.write, 0.0)
    first = writer.flush()
    await asyncio.wait([first])
    waiting = writer.flush()
    writer.retry_now()
    last = writer.flush()
    await asyncio.wait([waiting, last])
    await writer.stop()
    return [task.exception() for task in (first, waiting, last)]


def test_a_write_that_is_hurried_stays_the_only_one() -> None:
    store = Store()
    assert asyncio.run(_flush_twice_and_hurry(store)) == [None, None, None]
    assert store.most == 1


def test_a_store_that_was_given_up_is_used_again() -> None:
    store = Store(failures=1)
    first, waiting, last = asyncio.run(_flush_twice_and_hurry(store))
    assert isinstance(first, OSError)
    assert isinstance(waiting, OSError)
    assert last is None
    assert (store.most, store.writes) == (1, 2)
