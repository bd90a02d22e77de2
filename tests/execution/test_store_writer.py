"""One store is written to by one write at a time."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_rungen._airflow import AirflowTaskTimeout
from airflow_provider_rungen.execution.task.attempts import is_timing_out
from airflow_provider_rungen.execution.task.store_writer import StoreWriter, call_patiently


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


@pytest.mark.parametrize("steps", range(5))
def test_a_write_is_stopped_at_once_also_when_it_was_just_hurried(steps: int) -> None:
    store = Store(failures=1000)

    async def hurry_and_stop() -> None:
        writer = StoreWriter("save", store.write, 60.0)
        write = writer.flush()
        while store.writing or not store.writes:  # noqa: ASYNC110 - it only counts
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        writer.retry_now()
        for _ in range(steps):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await writer.stop()
        assert write.cancelled()

    asyncio.run(hurry_and_stop())


def test_a_call_is_not_made_again_when_the_time_is_up() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise OSError("it is down")

    try:
        raise AirflowTaskTimeout
    except AirflowTaskTimeout:
        with pytest.raises(OSError, match="it is down"):
            call_patiently("read", fail, is_timing_out)
    assert len(calls) == 1


def test_a_call_is_not_made_again_after_a_pause_that_was_cut_short() -> None:
    calls: list[int] = []
    looks = iter([False, True, True])

    def fail() -> None:
        calls.append(1)
        raise OSError("it is down")

    with pytest.raises(OSError, match="it is down"):
        call_patiently("read", fail, lambda: next(looks))
    assert len(calls) == 1
