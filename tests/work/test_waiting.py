"""No worker for waiting, and no waiting for a worker: when a task defers, and where it ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator, TaskDeferred
from client_mistakes import early_retries
from conftest import APP, FakeTaskInstance, run_task
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen._airflow import AirflowSensorTimeout
from airflow_provider_rungen.exceptions import RunGenJobQueuedTimeoutError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunJobOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]
WAITING: dict[str, Any] = {"wait_for_completion": True, "deferrable": True, "poll_interval": 0.1}


def job_input(seconds: float, **more: Any) -> dict[str, Any]:
    return {"prompt": "a lighthouse", "emulator": {"seconds": seconds, **more}}


def submitted(seconds: float) -> str:
    with RunGenHook() as hook:
        return hook.run_job(input=job_input(seconds)).id


def sensor(job_id: Any, **options: Any) -> RunGenJobSensor:
    options = {"deferrable": True, "poke_interval": 0.1} | options
    return RunGenJobSensor(task_id="wait", job_id=job_id, **options)


def deferral(op: BaseOperator, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        op.execute(context)
    return caught.value


def first_event(deferred: TaskDeferred) -> Any:
    async def first() -> Any:
        stream = deferred.trigger.run()
        try:
            return await anext(stream)
        finally:
            await stream.aclose()

    return asyncio.run(first())


@pytest.mark.parametrize(("count", "skip"), [(1, 0), (3, 1)], ids=["the only job", "one of several"])
def test_a_retry_after_holds_from_the_worker_into_the_triggerer(
    rungen_emulator: Emulator, context: Any, count: int, skip: int
) -> None:
    ids = [submitted(0.5 * (number != skip)) for number in range(count)]
    rungen_emulator.service.inject(Fault(on="get", status=503, headers={"Retry-After": "1"}, skip=skip))
    begun_at = time.monotonic()
    outcome = run_task(sensor(ids), context)
    assert outcome.error is None
    assert outcome.events, "it was deferred while the service had asked to be left alone"
    assert time.monotonic() - begun_at >= 1
    assert early_retries(rungen_emulator.service) == 0


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_a_sensor_pokes_no_sooner_than_the_service_asked(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, mode: Any
) -> None:
    job_id = submitted(0)
    rungen_emulator.service.inject(Fault(on="get", status=429, headers={"Retry-After": "1"}))
    op = sensor(job_id, deferrable=False, timeout=30, mode=mode)
    if mode == "poke":
        assert run_task(op, context).error is None
    else:
        ti.get_first_reschedule_date = lambda _: None  # type: ignore[attr-defined]
        error: Any = run_task(op, context).error
        assert type(error).__name__ == "AirflowRescheduleException"
        assert 0 < error.reschedule_date.timestamp() - time.time() <= 1.5
        time.sleep(max(error.reschedule_date.timestamp() - time.time(), 0))
        assert run_task(op, context).error is None
    assert early_retries(rungen_emulator.service) == 0
    assert rungen_emulator.service.count("get") == 2


QUEUED_MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])


@QUEUED_MODES
def test_a_job_that_nobody_starts_is_canceled_in_time(
    rungen_emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture, deferrable: bool
) -> None:
    rungen_emulator.service.scale(APP, 0)
    options = WAITING | {"deferrable": deferrable, "queued_timeout": 0.5}
    error = run_task(RunGenRunJobOperator(task_id="run", input=job_input(1), **options), context).error
    assert type(error) is RunGenJobQueuedTimeoutError
    assert str(error).startswith("Queued for too long: ")
    assert "no worker since 20" in str(error)
    hint = "Scale the app up, with scaled_app or in its console. Raise queued_timeout (now 0.5 s)"
    assert str(error).endswith(f"{hint} if it needs longer.")
    assert [job["status"] for job in rungen_emulator.service.jobs()] == ["CANCELED"]
    assert f"App {APP} has no active workers: 1 job stays queued until it is scaled up" in caplog.text


@QUEUED_MODES
def test_a_sensor_on_jobs_that_nobody_starts_leaves_them(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    rungen_emulator.service.scale(APP, 0)
    job_id = submitted(1)
    with RunGenHook() as hook, pytest.raises(RunGenJobQueuedTimeoutError):
        hook.wait_for_job(job_id=job_id, poll_interval=0.1, queued_timeout=0.3)
    op = sensor(job_id, deferrable=deferrable, queued_timeout=0.3)
    error = run_task(op, context).error
    assert isinstance(error, AirflowSensorTimeout)
    assert str(error).startswith("Queued for too long: ")
    assert [job["status"] for job in rungen_emulator.service.jobs()] == ["QUEUED"]
