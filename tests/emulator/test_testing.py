"""``run_operator``: what it does as Airflow does, and what it leaves as it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSkipException,
    Asset,
    BaseOperator,
)
from airflow.triggers.base import BaseTrigger, TriggerEvent
from conftest import SOON

from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_3_PLUS, AIRFLOW_VERSION
from airflow_provider_rungen.decorators import rungen_task
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.emulator.testing import TaskResult, run_operator
from airflow_provider_rungen.exceptions import RunGenJobFailedError
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunBatchOperator,
    RunGenRunJobOperator,
    RunGenScaleAppOperator,
    scaled_app,
)
from airflow_provider_rungen.sensors import RunGenJobSensor

WAITING: dict[str, Any] = {"wait_for_completion": True, "poll_interval": 0.05}


def job(prompt: str = "x", **options: Any) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(task_id="paint", input={"prompt": prompt}, **options)


def test_an_operator_needs_no_dag_and_returns_value_xcoms_and_log(rungen_emulator: Emulator) -> None:
    result = run_operator(job(**WAITING))
    [made] = rungen_emulator.service.jobs()
    assert (result.value, result.error) == (made["id"], None)
    assert result.xcoms["job_id"] == result.xcoms["return_value"] == made["id"]
    assert result.xcoms["usage"]["jobs"] == 1
    assert f"INFO Submitted job {made['id']} to app flux-schnell" in result.log.splitlines()
    assert ("Not durable" in result.log) != AIRFLOW_V_3_3_PLUS


def test_an_error_is_returned(rungen_emulator: Emulator) -> None:
    result = run_operator(job("fail: out of memory", **WAITING))
    assert isinstance(result.error, RunGenJobFailedError)
    assert "out of memory" in str(result.error)
    assert result.value is None
    assert result.xcoms["job_id"]
    assert "return_value" not in result.xcoms


@pytest.mark.parametrize("job_seconds", [0, 0.2])
def test_a_deferrable_operator_defers_and_comes_back(
    rungen_emulator: Emulator, job_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.triggers.base.SETTLING_TIME", 60.0)
    rungen_emulator.service.configure({"job_seconds": job_seconds or 0.01})
    began = time.monotonic()
    result = run_operator(job(deferrable=True, defer_after=0, **WAITING), emulator=rungen_emulator)
    assert time.monotonic() - began < SOON, "the trigger waits for no process to end"
    assert result.error is None
    assert result.value == result.xcoms["job_id"]
    assert [event["outcome"] for event in result.events] == ["over"]
    assert result.timeouts == [pytest.approx(timedelta(days=1, minutes=10), abs=timedelta(seconds=10))]


def test_a_deferrable_operator_defers_at_once_with_an_emulator(rungen_emulator: Emulator) -> None:
    op = job(deferrable=True, defer_after=60, **WAITING)
    began, billed = time.monotonic(), worker_seconds(rungen_emulator)
    result = run_operator(op, emulator=rungen_emulator)
    took = time.monotonic() - began
    assert [event["outcome"] for event in result.events] == ["over"]
    assert took < SOON
    assert 2 * took - (worker_seconds(rungen_emulator) - billed) < SOON, "the clock soon went on"
    assert op.defer_after == 60


def worker_seconds(emulator: Emulator) -> float:
    bill: float = emulator.service.stats()["worker_seconds"]["flux-schnell"]
    return bill


def test_templates_are_rendered_and_the_operator_can_be_run_again(rungen_emulator: Emulator) -> None:
    with DAG("d", schedule=None, params={"color": "red"}):
        op = job("{{ params.color }} {{ ds }} {{ macros.ds_add(ds, 1) }} {{ dag.dag_id }} {{ task.task_id }}")
    for day, next_day in (("2026-01-31", "2026-02-01"), ("2026-03-31", "2026-04-01")):
        result = run_operator(op, context={"ds": day})
        assert result.rendered["input"] == {"prompt": f"red {day} {next_day} d paint"}
    assert [made["input"] for made in rungen_emulator.service.jobs()] == [
        {"prompt": "red 2026-01-31 2026-02-01 d paint"},
        {"prompt": "red 2026-03-31 2026-04-01 d paint"},
    ]
    assert op.input == {
        "prompt": "{{ params.color }} {{ ds }} {{ macros.ds_add(ds, 1) }} {{ dag.dag_id }} {{ task.task_id }}"
    }
    assert op.upstream_task_ids == set()


def test_templates_know_connections_variables_and_the_task_instance(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_COLOR", "red")
    monkeypatch.setenv("AIRFLOW_VAR_SIZE", '{"width": 512}')
    with DAG("d", schedule=None):
        op = job(
            "{{ var.value.color }} {{ var.json.size.width }} {{ conn.rungen_default.conn_type }} "
            "{{ task_instance_key_str == 'd__paint__' + ds_nodash }} {{ prev_start_date_success }}"
        )
    assert run_operator(op).rendered["input"] == {"prompt": "red 512 rungen True None"}


@pytest.mark.skipif(AIRFLOW_VERSION == (3, 0), reason="it then asks the supervisor, which does not run")
def test_a_variable_and_a_connection_may_have_a_default(rungen_emulator: Emulator) -> None:
    op = job("{{ var.value.get('absent', 'blue') }} {{ conn.get('absent', 'none') }}")
    assert run_operator(op).rendered["input"] == {"prompt": "blue none"}


def test_native_templates_make_numbers(rungen_emulator: Emulator) -> None:
    with DAG("d", schedule=None, params={"width": 512}, render_template_as_native_obj=True):
        op = RunGenRunJobOperator(task_id="x", input={"prompt": "x", "width": "{{ params.width }}"})
    assert run_operator(op).error is None
    assert rungen_emulator.service.jobs()[0]["input"]["width"] == 512


def test_what_earlier_tasks_returned_is_pulled(rungen_emulator: Emulator) -> None:
    with DAG("d", schedule=None):
        paint = job()
        mapped: Any = RunGenRunJobOperator.partial(task_id="mapped").expand(input=[{"prompt": "x"}])
        collect = RunGenCollectResultsOperator(task_id="collect", job_id=paint.output, poll_interval=0.05)
        sensor = RunGenJobSensor(
            task_id="wait", job_id="{{ ti.xcom_pull('paint', key='job_id') }}", poke_interval=0.05
        )
        collect_mapped = RunGenCollectResultsOperator(
            task_id="collect_mapped", job_id=mapped.output, poll_interval=0.05
        )
    first = run_operator(paint)
    for upstream in ({"paint": first}, {"paint": first.value}):
        assert run_operator(collect, upstream=upstream).value["images"]
    assert run_operator(sensor, upstream={"paint": first}).error is None
    several = run_operator(collect_mapped, upstream={"mapped": [first.value, first.value]}).value
    assert len(several) == 2
    collect_both = RunGenCollectResultsOperator(
        task_id="collect_both", job_id=[mapped.output, paint.output], poll_interval=0.05
    )
    both = run_operator(collect_both, upstream={"paint": first, "mapped": [first.value] * 2})
    assert len(both.value) == 3
    assert collect.upstream_task_ids == {"paint"}
    assert isinstance(run_operator(collect).error, AirflowFailException), "no id"


def test_a_decorated_function_can_be_run(rungen_emulator: Emulator) -> None:
    @rungen_task(poll_interval=0.05, app_id="llama-text")
    def describe(name: str, ds: str | None = None) -> dict[str, Any]:
        return {"prompt": f"{name} on {ds}"}

    with DAG("d", schedule=None):
        described = describe("a kettle")
    result = run_operator(described, context={"ds": "2026-01-31"})
    assert result.value == "You said: a kettle on 2026-01-31"
    assert result.rendered["inputs"] == [{"prompt": "a kettle on 2026-01-31"}]


def test_asset_events_are_in_the_context_that_is_given(rungen_emulator: Emulator) -> None:
    from airflow_provider_rungen.emulator.fakes import OutletEvents

    outlet = Asset("s3://bucket/pictures")
    events = OutletEvents()
    op = RunGenRunBatchOperator(task_id="x", inputs=[{"prompt": "x"}], outlets=[outlet], poll_interval=0.05)
    result = run_operator(op, context={"outlet_events": events})
    assert events[outlet].extra["job_ids"] == result.value


def test_it_scales_an_app(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.add_app("gpu", init_seconds=0.2)
    op = RunGenScaleAppOperator(
        task_id="up", app_id="gpu", active_workers=2, deferrable=True, defer_after=0, poll_interval=0.05
    )
    result = run_operator(op, emulator=rungen_emulator)
    assert (result.value, result.error, len(result.events)) == ("gpu", None, 1)


@pytest.mark.parametrize(
    ("upstream", "has_run"),
    [
        ({"app_up": TaskResult(error=ValueError())}, True),
        ({"app_up": "flux-schnell"}, True),
        ({"app_up": TaskResult(error=AirflowSkipException())}, False),
        ({}, False),
    ],
    ids=["failed", "success", "skipped", "not run"],
)
def test_the_teardown_of_a_block_knows_whether_its_setup_has_run(
    rungen_emulator: Emulator, upstream: dict[str, Any], has_run: bool
) -> None:
    with DAG("d", schedule=None), scaled_app(poll_interval=0.05) as gpu:
        job()
    result = run_operator(gpu.down, upstream=upstream)
    assert result.error is None
    assert rungen_emulator.service.stats()["active_workers"]["flux-schnell"] == (0 if has_run else 2)
    assert ("Nothing to scale down" in result.log) != has_run


@pytest.mark.skipif(not AIRFLOW_V_3_0_PLUS, reason="a task cannot ask for others")
def test_a_teardown_leaves_the_app_to_a_block_that_is_still_to_end(rungen_emulator: Emulator) -> None:
    with DAG("d", schedule=None):
        with scaled_app(name="first", poll_interval=0.05) as first:
            job()
        with scaled_app(name="second", poll_interval=0.05) as second:
            RunGenRunJobOperator(task_id="draw", input={"prompt": "x"})
    results: dict[str, Any] = {}
    for op, workers in ((first.up, 1), (second.up, 1), (first.down, 1), (second.down, 0)):
        results[op.task_id] = run_operator(op, upstream=results)
        assert rungen_emulator.service.stats()["active_workers"]["flux-schnell"] == workers
    assert "stays up until second_down of run run scales it down" in results["first_down"].log


def test_a_mapped_task_is_refused() -> None:
    with DAG("d", schedule=None):
        mapped: Any = RunGenRunJobOperator.partial(task_id="x").expand(input=[{"prompt": "x"}])
    with pytest.raises(TypeError, match="run an operator that is not mapped"):
        run_operator(mapped)


@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="there is no task state store")
def test_the_state_store_can_be_shared_by_attempts(rungen_emulator: Emulator) -> None:
    from airflow_provider_rungen.emulator.fakes import FakeStore

    store = {"task_state_store": FakeStore()}
    for _ in range(2):
        assert run_operator(job(), context=store).error is None
    assert rungen_emulator.service.stats()["jobs_created"] == 1


# --- other operators and triggers ---------------------------------------------------------------------------


class SlowTrigger(BaseTrigger):
    def __init__(self, how: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.how = how

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.SlowTrigger", {"how": self.how}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        if self.how == "raises":
            raise ValueError("of the trigger")
        if self.how == "hangs":
            await asyncio.sleep(60)
        yield TriggerEvent(self.how)


class Deferring(BaseOperator):
    def __init__(self, how: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.how = how

    def execute(self, context: Any) -> None:
        self.defer(
            trigger=SlowTrigger(self.how),
            method_name="come_back",
            kwargs={"extra": 1},
            timeout=timedelta(seconds=0.2),
        )

    def come_back(self, context: Any, event: Any, extra: int) -> Any:
        return event, extra, context["task"].task_id


def test_any_operator_can_be_run() -> None:
    assert run_operator(Deferring(how="fires", task_id="x")) == TaskResult(
        ("fires", 1, "x"), None, events=["fires"], timeouts=[timedelta(seconds=0.2)]
    )


@pytest.mark.parametrize(("how", "reason"), [("raises", "Trigger failure"), ("hangs", "Trigger timeout")])
def test_a_trigger_that_fails_or_takes_too_long_fails_the_task(how: str, reason: str) -> None:
    result = run_operator(Deferring(how=how, task_id="x"))
    assert type(result.error).__name__ in ("TaskDeferralError", "TaskDeferralTimeout")
    assert str(result.error) == reason
    assert result.events == []


@pytest.mark.usefixtures("guarded")
def test_neither_the_kit_nor_a_sensor_is_reported_as_called_outside_of_a_task(
    rungen_emulator: Emulator,
) -> None:
    made = run_operator(job())
    results = [made, run_operator(RunGenJobSensor(task_id="wait", job_id=made.value, poke_interval=0.05))]
    assert [result.error for result in results] == [None, None]
    assert "cannot be called outside" not in "".join(result.log for result in results)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warn of an ``execute`` that other code calls, as Airflow does outside of its own tests."""
    module = import_module(
        next(kind.__module__ for kind in BaseOperator.__mro__ if kind.__name__ == "BaseOperator")
    )
    monkeypatch.setattr(module.ExecutorSafeguard, "test_mode", False)
