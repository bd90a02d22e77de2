"""Progress lines of waits for many jobs."""

from __future__ import annotations

import pytest

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import PROGRESS_INTERVAL, OtherInputs, Progress, count_ends, pace


def finished(completed: int, failed: int, canceled: int = 0) -> list[Job]:
    statuses = [JobStatus.COMPLETED] * completed + [JobStatus.FAILED] * failed
    statuses += [JobStatus.CANCELED] * canceled
    return [Job(id=str(n), app_id="a", status=status) for n, status in enumerate(statuses)]


def test_a_line_comes_once_an_interval() -> None:
    progress = Progress(1000, 5.0)
    assert progress.line(0, 0, 5.0 + PROGRESS_INTERVAL - 1) is None
    assert progress.line(0, 0, 5.0 + PROGRESS_INTERVAL) == "0 of 1000 done, 1000 queued or running, 0 failed"
    assert progress.line(10, 0, 6.0 + PROGRESS_INTERVAL) is None
    line = progress.line(*count_ends(finished(90, 7, 3)), 105.0)
    assert line == "100 of 1000 done, 900 queued or running, 10 failed; 1/s, about 15 min left"


def test_a_wave_counts_all_inputs_of_its_batch() -> None:
    progress = Progress(100, 5.0, OtherInputs(done=500, failed=3, unsent=200))
    line = progress.line(50, 2, 55.0)
    assert line == (
        "550 of 800 done, 50 queued or running, 200 not submitted yet, 5 failed; 1/s, about 4 min 10 s left"
    )


@pytest.mark.parametrize(
    ("done", "left", "seconds", "text"),
    [
        (0, 10, 10.0, ""),
        (10, 10, 0.0, ""),
        (250, 50, 10.0, "; 25/s, about 2 s left"),
        (1500, 3000, 10.0, "; 150/s, about 20 s left"),
        (5, 100, 100.0, "; 0.05/s, about 33 min 20 s left"),
    ],
)
def test_the_pace(done: int, left: int, seconds: float, text: str) -> None:
    assert pace(done, left, seconds) == text
