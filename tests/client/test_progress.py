"""When a wait for many jobs may stop, and its progress lines."""

from __future__ import annotations

import pytest

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import PROGRESS_INTERVAL, OtherInputs, Progress, WaitGoal, pace

STATUSES = {".": JobStatus.COMPLETED, "x": JobStatus.FAILED, "c": JobStatus.CANCELED}


def jobs(ends: str) -> list[Job]:
    return [Job(id=str(n), app_id="flux", status=STATUSES[end]) for n, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("ends", "before", "failures", "is_broken"),
    [
        *(
            ("", 0, 0, False),
            ("x" * 19, 0, 19, False),
            ("x" * 20, 0, 20, True),
            ("x" * 19 + ".", 0, 0, False),
        ),
        *(("x" * 18 + "cxx", 0, 20, True), ("c" * 30, 0, 0, False), ("x" * 20 + ".", 0, 0, True)),
        *(("x", 19, 20, True), ("." + "x" * 99, 0, 99, False), ("." + "x" * 100, 0, 100, True)),
    ],
)
def test_failures_in_a_row_end_a_wait(ends: str, before: int, failures: int, is_broken: bool) -> None:
    goal, unlimited = WaitGoal(failures=before), WaitGoal()
    for job in jobs(ends):
        goal.note(job)
        unlimited.note(job)
    assert (goal.failures, goal.is_broken, goal.is_reached(5)) == (failures, is_broken, is_broken)
    assert not unlimited.is_broken
    of_others = WaitGoal(failures=0, shared={job.id for job in jobs(ends)})
    for job in jobs(ends):
        of_others.note(job)
    assert (of_others.failures, of_others.is_broken) == (0, False)


def test_few_enough_jobs_in_flight_end_a_wait() -> None:
    assert [WaitGoal(left=3).is_reached(number) for number in (5, 4, 3, 0)] == [False, False, True, True]
    assert [WaitGoal().is_reached(number) for number in (1, 0)] == [False, True]


def test_a_line_comes_once_an_interval() -> None:
    progress = Progress(5.0, 1000)
    assert progress.line(5.0 + PROGRESS_INTERVAL - 1) is None
    assert progress.line(5.0 + PROGRESS_INTERVAL) == "0 of 1000 done, 1000 queued or running, 0 failed"
    assert progress.line(6.0 + PROGRESS_INTERVAL) is None
    for job in jobs("." * 90 + "x" * 7 + "c" * 3):
        progress.note(job)
    assert progress.line(105.0) == (
        "100 of 1000 done, 900 queued or running, 10 failed; 1/s, about 15 min left"
    )


def test_other_inputs_count_too() -> None:
    progress = Progress(5.0, 100, lambda: OtherInputs(done=500, failed=3, unsent=200))
    for job in jobs("." * 48 + "xx"):
        progress.note(job)
    assert progress.line(55.0) == (
        "550 of 800 done, 50 queued or running, 200 not submitted yet, 5 failed; 1/s, about 4 min 10 s left"
    )


def test_the_pace() -> None:
    assert pace(0, 10, 10.0) == pace(10, 10, 0.0) == ""
    assert pace(250, 50, 10.0) == "; 25/s, about 2 s left"
    assert pace(1500, 3000, 10.0) == "; 150/s, about 20 s left"
    assert pace(5, 100, 100.0) == "; 0.05/s, about 33 min 20 s left"
