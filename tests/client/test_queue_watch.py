"""Jobs that nobody works on: the warning, the time in the queue, and what a time-out says."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import APP, Via
from rungen_emulator import Fault

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.polling import FIRST_INTERVAL, wait_for_jobs
from airflow_provider_rungen.exceptions import RunGenJobQueuedTimeoutError, RunGenJobTimeoutError

HOUR = 3600.0


def submit(direct: Via, count: int, workers: int, seconds: float = 2.0) -> list[str]:
    direct.service.scale(APP, workers)
    direct.clock.now += 600  # the workers are there
    return add(direct, count, seconds)


def add(direct: Via, count: int, seconds: float) -> list[str]:
    job_input = {"prompt": "x", "emulator": {"seconds": seconds}}
    return [direct(endpoints.run_job(APP, {**job_input, "seed": n + seconds})).id for n in range(count)]


def wait(direct: Via, ids: list[str], within: float, **options: Any) -> Any:
    flow = wait_for_jobs(APP, ids, deadline=direct.clock.now + within, **{"poll_interval": 5, **options})
    return direct(flow)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


Log = pytest.LogCaptureFixture


@pytest.mark.parametrize(("count", "jobs"), [(1, "1 job stays"), (12, "12 jobs stay")])
def test_an_app_without_workers_is_a_warning_at_once_and_each_hour(
    direct: Via, caplog: Log, count: int, jobs: str
) -> None:
    ids = submit(direct, count, workers=0)
    line = f"App {APP} has no active workers: {jobs} queued until it is scaled up"
    for within, lines in ((3, 1), (2.5 * HOUR, 3)):
        caplog.clear()
        with pytest.raises(RunGenJobTimeoutError):
            wait(direct, ids, within)
        assert warnings(caplog) == [line] * lines


@pytest.mark.parametrize("count", [3, 12])
def test_a_busy_app_is_waited_for(direct: Via, count: int) -> None:
    submit(direct, 2, workers=2, seconds=HOUR)  # others keep the workers busy
    jobs = wait(direct, add(direct, count, 2), 2 * HOUR, queued_timeout=60)
    assert [job.status for job in jobs] == ["COMPLETED"] * count


def answer(active_workers: int | None, status: str = "", **workers: int) -> dict[str, Any]:
    settings = {} if active_workers is None else {"active_workers": active_workers}
    return {"id": APP, "status": status, "configuration": settings, "workers": workers}


@pytest.mark.parametrize(
    ("body", "is_down"),
    [
        (answer(0, "STOPPED"), True),
        (answer(None, "STOPPED"), True),
        (answer(0, "RUNNING", ready=0, running=0), True),
        (answer(0, "RUNNING", throttled=1), True),
        (answer(None, "RUNNING"), False),
        (answer(None), False),
        (answer(1, "RUNNING"), False),
        (answer(0, "RUNNING", running=1), False),
        (answer(0, "RUNNING", initializing=1), False),
        (answer(1, "INITIALIZING", ready=0), False),
    ],
)
def test_only_an_app_that_certainly_has_no_worker_ends_the_wait(
    direct: Via, body: dict[str, Any], is_down: bool
) -> None:
    ids = submit(direct, 1, workers=0)
    direct.service.inject(Fault(on="get_app", status=200, body=body, times=None))
    with pytest.raises(RunGenJobTimeoutError) as caught:
        wait(direct, ids, 300, queued_timeout=120)
    assert isinstance(caught.value, RunGenJobQueuedTimeoutError) == is_down


def test_the_time_begins_again_with_each_worker(direct: Via) -> None:
    ids, started = submit(direct, 1, workers=0), direct.clock.now
    up = Fault(on="get_app", status=200, body=answer(1, "RUNNING"))
    direct.service.inject(replace(up, skip=1))
    with pytest.raises(RunGenJobQueuedTimeoutError):
        wait(direct, ids, HOUR, queued_timeout=90)
    # it has no worker at 0, one at 60, and none again from 120 on
    assert 210 <= direct.clock.now - started <= 250


@pytest.mark.parametrize(
    ("count", "workers", "seconds", "asked"),
    [(2, 0, 2.0, (10, 12)), (2, 2, 300.0, (0, 0)), (3, 1, 120.0, (1, 6))],
    ids=["queued", "running", "a queue that workers empty"],
)
def test_queued_jobs_cost_one_question_a_minute(
    direct: Via, caplog: Log, *, count: int, workers: int, seconds: float, asked: Any
) -> None:
    ids = submit(direct, count, workers=workers, seconds=seconds)
    with contextlib.nullcontext() if workers else pytest.raises(RunGenJobTimeoutError):
        wait(direct, ids, 600)
    assert asked[0] <= direct.service.count("get_app") <= asked[1]
    assert bool(warnings(caplog)) == (workers == 0)


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}])
def test_an_app_that_does_not_answer_disturbs_no_wait(
    direct: Via, caplog: Log, fault: dict[str, Any]
) -> None:
    direct.service.inject(Fault(on="get_app", times=None, **fault))
    ids = submit(direct, 3, workers=1, seconds=30)
    assert [job.status for job in wait(direct, ids, HOUR)] == ["COMPLETED"] * 3
    assert warnings(caplog) == []


@pytest.mark.parametrize("count", [1, 12])
def test_jobs_that_nobody_starts_end_the_wait(direct: Via, count: int) -> None:
    ids, started = submit(direct, count, workers=0), direct.clock.now
    with pytest.raises(RunGenJobQueuedTimeoutError) as caught:
        wait(direct, ids, HOUR, queued_timeout=60)
    assert 60 <= direct.clock.now - started <= 75
    more = f" and {count - 1} more" if count > 1 else ""
    since = datetime.fromtimestamp(started, UTC)
    assert str(caught.value) == (
        f"Queued for too long: no worker since {since:%Y-%m-%d %H:%M} UTC (job {ids[0]}{more}, app {APP}). "
        "Scale the app up, with scaled_app or in its console. Raise queued_timeout if it needs longer."
    )
    assert len(str(caught.value)) < 300
    assert caught.value.job_id == ids[0]
    assert isinstance(caught.value, RunGenJobTimeoutError)


@pytest.mark.parametrize("count", [4, 12])
def test_a_queue_that_moves_is_waited_for(direct: Via, count: int) -> None:
    ids = submit(direct, count, workers=1, seconds=50)
    jobs = wait(direct, ids, HOUR, queued_timeout=60)
    assert [job.status for job in jobs] == ["COMPLETED"] * count


def test_an_outage_is_not_taken_for_a_queue(direct: Via) -> None:
    ids = submit(direct, 1, workers=1, seconds=10)
    direct.service.inject(Fault(on="get", status=503, times=40))
    [job] = wait(direct, ids, HOUR, queued_timeout=20)
    assert job.status == "COMPLETED"


def test_a_timeout_names_status_time_and_workers(direct: Via) -> None:
    def timeout_of(job_id: str) -> str:
        with pytest.raises(RunGenJobTimeoutError) as caught:
            wait(direct, [job_id], 120)
        return str(caught.value)

    running, queued = submit(direct, 2, workers=1, seconds=HOUR)
    assert timeout_of(running) == (
        f"Not over in time: RUNNING for 2 min, 1 worker: running (job {running}, app {APP}). "
        "Raise timeout or execution_timeout if it needs longer."
    )
    assert timeout_of(queued) == (
        f"Not over in time: QUEUED for 2 min, 1 worker: running (job {queued}, app {APP}). "
        "Give the app more workers. Raise timeout or execution_timeout if it needs longer."
    )
    direct.service.inject(Fault(on="get", status=503, times=None))
    assert "status unknown, the last poll failed: Could not get the" in timeout_of(queued)


def test_a_short_job_is_seen_soon(direct: Via) -> None:
    [job_id], started = submit(direct, 1, workers=1), direct.clock.now
    wait(direct, [job_id], 60, first_interval=FIRST_INTERVAL)
    assert direct.clock.now - started < 2.5
    assert direct.service.count("get") <= 6
    [job_id] = submit(direct, 1, workers=1, seconds=60)
    wait(direct, [job_id], 100, first_interval=FIRST_INTERVAL)
    assert direct.service.count("get") <= 6 + 18
