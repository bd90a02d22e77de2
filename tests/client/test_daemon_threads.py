"""Work that hangs: nobody waits for it at the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from airflow_provider_rungen.client.daemon_threads import begin, begin_all, ends_within

BEGIN = """
import asyncio, threading
from airflow_provider_rungen.client.daemon_threads import begin, in_daemon_thread
from airflow_provider_rungen.client.daemon_threads import run_concurrently

is_hanging = threading.Event()

def hang(number=0):
    is_hanging.set()
    threading.Event().wait()
"""
ENDS = {
    "a future": "begin(hang); is_hanging.wait()",
    "an event loop": """
async def main():
    task = asyncio.create_task(in_daemon_thread(hang))
    while not is_hanging.is_set():
        await asyncio.sleep(0.001)
    task.cancel()

asyncio.run(main())
""",
    "one of many": """
def fail(number):
    if number < 20:
        hang()
    is_hanging.wait()
    raise OSError("503")

try:
    run_concurrently(fail, [30, *range(20)])
except OSError as error:
    print(error)
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_though_something_hangs(end: str) -> None:
    subprocess.run([sys.executable, "-c", BEGIN + ENDS[end]], check=True, timeout=60)


def test_what_is_canceled_before_it_begins_is_never_done() -> None:
    done: list[int] = []
    is_canceled = threading.Event()
    calls = [lambda: done.append(is_canceled.wait(10)), lambda: done.append(1), lambda: done.append(2)]
    first, second, third = begin_all(calls, 1)
    assert second.cancel()
    is_canceled.set()
    for future in (first, third):
        future.result(10)
    assert done == [True, 2]


def test_what_does_not_hang_ends_though_there_is_no_time_to_wait() -> None:
    assert ends_within(10, begin(time.sleep, 0.02), lambda: True)


def test_what_hangs_is_waited_for_no_longer_than_a_moment() -> None:
    over = threading.Event()
    assert not ends_within(60, begin(over.wait, 60), lambda: True)
    over.set()
