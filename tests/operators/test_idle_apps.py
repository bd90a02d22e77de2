"""The operator that scales idle apps to zero, without a database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from bad_answers import Fault
from conftest import KEY, FakeTaskInstance, Outcome, run_task
from operator_kit import KILLED, kill_when, taking, workers
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenScaleDownIdleAppsOperator

APP, OTHER, THIRD = "gpu", "llm", "small"
IDLE_FOR = 0.2


@pytest.fixture
def emulator(rungen_emulator: Emulator) -> Emulator:
    for app_id in (APP, OTHER, THIRD):
        rungen_emulator.service.add_app(app_id, workers=2)
    return rungen_emulator


def idle_op(app_ids: Any = APP, idle_for: float = IDLE_FOR) -> RunGenScaleDownIdleAppsOperator:
    return RunGenScaleDownIdleAppsOperator(task_id="idle", app_ids=app_ids, idle_for=idle_for)


def submit(app_id: str) -> None:
    with RunGenHook() as hook:
        hook.run_job(app_id=app_id, input=taking(60))


def scaled_down(outcome: Outcome) -> list[str]:
    """Return the apps that a task reports."""
    for event in outcome.value:
        assert IDLE_FOR <= event.pop("idle_seconds") < 10
    ids = [event["app_id"] for event in outcome.value]
    assert outcome.value == [{"app_id": each, "active_workers": 2, "scaled_down": True} for each in ids]
    return ids


@pytest.mark.contract
def test_the_idle_are_scaled_down_and_the_busy_are_not(
    emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    submit(OTHER)
    emulator.service.scale(THIRD, 0)
    outcome = run_task(idle_op(str([APP, OTHER, THIRD])), context)  # as a template makes it
    assert scaled_down(outcome) == [APP]
    assert context["ti"].xcoms["rungen_page"]["app"] == APP, "the first one"
    assert [workers(emulator, each) for each in (APP, OTHER, THIRD)] == [0, 2, 0]
    assert f"Not idle: 1 jobs are queued or running (app {OTHER})" in caplog.text
    assert "Polling 1 of 3 apps again in 0.2 s" in caplog.text
    assert KEY not in caplog.text
    assert emulator.service.count("update_app") == 1


@pytest.mark.contract
def test_without_an_idle_app_there_is_no_wait(emulator: Emulator, context: Any) -> None:
    submit(APP)
    assert run_task(idle_op(idle_for=3600), context) == Outcome(value=[])
    assert workers(emulator) == 2


@pytest.mark.contract
def test_an_app_that_is_deleted_during_the_wait_is_fine(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep: Callable[..., None] = RunGenHook.sleep

    def delete_and_sleep(hook: RunGenHook, seconds: float) -> None:
        monkeypatch.setattr(RunGenHook, "sleep", sleep)
        with RunGenHook() as other:
            other.scale_app(app_id=APP, active_workers=0)
            other.delete_app(app_id=APP)
        sleep(hook, seconds)

    monkeypatch.setattr(RunGenHook, "sleep", delete_and_sleep)
    assert scaled_down(run_task(idle_op([APP, OTHER]), context)) == [OTHER]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(on="update_app", status=400, times=1), "(400)"),
        (Fault(on="get_app", status=500, times=5), "(500)"),
    ],
)
def test_an_app_that_may_be_billed_fails_the_task_after_the_others_were_dealt_with(
    emulator: Emulator, context: Any, fault: Fault, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.GONE_GRACE", 0.0)
    emulator.service.inject(fault)
    error = run_task(idle_op([APP, OTHER]), context).error
    assert type(error) is RunGenAppError, "which a retry may help"
    verb = "get" if fault.on == "get_app" else "change"
    assert f"STILL BILLED: 1 app may be idle: Could not {verb} the app" in str(error)
    assert reason in str(error)
    assert (workers(emulator), workers(emulator, OTHER)) == (2, 0)
    context["ti"] = FakeTaskInstance()
    assert scaled_down(run_task(idle_op([APP, OTHER]), context)) == [APP]


def submit_at_the_scale_down(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a job of the app come in after it was scaled to zero."""
    sleep: Callable[..., None] = RunGenHook.sleep

    def submit_and_sleep(hook: RunGenHook, seconds: float) -> None:
        if workers(emulator) == 0 and emulator.service.count("run") == 0:
            submit(APP)
            seconds = 0.01  # the counters do not lag
        sleep(hook, seconds)

    monkeypatch.setattr(RunGenHook, "sleep", submit_and_sleep)


@pytest.mark.contract
def test_workers_that_could_not_be_given_back_are_not_said_to_be_billed(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_at_the_scale_down(emulator, monkeypatch)
    emulator.service.inject(Fault(on="update_app", status=400, skip=1, times=None))
    error = run_task(idle_op(APP), context).error
    assert type(error) is RunGenAppError
    assert str(error).startswith(
        "NOT SCALED BACK: 1 app may have jobs, and no worker: Could not change the app"
    )
    assert "BILLED" not in str(error)
    assert workers(emulator) == 0


@pytest.mark.contract
def test_each_app_that_is_not_polled_is_named(emulator: Emulator, context: Any) -> None:
    emulator.service.inject(Fault(on="get_app", status=403, times=None))
    error = run_task(idle_op([APP, OTHER, THIRD]), context).error
    assert str(error).startswith("STILL BILLED: 3 apps may be idle: Could not get the app (403)")
    assert all(f"(app {app_id})" in str(error) for app_id in (APP, OTHER, THIRD))


@pytest.mark.contract
@pytest.mark.parametrize("status", [400, 404])
def test_a_stray_refusal_of_the_first_poll_keeps_no_workers(
    emulator: Emulator, context: Any, status: int
) -> None:
    emulator.service.inject(Fault(on="get_app", status=status))
    assert scaled_down(run_task(idle_op([APP, OTHER]), context)) == [APP, OTHER]


def test_many_failures_are_one_short_error(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.GONE_GRACE", 0.01)
    error = str(run_task(idle_op([f"gone-{number}" for number in range(100)]), context).error)
    assert error.startswith("STILL BILLED: 100 apps may be idle: Could not get the app (404)")
    assert len(error) < 700


@pytest.mark.contract
@KILLED
def test_a_kill_during_the_wait_ends_the_task(emulator: Emulator, context: Any) -> None:
    kill_when(idle_op(idle_for=3600), context, lambda: emulator.service.count("get_app") > 0)
    assert workers(emulator) == 2
