"""Operators and sensor for apps, without a database: what they send, return, raise, and leave behind."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from bad_answers import Fault
from conftest import (
    KEY,
    SOON,
    FakeStore,
    FakeTaskInstance,
    Outcome,
    TrackedTaskInstance,
    pairwise,
    run_task,
    signal_when,
)

from airflow_provider_rungen import triggers
from airflow_provider_rungen.client.endpoints import create_app
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenConfigError,
    RunGenConflictError,
    RunGenForbiddenError,
    RunGenInputError,
)
from airflow_provider_rungen.execution.apps.scale import whole_number
from airflow_provider_rungen.execution.task import task_instances
from airflow_provider_rungen.operators import (
    RunGenCreateAppOperator,
    RunGenDeleteAppOperator,
    RunGenScaleAppOperator,
)
from airflow_provider_rungen.sensors import RunGenAppSensor

pytestmark = pytest.mark.usefixtures("unsettled")

APP = "gpu"
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def emulator(rungen_emulator: Emulator) -> Emulator:
    rungen_emulator.service.add_app(APP, init_seconds=0.3)
    return rungen_emulator


def scale_op(active_workers: Any = 2, **options: Any) -> RunGenScaleAppOperator:
    options = {"task_id": "scale", "app_id": APP, "poll_interval": 0.02, "defer_after": 0, **options}
    return RunGenScaleAppOperator(active_workers=active_workers, **options)


def numbers(emulator: Emulator) -> list[Any]:
    """Every number of workers that was asked for."""
    bodies = [json.loads(r.body) for r in emulator.service.records() if r.operation == "update_app"]
    return [body["configuration"]["active_workers"] for body in bodies]


def workers(emulator: Emulator, app_id: str = APP) -> int:
    count: int = emulator.service.stats()["active_workers"][app_id]
    return count


# --- scaling ------------------------------------------------------------------------------------------------


@MODES
def test_going_up_waits_until_the_app_runs(emulator: Emulator, context: Any, deferrable: bool) -> None:
    started = time.monotonic()
    outcome = run_task(scale_op(deferrable=deferrable), context)
    assert (outcome.value, outcome.error) == (APP, None)
    assert time.monotonic() - started > 0.3
    assert numbers(emulator) == [2]
    assert len(outcome.events) == deferrable


def test_an_app_that_is_there_already_is_sent_nothing(emulator: Emulator, context: Any) -> None:
    emulator.service.scale(APP, 2)
    assert run_task(scale_op("2"), context).value == APP
    assert numbers(emulator) == []


@pytest.mark.parametrize("body", [{}, {"status": "error"}])
def test_a_number_that_was_not_set_is_sent_again(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.scaling.PAUSE", 0.05)
    emulator.service.inject(Fault(on="update_app", status=200, body=body))
    assert run_task(scale_op(), context).value == APP
    assert numbers(emulator) == [2, 2]


@pytest.mark.parametrize("before", [0, 1, 5])
def test_going_up_or_down_without_a_wait(emulator: Emulator, context: Any, before: int) -> None:
    emulator.service.scale(APP, before)
    assert run_task(scale_op(3, wait_until_running=False), context) == Outcome(value=APP)
    assert (numbers(emulator), workers(emulator)) == ([3], 3)


def app_that_tells(emulator: Emulator, on: str = "get_app", times: int | None = 1, **told: Any) -> None:
    """Make the service answer with this, and do nothing."""
    emulator.service.inject(Fault(on=on, status=200, body={"id": APP, **told}, times=times))


@MODES
@pytest.mark.parametrize(
    ("status", "skip"), [(404, 0), (404, 2), (400, 2)], ids=["created a moment ago", "on the way up", "odd"]
)
def test_a_stray_refusal_does_not_end_the_way_up(
    emulator: Emulator, context: Any, deferrable: bool, status: int, skip: int
) -> None:
    emulator.service.inject(Fault(on="get_app", status=status, times=2, skip=skip))
    assert run_task(scale_op(deferrable=deferrable), context).value == APP
    assert numbers(emulator) == [2]


@MODES
def test_a_stray_404_does_not_keep_the_workers(emulator: Emulator, context: Any, deferrable: bool) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    emulator.service.inject(Fault(on="update_app", status=404, times=2, skip=1))
    outcome = run_task(scale_op(deferrable=deferrable, timeout=0.3), context)
    assert type(outcome.error) is RunGenAppTimeoutError
    assert (numbers(emulator), workers(emulator)) == ([2, 0, 0, 0], 0)


def test_going_down_waits_for_nothing(emulator: Emulator, context: Any) -> None:
    emulator.service.scale(APP, 2)
    app_that_tells(emulator, status="RUNNING")  # and no number
    assert run_task(scale_op(0, timeout=2), context) == Outcome(value=APP)
    assert (numbers(emulator), workers(emulator)) == ([0], 0)
    app_that_tells(emulator, status="STOPPED")  # which has none
    assert run_task(scale_op(0), context) == Outcome(value=APP)
    # as far as one answer tells, which may be old
    assert numbers(emulator) == [0, 0]


@pytest.mark.parametrize(
    ("deferrable", "before", "limit"),
    pairwise([False, True], [0, 1], [{"timeout": 0.5}, {"execution_timeout": timedelta(seconds=1)}]),
)
def test_an_app_that_takes_too_long_is_lowered_again(
    emulator: Emulator, context: Any, deferrable: bool, before: int, limit: dict[str, Any]
) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    emulator.service.scale(APP, before)
    outcome = run_task(scale_op(deferrable=deferrable, **limit), context)
    assert type(outcome.error) is RunGenAppTimeoutError
    assert outcome.error.app_id == APP
    assert "INITIALIZING, 2 workers" in str(outcome.error)
    assert "Raise timeout" in str(outcome.error)
    assert (numbers(emulator), workers(emulator)) == ([2, before], before)


@MODES
def test_an_app_that_somebody_else_has_lowered_is_left(
    emulator: Emulator, context: Any, deferrable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    lowered = {"id": APP, "status": "RUNNING", "configuration": {"active_workers": 1}}
    emulator.service.inject(Fault(on="get_app", status=200, body=lowered, times=None, skip=4))
    outcome = run_task(scale_op(deferrable=deferrable), context)
    assert isinstance(outcome.error, RunGenAppError)
    assert "Somebody else set the app to 1 worker on its way to 2" in str(outcome.error)
    assert f"Left at 1 worker, which somebody else has set (app {APP})" in caplog.text
    assert numbers(emulator) == [2]


def test_nothing_is_lowered_when_told_so(emulator: Emulator, context: Any) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    assert run_task(scale_op(timeout=0.2, scale_down_on_failure=False), context).error
    assert numbers(emulator) == [2]


def test_what_was_not_raised_is_not_lowered(emulator: Emulator, context: Any) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    emulator.service.scale(APP, 2)
    assert isinstance(run_task(scale_op(timeout=0.2), context).error, RunGenAppTimeoutError)
    assert numbers(emulator) == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, AirflowFailException),
        (402, RunGenAPIError),
        (403, RunGenForbiddenError),
        (409, RunGenConflictError),
    ],
)
def test_a_refusal_leaves_nothing_to_lower(
    emulator: Emulator, context: Any, status: int, error: type[Exception]
) -> None:
    emulator.service.inject(Fault(on="update_app", status=status, times=None))
    outcome = run_task(scale_op(), context)
    # key, account or app may be in order before a retry
    assert type(outcome.error) is error
    assert f"({status})" in str(outcome.error)
    assert set(numbers(emulator)) == {2}
    assert "BILLED" not in outcome.log


@pytest.mark.parametrize("kind", ["reset_after", "garbage"])
def test_a_refusal_after_a_lost_answer_does_not_leave_the_app_up(
    emulator: Emulator, context: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    emulator.service.inject(Fault(on="update_app", kind=kind))
    emulator.service.inject(Fault(on="update_app", status=400))
    assert "(400)" in str(run_task(scale_op(), context).error)
    assert (numbers(emulator), workers(emulator)) == ([2, 2, 0], 0)


@MODES
def test_a_retry_resumes_an_app_that_could_not_be_lowered(
    emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture, deferrable: bool
) -> None:
    emulator.service.add_app(APP, init_seconds=1)
    context["task_state_store"] = FakeStore()
    for operation in ("get_app", "update_app"):
        emulator.service.inject(Fault(on=operation, status=403, times=None, skip=1))
    outcome = run_task(scale_op(deferrable=deferrable), context)
    assert isinstance(outcome.error, RunGenForbiddenError), "a retry may help"
    assert f"STILL BILLED: app {APP} may still have 2 workers" in caplog.text
    emulator.service.clear_faults()
    assert run_task(scale_op(), context).value == APP
    assert workers(emulator) == 2


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "many", "", None, [], "-1"])
def test_a_number_of_workers_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(RunGenInputError, match="active_workers"):
        whole_number(wrong, "active_workers")
    assert whole_number(" 2 ", "active_workers") == 2


def test_a_wrong_number_is_hopeless_and_sends_nothing(emulator: Emulator, context: Any) -> None:
    # not when the DAG is parsed: it is a template field
    assert isinstance(run_task(scale_op("many"), context).error, AirflowFailException)
    assert emulator.service.records() == []


# --- scaling, killed ----------------------------------------------------------------------------------------


@KILLED
def test_a_kill_on_the_way_up_lowers_the_app_and_ends_the_task(emulator: Emulator, context: Any) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    op = scale_op()
    with signal_when(signal.SIGTERM, lambda: emulator.service.count("get_app") > 3, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert isinstance(outcome.error, AirflowException)
    assert "killed" in str(outcome.error)
    assert time.monotonic() - sent[0] < SOON
    assert (numbers(emulator), workers(emulator)) == ([2, 0], 0)


@KILLED
def test_a_kill_repeats_what_fails_for_a_moment(emulator: Emulator, context: Any) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    op = scale_op()

    def fail() -> bool:
        if emulator.service.count("get_app") <= 3:
            return False
        emulator.service.inject(Fault(on="update_app", status=503, times=2))
        return True

    with signal_when(signal.SIGTERM, fail, op.on_kill):
        assert run_task(op, context).error is not None
    assert workers(emulator) == 0


@pytest.mark.usefixtures("on_the_wire")
@KILLED
def test_a_kill_is_over_in_time_when_the_service_hangs(
    emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    op = scale_op()

    def hang() -> bool:
        if emulator.service.count("get_app") <= 3:
            return False
        for on in ("get_app", "update_app"):
            emulator.service.inject(Fault(on=on, kind="hang", times=None))
        return True

    with signal_when(signal.SIGTERM, hang, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert isinstance(outcome.error, AirflowException)
    assert time.monotonic() - sent[0] < SOON
    assert "STILL BILLED" in caplog.text


def test_a_kill_before_anything_was_raised_is_harmless(emulator: Emulator) -> None:
    scale_op().on_kill()
    assert emulator.service.records() == []


@KILLED
@pytest.mark.parametrize(
    ("state", "tries", "is_left_up"),
    [
        *(("running", 1, True), ("up_for_retry", 1, True), (None, 1, True)),
        *(("failed", 1, False), ("success", 1, False), ("running", 0, False)),
    ],
)
def test_a_kill_leaves_the_app_up_if_another_attempt_follows(
    emulator: Emulator, context: Any, state: str | None, tries: int, is_left_up: bool
) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    ti = TrackedTaskInstance(state)
    ti.max_tries = tries
    context |= {"ti": ti, "task_state_store": FakeStore()}
    op = scale_op()
    with signal_when(signal.SIGTERM, lambda: emulator.service.count("get_app") > 3, op.on_kill) as sent:
        error = str(run_task(op, context).error)
    assert time.monotonic() - sent[0] < SOON
    line = f"STILL BILLED: app {APP} keeps 2 workers for the next attempt, which resumes."
    assert error.endswith(line) == is_left_up
    assert workers(emulator) == (2 if is_left_up else 0)
    # which knows what to lower to
    assert isinstance(run_task(scale_op(timeout=0.2), context).error, RunGenAppTimeoutError)
    assert workers(emulator) == 0


def killed_after_raising(emulator: Emulator, context: Any) -> None:
    """Run an attempt that scales the app up, and dies without a trace."""

    class Death(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Death

    op = scale_op(scale_down_on_failure=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_provider_rungen.execution.apps.scale.wait_or_defer", die)
        with pytest.raises(Death):
            op.execute(context)
    assert workers(emulator) == 2


@pytest.mark.parametrize(
    ("wanted", "is_told", "sent"), [(2, True, [2, 0]), (2, False, [2, 2, 0]), (3, True, [2, 3, 0])]
)
def test_a_retry_goes_on_and_knows_what_to_lower_to(
    emulator: Emulator, context: Any, wanted: int, is_told: bool, sent: list[int]
) -> None:
    context["task_state_store"] = FakeStore()
    emulator.service.add_app(APP, init_seconds=60)
    killed_after_raising(emulator, context)
    if not is_told:
        app_that_tells(emulator, status="INITIALIZING")  # and no number
    assert isinstance(run_task(scale_op(wanted, timeout=0.2), context).error, RunGenAppTimeoutError)
    assert (numbers(emulator), workers(emulator)) == (sent, 0)
    assert context["task_state_store"].get("scaled")["active_workers"] == 0


def test_a_retry_that_succeeds_sends_nothing_more(
    emulator: Emulator, context: Any, ti: FakeTaskInstance
) -> None:
    context["task_state_store"] = FakeStore()
    killed_after_raising(emulator, context)
    first = ti.xcoms["scaled"]
    assert run_task(scale_op(), context).value == APP
    assert numbers(emulator) == [2]
    assert ti.xcoms["scaled"] == first, "it is up since then"
    assert context["task_state_store"].kept == {}


BILLED = f"STILL BILLED: app {APP} may still have 2 workers: "
FAULTS = [Fault(on="get_app", status=500), Fault(on="get_app", status=403), Fault(on="get_app", status=400)]


@pytest.fixture
def raised(emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An app that an earlier attempt scaled from 0 to 2 workers, and that does not get up."""
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.001)
    context["task_state_store"] = FakeStore()
    emulator.service.add_app(APP, init_seconds=60)
    killed_after_raising(emulator, context)
    return emulator


@pytest.mark.parametrize(("deferrable", "fault"), pairwise([False, True], FAULTS))
def test_a_retry_whose_first_request_fails_lowers_what_was_raised(
    raised: Emulator, context: Any, ti: FakeTaskInstance, fault: Fault, deferrable: bool
) -> None:
    ti.xcoms.clear()  # as Airflow does
    raised.service.inject(replace(fault, times=None))
    outcome = run_task(scale_op(deferrable=deferrable), context)
    assert f"({fault.status})" in str(outcome.error)
    assert (workers(raised), "BILLED" in outcome.log) == (0, False)
    assert ti.xcoms["scaled"]["changes"][-1]["workers"] == 0, "which the teardown bills"


def test_a_retry_that_can_lower_nothing_logs_what_is_billed(raised: Emulator, context: Any) -> None:
    raised.service.inject(Fault(status=403, times=None))
    outcome = run_task(scale_op(), context)
    assert isinstance(outcome.error, RunGenForbiddenError)
    assert BILLED in outcome.log
    raised.service.clear_faults()
    assert isinstance(run_task(scale_op(timeout=0.2), context).error, RunGenAppTimeoutError)
    assert workers(raised) == 0


@KILLED
def test_a_kill_of_a_retry_before_its_first_answer_lowers_the_app(raised: Emulator, context: Any) -> None:
    op, sent = scale_op(), raised.service.count("get_app")
    raised.service.inject(Fault(on="get_app", status=404, times=None))
    with signal_when(signal.SIGTERM, lambda: raised.service.count("get_app") > sent, op.on_kill):
        assert "killed" in str(run_task(op, context).error)
    assert workers(raised) == 0


def test_a_retry_without_a_connection_logs_what_is_billed(
    raised: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_RUNGEN_DEFAULT")
    outcome = run_task(scale_op(), context)
    assert isinstance(outcome.error, RunGenConfigError)
    assert BILLED in outcome.log


@pytest.mark.parametrize("operation", ["get_app", "update_app"])
def test_a_stray_refusal_of_the_key_ends_nothing(emulator: Emulator, context: Any, operation: str) -> None:
    emulator.service.inject(Fault(on=operation, status=403, times=2))
    assert run_task(scale_op(), context).value == APP
    assert workers(emulator) == 2


def test_a_retry_for_another_app_lowers_the_one_that_was_raised(raised: Emulator, context: Any) -> None:
    raised.service.add_app("other", init_seconds=0)
    assert run_task(scale_op(app_id="other"), context).value == "other"
    assert (workers(raised), workers(raised, "other")) == (0, 2)


@pytest.mark.parametrize("only_if", [0, "many"])
def test_a_retry_with_nothing_to_run_lowers_what_was_raised(
    raised: Emulator, context: Any, only_if: Any
) -> None:
    run_task(scale_op(only_if=only_if), context)
    assert workers(raised) == 0


def test_a_retry_that_wants_fewer_workers_lowers_all_that_were_raised(raised: Emulator, context: Any) -> None:
    raised.service.inject(Fault(on="update_app", status=400))
    assert run_task(scale_op(1), context).error
    assert (numbers(raised), workers(raised)) == ([2, 1, 0], 0)


@pytest.mark.parametrize("on", ["get_app", "update_app"])
@pytest.mark.parametrize("status", [404, 403, 500, 400])
def test_a_scaling_down_that_fails_logs_what_is_billed(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch, on: str, status: int
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.001)
    emulator.service.scale(APP, 2)
    emulator.service.inject(Fault(on=on, status=status, times=None))
    outcome = run_task(scale_op(0), context)
    assert outcome.error
    known = "2 workers" if on == "update_app" else "an unknown number of workers"
    assert f"STILL BILLED: app {APP} may still have {known}: Could not" in outcome.log


def test_an_app_that_is_kept_up_after_a_failure_is_logged_as_billed(emulator: Emulator, context: Any) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    outcome = run_task(scale_op(timeout=0.2, scale_down_on_failure=False), context)
    assert BILLED in outcome.log


@MODES
@pytest.mark.parametrize(("has", "want"), [(1, 0), (2, 0), (3, 2), (0, 0)])
def test_a_retry_lowers_what_the_service_gave_and_not_what_others_set(
    raised: Emulator, context: Any, has: int, want: int, deferrable: bool
) -> None:
    raised.service.scale(APP, has)
    outcome = run_task(scale_op(timeout=0.2, deferrable=deferrable), context)
    assert (type(outcome.error) is RunGenAppTimeoutError) == (has <= 2), "fewer need no wait"
    assert workers(raised) == want


@MODES
def test_a_retry_keeps_what_somebody_else_has_lowered_it_to(
    raised: Emulator, context: Any, deferrable: bool
) -> None:
    lowered = {"id": APP, "status": "RUNNING", "configuration": {"active_workers": 1}}
    raised.service.inject(Fault(on="get_app", status=200, body=lowered, times=None, skip=4))
    assert "Somebody else set" in str(run_task(scale_op(deferrable=deferrable), context).error)
    raised.service.clear_faults()
    raised.service.scale(APP, 1)
    assert isinstance(run_task(scale_op(timeout=0.2), context).error, RunGenAppTimeoutError)
    assert workers(raised) == 1


@pytest.mark.usefixtures("on_the_wire")
@pytest.mark.parametrize(("state", "want"), [("failed", 0), ("success", 0), (None, 0), ("deferred", 2)])
def test_a_user_who_ends_the_deferred_task_lowers_the_app(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch, state: str | None, want: int
) -> None:
    monkeypatch.setattr(task_instances, "task_state", lambda _: state)
    monkeypatch.setattr("airflow_provider_rungen.triggers.base.CANCEL_TIME", 5.0)
    emulator.service.add_app(APP, init_seconds=60)
    with pytest.raises(TaskDeferred) as deferral:
        scale_op(deferrable=True).execute(context)
    kind, kwargs = deferral.value.trigger.serialize()
    assert kind == "airflow_provider_rungen.triggers.RunGenAppTrigger"
    trigger = triggers.RunGenAppTrigger(**json.loads(json.dumps(kwargs)))
    assert KEY not in json.dumps(kwargs)
    trigger.task_instance = context["ti"]
    if state == "success":  # a question that hangs does not take all of the time
        emulator.service.inject(Fault(on="get_app", kind="hang", times=None))
    asyncio.run(trigger.on_kill())
    assert workers(emulator) == want


def test_a_deferral_that_airflow_ends_lowers_the_app(emulator: Emulator, context: Any) -> None:
    emulator.service.add_app(APP, init_seconds=60)
    op = scale_op(deferrable=True)
    with pytest.raises(TaskDeferred):
        op.execute(context)
    with pytest.raises(RunGenAppError, match="Trigger timeout"):
        op.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
    assert workers(emulator) == 0


# --- create and delete --------------------------------------------------------------------------------------

LORA = {
    "id": 7,
    "versionId": "9",
    "downloadUrl": "https://x.example/l?token=SECRET",
    "name": "ink",
    "weight": 1,
}
BODY: dict[str, Any] = {
    "name": "night shift",
    "description": "paints",
    "configuration": {"gpu_tier": "STANDARD", "location": "EU"},
    "workflow": {"model_url": "https://models.example/flux.safetensors", "tools": {"loras": [LORA]}},
}


def create_op(**options: Any) -> RunGenCreateAppOperator:
    return RunGenCreateAppOperator(**{"task_id": "create", **BODY, **options})


def apps(emulator: Emulator) -> list[str]:
    return [app_id for app_id in emulator.service.stats()["active_workers"] if len(app_id) == 36]


def creations(emulator: Emulator) -> int:
    return emulator.service.count("create_app")


def test_an_app_is_created_as_written(emulator: Emulator, context: Any) -> None:
    outcome = run_task(create_op(), context)
    assert [outcome.value] == apps(emulator)
    [record] = [r for r in emulator.service.records() if r.operation == "create_app"]
    assert json.loads(record.body) == BODY


def test_an_app_of_that_name_is_used(
    emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = run_task(create_op(), context).value
    given = {"configuration": {"gpu_tier": "BASIC"}}
    assert run_task(create_op(**given), context).value == first
    assert creations(emulator) == 1
    assert "Its gpu_tier is STANDARD, not BASIC" in caplog.text


def test_an_app_of_that_name_may_be_an_error(emulator: Emulator, context: Any) -> None:
    first = run_task(create_op(), context).value
    outcome = run_task(create_op(if_exists="fail"), context)
    assert isinstance(outcome.error, AirflowFailException)
    assert first in str(outcome.error)
    assert creations(emulator) == 1


@pytest.mark.parametrize("if_exists", ["use", "fail"])
@pytest.mark.parametrize("kind", ["reset_after", "garbage", "no_id"])
def test_a_lost_answer_makes_no_second_app(
    emulator: Emulator, context: Any, kind: str, if_exists: str
) -> None:
    emulator.service.inject(Fault(on="create_app", kind=kind))
    outcome = run_task(create_op(if_exists=if_exists), context)
    assert [outcome.value] == apps(emulator)
    assert creations(emulator) == 1


@pytest.mark.parametrize(("keeps", "if_exists"), [(True, "use"), (True, "fail"), (False, "use")])
def test_a_retry_waits_for_the_app_of_the_attempt_before_to_be_in_the_list(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch, keeps: bool, if_exists: str
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.apps.creation.LISTED_WITHIN", 0.5)
    if keeps:
        context["task_state_store"] = FakeStore()
    with monkeypatch.context() as patch:
        patch.setattr(
            "airflow_provider_rungen.execution.apps.creation.CreateAppRun._create", killed_once_created
        )
        with pytest.raises(KeyboardInterrupt):
            create_op(if_exists=if_exists).execute(context)
    context["ti"].try_number = 2
    emulator.service.inject(Fault(on="list_apps", status=200, body={"data": []}, times=2))
    assert [run_task(create_op(if_exists=if_exists), context).value] == apps(emulator)
    assert creations(emulator) == 1


def killed_once_created(run: Any, body: dict[str, Any]) -> None:
    run.hook.perform(create_app(body))
    raise KeyboardInterrupt


@pytest.mark.parametrize("value", [7, {}, "another app"])
def test_a_corrupt_record_of_a_creation_is_no_app_of_ours(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.apps.creation.LISTED_WITHIN", 0.01)
    context["task_state_store"] = FakeStore()
    context["task_state_store"].set("rungen_app", value)
    assert [run_task(create_op(), context).value] == apps(emulator)


def test_numbers_may_be_text_as_templates_make_them(emulator: Emulator, context: Any) -> None:
    outcome = run_task(create_op(configuration={"gpu_tier": "BASIC", "active_workers": " 2 "}), context)
    assert emulator.service.stats()["active_workers"][outcome.value] == 2


@pytest.mark.parametrize(
    ("field", "options", "sent"),
    [
        ("name must be text", {"name": None}, 0),
        ("configuration must be an object", {"configuration": "BASIC"}, 0),
        ("configuration.active_workers must be ", {"configuration": {"active_workers": -1}}, 0),
        ("workflow must be an object", {"workflow": []}, 0),
        ("configuration.gpu_tier: ", {"configuration": {"gpu_tier": "{{ 'basic' }}"}}, 1),
        ("workflow.model_url: ", {"workflow": {"model_url": ""}}, 1),
    ],
)
def test_a_wrong_field_is_named(
    emulator: Emulator, context: Any, field: str, options: Any, sent: int
) -> None:
    outcome = run_task(create_op(**options), context)
    assert isinstance(outcome.error, AirflowFailException)
    assert field in str(outcome.error)
    assert creations(emulator) == sent
    assert apps(emulator) == []


def delete_op() -> RunGenDeleteAppOperator:
    return RunGenDeleteAppOperator(task_id="delete", app_id=APP, poll_interval=0.02, timeout=5)


def test_an_app_is_stopped_and_deleted(emulator: Emulator, context: Any) -> None:
    emulator.service.scale(APP, 2)
    assert run_task(delete_op(), context) == Outcome()
    assert APP not in emulator.service.stats()["active_workers"]
    assert run_task(delete_op(), context) == Outcome()


@pytest.mark.parametrize("operation", ["get_app", "update_app", "delete_app"])
def test_a_stray_404_is_no_app_that_is_gone(emulator: Emulator, context: Any, operation: str) -> None:
    emulator.service.scale(APP, 2)
    emulator.service.inject(Fault(on=operation, status=404, times=2))
    assert run_task(delete_op(), context) == Outcome()
    assert APP not in emulator.service.stats()["active_workers"]


def test_an_app_is_not_deleted_before_it_is_set_to_zero(emulator: Emulator, context: Any) -> None:
    emulator.service.scale(APP, 2)
    # it has not begun to start, and what stops it is lost
    app_that_tells(emulator, status="STOPPED", configuration={"active_workers": 2}, times=2)
    app_that_tells(emulator, "update_app", status="STOPPED", configuration={"active_workers": 2})
    assert run_task(delete_op(), context) == Outcome()
    assert APP not in emulator.service.stats()["active_workers"]
    assert numbers(emulator) == [0, 0]


# --- sensor -------------------------------------------------------------------------------------------------


def sensor(**options: Any) -> RunGenAppSensor:
    return RunGenAppSensor(
        **{"task_id": "wait", "app_id": APP, "poke_interval": 0.02, "timeout": 20, **options}
    )


@MODES
def test_the_sensor_waits_for_a_status(emulator: Emulator, context: Any, deferrable: bool) -> None:
    assert run_task(sensor(deferrable=deferrable, status="STOPPED"), context) == Outcome()
    emulator.service.scale(APP, 1)
    started = time.monotonic()
    outcome = run_task(sensor(deferrable=deferrable, status="running"), context)
    assert outcome.error is None
    assert time.monotonic() - started > 0.2
    assert len(outcome.events) == deferrable
    assert numbers(emulator) == []


@MODES
def test_the_sensor_outlasts_a_stray_404(emulator: Emulator, context: Any, deferrable: bool) -> None:
    emulator.service.inject(Fault(on="get_app", status=404, times=2))
    assert run_task(sensor(deferrable=deferrable, status="STOPPED"), context) == Outcome()


@MODES
def test_the_sensor_has_its_time(emulator: Emulator, context: Any, deferrable: bool) -> None:
    outcome = run_task(sensor(deferrable=deferrable, timeout=0.3), context)
    assert isinstance(outcome.error, AirflowSensorTimeout)
    assert str(outcome.error).endswith("Raise timeout (now 0.3 s) if it needs longer.")
    softly = run_task(sensor(deferrable=deferrable, timeout=0.3, soft_fail=True), context)
    assert isinstance(softly.error, AirflowSkipException)


@MODES
def test_an_app_that_is_not_there_fails_the_sensor_for_good(
    emulator: Emulator, context: Any, deferrable: bool
) -> None:
    outcome = run_task(sensor(deferrable=deferrable, app_id="no-such-app"), context)
    assert isinstance(outcome.error, AirflowFailException)


def test_a_poke_is_one_look(emulator: Emulator, context: Any) -> None:
    task = sensor()
    assert [task.poke(context), task.poke(context)] == [False, False]
    assert emulator.service.count("get_app") == 2
