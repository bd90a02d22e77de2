"""Interrupt a block after some time, as Airflow does after ``execution_timeout``."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

# Seconds until the next interruption, in case that something took the first one for an error of its own.
_AGAIN = 5.0


@contextlib.contextmanager
def interrupting(seconds: float | None) -> Iterator[list[float]]:
    """
    Raise ``AirflowTaskTimeout`` in the block after some seconds, and yield the times when it was.

    Only the main thread can be interrupted. If the test runner has an alarm that rings before, it stays.

    :param seconds: never when ``None``.
    """
    began, interrupted = time.monotonic(), list[float]()
    is_main = threading.current_thread() is threading.main_thread()
    others, repeat = signal.getitimer(signal.ITIMER_REAL) if is_main else (0.0, 0.0)
    if seconds is None or not is_main or 0 < others <= seconds:
        yield interrupted
        return

    def interrupt(number: int, frame: Any) -> None:
        from airflow_provider_rungen._airflow import AirflowTaskTimeout

        if time.monotonic() < began + seconds:  # an alarm of somebody else
            if callable(before):
                before(number, frame)
            return
        interrupted.append(time.monotonic())
        raise AirflowTaskTimeout(f"{seconds:g} s have passed")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - began), 0.001), repeat)
