"""What the callbacks of a failed task find on its exception: the app and the jobs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout
from conftest import APP, TrackedTaskInstance, run_task, table_of
from operator_kit import FAST, MODES, submitted, taking
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen._airflow import AirflowTaskTimeout
from airflow_provider_rungen.exceptions import RunGenJobFailedError, RunGenJobTimeoutError
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenDeleteAppOperator,
    RunGenRunJobOperator,
)
from airflow_provider_rungen.sensors import RunGenAppSensor, RunGenJobSensor
from airflow_provider_rungen.task.kill import TaskKilledError

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]

BAD, SLOW = taking(0.2, fail="no luck"), taking(60)


def job(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenRunJobOperator(task_id="t", input=given, wait_for_completion=True, **FAST | options)


def table(given: dict[str, Any], folder: Path, **options: Any) -> Any:
    return table_of(task_id="t", inputs=[given, given], destination=folder.as_uri(), **FAST | options)


def collect(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenCollectResultsOperator(task_id="t", job_id=submitted(given, given), **FAST | options)


def sensor(given: dict[str, Any], _: Path, **options: Any) -> Any:
    return RunGenJobSensor(task_id="t", job_id=submitted(given), poke_interval=0.02, **options)


EVERY = pytest.mark.parametrize("make", [job, table, collect, sensor])


def assert_named(emulator: Emulator, error: Any, kind: Any) -> None:
    """Check that an error is of a kind, and names the app and all jobs."""
    assert type(error) is kind
    ids = [job["id"] for job in emulator.service.jobs()]
    assert (error.app_id, error.job_ids) == (APP, ids)


@MODES
@EVERY
def test_the_error_of_failed_and_of_late_jobs_names_them(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, make: Callable[..., Any], deferrable: bool
) -> None:
    error: Any = run_task(make(BAD, tmp_path, deferrable=deferrable), context).error
    permanent = make in (collect, sensor)  # they find the same jobs again
    assert_named(rungen_emulator, error, AirflowFailException if permanent else RunGenJobFailedError)
    rungen_emulator.service.reset()
    error = run_task(make(SLOW, tmp_path / "late", timeout=0.5, deferrable=deferrable), context).error
    assert_named(rungen_emulator, error, AirflowSensorTimeout if make is sensor else RunGenJobTimeoutError)


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
    assert_named(rungen_emulator, raised.value, AirflowTaskTimeout)


def test_a_kill_names_the_jobs(rungen_emulator: Emulator, tmp_path: Path) -> None:
    task, ti = table(SLOW, tmp_path), TrackedTaskInstance()
    ti.on_push = lambda key, _: task.on_kill() if key == RunGenJobLink.key else None
    assert_named(rungen_emulator, run_task(task, {"ti": ti}).error, TaskKilledError)


def test_a_refused_submission_names_the_app(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=400))
    assert_named(rungen_emulator, run_task(job(BAD, tmp_path), context).error, AirflowFailException)


def test_other_tasks_name_their_app_and_jobs(rungen_emulator: Emulator, context: Any) -> None:
    ids = submitted(taking(0))
    for operation in ("cancel", "delete_app"):
        rungen_emulator.service.inject(Fault(on=operation, status=403, times=None))
    for op, jobs in (
        (RunGenCancelJobOperator(task_id="t", job_id=ids), ids),
        (RunGenAppSensor(task_id="t", status="STOPPED", poke_interval=0.02, timeout=0.1), []),
        (RunGenDeleteAppOperator(task_id="t", app_id=APP, timeout=1), []),
    ):
        error: Any = run_task(op, context).error
        assert (error.app_id, error.job_ids) == (APP, jobs)


def test_the_app_and_the_jobs_survive_a_copy() -> None:
    error = RunGenJobFailedError("no luck", app_id=APP, job_id="1")
    error.job_ids = ["1", "2"]
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - its own
        assert (twin.app_id, twin.job_id, twin.job_ids) == (APP, "1", ["1", "2"])
