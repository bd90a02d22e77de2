"""What the callbacks of a failed task find on its exception: the app and the jobs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSensorTimeout
from conftest import APP, TrackedTaskInstance, run_task

from airflow_provider_rungen._airflow import AirflowTaskTimeout
from airflow_provider_rungen.emulator import Emulator, Fault
from airflow_provider_rungen.exceptions import RunGenJobFailedError, RunGenJobTimeoutError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenDeleteAppOperator,
    RunGenRunBatchOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
)
from airflow_provider_rungen.sensors import RunGenAppSensor, RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
FAST: dict[str, Any] = {"task_id": "t", "poll_interval": 0.02, "defer_after": 0}
BAD: dict[str, Any] = {"prompt": "bad", "emulator": {"seconds": 0.2, "fail": "no luck"}}
SLOW: dict[str, Any] = {"prompt": "slow", "emulator": {"seconds": 60}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def job(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenRunJobOperator(input=given, wait_for_completion=True, **FAST | options)


def batch(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenRunBatchOperator(inputs=[given, given], **FAST | options)


def table(given: dict[str, Any], folder: Path, **options: Any) -> Any:
    rows = [{"id": number, **given} for number in range(2)]
    return RunGenRunTableOperator(table=rows, key="id", destination=folder.as_uri(), **FAST | options)


def collect(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenCollectResultsOperator(job_id=submitted(given, given), **FAST | options)


def sensor(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenJobSensor(task_id="t", job_id=submitted(given), poke_interval=0.02, defer_after=0, **options)


EVERY = pytest.mark.parametrize("make", [job, batch, table, collect, sensor])


def named_by(error: Any) -> tuple[str, list[str]]:
    return error.app_id, error.job_ids


def all_jobs(emulator: Emulator) -> list[str]:
    return [job["id"] for job in emulator.service.jobs()]


@MODES
@EVERY
def test_the_error_of_failed_jobs_names_them(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, make: Callable[..., Any], deferrable: bool
) -> None:
    error: Any = run_task(make(BAD, tmp_path, deferrable=deferrable), context).error
    permanent = make in (collect, sensor)  # they find the same jobs again
    assert type(error) is (AirflowFailException if permanent else RunGenJobFailedError)
    assert named_by(error) == (APP, all_jobs(rungen_emulator))
    assert getattr(error, "job_id", "") in all_jobs(rungen_emulator)


@MODES
@EVERY
def test_the_error_of_late_jobs_names_them(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, make: Callable[..., Any], deferrable: bool
) -> None:
    error = run_task(make(SLOW, tmp_path, timeout=0.5, deferrable=deferrable), context).error
    assert type(error) is (AirflowSensorTimeout if make is sensor else RunGenJobTimeoutError)
    assert named_by(error) == (APP, all_jobs(rungen_emulator))


@pytest.mark.usefixtures("with_links")
@EVERY
def test_a_time_limit_of_airflow_names_the_jobs(
    rungen_emulator: Emulator, tmp_path: Path, make: Callable[..., Any]
) -> None:
    """tests/test_dags.py has a real one."""
    ti = TrackedTaskInstance()

    def time_out(key: str, _: Any) -> None:
        if key == RunGenJobLink.key:
            raise AirflowTaskTimeout

    ti.on_push = time_out
    with pytest.raises(AirflowTaskTimeout) as raised:
        make(SLOW, tmp_path).execute({"ti": ti})
    assert named_by(raised.value) == (APP, all_jobs(rungen_emulator))


@pytest.mark.usefixtures("with_links")
def test_a_kill_names_the_jobs(rungen_emulator: Emulator, tmp_path: Path) -> None:
    task, ti = batch(SLOW, tmp_path), TrackedTaskInstance()
    ti.on_push = lambda key, _: task.on_kill() if key == RunGenJobLink.key else None
    error = run_task(task, {"ti": ti}).error
    assert type(error) is AirflowException
    assert named_by(error) == (APP, all_jobs(rungen_emulator))


def test_a_refused_submission_names_the_app(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=400))
    error = run_task(job(BAD, tmp_path), context).error
    assert type(error) is AirflowFailException
    assert named_by(error) == (APP, [])


def test_other_tasks_name_their_app_and_jobs(rungen_emulator: Emulator, context: Any) -> None:
    ids = submitted({"prompt": "x", "emulator": {"seconds": 0}})
    rungen_emulator.service.inject(Fault(on="cancel", status=403, times=10))
    error = run_task(RunGenCancelJobOperator(task_id="t", job_id=ids), context).error
    assert named_by(error) == (APP, ids)
    late = RunGenAppSensor(task_id="t", status="STOPPED", poke_interval=0.02, timeout=0.1)
    error = run_task(late, context).error
    assert type(error) is AirflowSensorTimeout
    assert named_by(error) == (APP, [])
    rungen_emulator.service.inject(Fault(on="delete_app", status=403, times=10))
    error = run_task(RunGenDeleteAppOperator(task_id="t", app_id=APP, timeout=1), context).error
    assert named_by(error) == (APP, [])


def test_the_app_and_the_jobs_survive_a_copy() -> None:
    error = RunGenJobFailedError("no luck", app_id=APP, job_id="1")
    error.job_ids = ["1", "2"]
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - its own
        assert (twin.app_id, twin.job_id, twin.job_ids) == (APP, "1", ["1", "2"])
