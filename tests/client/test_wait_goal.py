"""When a wait for many jobs may stop."""

from __future__ import annotations

import pytest

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.wait_goal import WaitGoal

STATUSES = {".": JobStatus.COMPLETED, "x": JobStatus.FAILED, "c": JobStatus.CANCELED}


def jobs(ends: str) -> list[Job]:
    return [Job(id=str(n), app_id="flux", status=STATUSES[end]) for n, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("ends", "failures", "is_broken"),
    [
        ("", 0, False),
        ("xx", 2, False),
        ("xxx", 3, True),
        ("xx.xx", 2, False),
        ("xxcx", 3, True),
        ("ccc", 0, False),
        ("xxx.", 0, True),
    ],
)
def test_failures_in_a_row_break_it(ends: str, failures: int, is_broken: bool) -> None:
    goal = WaitGoal(stop_after=3)
    goal.note_new(jobs(ends))
    assert (goal.failures, goal.is_broken, goal.is_reached(5)) == (failures, is_broken, is_broken)


def test_each_job_counts_once() -> None:
    goal, found = WaitGoal(stop_after=3), jobs("xx.")
    for count in (0, 1, 1, 2, 2):
        goal.note_new(found[:count])
    assert (goal.failures, goal.is_broken) == (2, False)


def test_earlier_failures_count() -> None:
    goal = WaitGoal(stop_after=3, failures=2)
    goal.note_new(jobs("x"))
    assert goal.is_broken


def test_without_a_limit_nothing_breaks_it() -> None:
    goal = WaitGoal()
    goal.note_new(jobs("x" * 1000))
    assert not goal.is_broken
    assert not goal.is_reached(1)
    assert goal.is_reached(0)


def test_it_is_reached_with_few_enough_in_flight() -> None:
    assert [WaitGoal(left=3).is_reached(number) for number in (5, 4, 3, 0)] == [False, False, True, True]
