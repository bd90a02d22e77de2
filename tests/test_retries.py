"""When a task is tried again: at once failed, after as long as the service asked, or as Airflow would."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_3_PLUS
from conftest import run_task
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.exceptions import (
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobFailedError,
    RunGenRateLimitedError,
)
from airflow_provider_rungen.operators import RunGenRunJobOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

if not AIRFLOW_V_3_3_PLUS:
    pytest.skip("retry policies came with Airflow 3.3", allow_module_level=True)

from airflow.providers.common.compat.sdk import RetryAction, RetryDecision, RetryPolicy

from airflow_provider_rungen.retries import RunGenRetryPolicy


def decision(error: BaseException) -> RetryDecision:
    context: Any = {"task": SimpleNamespace(retry_delay=timedelta(minutes=5))}
    return RunGenRetryPolicy().evaluate(error, 1, 5, context)


def asking(seconds: float | None) -> RunGenRateLimitedError:
    return RunGenRateLimitedError("Too many", status_code=429, retry_after=seconds)


@pytest.mark.parametrize("error", [RunGenInputError("bad"), RunGenForbiddenError("no", status_code=403)])
def test_what_is_hopeless_fails_at_once(error: Exception) -> None:
    assert decision(error).action is RetryAction.FAIL


def test_a_retry_waits_as_long_as_the_service_asked() -> None:
    decided = decision(asking(900))
    assert (decided.action, decided.retry_delay) == (RetryAction.RETRY, timedelta(seconds=900))
    assert decided.reason == "RunGen asked to wait 15 min"
    # kept as plain data
    kept: Any = RunGenRetryPolicy.deserialize(RunGenRetryPolicy().serialize())
    assert kept.evaluate(asking(2), 1, 5).retry_delay == timedelta(seconds=2)


@pytest.mark.parametrize(
    "error", [asking(None), asking(2), RunGenJobFailedError("failed"), ValueError("a stranger")], ids=str
)
def test_the_rest_is_left_to_airflow(error: Exception) -> None:
    assert decision(error) == RetryDecision.default()


def test_it_is_the_default_of_every_task_and_gives_way_to_another() -> None:
    class Other(RetryPolicy):
        def evaluate(self, *_: Any, **__: Any) -> RetryDecision:
            return RetryDecision.default()

    makes: list[tuple[Any, dict[str, Any]]] = [
        (RunGenRunJobOperator, {"input": {}}),
        (RunGenJobSensor, {"job_id": "a"}),
    ]
    other = Other()
    for kind, options in makes:
        assert type(kind(task_id="t", **options).retry_policy) is RunGenRetryPolicy
        assert kind(task_id="t", retry_policy=other, **options).retry_policy is other
        assert kind(task_id="t", default_args={"retry_policy": other}, **options).retry_policy is other


def test_an_operator_that_was_told_to_wait_tells_the_policy(rungen_emulator: Emulator, context: Any) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=429, headers={"Retry-After": "1800"}))
    op = RunGenRunJobOperator(task_id="run", input={"prompt": "x"})
    error = run_task(op, context).error
    assert isinstance(error, RunGenRateLimitedError)
    assert op.retry_policy is not None
    decided = op.retry_policy.evaluate(error, 1, 5, {"task": op})
    assert decided.retry_delay == timedelta(seconds=1800)
    assert rungen_emulator.service.count("run") == 1


def test_a_policy_that_airflow_cannot_apply_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.operators.base.AIRFLOW_V_3_3_PLUS", False)
    with pytest.warns(UserWarning, match="retry_policy has no effect before Airflow 3.3") as caught:
        RunGenRunJobOperator(task_id="run", input={"prompt": "x"}, retry_policy=object())
    assert [Path(each.filename).name for each in caught] == ["test_retries.py"]
