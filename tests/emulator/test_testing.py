"""``run_operator``: what it does as Airflow does, and what it leaves as it was."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent
from conftest import SOON
from rungen_emulator import Emulator, Fault
from rungen_emulator.names import AIRFLOW_VERSION, HAS_TASK_STATE
from rungen_emulator.testing import TaskResult, run_operator

from airflow_provider_rungen.exceptions import RunGenJobFailedError
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    scaled_app,
)
from airflow_provider_rungen.sensors import RunGenJobSensor

WAITING: dict[str, Any] = {"wait_for_completion": True, "poll_interval": 0.05}


def job(prompt: str = "x", **options: Any) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(task_id="paint", input={"prompt": prompt}, **options)


@pytest.mark.contract
def test_an_operator_needs_no_dag_and_returns_value_xcoms_and_log(rungen_emulator: Emulator) -> None:
    result = run_operator(job(**WAITING))
    [made] = rungen_emulator.service.jobs()
    assert (result.value, result.error) == (made["id"], None)
    assert result.xcoms["job_id"] == result.xcoms["return_value"] == made["id"]
    assert result.xcoms["usage"]["jobs"] == 1
    assert f"INFO Submitted job {made['id']} to app flux-schnell" in result.log.splitlines()
    assert ("Not durable" in result.log) != HAS_TASK_STATE


@pytest.mark.contract
def test_an_error_is_returned(rungen_emulator: Emulator) -> None:
    result = run_operator(job("fail: out of memory", **WAITING))
    assert isinstance(result.error, RunGenJobFailedError)
    assert "out of memory" in str(result.error)
    assert (result.value, result.xcoms.get("return_value")) == (None, None)
    assert result.xcoms["job_id"]


def test_a_deferrable_operator_defers_and_comes_back(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.triggers.base.SETTLING_TIME", 60.0)
    op = job(deferrable=True, **WAITING)
    began, billed = time.monotonic(), worker_seconds(rungen_emulator)
    result = run_operator(op, emulator=rungen_emulator)
    took = time.monotonic() - began
    assert took < SOON, "the trigger waits for no process to end"
    assert 2 * took - (worker_seconds(rungen_emulator) - billed) < SOON, "the clock soon went on"
    assert result.error is None
    assert result.value == result.xcoms["job_id"]
    assert [event["outcome"] for event in result.events] == ["go on"]
    assert result.timeouts == [pytest.approx(timedelta(days=1, minutes=10), abs=timedelta(seconds=10))]


@pytest.mark.contract
def test_a_sensor_that_reschedules_can_be_run(rungen_emulator: Emulator) -> None:
    job_id = run_operator(job()).value
    sensor = RunGenJobSensor(task_id="wait", job_id=job_id, mode="reschedule", poke_interval=0.05)
    assert run_operator(sensor).error is None
    assert rungen_emulator.service.count("get") > 0
    assert sensor.mode == "reschedule"


def worker_seconds(emulator: Emulator) -> float:
    bill: float = emulator.service.stats()["worker_seconds"]["flux-schnell"]
    return bill


@pytest.mark.contract
def test_templates_are_rendered_and_the_operator_can_be_run_again(rungen_emulator: Emulator) -> None:
    template = "{{ params.color }} {{ ds }} {{ macros.ds_add(ds, 1) }} {{ dag.dag_id }} {{ task.task_id }}"
    with DAG("d", schedule=None, params={"color": "red"}):
        op = job(template)
    prompts = []
    for day, next_day in (("2026-01-31", "2026-02-01"), ("2026-03-31", "2026-04-01")):
        prompts.append({"prompt": f"red {day} {next_day} d paint"})
        assert run_operator(op, context={"ds": day}).rendered["input"] == prompts[-1]
    assert [made["input"] for made in rungen_emulator.service.jobs()] == prompts
    assert (op.input, op.upstream_task_ids) == ({"prompt": template}, set())


@pytest.mark.contract
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


@pytest.mark.contract
def test_a_variable_and_a_connection_may_have_a_default(rungen_emulator: Emulator) -> None:
    op = job("{{ var.value.get('absent', 'blue') }} {{ conn.get('absent', 'none') }}")
    assert run_operator(op).rendered["input"] == {"prompt": "blue none"}


@pytest.mark.contract
def test_what_earlier_tasks_returned_is_pulled(rungen_emulator: Emulator) -> None:
    def collect(name: str, job_id: Any) -> Any:
        return RunGenCollectResultsOperator(task_id=name, job_id=job_id, poll_interval=0.05)

    with DAG("d", schedule=None):
        paint = job()
        another = RunGenRunJobOperator(task_id="another", input={"prompt": "x"})
        one, both = collect("one", paint.output), collect("both", [another.output, paint.output])
        sensor = RunGenJobSensor(
            task_id="wait", job_id="{{ ti.xcom_pull('paint', key='job_id') }}", poke_interval=0.05
        )
    first = run_operator(paint)
    for upstream in ({"paint": first}, {"paint": first.value}):
        assert run_operator(one, upstream=upstream).value["images"]
    assert run_operator(sensor, upstream={"paint": first}).error is None
    assert len(run_operator(both, upstream={"paint": first, another.task_id: first}).value) == 2
    assert one.upstream_task_ids == {"paint"}
    assert isinstance(run_operator(one).error, AirflowFailException), "no id"


@pytest.mark.contract
@pytest.mark.parametrize(
    ("upstream", "has_run"),
    [
        *(({"app_up": up}, True) for up in (TaskResult(error=ValueError()), "flux-schnell")),
        *((upstream, False) for upstream in ({"app_up": TaskResult(error=AirflowSkipException())}, {})),
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


# --- tables ---


@pytest.mark.contract
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_rows_of_a_table_are_at_hand(rungen_emulator: Emulator, tmp_path: Path, suffix: str) -> None:
    elsewhere: dict[str, Any] = {
        "table": "s3://bucket/products.parquet",
        "destination": "s3://bucket/{{ run_id }}",
    }
    op = RunGenRunTableOperator(
        task_id="paint",
        key="sku",
        to_input=lambda row: {"prompt": row["title"]},
        poll_interval=0.05,
        **elsewhere,
    )
    here = {
        "table": [{"sku": "A-1", "title": "a {{ kettle }}"}],
        "destination": str(tmp_path),
        "results": str(tmp_path / f"results.{suffix}"),
    }
    [row] = run_operator(op, replace=here).rows
    assert (row["sku"], row["status"]) == ("A-1", "completed")
    assert [each["input"]["prompt"] for each in rungen_emulator.service.jobs()] == ["a {{ kettle }}"]
    [again] = run_operator(op, replace=here).rows
    assert again["job_id"] == row["job_id"], "the store has it"
    assert op.table == elsewhere["table"]
    assert "no parameter 'folder'" in str(run_operator(op, replace={"folder": []}).error)
    with pytest.raises(ValueError, match="no results table"):
        _ = run_operator(job()).rows


@pytest.mark.contract
def test_a_test_that_replaces_a_place_writes_nowhere_else(rungen_emulator: Emulator, tmp_path: Path) -> None:
    real, here = tmp_path / "real", tmp_path / "here"
    op = RunGenRunTableOperator(
        task_id="paint",
        table=[{"sku": "A-1", "prompt": "x"}],
        key="sku",
        destination=str(real),
        results=str(real / "photos.csv"),
        poll_interval=0.05,
    )
    for replace, named in (
        ({"table": [{"sku": "A-2"}]}, "destination and results"),
        ({"results": str(here / "r.csv")}, "destination"),
    ):
        refused = run_operator(op, replace=replace)
        assert f"; replace {named}, too" in str(refused.error), refused.error
    result = run_operator(op, replace={"destination": here})
    assert (result.error, result.value["results"]) == (None, f"{here}/photos.csv")
    assert "photos.csv" in {path.name for path in here.iterdir()}
    assert not real.exists()
    assert op.results == f"{real}/photos.csv"


# --- dates ---

DATED = "{{ dag_run.logical_date or 'none' }} {{ ds is defined }}"


@pytest.mark.contract
def test_a_run_may_have_no_date(rungen_emulator: Emulator) -> None:
    assert run_operator(job(DATED), logical_date=None).rendered["input"]["prompt"] == "none False"
    assert "'ds' is undefined" in str(run_operator(job("{{ ds }}"), logical_date=None).error)
    op = job("{{ dag_run.run_after | ds }} {{ task_instance_key_str }}")
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    prompt = run_operator(op, logical_date=None).rendered["input"]["prompt"]
    assert prompt.endswith("__paint__run")
    assert prompt.split()[0] in (today, f"{datetime.now(UTC):%Y-%m-%d}")


@pytest.mark.contract
@pytest.mark.skipif(AIRFLOW_VERSION < (3, 2), reason="runs have no partition")
def test_a_run_may_have_a_partition(rungen_emulator: Emulator) -> None:
    op = job("{{ partition_key }} {{ dag_run.partition_key }} " + DATED)
    result = run_operator(op, partition_key="europe")
    assert result.rendered["input"]["prompt"] == "europe europe none False"


# --- the time limit ---


@pytest.mark.contract
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_task_that_takes_too_long_is_ended(rungen_emulator: Emulator, deferrable: bool) -> None:
    rungen_emulator.service.configure({"job_seconds": 600})
    op = job(deferrable=deferrable, timeout=900, **WAITING)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"task 'paint' did not end within 0\.7 s") as caught:
        run_operator(op, emulator=rungen_emulator, timeout=0.7)
    assert time.monotonic() - began < SOON
    [made] = rungen_emulator.service.jobs()
    assert made["status"] == "CANCELED"
    assert ("deferred to RunGenJobTrigger" if deferrable else "executing") in str(caught.value)
    assert made["id"] in caught.value.__notes__[0]
    assert run_operator(job()).error is None, "it can be run again"


@pytest.mark.contract
def test_an_overrun_quotes_the_last_warning(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=429, headers={"Retry-After": "60"}, times=None))
    with pytest.raises(TimeoutError, match=r"Its log: WARNING .*429"):
        run_operator(job(), timeout=1)


class Stubborn(BaseOperator):
    """Takes the interruption for an error of its own."""

    def execute(self, context: Any) -> None:
        try:
            threading.Event().wait(60)
        except BaseException:
            raise ValueError("what now?") from None


@pytest.mark.contract
def test_an_interruption_that_is_swallowed_still_counts() -> None:
    with pytest.raises(TimeoutError, match="'stubborn'"):
        run_operator(Stubborn(task_id="stubborn"), timeout=0.2)


@pytest.mark.contract
def test_an_alarm_of_the_test_runner_stays() -> None:
    before, handler = signal.getitimer(signal.ITIMER_REAL), signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        run_operator(BaseOperator(task_id="x", do_xcom_push=False))
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


@pytest.mark.contract
@pytest.mark.skipif(not HAS_TASK_STATE, reason="there is no task state store")
def test_the_state_store_can_be_shared_by_attempts(rungen_emulator: Emulator) -> None:
    from rungen_emulator.fakes import FakeStore

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
        trigger, timeout = SlowTrigger(self.how), timedelta(seconds=0.2)
        self.defer(trigger=trigger, method_name="come_back", kwargs={"extra": 1}, timeout=timeout)

    def come_back(self, context: Any, event: Any, extra: int) -> Any:
        return event, extra, context["task"].task_id


@pytest.mark.contract
def test_any_operator_can_be_run() -> None:
    result = run_operator(Deferring(how="fires", task_id="x"))
    assert result == TaskResult(("fires", 1, "x"), events=["fires"], timeouts=[timedelta(seconds=0.2)])
    for how, reason in (("raises", "Trigger failure"), ("hangs", "Trigger timeout")):
        result = run_operator(Deferring(how=how, task_id="x"))
        assert type(result.error).__name__ in ("TaskDeferralError", "TaskDeferralTimeout")
        assert (str(result.error), result.events) == (reason, [])


@pytest.mark.contract
def test_neither_the_kit_nor_a_sensor_is_reported_as_called_outside_of_a_task(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    [module] = [kind.__module__ for kind in BaseOperator.__mro__ if kind.__name__ == "BaseOperator"][:1]
    # outside of its own tests, Airflow warns of an `execute` that other code calls
    monkeypatch.setattr(import_module(module).ExecutorSafeguard, "test_mode", False)
    made = run_operator(job())
    waited = run_operator(RunGenJobSensor(task_id="wait", job_id=made.value, poke_interval=0.05))
    assert (made.error, waited.error) == (None, None)
    assert "cannot be called outside" not in made.log + waited.log
