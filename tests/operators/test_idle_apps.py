"""The operator that scales idle apps to zero, without a database."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from bad_answers import Fault
from conftest import KEY, SOON, FakeTaskInstance, Outcome, signal_when

from airflow_provider_rungen.emulator import Emulator
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


class Watchdog:
    """A task, and what happens while it waits."""

    def __init__(self, app_ids: Any = APP, **options: Any) -> None:
        self.op = RunGenScaleDownIdleAppsOperator(
            **{"task_id": "idle", "app_ids": app_ids, "idle_for": IDLE_FOR, **options}
        )
        self.meanwhile: Callable[[], None] = lambda: None

    def attempt(self, context: Any) -> Outcome:
        sleep = RunGenHook.sleep

        def act_and_sleep(hook: RunGenHook, seconds: float) -> None:
            patch.undo()
            self.meanwhile()
            sleep(hook, seconds)

        outcome = Outcome()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunGenHook, "sleep", act_and_sleep)
            try:
                outcome.value = self.op.execute(context)
            except Exception as error:
                outcome.error = error
        return outcome


def workers(emulator: Emulator, app_id: str = APP) -> int:
    count: int = emulator.service.stats()["active_workers"][app_id]
    return count


def submit(app_id: str, seconds: float) -> None:
    with RunGenHook() as hook:
        hook.run_job(app_id=app_id, input={"prompt": "x", "emulator": {"seconds": seconds}})


def event(app_id: str = APP) -> dict[str, Any]:
    return {"app_id": app_id, "active_workers": 2, "scaled_down": True}


def without_times(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(IDLE_FOR <= each["idle_seconds"] < 10 for each in events)
    return [{key: value for key, value in each.items() if key != "idle_seconds"} for each in events]


def test_the_idle_are_scaled_down_and_the_busy_are_not(
    emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    submit(OTHER, 60)
    emulator.service.scale(THIRD, 0)
    outcome = Watchdog(str([APP, OTHER, THIRD])).attempt(context)  # as a template makes it
    assert without_times(outcome.value) == [event()]
    assert context["ti"].xcoms["rungen_page"]["app"] == APP, "the first one"
    assert [workers(emulator, each) for each in (APP, OTHER, THIRD)] == [0, 2, 0]
    assert f"Not idle: 1 jobs are queued or running (app {OTHER})" in caplog.text
    assert "Polling 1 of 3 apps again in 0.2 s" in caplog.text
    assert KEY not in caplog.text
    assert emulator.service.count("update_app") == 1


def test_without_an_idle_app_there_is_no_wait(emulator: Emulator, context: Any) -> None:
    submit(APP, 60)
    outcome = Watchdog(idle_for=3600).attempt(context)
    assert outcome == Outcome(value=[])
    assert workers(emulator) == 2


def test_an_app_that_is_deleted_during_the_wait_is_fine(emulator: Emulator, context: Any) -> None:
    def delete() -> None:
        with RunGenHook() as hook:
            hook.scale_app(app_id=APP, active_workers=0)
            hook.delete_app(app_id=APP)

    task = Watchdog([APP, OTHER])
    task.meanwhile = delete
    assert without_times(task.attempt(context).value) == [event(OTHER)]


def test_a_stray_404_is_no_app_that_is_gone(emulator: Emulator, context: Any) -> None:
    emulator.service.inject(Fault(on="get_app", status=404, skip=1))
    emulator.service.inject(Fault(on="update_app", status=404))
    assert without_times(Watchdog().attempt(context).value) == [event()]
    assert workers(emulator) == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(on="update_app", status=400, times=1), "(400)"),
        (Fault(on="get_app", status=404, times=1), "(404)"),
        (Fault(on="get_app", status=500, times=5), "(500)"),
    ],
)
def test_an_app_that_may_be_billed_fails_the_task_after_the_others_were_dealt_with(
    emulator: Emulator, context: Any, fault: Fault, reason: str
) -> None:
    emulator.service.inject(fault)
    outcome = Watchdog([APP, OTHER]).attempt(context)
    assert type(outcome.error) is RunGenAppError, "which a retry may help"
    assert (
        f"STILL BILLED: 1 app may be idle: Could not {'get' if fault.on == 'get_app' else 'change'} the app"
        in str(outcome.error)
    )
    assert reason in str(outcome.error)
    assert (workers(emulator), workers(emulator, OTHER)) == (2, 0)
    context["ti"] = FakeTaskInstance()
    assert without_times(Watchdog([APP, OTHER]).attempt(context).value) == [event()]


def test_many_failures_are_one_short_error(emulator: Emulator, context: Any) -> None:
    outcome = Watchdog([f"gone-{number}" for number in range(100)]).attempt(context)
    assert str(outcome.error).startswith("STILL BILLED: 100 apps may be idle: Could not get the app (404)")
    assert len(str(outcome.error)) < 700


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_kill_during_the_wait_ends_the_task(emulator: Emulator, context: Any) -> None:
    task = Watchdog(idle_for=3600)
    with signal_when(signal.SIGTERM, lambda: emulator.service.count("get_app") > 0, task.op.on_kill) as sent:
        outcome = task.attempt(context)
    assert isinstance(outcome.error, AirflowException)
    assert time.monotonic() - sent[0] < SOON
    assert workers(emulator) == 2
