"""What is told of many jobs while they are waited for."""

from __future__ import annotations

import pytest

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import EVERY, Progress, pace


def over(completed: int, failed: int, canceled: int = 0) -> list[Job]:
    statuses = [JobStatus.COMPLETED] * completed + [JobStatus.FAILED] * failed
    statuses += [JobStatus.CANCELED] * canceled
    return [Job(id=str(n), app_id="a", status=status) for n, status in enumerate(statuses)]


def test_it_is_told_now_and_then() -> None:
    progress = Progress(1000, 5.0)
    assert progress.line([], 5.0 + EVERY - 1) is None
    assert progress.line([], 5.0 + EVERY) == "Of 1000 RunGen jobs 1000 run, 0 completed, 0 failed"
    assert progress.line(over(10, 0), 6.0 + EVERY) is None
    line = progress.line(over(90, 7, 3), 105.0)
    assert line == "Of 1000 RunGen jobs 900 run, 90 completed, 10 failed; 1 a second, some 15 min left"


@pytest.mark.parametrize(
    ("done", "left", "seconds", "told"),
    [
        (0, 10, 10.0, ""),
        (10, 10, 0.0, ""),
        (250, 50, 10.0, "; 25 a second, some 2 s left"),
        (1500, 3000, 10.0, "; 150 a second, some 20 s left"),
        (5, 100, 100.0, "; 0.05 a second, some 33 min 20 s left"),
    ],
)
def test_the_pace(done: int, left: int, seconds: float, told: str) -> None:
    assert pace(done, left, seconds) == told
