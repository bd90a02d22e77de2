"""How a wait for many jobs ends when the service does not know some of them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from conftest import run_task
from hypothesis import given
from hypothesis import strategies as st
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobFailedError,
    RunGenJobQueuedTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.sensors import RunGenJobSensor
from airflow_provider_rungen.task.outcomes import (
    error_to_json,
    fail_without_retry,
    format_ranges,
    max_failures,
    parse_ranges,
    raise_for_event,
)

pytestmark = pytest.mark.usefixtures("unsettled")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])


def submitted(count: int) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input={"prompt": f"picture {number}"}).id for number in range(count)]


def failure(op: Any, context: Any) -> Any:
    """Return the error of a task. Airflow's own is raised in its place."""
    error = run_task(op, context).error
    return error if error is None or isinstance(error, RunGenError) else error.__context__


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("count", [1, 2])
def test_jobs_that_the_service_does_not_know_have_not_failed(
    rungen_emulator: Emulator, context: Any, deferrable: bool, count: int
) -> None:
    unknown = [f"unknown-{number}" for number in range(count)]
    ids = [*submitted(3), *unknown]
    op = RunGenJobSensor(task_id="wait", job_id=ids, poke_interval=0.02, deferrable=deferrable)
    error = failure(op, context)
    assert type(error) is RunGenNotFoundError
    assert error.status_code == 404
    assert "Check job_id, app_id" in str(error)
    assert " failed" not in str(error)
    assert all(job_id in str(error) for job_id in unknown)
    assert type(pickle.loads(pickle.dumps(error))) is RunGenNotFoundError  # noqa: S301 - our own


@pytest.mark.contract
@MODES
def test_a_job_that_failed_is_named_beside_one_that_is_unknown(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    with RunGenHook() as hook:
        failed = hook.run_job(input={"prompt": "fail: out of memory"}).id
    ids = [failed, "unknown"]
    error = failure(
        RunGenJobSensor(task_id="wait", job_id=ids, poke_interval=0.02, deferrable=deferrable),
        context,
    )
    assert type(error) in (RunGenJobFailedError, RunGenNotFoundError)
    assert "out of memory" in str(error)
    assert "404" in str(error)


@pytest.mark.parametrize(
    ("max_failed", "count", "allowed"),
    [
        (0, 3, 0),
        (0.5, 0, 0),
        (1, 1, 1),
        (0.99, 1, 0),
        (0.3, 3, 0),
        (0.34, 3, 1),
        (1000, 4, 1000),
        (0.29, 100, 29),
    ],
)
def test_a_share_allows_as_many_failures_as_it_says(max_failed: float, count: int, allowed: int) -> None:
    assert max_failures(max_failed, count) == allowed


# --- events -------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 200)))
def test_an_event_tells_which_jobs_are_over(numbers: set[int]) -> None:
    assert parse_ranges(format_ranges(numbers), 201) == sorted(numbers)


@pytest.mark.parametrize(
    ("text", "positions"), [("0-2,4", [0, 1, 2, 4]), ("", []), ("3-5,9", [3, 4]), ("9" * 5000, [])]
)
def test_an_event_is_read_as_far_as_it_fits(text: Any, positions: list[int]) -> None:
    assert parse_ranges(text, 5) == positions


@pytest.mark.parametrize("text", ["a", "1,", "1--2", "-1", "0 1", None, 7, ["0"]])
def test_an_event_that_says_something_else_names_no_jobs(text: Any) -> None:
    assert parse_ranges(text, 5) == []


@pytest.mark.parametrize(
    "error",
    [
        RunGenJobQueuedTimeoutError("it broke", app_id="a", job_id="j"),
        RunGenForbiddenError("it broke", status_code=403, hint="Mend it"),
        RunGenAPIError("it broke", status_code=500, retryable=False),
        RunGenError("it broke", retryable=False),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_event_of_a_wait_that_failed_is_its_error(error: RunGenError) -> None:
    event = json.loads(json.dumps({"outcome": "error", "error": error_to_json(error)}))
    with pytest.raises(type(error), match="it broke") as caught:
        raise_for_event(event)
    assert type(caught.value) is type(error)
    for name in ("hint", "retryable", "app_id", "job_id", "status_code"):
        assert getattr(caught.value, name, None) == getattr(error, name, None)


@pytest.mark.parametrize(
    "event", [None, "go on", {}, {"outcome": "of another version"}, {"error": {"kind": "SystemExit"}}]
)
def test_an_event_that_is_none_is_an_error_that_a_retry_may_help(event: Any) -> None:
    with pytest.raises(RunGenError) as caught:
        raise_for_event(event)
    assert type(caught.value) is RunGenError
    assert caught.value.retryable


@pytest.mark.parametrize("is_killed", [False, True])
def test_no_error_of_an_attempt_that_was_killed_is_final(is_killed: bool) -> None:
    """A kill that Airflow swallows in the middle of an import leaves what looks like a wrong destination."""
    with (
        pytest.raises(RunGenInputError if is_killed else AirflowFailException, match="no such scheme"),
        fail_without_retry(is_killed=lambda: is_killed),
    ):
        raise RunGenInputError("no such scheme")
