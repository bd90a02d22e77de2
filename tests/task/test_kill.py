"""KillGuard: when a signal may interrupt an attempt."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_rungen.task.kill import KILL_TIME, KillGuard

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])


class Killed(BaseException):
    """What Airflow's handlers raise."""


@pytest.fixture
def arrivals() -> Iterator[list[int]]:
    """Raise at each signal, as Airflow does; returns the signals that were handled."""
    handled: list[int] = []

    def handle(number: int, frame: Any) -> None:
        handled.append(number)
        raise Killed

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield handled
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@SIGNALS
def test_a_signal_waits_for_the_end_of_the_block(arrivals: list[int], number: int) -> None:
    guard, steps = KillGuard(), []
    with pytest.raises(Killed), guard.defer_signals():  # noqa: PT012 - the steps are what is tested
        send(number)
        steps.append(guard.is_pending)
    assert (steps, arrivals) == ([True], [number])
    assert not guard.is_pending


def test_a_check_delivers_it_between_two_steps(arrivals: list[int]) -> None:
    guard, steps = KillGuard(), []
    with pytest.raises(Killed), guard.defer_signals():  # noqa: PT012 - the steps are what is tested
        send()
        steps.append("first")
        guard.check()
        steps.append("second")
    assert (steps, arrivals) == (["first"], [signal.SIGTERM])


def test_blocks_nest_and_only_the_outermost_delivers(arrivals: list[int]) -> None:
    guard, steps = KillGuard(), []
    with pytest.raises(Killed), guard.defer_signals():  # noqa: PT012 - the steps are what is tested
        with guard.defer_signals():
            send()
        steps.append("after the inner block")
    assert steps == ["after the inner block"]
    assert arrivals == [signal.SIGTERM]


def test_the_handlers_are_as_before_after_a_block(arrivals: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    guard = KillGuard()
    with guard.defer_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Killed), guard.defer_signals():
        send()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_without_a_handler_keeps_its_default() -> None:
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        with KillGuard().defer_signals():
            assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_cleanup_has_less_time_after_a_signal_that_waited(arrivals: list[int]) -> None:
    guard = KillGuard()
    assert guard.time_left() == KILL_TIME
    with pytest.raises(Killed), guard.defer_signals():  # noqa: PT012 - the steps are what is tested
        send()
        time.sleep(0.05)
        assert guard.time_left() < KILL_TIME - 0.04
    assert guard.time_left() == KILL_TIME


def test_in_another_thread_a_block_changes_nothing(arrivals: list[int]) -> None:
    seen: list[Any] = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with KillGuard().defer_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# --- a kill that is a call ----------------------------------------------------------------------------------


def test_a_kill_cleans_up_and_ends_the_thread_that_works() -> None:
    guard = KillGuard(lambda: "Canceled 2 jobs.")
    with guard.working(), pytest.raises(AirflowException, match=r"The task was killed. Canceled 2 jobs\."):
        guard.kill()
    assert guard.is_killed


def test_a_kill_from_another_thread_raises_only_where_the_work_is() -> None:
    cleaned: list[int] = []

    def clean_up() -> str:
        cleaned.append(threading.get_ident())
        return ""

    guard = KillGuard(clean_up)
    with guard.working():
        thread = threading.Thread(target=guard.kill)
        thread.start()
        thread.join()
        assert cleaned == [thread.ident]
        assert guard.is_interrupted()
        with pytest.raises(AirflowException, match="killed"):
            guard.check()
    guard.check()  # nobody works any more
    assert not guard.is_interrupted()


def test_what_came_to_be_known_during_a_block_is_cleaned_up_at_its_end() -> None:
    cleaned: list[str] = []
    known = ["job-1"]

    def clean_up() -> str:
        cleaned.extend(known)
        return ""

    guard = KillGuard(clean_up)
    with guard.working(), pytest.raises(AirflowException), guard.defer_signals():  # noqa: PT012 - as above
        thread = threading.Thread(target=guard.kill)
        thread.start()
        thread.join()
        known.append("job-2")
    assert cleaned == ["job-1", "job-1", "job-2"]
