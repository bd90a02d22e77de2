"""The bill of ``scaled_app``, held against what the emulator bills."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset, task
from conftest import Clock, FakeStore, FakeTaskInstance, Outcome, OutletEvents, run_task
from operator_kit import FAST, workers
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenInputError
from airflow_provider_rungen.execution.apps.bill import Bill
from airflow_provider_rungen.execution.apps.block import read_scale_record
from airflow_provider_rungen.execution.apps.lifecycle import is_wanted
from airflow_provider_rungen.execution.task.attempts import Attempt
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenScaleAppOperator,
    scaled_app,
)
from airflow_provider_rungen.operators.app import RunGenScaleDownOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

APP = "gpu"
PRICE = "1.20 USD/h"
OUTLET = Asset("s3://bucket/bills")
# The service tells the time of a change to the second, and the tests take a moment.
TOLERANCE = 2 * 1.5


class Block:
    """The setup and the teardown of a block: their attempts, XComs and states."""

    def __init__(self, emulator: Emulator, clock: Clock) -> None:
        self.emulator, self.service, self.clock = emulator, emulator.service, clock
        self.store = FakeStore()
        self.up_state: str | None = None
        self.usage: dict[str, Any] = {}
        self.pushed: dict[str, Any] = {}
        self._up: Any = FakeTaskInstance()
        self._attempts = self._cleared_after = self._clears = 0

    def clear(self) -> None:
        """Clear the block, as a user does."""
        self._clears, self._cleared_after = self._clears + 1, self._attempts

    def attempt_up(self, **options: Any) -> tuple[RunGenScaleAppOperator, Any]:
        """Return a new attempt of the setup, and its context."""
        self.up_state = "running"
        self._attempts += 1
        self._up = ti = FakeTaskInstance()
        ti.task_id, ti.try_number, ti.max_tries = "app_up", self._attempts, self._cleared_after + 3
        own: dict[str, Any] = {"app_id": APP, "active_workers": 2, "retries": 3, **FAST}
        op = RunGenScaleAppOperator(task_id="app_up", **(own | options))
        op.is_setup = True
        dag_run = SimpleNamespace(clear_number=self._clears)
        return op, {"ti": ti, "task_instance": ti, "task_state_store": self.store, "dag_run": dag_run}

    def up(self, **options: Any) -> Outcome:
        outcome = run_task(*self.attempt_up(**options))
        self.up_state = "failed" if outcome.error else "success"
        return outcome

    def down(self, *, others: Any = None, jobs_of: Any = None, tries: int = 0, **options: Any) -> Outcome:
        """
        Run an attempt of the teardown.

        :param tries: how many there were before a clear.
        """
        self.pushed.clear()
        ti: Any = FakeTaskInstance()
        ti.task_id, ti.try_number, ti.max_tries = "app_down", tries + 1, tries
        ti.xcom_push = lambda key, value: self.pushed.update({key: value})
        ti.xcom_pull = self._pull
        states = {"run": {"app_up": self.up_state, "app_down": "running"}, **(others or {})}
        ti.get_task_states = lambda task_ids, **_: {
            run_id: {each: state for each, state in known.items() if each in task_ids}
            for run_id, known in states.items()
        }
        ti.get_dr_count = lambda run_ids=None, **_: len(run_ids or states)
        ti.get_dagrun_state = lambda *_: "running"
        own: dict[str, Any] = {"app_id": APP, "poll_interval": 0.02, "price": PRICE}
        op = RunGenScaleDownOperator(task_id="app_down", scale_up_task_id="app_up", **(own | options))
        op.outlets = [OUTLET]
        op.jobs_of = jobs_of or {}
        ti.task = op
        self.down_op, self.events = op, OutletEvents()
        return run_task(op, {"ti": ti, "dag": SimpleNamespace(tasks=[op]), "outlet_events": self.events})

    def _pull(self, key: str, task_ids: Any, **_: Any) -> Any:
        if key == "usage":
            return [report for task_id in task_ids for report in self.usage.get(task_id, [None])]
        return self._up.xcoms.get(key)

    @property
    def bill(self) -> Any:
        return self.pushed["bill"]

    @property
    def worker_seconds(self) -> float:
        return float(self.bill["worker_seconds"])

    @property
    def billed(self) -> float:
        """What the emulator bills."""
        seconds: float = self.service.stats()["worker_seconds"][APP]
        return seconds

    def assert_agrees(self, at_least: float) -> None:
        """Compare the bill with the emulator's, which is at least so many worker seconds."""
        assert self.billed >= at_least
        assert self.worker_seconds == pytest.approx(self.billed, abs=TOLERANCE)

    def workers(self) -> int:
        return workers(self.emulator, APP)


@pytest.fixture
def block(rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Block:
    rungen_emulator.service.add_app(APP, init_seconds=0.1)
    clock = Clock(rungen_emulator, monkeypatch)
    clock.advance(1000)  # the app was created some time ago
    return Block(rungen_emulator, clock)


@pytest.fixture
def stuck(block: Block) -> None:
    """An app that does not get up."""
    block.service.add_app(APP, init_seconds=100_000)


# --- what the bill holds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "price", "line"),
    [
        ((), "1 USD/h", "no workers, about 0.00 USD (declared price)"),
        (((0, 1), (60, 0)), "0.01 USD/h", "1 worker for 1 min (60 worker seconds), less than 0.01 USD ("),
        (((0, 2), (60, 5), (120, 0)), None, "up to 5 workers for 2 min (420 worker seconds)"),
    ],
)
def test_a_bill_as_a_line(changes: Any, price: str | None, line: str) -> None:
    bill = Bill(APP, WorkerHistory(changes), 500, True, parse_price(price) if price else None)
    assert f"Bill of app {APP}: {line}" in str(bill)
    assert (bill.to_json()["cost"] is None) == (price is None)


def test_a_bill(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    block.up()
    block.clock.advance(720)
    assert block.down() == Outcome()
    block.assert_agrees(1440)
    bill = block.bill
    assert set(bill) == {
        *("app_id", "worker_seconds", "up_at", "down_at"),
        *("price", "cost", "currency", "source"),
    }
    assert bill["app_id"] == APP
    assert (bill["price"], bill["currency"], bill["source"]) == (PRICE, "USD", "declared price")
    assert float(bill["cost"]) == pytest.approx(0.48, abs=0.002)
    assert bill["up_at"] < bill["down_at"]
    assert f"Bill of app {APP}: 2 workers for 12 min (1,44" in caplog.text
    assert "about 0.48 USD (declared price)" in caplog.text


def test_two_changes_at_one_time_stay_in_their_order() -> None:
    changes = [{"at": 0.0, "workers": workers} for workers in (0, 1, 0)]
    record = read_scale_record(ScaleRecord(APP).to_json() | {"changes": changes})
    assert record is not None
    assert record.history.worker_seconds(3600.0) == 0


def test_the_wait_before_a_refused_scaling_is_sent_again_is_not_billed(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            block.clock.advance(30)

    monkeypatch.setattr(retry.log, "handlers", [Waiting()])
    monkeypatch.setattr(retry, "BACKOFF", 0.01)
    block.service.inject(Fault(on="update_app", status=429))
    assert block.up().error is None
    block.clock.advance(720)
    block.down()
    block.assert_agrees(1440)


# --- failed scale-ups, retries and kills --------------------------------------------------------------------


def failed_attempt(block: Block) -> None:
    """Run an attempt that pays for 100 s, and restores the app."""
    op, context = block.attempt_up(timeout=0.1)

    def wait_once_it_is_up(key: str, value: Any) -> None:
        if key == "scaled" and value["active_workers"] == 2 and value["sent_at"] is None:
            block.clock.advance(100)

    context["ti"].on_push = wait_once_it_is_up
    assert run_task(op, context).error


@pytest.mark.usefixtures("stuck")
def test_the_workers_of_another_app_are_not_on_the_bill(block: Block) -> None:
    failed_attempt(block)
    block.service.add_app("another")
    assert block.up(app_id="another").error is None
    block.clock.advance(100)
    assert block.down() == Outcome()
    assert block.bill["app_id"] == "another"
    assert block.worker_seconds == pytest.approx(200, abs=TOLERANCE)


@pytest.mark.usefixtures("stuck")
def test_a_setup_that_failed_and_was_cleared_is_billed_from_the_clear_on(block: Block) -> None:
    failed_attempt(block)
    failed_attempt(block)
    assert block.down() == Outcome()
    assert block.worker_seconds == pytest.approx(before := block.billed, abs=TOLERANCE)
    block.clear()
    block.clock.advance(1000)
    failed_attempt(block)
    failed_attempt(block)
    assert block.down(tries=1) == Outcome()
    assert block.worker_seconds == pytest.approx(block.billed - before, abs=TOLERANCE)
    block.clear()
    assert block.up(only_if=0).error is None
    assert block.down(tries=2) == Outcome()
    assert block.worker_seconds == 0


@pytest.mark.usefixtures("stuck")
def test_the_bill_of_a_scale_up_that_is_killed_ends_there(block: Block) -> None:
    op, context = block.attempt_up()
    context["ti"].max_tries = 0

    def kill(*_: Any, **__: Any) -> None:
        block.clock.advance(100)
        op.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_provider_rungen.execution.apps.scale.wait_or_defer", kill)
        assert run_task(op, context).error
    assert block.workers() == 0
    block.service.inject(Fault(on="get_app", status=200, body={"id": APP, "status": "STOPPED"}, times=None))
    block.clock.advance(500)
    assert block.down() == Outcome()
    block.assert_agrees(200)


@pytest.mark.parametrize("status", [400, 500])
def test_a_scale_up_that_is_refused_costs_nothing(
    block: Block, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    monkeypatch.setattr(retry, "GONE_GRACE", 0.0)
    block.service.inject(Fault(on="update_app", status=status, times=5 if status == 500 else 1))
    assert block.up().error
    block.clock.advance(500)
    assert block.down() == Outcome()
    assert (block.billed, block.bill["worker_seconds"], block.bill["cost"]) == (0, "0.000", "0.0000")
    assert block.bill["up_at"] is None
    assert block.bill["down_at"]


# --- apps that others use, too ------------------------------------------------------------------------------


def test_an_app_whose_workers_stay_has_a_bill_so_far(
    block: Block, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.scaling.CONFIRM_TIME", 0.1)
    block.up()
    block.clock.advance(100)
    body = {"status": "RUNNING", "configuration": {"active_workers": 0}, "workers": {"ready": 2, "idle": 2}}
    block.service.inject(Fault(on="get_app", status=200, body={"id": APP} | body, times=None, skip=1))
    assert block.down() == Outcome()
    assert block.bill["down_at"] is None
    assert (
        f"STILL BILLED: app {APP} may still have workers: it was set to none, and is RUNNING" in caplog.text
    )


def test_an_app_that_is_left_up_has_a_bill_so_far(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    block.up()
    block.clock.advance(100)
    record, pull = ScaleRecord(APP, 2, 2).to_json(), block._pull
    block._pull = lambda key, **which: record if "run_id" in which else pull(key, **which)  # type: ignore[method-assign]
    assert block.down(others={"other": {"app_down": None}}) == Outcome()
    assert (block.workers(), block.bill["down_at"]) == (2, None)
    block.assert_agrees(200)
    assert f"Bill of app {APP} so far: 2 workers for 1 min 40 s" in caplog.text


# --- nothing to run -----------------------------------------------------------------------------------------


WANTED = {
    False: [0, "0", False, "False", "false", None, "None", "", " 0 "],
    True: [1, "17", True, "True", 10_000],
}


@pytest.mark.parametrize(("value", "is_up"), [(value, is_up) for is_up in WANTED for value in WANTED[is_up]])
def test_whether_there_is_something_to_run(value: Any, is_up: bool) -> None:
    assert is_wanted(value) is is_up


@pytest.mark.parametrize("value", [-1, 1.5, "many", [], {}, "-1"])
def test_what_says_neither_yes_nor_no_is_refused(value: Any) -> None:
    with pytest.raises(RunGenInputError, match="only_if"):
        is_wanted(value)


def test_with_nothing_to_run_the_app_is_left_as_it_is(block: Block) -> None:
    block.service.scale(APP, 1)
    assert block.up(only_if=0) == Outcome(value=APP)
    assert block.down() == Outcome()
    assert (block.workers(), block.service.records()) == (1, []), "nothing is asked for, either"
    assert (block.bill["worker_seconds"], block.bill["cost"]) == ("0.000", "0.0000")


@pytest.mark.parametrize("clear_number", [0, 1, None])  # other tasks of the run may have been cleared
@pytest.mark.parametrize(("try_number", "was_cleared"), [(1, False), (2, True)])
def test_a_first_attempt_was_not_cleared_though_retries_were_changed(
    try_number: int, was_cleared: bool, clear_number: int | None
) -> None:
    assert Attempt(try_number, 1, 2, clear_number).was_cleared is was_cleared


def test_a_block_that_is_cleared_while_it_is_up_ends_though_nothing_is_left_to_run(block: Block) -> None:
    """Airflow has dropped what the setup did before the clear."""
    block.up()
    block.clock.advance(100)
    assert block.up(only_if=0, retries=2) == Outcome(value=APP)
    assert block.down() == Outcome()
    assert (block.workers(), bool(block.bill["down_at"])) == (0, True)


# --- the DAG ------------------------------------------------------------------------------------------------


def job(task_id: str) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(task_id=task_id, input={"prompt": "x"})


class Collecting(RunGenCollectResultsOperator):
    """A collect operator of a user's."""


@pytest.mark.contract
def test_the_bill_knows_whose_jobs_the_tasks_of_the_block_report() -> None:
    with DAG("d", schedule=None):
        before = job("before")
        with scaled_app(APP) as outer:
            first, second = job("first"), job("second")
            RunGenRunJobOperator.partial(task_id="mapped").expand(input=[{}])
            RunGenJobSensor(task_id="wait", job_id=first.output)
            Collecting(task_id="subclass", job_id=first.output)
            Collecting.partial(task_id="mapped_collector").expand(job_id=second.output)
            Collecting(task_id="both", job_id=[first.output, second.output])
            Collecting(task_id="outside", job_id=before.output)
            Collecting(task_id="unknown", job_id=["some", "ids"])
            Collecting(task_id="template", job_id="{{ ti.xcom_pull('first') }}") << first
            with scaled_app("other", name="inner") as inner:
                inside = job("inside")
            Collecting(task_id="after", job_id=inside.output)
        job("outside_of_it") << before
        with scaled_app("third", name="further_down") as further_down:
            Collecting(task_id="of_the_block_before", job_id=first.output)
            Collecting(task_id="of_both_blocks", job_id=[first.output, job("last").output])
    assert further_down.down.jobs_of == {"last": ["last"]}
    assert inner.down.jobs_of == {"inside": ["inside"]}
    assert outer.down.jobs_of == {
        **{each: [each] for each in ("first", "second", "mapped", "unknown")},
        **{each: ["first"] for each in ("wait", "subclass", "template")},
        "mapped_collector": ["second"],
        "both": ["first", "second"],
        "outside": ["before"],
    }


@pytest.mark.contract
def test_a_price_that_cannot_be_read_is_refused_when_the_dag_is_parsed() -> None:
    with DAG("d", schedule=None), pytest.raises(ValueError, match="price must be the price of one worker"):
        scaled_app(APP, price="1.20 $/h").__enter__()


@pytest.mark.contract
def test_a_price_and_a_condition_may_be_outputs_of_tasks() -> None:
    @task
    def value() -> Any: ...

    d: Any = DAG("d", schedule=None)
    with d:
        count, price = value.override(task_id="count")(), value.override(task_id="price")()
        with scaled_app(APP, only_if=count, price=price) as gpu:
            job("first")
        with scaled_app(APP, only_if="{{ params.rows }}", price="{{ var.value.price }}"):
            pass
    d.validate()
    assert gpu.up.upstream_task_ids == {"count", "price"}, "tasks of the block read the price, too"
    assert "price" in gpu.down.upstream_task_ids
    assert {"only_if"} <= set(gpu.up.template_fields)
    assert {"price"} <= set(gpu.down.template_fields)


# --- elsewhere ----------------------------------------------------------------------------------------------


def test_a_retry_of_the_teardown_bills_and_counts_it_all(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, int] = {}
    count = lambda name, count=1: sent.update({name: count} if name.startswith("bill.") else {})  # noqa: E731
    monkeypatch.setattr("airflow_provider_rungen._airflow.metrics.incr", count)
    block.up()
    block.clock.advance(1770)
    monkeypatch.setattr(retry, "GONE_GRACE", 0.0)
    block.service.inject(Fault(on="update_app", status=400))
    assert isinstance(block.down().error, RunGenAppError)
    assert (block.bill["down_at"], sent) == (None, {})
    assert block.worker_seconds == pytest.approx(2 * 1770, abs=TOLERANCE)
    block.clock.advance(30)
    assert block.down() == Outcome()
    block.assert_agrees(3600)
    assert sent == {
        "bill.worker_seconds": pytest.approx(3600, abs=TOLERANCE),
        "bill.cost.usd": pytest.approx(1200, abs=2),
    }


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param(False, marks=pytest.mark.feature("assets")),
        pytest.param(True, marks=pytest.mark.feature("lineage")),
    ],
)
def test_an_asset_event_or_the_lineage_of_a_failure_has_the_bill(
    block: Block, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block.up()
    if not fails:
        block.down()
        assert block.events[OUTLET].extra == {"app_id": APP, "bill": block.bill}
        return
    monkeypatch.setattr(retry, "GONE_GRACE", 0.0)
    block.service.inject(Fault(on="update_app", status=400))
    assert block.down().error
    lineage: Any = block.down_op.get_openlineage_facets_on_failure(None)
    assert [dataset.name for dataset in lineage.inputs] == [f"app/{APP}"]
    assert lineage.run_facets["rungen_bill"].worker_seconds == block.bill["worker_seconds"]
