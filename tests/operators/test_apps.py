"""Operators and sensor for apps, without a database: what they send, return, raise, and leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from bad_answers import Fault
from conftest import KEY, Outcome, signal_when, stopped_when
from operator_kit import FAST, KILLED, MODES, Stage, failing
from rungen_emulator import Emulator

from airflow_provider_rungen import triggers
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.numbers import is_wanted, whole_number
from airflow_provider_rungen.exceptions import (
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenInputError,
)
from airflow_provider_rungen.operators import (
    RunGenCreateAppOperator,
    RunGenDeleteAppOperator,
    RunGenScaleAppOperator,
)
from airflow_provider_rungen.sensors import RunGenAppSensor
from airflow_provider_rungen.task import attempts, store_writer

pytestmark = pytest.mark.usefixtures("unsettled")

APP = "gpu"
BILLED = f"STILL BILLED: app {APP} may still have workers: "


def scale_op(active_workers: Any = 2, **options: Any) -> RunGenScaleAppOperator:
    options = {"task_id": "scale", "app_id": APP, **FAST, **options}
    return RunGenScaleAppOperator(active_workers=active_workers, **options)


class Gpu(Stage):
    """An app, the task that is run with it, and what the service saw."""

    def __init__(self, emulator: Emulator, context: Any) -> None:
        super().__init__(emulator, context)
        self.service.add_app(APP, init_seconds=0.3)

    def scale(self, active_workers: Any = 2, **options: Any) -> Outcome:
        """Run a task that scales the app."""
        return self.run(scale_op(active_workers, **options))

    def assert_scaling_is_late(self) -> None:
        """Run a task that scales the app to 2 workers, for which it has too little time."""
        self.error(scale_op(timeout=0.2), RunGenAppTimeoutError)

    def kill(self, op: Any, polls: int = 3, strike: Callable[[], None] = lambda: None) -> str:
        """Run a task that is killed after so many polls of the app, and return its error."""
        before = self.service.count("get_app")

        def is_due() -> bool:
            if self.service.count("get_app") - before <= polls:
                return False
            strike()
            return True

        return str(self.kill_when(op, is_due).error)

    def fault(self, on: str, **fault: Any) -> None:
        self.service.inject(Fault(on=on, **fault))

    def tell(self, on: str = "get_app", times: int | None = 1, skip: int = 0, **told: Any) -> None:
        """Make the service answer with this, and do nothing."""
        self.fault(on, status=200, body={"id": APP} | told, times=times, skip=skip)

    def on_push(self, wanted: str, trouble: Callable[..., Any]) -> None:
        """Do something else where the task pushes this XCom."""
        push = self.ti.xcom_push
        self.ti.xcom_push = lambda key, value: (trouble if key == wanted else push)(key=key, value=value)

    @property
    def sent(self) -> list[Any]:
        """Every number of workers that was asked for."""
        bodies = [json.loads(r.body) for r in self.service.records() if r.operation == "update_app"]
        return [body["configuration"]["active_workers"] for body in bodies]

    @property
    def apps(self) -> dict[str, int]:
        """The workers of each app."""
        found: dict[str, int] = self.service.stats()["active_workers"]
        return found

    @property
    def workers(self) -> int:
        return self.apps[APP]


@pytest.fixture
def gpu(rungen_emulator: Emulator, context: Any) -> Gpu:
    return Gpu(rungen_emulator, context)


@pytest.fixture
def slow(gpu: Gpu) -> Gpu:
    """An app that does not get up."""
    gpu.service.add_app(APP, init_seconds=60)
    return gpu


# --- scaling ------------------------------------------------------------------------------------------------


@pytest.mark.contract
@MODES
def test_going_up_waits_until_the_app_runs(gpu: Gpu, deferrable: bool) -> None:
    started = time.monotonic()
    outcome = gpu.scale(deferrable=deferrable)
    assert (outcome.value, outcome.error) == (APP, None)
    assert time.monotonic() - started > 0.3
    assert gpu.sent == [2]
    assert len(outcome.events) == deferrable


STILL_DOWN: dict[str, Any] = {"id": APP, "status": "STOPPED", "configuration": {"active_workers": 0}}
ECHO = {"id": APP, "configuration": {"active_workers": 2}}


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("body", [{}, {"status": "error"}, STILL_DOWN, ECHO])
def test_a_number_that_was_not_set_is_sent_again(gpu: Gpu, body: Any, deferrable: bool) -> None:
    gpu.fault("update_app", status=200, body=body)
    assert gpu.scale(deferrable=deferrable).value == APP
    assert gpu.sent == [2, 2]


@pytest.mark.contract
@MODES
def test_an_app_that_somebody_takes_down_on_its_way_up_is_scaled_up_again(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    handle, looks = gpu.service.handle, itertools.count()

    def take_down(method: str, path: str, *rest: Any) -> Any:
        if method == "GET" and path == f"/app/{APP}" and next(looks) == 3:
            gpu.service.scale(APP, 0)
        return handle(method, path, *rest)

    monkeypatch.setattr(gpu.service, "handle", take_down)
    assert gpu.scale(deferrable=deferrable).value == APP
    assert (gpu.sent, gpu.workers) == ([2, 2], 2)


@pytest.mark.contract
@MODES
def test_an_app_that_is_not_up_in_time_is_taken_down(slow: Gpu, deferrable: bool) -> None:
    outcome = slow.scale(timeout=0.3, deferrable=deferrable)
    assert isinstance(outcome.error, RunGenAppTimeoutError)
    assert str(outcome.error).endswith("Raise timeout (now 0.3 s) if it needs longer.")
    assert (slow.sent, slow.workers) == ([2, 0], 0)
    assert "Scaled to 0 workers" in outcome.log


@pytest.mark.contract
@pytest.mark.parametrize("before", [0, 1, 3, 5])
def test_going_up_or_down(gpu: Gpu, before: int) -> None:
    gpu.service.scale(APP, before)
    assert gpu.scale("3") == Outcome(value=APP)
    assert (set(gpu.sent), gpu.workers) == ({3}, 3)


@pytest.mark.contract
@pytest.mark.parametrize("fault", [{"status": 503}, {"kind": "reset_after"}, {"kind": "reset_before"}])
def test_an_outage_does_not_end_the_way_up(gpu: Gpu, fault: Any) -> None:
    for operation in ("get_app", "update_app"):
        gpu.fault(operation, **fault, times=2)
    assert gpu.scale().value == APP
    assert gpu.workers == 2


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_stray_refusal_of_a_look_does_not_end_the_way_up(gpu: Gpu, status: int, deferrable: bool) -> None:
    gpu.fault("get_app", status=status, times=2, skip=2)
    assert gpu.scale(deferrable=deferrable).value == APP
    assert gpu.workers == 2


@pytest.mark.contract
@pytest.mark.parametrize("kind", [RunGenScaleAppOperator, RunGenAppSensor])
def test_a_wrong_app_is_refused_at_once(gpu: Gpu, kind: Any) -> None:
    own: dict[str, Any] = {"active_workers": 2, **FAST} if kind is RunGenScaleAppOperator else {}
    started = time.monotonic()
    error = gpu.error(kind(task_id="wrong", app_id="gpuu", **own), AirflowFailException)
    assert time.monotonic() - started < 5
    assert "no such app" in str(error)
    assert "Correct app_id: connection 'rungen_default' has" in str(error)
    assert (gpu.service.count("get_app"), gpu.sent) == (1, [])


@pytest.mark.contract
def test_a_wrong_key_is_refused_at_the_first_look_at_the_app(gpu: Gpu) -> None:
    gpu.fault("get_app", status=403, times=None)
    assert type(gpu.scale().error) is AirflowFailException
    assert (gpu.service.count("get_app"), gpu.sent) == (1, [])


@pytest.mark.contract
def test_going_down_waits_until_the_app_says_so(gpu: Gpu) -> None:
    gpu.service.scale(APP, 2)
    gpu.tell(status="RUNNING")  # and no number
    for sent in ([0, 0], [0, 0, 0]):
        outcome = gpu.scale(0)
        assert outcome.error is None
        # also when it says so already: one answer may be old
        assert (gpu.sent, gpu.workers, "usage" in outcome.xcoms) == (sent, 0, False)


@pytest.mark.contract
@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_says_so_and_bills_nothing(gpu: Gpu, status: int) -> None:
    gpu.fault("update_app", status=status, times=None)
    outcome = gpu.scale()
    assert type(outcome.error) is AirflowFailException
    assert f"({status})" in str(outcome.error)
    assert (gpu.sent, "BILLED" in outcome.log) == ([2, 0], False)


@pytest.mark.contract
@pytest.mark.parametrize("kind", ["reset_after", "garbage"])
def test_a_refusal_after_a_lost_answer_does_not_leave_the_app_up(gpu: Gpu, kind: str) -> None:
    gpu.fault("update_app", kind=kind)
    gpu.fault("update_app", status=400)
    assert "(400)" in str(gpu.scale().error)
    assert (gpu.sent, gpu.workers) == ([2, 2, 0], 0)


@pytest.mark.contract
@pytest.mark.parametrize("on", ["get_app", "update_app"])
@pytest.mark.parametrize("status", [403, 500, 400])
def test_a_scaling_down_that_fails_logs_what_is_billed(gpu: Gpu, on: str, status: int) -> None:
    gpu.service.scale(APP, 2)
    gpu.fault(on, status=status, times=None)
    outcome = gpu.scale(0)
    assert type(outcome.error) is RunGenAppError, "which a retry may help"
    assert f"{BILLED}Could not" in outcome.log


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "many", "", None, [], "-1"])
def test_a_number_of_workers_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(RunGenInputError, match="active_workers"):
        whole_number(wrong, "active_workers")
    assert whole_number(" 2 ", "active_workers") == 2


@pytest.mark.parametrize(
    ("value", "is_up"),
    [
        *((value, True) for value in (True, 1, 10_000, "1", " 7 ", "True", "true")),
        *((value, False) for value in (False, 0, None, "", "0", "False", "none", "None")),
    ],
)
def test_what_there_is_to_run_is_a_number_or_a_boolean(value: Any, is_up: bool) -> None:
    assert is_wanted(value) is is_up
    wrong: Any
    for wrong in ("many", -1, [], 0.5):
        with pytest.raises(RunGenInputError, match="only_if"):
            is_wanted(wrong)


@pytest.mark.contract
def test_a_wrong_number_is_hopeless_and_sends_nothing(gpu: Gpu) -> None:
    assert isinstance(gpu.scale("{{ 'many' }}").error, AirflowFailException)
    assert gpu.service.records() == []


@pytest.mark.contract
def test_what_cannot_be_written_down_is_not_scaled_up(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.5)
    gpu.on_push("scaled", failing(gpu.ti.xcom_push, 1))
    assert gpu.scale().value == APP
    gpu.service.scale(APP, 0)
    gpu.on_push("scaled", failing(gpu.ti.xcom_push))
    assert isinstance(gpu.scale().error, OSError)
    assert gpu.sent == [2]


# --- scaling, killed ----------------------------------------------------------------------------------------


@pytest.mark.contract
@KILLED
@pytest.mark.parametrize("times", [0, 2], ids=["all is well", "what fails for a moment is repeated"])
def test_a_kill_on_the_way_up_lowers_the_app_and_ends_the_task(slow: Gpu, times: int) -> None:
    strike = lambda: slow.fault("update_app", status=503, times=times) if times else None  # noqa: E731
    slow.kill(scale_op(), strike=strike)
    assert (slow.sent, slow.workers) == ([2] + [0] * (1 + times), 0)


@pytest.mark.contract
@KILLED
def test_a_kill_is_over_in_time_when_the_service_hangs(slow: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    def hang() -> None:
        for on in ("get_app", "update_app"):
            slow.fault(on, kind="hang", times=None)

    slow.kill(scale_op(), strike=hang)
    assert "STILL BILLED" in caplog.text


@pytest.mark.contract
def test_a_kill_before_anything_was_raised_is_harmless(gpu: Gpu) -> None:
    scale_op().on_kill()
    assert gpu.service.records() == []


@pytest.mark.parametrize(("state", "want"), [("failed", 0), ("success", 0), (None, 0), ("deferred", 2)])
def test_a_user_who_ends_the_deferred_task_lowers_the_app(
    slow: Gpu, monkeypatch: pytest.MonkeyPatch, state: str | None, want: int
) -> None:
    monkeypatch.setattr(attempts, "task_state", lambda _: state)
    monkeypatch.setattr("airflow_provider_rungen.triggers.base.CANCEL_TIME", 5.0)
    with pytest.raises(TaskDeferred) as deferral:
        scale_op(deferrable=True).execute(slow.context)
    kind, kwargs = deferral.value.trigger.serialize()
    assert kind == "airflow_provider_rungen.triggers.RunGenAppTrigger"
    trigger = triggers.RunGenAppTrigger(**json.loads(json.dumps(kwargs)))
    assert KEY not in json.dumps(kwargs)
    trigger.task_instance = slow.ti
    if state == "success":  # a question that hangs does not take all of the time
        slow.fault("get_app", kind="hang", times=None)
    asyncio.run(trigger.on_kill())
    assert slow.workers == want


@pytest.mark.contract
def test_a_deferral_that_airflow_ends_lowers_the_app(slow: Gpu) -> None:
    op = scale_op(deferrable=True)
    with pytest.raises(TaskDeferred):
        op.execute(slow.context)
    with pytest.raises(RunGenAppError, match="Trigger timeout"):
        op.resume_execution("__fail__", {"error": "Trigger timeout"}, slow.context)
    assert slow.workers == 0


@pytest.mark.contract
@KILLED
def test_a_retry_takes_down_what_the_attempt_before_may_have_left_up(slow: Gpu) -> None:
    slow.service.scale(APP, 2)
    slow.ti.try_number = 2
    slow.fault("get_app", status=403, times=1)
    assert isinstance(slow.scale().error, AirflowFailException)
    assert (slow.sent, slow.workers) == ([0], 0)


@pytest.mark.parametrize(("state", "want"), [("success", 2), ("failed", 0)])
def test_what_ends_a_slow_callback_of_a_success_undoes_nothing(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, state: str, want: int
) -> None:
    op = scale_op(2)
    assert gpu.run(op).error is None
    monkeypatch.setattr(attempts, "task_state", lambda _: state)
    with contextlib.suppress(AirflowException):
        op.on_kill()
    assert gpu.apps[APP] == want


@pytest.mark.contract
def test_a_time_limit_leaves_time_to_outlast_an_outage(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody kills a process whose time limit is over."""
    monkeypatch.setattr(retry, "BACKOFF", 0.5)
    gpu.fault("update_app", status=503, skip=1, times=3)
    gpu.tell(times=40, skip=1, status="INITIALIZING")
    op = scale_op(2)

    def end_time() -> None:
        raise AirflowTaskTimeout

    with signal_when(signal.SIGALRM, lambda: gpu.service.count("get_app") > 5, end_time):
        with pytest.raises(AirflowTaskTimeout):
            op.execute(gpu.context)
        op.on_kill()
    assert gpu.apps[APP] == 0


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


def assert_one_is_created(gpu: Gpu, app_id: str) -> None:
    assert [app_id] == [each for each in gpu.apps if len(each) == 36]
    assert gpu.service.count("create_app") == 1


@pytest.mark.contract
def test_an_app_is_created_as_written(gpu: Gpu) -> None:
    assert_one_is_created(gpu, gpu.run(create_op()).value)
    [record] = [r for r in gpu.service.records() if r.operation == "create_app"]
    assert json.loads(record.body) == BODY


@pytest.mark.contract
def test_an_app_of_that_name_is_used(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    first = gpu.run(create_op()).value
    assert gpu.run(create_op(configuration={"gpu_tier": "BASIC"})).value == first
    assert "Its gpu_tier is STANDARD, not BASIC" in caplog.text
    assert_one_is_created(gpu, first)


@pytest.mark.contract
@pytest.mark.parametrize("kind", ["reset_after", "garbage", "no_id"])
def test_a_lost_answer_makes_no_second_app(gpu: Gpu, kind: str) -> None:
    gpu.fault("create_app", kind=kind)
    gpu.fault("list_apps", status=200, body={"data": []}, times=2)
    assert_one_is_created(gpu, gpu.run(create_op()).value)


@pytest.mark.contract
def test_a_retry_waits_for_the_app_of_the_attempt_before_to_be_in_the_list(gpu: Gpu) -> None:
    first = gpu.run(create_op()).value
    gpu.ti.try_number = 2
    gpu.fault("list_apps", status=200, body={"data": []}, times=2)
    assert gpu.run(create_op()).value == first
    assert_one_is_created(gpu, first)


@pytest.mark.contract
def test_numbers_may_be_text_as_templates_make_them(gpu: Gpu) -> None:
    outcome = gpu.run(create_op(configuration={"gpu_tier": "BASIC", "active_workers": " 2 "}))
    assert gpu.apps[outcome.value] == 2


@pytest.mark.contract
@pytest.mark.parametrize(
    ("field", "options", "sent"),
    [
        ("name must be text", {"name": "{{ '' }}"}, 0),
        ("configuration must be an object", {"configuration": "{{ 'BASIC' }}"}, 0),
        ("configuration.active_workers must be ", {"configuration": {"active_workers": -1}}, 0),
        ("workflow must be an object", {"workflow": "{{ [] }}"}, 0),
        ("configuration.gpu_tier: ", {"configuration": {"gpu_tier": "{{ 'basic' }}"}}, 1),
        ("workflow.model_url: ", {"workflow": {"model_url": ""}}, 1),
    ],
)
def test_a_wrong_field_is_named(gpu: Gpu, field: str, options: Any, sent: int) -> None:
    before = gpu.apps
    error = gpu.error(create_op(**options), AirflowFailException)
    assert field in str(error)
    assert (gpu.service.count("create_app"), gpu.apps) == (sent, before)


def delete_op(app_id: str = APP, timeout: float = 5) -> RunGenDeleteAppOperator:
    return RunGenDeleteAppOperator(task_id="delete", app_id=app_id, poll_interval=0.02, timeout=timeout)


@pytest.mark.contract
def test_an_app_is_stopped_and_deleted(gpu: Gpu) -> None:
    gpu.service.scale(APP, 2)
    for _ in range(2):  # it may be gone already
        assert gpu.run(delete_op()) == Outcome()
        assert APP not in gpu.apps


@pytest.mark.contract
@pytest.mark.parametrize("status", [409, 404], ids=["its workers are not gone", "a stray 404"])
def test_an_app_that_cannot_be_deleted_at_once_is_deleted_later(gpu: Gpu, status: int) -> None:
    gpu.fault("delete_app", status=status, times=2)
    assert gpu.run(delete_op()) == Outcome()
    assert (gpu.service.count("delete_app"), APP in gpu.apps) == (3, False)


@pytest.mark.contract
def test_an_app_that_is_scaled_up_while_it_is_deleted_is_stopped_again(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, is_scaled = gpu.service.handle, list[bool]()

    def scale_up(method: str, *rest: Any) -> Any:
        if method == "DELETE" and not is_scaled:
            is_scaled.append(True)
            gpu.service.scale(APP, 2)
        return handle(method, *rest)

    monkeypatch.setattr(gpu.service, "handle", scale_up)
    assert gpu.run(delete_op()) == Outcome()
    assert APP not in gpu.apps


@pytest.mark.contract
@pytest.mark.parametrize(
    ("operation", "status", "is_billed"),
    [("update_app", 400, True), ("delete_app", 400, False), ("delete_app", 409, True)],
)
def test_a_delete_that_fails_says_whether_the_app_may_be_billed(
    gpu: Gpu, caplog: pytest.LogCaptureFixture, operation: str, status: int, is_billed: bool
) -> None:
    gpu.service.scale(APP, 2)
    gpu.fault(operation, status=status, times=None)
    error = gpu.run(delete_op(timeout=0.3)).error
    line = f"STILL BILLED: app {APP} may still have workers"
    assert (str(error).startswith(line), line in caplog.text) == (is_billed, is_billed)
    assert isinstance(error, AirflowFailException) is not is_billed, "a retry may end the bill"


@pytest.mark.contract
@KILLED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
def test_a_delete_that_is_ended_says_that_the_app_may_be_billed(
    gpu: Gpu, caplog: pytest.LogCaptureFixture, number: Any
) -> None:
    gpu.fault("update_app", status=503, times=None)
    op, error = delete_op(timeout=60), ""
    with stopped_when(op, number, lambda: gpu.service.count("update_app") > 1):
        error = str(gpu.run(op).error)
    assert f"STILL BILLED: app {APP} may still have workers" in f"{caplog.text} {error}"


@pytest.mark.contract
@pytest.mark.parametrize("app_id", ["", " "])
def test_a_delete_of_no_app_bills_nothing(gpu: Gpu, app_id: str) -> None:
    assert "STILL BILLED" not in str(gpu.error(delete_op(app_id), AirflowFailException))


# --- sensor -------------------------------------------------------------------------------------------------


def sensor(**options: Any) -> RunGenAppSensor:
    own = {"task_id": "wait", "app_id": APP, "poke_interval": 0.02, "timeout": 20}
    return RunGenAppSensor(**{**own, **options})


@pytest.mark.contract
@MODES
def test_the_sensor_waits_for_a_status_and_outlasts_a_stray_404(gpu: Gpu, deferrable: bool) -> None:
    assert gpu.run(sensor(deferrable=deferrable, status="STOPPED")) == Outcome()
    gpu.service.scale(APP, 1)
    gpu.fault("get_app", status=404, skip=1)
    started = time.monotonic()
    outcome = gpu.run(sensor(deferrable=deferrable, status="running"))
    assert outcome.error is None
    assert time.monotonic() - started > 0.2
    assert len(outcome.events) == deferrable
    assert gpu.sent == []


@pytest.mark.contract
@MODES
def test_the_sensor_has_its_time(gpu: Gpu, deferrable: bool) -> None:
    error = gpu.error(sensor(deferrable=deferrable, timeout=0.3), AirflowSensorTimeout)
    assert str(error).endswith("Raise timeout (now 0.3 s) if it needs longer.")
    error = gpu.error(sensor(deferrable=deferrable, timeout=0.3, soft_fail=True), AirflowSkipException)


@pytest.mark.contract
@MODES
def test_an_app_that_is_not_there_fails_the_sensor_for_good(gpu: Gpu, deferrable: bool) -> None:
    gpu.error(sensor(deferrable=deferrable, app_id="no-such-app"), AirflowFailException)


@pytest.mark.contract
def test_a_poke_is_one_look(gpu: Gpu) -> None:
    task = sensor()
    assert [task.poke(gpu.context), task.poke(gpu.context)] == [False, False]
    assert gpu.service.count("get_app") == 2
