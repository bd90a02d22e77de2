"""How a wait for many jobs ends when the service does not know some of them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from conftest import run_task

from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenError,
    RunGenForbiddenError,
    RunGenJobFailedError,
    RunGenJobQueuedTimeoutError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution.task.outcomes import ended_positions, raise_for_event
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])


def submitted(count: int) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input={"prompt": f"picture {number}"}).id for number in range(count)]


def failure(op: Any, context: Any) -> Any:
    """Return the error of a task. Airflow's own has it as its cause."""
    error = run_task(op, context).error
    return error.__cause__ if error is not None and error.__cause__ is not None else error


@MODES
@pytest.mark.parametrize("count", [1, 2])
def test_jobs_that_the_service_does_not_know_have_not_failed(
    rungen_emulator: Emulator, context: Any, deferrable: bool, count: int
) -> None:
    unknown = [f"unknown-{number}" for number in range(count)]
    ids = [*submitted(3), *unknown]
    waiting: dict[str, Any] = {"deferrable": deferrable, "defer_after": 0}
    sensor = RunGenJobSensor(task_id="wait", job_id=ids, poke_interval=0.02, **waiting)
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=ids, poll_interval=0.02, **waiting)
    for op in (sensor, collect):
        error = failure(op, context)
        assert type(error) is RunGenNotFoundError
        assert error.status_code == 404
        assert "Check app_id and job_id" in str(error)
        assert " failed" not in str(error)
        assert all(job_id in str(error) for job_id in unknown)
        assert type(pickle.loads(pickle.dumps(error))) is RunGenNotFoundError  # noqa: S301 - our own


@MODES
def test_a_job_that_failed_is_named_beside_one_that_is_unknown(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    with RunGenHook() as hook:
        failed = hook.run_job(input={"prompt": "fail: out of memory"}).id
    ids = [failed, "unknown"]
    error = failure(
        RunGenJobSensor(task_id="wait", job_id=ids, poke_interval=0.02, deferrable=deferrable, defer_after=0),
        context,
    )
    assert type(error) in (RunGenJobFailedError, RunGenNotFoundError)
    assert "out of memory" in str(error)
    assert "404" in str(error)


# --- events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "positions"),
    [
        ({"ended": "0-2,4"}, [0, 1, 2, 4]),
        ({"ended": ""}, []),
        ({"ended": "0-5"}, None),
        ({"ended": 7}, None),
        ({}, None),
    ],
)
def test_an_event_tells_which_jobs_are_over_as_far_as_it_can(event: Any, positions: Any) -> None:
    assert ended_positions(event, 5) == positions


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"outcome": "timeout", "job_id": "j"}, RunGenJobTimeoutError),
        ({"outcome": "timeout", "queued": True}, RunGenJobQueuedTimeoutError),
        ({"outcome": "error", "status_code": 403}, RunGenForbiddenError),
        ({"outcome": "error", "status_code": 500}, RunGenAPIError),
        ({"outcome": "error"}, RunGenError),
        ({"outcome": "of another version"}, RunGenError),
    ],
)
@pytest.mark.parametrize("retryable", [False, True])
def test_an_event_of_a_wait_that_failed_is_its_error(event: Any, kind: Any, retryable: bool) -> None:
    event = event | {"app_id": "a", "message": "it broke", "hint": "Mend it", "retryable": retryable}
    with pytest.raises(RunGenError, match="it broke") as caught:
        raise_for_event(event)
    assert type(caught.value) is kind
    assert caught.value.hint == "Mend it"
    assert caught.value.retryable is (retryable or event["outcome"] == "timeout")
