"""The bill of ``scaled_app``, held against what the emulator bills."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Asset, TaskDeferred, task
from conftest import Clock, FakeStore, FakeTaskInstance, Outcome, OutletEvents, run_task, signal_when

from airflow_provider_rungen import triggers
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.emulator import Emulator, Fault
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenAppTimeoutError
from airflow_provider_rungen.execution.apps.scale_record import read_history
from airflow_provider_rungen.execution.task import task_instances
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
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# The service tells the time of a change to the second, and the tests take a moment.
TOLERANCE = 2 * 1.5


class Block:
    """The setup and the teardown of a block: their attempts, XComs and states."""

    def __init__(self, emulator: Emulator, store: FakeStore | None) -> None:
        self.emulator = emulator
        self.store = store
        self.up_state: str | None = None
        self.usage: dict[str, Any] = {}
        self._up: dict[str, Any] = {}
        self.pushed: dict[str, Any] = {}
        self._attempts = 0

    def attempt_up(self, **options: Any) -> tuple[RunGenScaleAppOperator, Any]:
        """Return a new attempt of the setup, and its context."""
        self._up.clear()
        self.up_state = "running"
        self._attempts += 1
        ti: Any = FakeTaskInstance()
        ti.task_id, ti.try_number, ti.max_tries = "app_up", self._attempts, 3
        ti.xcom_push = lambda key, value: self._up.update({key: value})
        ti.xcom_pull = lambda key, **_: self._up.get(key)
        own: dict[str, Any] = {
            "task_id": "app_up",
            "app_id": APP,
            "active_workers": 2,
            "poll_interval": 0.02,
            "defer_after": 0,
        }
        op = RunGenScaleAppOperator(**(own | options))
        return op, {"ti": ti, "task_instance": ti, "task_state_store": self.store}

    def up(self, **options: Any) -> Outcome:
        outcome = run_task(*self.attempt_up(**options))
        self.up_state = "failed" if outcome.error else "success"
        return outcome

    def down(self, **options: Any) -> Outcome:
        """Run an attempt of the teardown."""
        self.pushed.clear()
        others: dict[str, Any] = options.pop("others", {})
        ti: Any = FakeTaskInstance()
        ti.task_id = "app_down"
        ti.xcom_push = lambda key, value: self.pushed.update({key: value})
        ti.xcom_pull = self._pull
        ti.get_task_states = lambda **_: {"run": {"app_up": self.up_state, "app_down": "running"}, **others}
        ti.get_dr_count = lambda **_: 1 + len(others)
        ti.get_dagrun_state = lambda *_: "running"
        jobs_of = options.pop("jobs_of", {})
        own: dict[str, Any] = {
            "task_id": "app_down",
            "app_id": APP,
            "scale_up_task_id": "app_up",
            "poll_interval": 0.02,
        }
        op = RunGenScaleDownOperator(**(own | {"price": PRICE} | options))
        op.outlets = [OUTLET]
        op.jobs_of = jobs_of
        ti.task = op
        self.down_op, self.events = op, OutletEvents()
        return run_task(op, {"ti": ti, "dag": SimpleNamespace(tasks=[op]), "outlet_events": self.events})

    def _pull(self, key: str, task_ids: Any, **_: Any) -> Any:
        if key == "usage":
            return [report for task_id in task_ids for report in self.usage.get(task_id, [None])]
        return self._up.get(key)

    @property
    def bill(self) -> dict[str, Any]:
        bill: dict[str, Any] = self.pushed["bill"]
        return bill

    @property
    def billed(self) -> float:
        """What the emulator bills."""
        seconds: float = self.emulator.service.stats()["worker_seconds"][APP]
        return seconds

    def assert_agrees(self, at_least: float) -> None:
        """Compare the bill with the emulator's, which is at least so many worker seconds."""
        assert self.billed >= at_least
        assert float(self.bill["worker_seconds"]) == pytest.approx(self.billed, abs=TOLERANCE)

    def workers(self) -> int:
        count: int = self.emulator.service.stats()["active_workers"][APP]
        return count


@pytest.fixture
def emulator(rungen_emulator: Emulator) -> Emulator:
    rungen_emulator.service.add_app(APP, init_seconds=0.1)
    return rungen_emulator


@pytest.fixture
def clock(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(emulator, monkeypatch)
    clock.advance(1000)  # the app was created some time ago
    return clock


@pytest.fixture
def block(emulator: Emulator, clock: Clock) -> Block:
    return Block(emulator, FakeStore())


@pytest.fixture
def stuck(emulator: Emulator) -> None:
    """An app that does not get up."""
    emulator.service.add_app(APP, init_seconds=100_000)


# --- what the bill holds ------------------------------------------------------------------------------------


def test_a_bill(block: Block, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    block.usage = {"paint": [{"jobs": 830, "execution_seconds": 878.4}], "load": [None]}
    block.up()
    clock.advance(720)
    assert block.down(jobs_of={"paint": ["paint"], "load": ["load"]}) == Outcome()
    block.assert_agrees(1440)
    bill = block.bill
    assert set(bill) == {
        *("app_id", "worker_seconds", "busy_seconds", "utilization", "jobs", "up_at", "down_at"),
        *("price", "cost", "currency", "source"),
    }
    assert (bill["app_id"], bill["jobs"], bill["busy_seconds"]) == (APP, 830, "878.400")
    assert float(bill["utilization"]) == pytest.approx(0.61, abs=0.01)
    assert (bill["price"], bill["currency"], bill["source"]) == (PRICE, "USD", "declared price")
    assert float(bill["cost"]) == pytest.approx(0.48, abs=0.002)
    assert bill["up_at"] < bill["down_at"]
    assert f"Bill of app {APP}: 2 workers for 12 min (1,44" in caplog.text
    assert "61 % busy with 830 jobs, about 0.48 USD (declared price)" in caplog.text


def test_workers_that_the_service_does_not_have_are_not_billed(
    block: Block, emulator: Emulator, clock: Clock
) -> None:
    emulator.service.add_app(APP, max_workers=1)
    assert block.up(timeout=0.2, scale_down_on_failure=False).error
    clock.advance(720)
    block.down()
    block.assert_agrees(720)


def test_two_changes_at_one_time_stay_in_their_order() -> None:
    changes = [{"at": 0.0, "workers": workers} for workers in (0, 1, 0)]
    assert read_history({"changes": changes}).worker_seconds(3600.0) == 0


def test_the_wait_before_a_refused_scaling_is_sent_again_is_not_billed(
    block: Block, emulator: Emulator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            clock.advance(30)

    monkeypatch.setattr(retry.log, "handlers", [Waiting()])
    monkeypatch.setattr(retry, "BACKOFF", 0.01)
    emulator.service.inject(Fault(on="update_app", status=429))
    assert block.up().error is None
    clock.advance(720)
    block.down()
    block.assert_agrees(1440)


def test_without_a_price_there_is_no_cost(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    block.up()
    block.down(price=None)
    nothing = {"price": None, "cost": None, "currency": None, "source": None}
    assert block.bill | nothing | {"busy_seconds": None, "utilization": None, "jobs": None} == block.bill
    assert "USD" not in caplog.text
    assert "busy" not in caplog.text


def test_the_price_may_be_in_the_connection(
    block: Block, emulator: Emulator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    conn = json.loads(emulator.airflow_connection())
    conn["extra"] = {**conn.get("extra", {}), "price": "0.02 EUR/min"}
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(conn))
    block.up()
    clock.advance(300)
    block.down(price=None)
    assert (block.bill["price"], block.bill["currency"]) == ("0.02 EUR/min", "EUR")
    assert float(block.bill["cost"]) == pytest.approx(0.20, abs=0.002)


def test_a_templated_price_that_cannot_be_read_keeps_no_app_up(
    block: Block, caplog: pytest.LogCaptureFixture
) -> None:
    block.up()
    op_price = "{{ 'cheap' }}"
    outcome = block.down(price=op_price)
    assert outcome == Outcome()
    assert block.workers() == 0
    assert block.bill["cost"] is None
    assert "No costs without a price: ValueError: must be the price of one worker" in caplog.text


def report(jobs: int, seconds: Any) -> list[Any]:
    return [{"jobs": jobs, "execution_seconds": seconds}]


PAIR = {"submit": report(6, None), "collect": report(6, 3)}
COUNTED = {
    "a mapped task": ({"paint": [*report(1, 3), *report(1, "4.5")]}, {}, (2, "7.500")),
    "a pair beside a task that waits": (
        {**PAIR, "paint": report(2, 1)},
        {"collect": ["submit"]},
        (8, "4.000"),
    ),
    "jobs that are waited for and collected": (
        {"paint": report(2, 1), "collect": report(2, 1), "again": report(2, 1)},
        {"collect": ["paint"], "again": ["paint"]},
        (2, "1.000"),
    ),
    "two collectors of one task": (
        {**PAIR, "again": report(6, 3)},
        {"collect": ["submit"], "again": ["submit"]},
        (6, "3.000"),
    ),
    "collectors of one task and of two": (
        {**PAIR, "paint": report(2, 1), "both": report(8, 4)},
        {"both": ["paint", "submit"], "collect": ["submit"]},
        (8, "4.000"),
    ),
    "a collector of some of the jobs": (
        {"paint": report(6, 3), "collect": report(2, 1)},
        {"collect": ["paint"]},
        (6, "3.000"),
    ),
    "jobs of tasks outside the block": (
        {"paint": report(2, 1), "collect": report(6, 3), "other": report(1, 2)},
        {"collect": ["outside"], "other": ["other"]},
        (9, "6.000"),
    ),
    "a task that fails before it reports": (
        {"submit": [None], "collect": report(6, 3)},
        {"collect": ["submit"]},
        (6, "3.000"),
    ),
    "a service that reports no seconds": ({"paint": report(6, None), "other": report(0, 0)}, {}, (6, None)),
    "nothing to run": ({"paint": report(0, 0)}, {}, (0, "0.000")),
}


@pytest.mark.parametrize(("usage", "runners_of", "counted"), COUNTED.values(), ids=COUNTED)
def test_each_job_counts_once(
    block: Block, clock: Clock, usage: dict[str, Any], runners_of: dict[str, Any], counted: tuple[int, Any]
) -> None:
    block.usage = usage
    block.up()
    clock.advance(10)
    block.down(jobs_of={each: runners_of.get(each, [each]) for each in usage})
    assert (block.bill["jobs"], block.bill["busy_seconds"]) == counted


def test_the_only_report_may_come_unpacked(block: Block) -> None:
    report = {"jobs": 3, "execution_seconds": 4}
    pull = block._pull
    block._pull = lambda key, **which: report if key == "usage" else pull(key, **which)  # type: ignore[method-assign]
    block.up()
    block.down(jobs_of={"paint": ["paint"]})
    assert (block.bill["jobs"], block.bill["busy_seconds"]) == (3, "4.000")


@pytest.mark.parametrize("usage", ["many", {}, {"jobs": "many"}, {"jobs": 1, "execution_seconds": "NaN"}])
def test_a_bill_that_cannot_be_made_keeps_no_app_up(
    block: Block, usage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    block.usage = {"paint": [usage]}
    block.up()
    assert block.down(jobs_of={"paint": ["paint"]}) == Outcome()
    assert block.workers() == 0
    assert ("No bill: " in caplog.text) != (usage == "many"), "which is no report"


# --- failed scale-ups, retries and kills --------------------------------------------------------------------


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_scale_up_that_fails_is_paid_for(block: Block, clock: Clock, deferrable: bool) -> None:
    op, context = block.attempt_up(deferrable=deferrable, timeout=0.3)
    push, pushes = context["ti"].xcom_push, iter(range(100))

    def wait_after_raising(key: str, value: Any) -> None:
        push(key, value)
        if key == "scaled" and next(pushes) == 1:
            clock.advance(600)

    context["ti"].xcom_push = wait_after_raising
    assert isinstance(run_task(op, context).error, RunGenAppTimeoutError)
    block.up_state = "failed"
    clock.advance(600)  # it is down by now
    assert block.down() == Outcome()
    block.assert_agrees(1200)
    assert float(block.bill["worker_seconds"]) < 1300


def failed_attempt(block: Block, clock: Clock) -> None:
    """Run an attempt that pays for 100 s, and restores the app."""
    op, context = block.attempt_up(timeout=0.1)
    push, pushes = context["ti"].xcom_push, iter(range(100))

    def push_and_wait(key: str, value: Any) -> None:
        push(key, value)
        if key == "scaled" and next(pushes) == 1:
            clock.advance(100)

    context["ti"].xcom_push = push_and_wait
    assert run_task(op, context).error


@pytest.mark.usefixtures("stuck")
def test_a_retry_adds_to_what_the_failed_attempts_cost(block: Block, clock: Clock) -> None:
    failed_attempt(block, clock)
    clock.advance(50)
    failed_attempt(block, clock)
    clock.advance(50)
    assert block.up(wait_until_running=False).error is None
    clock.advance(300)
    assert block.down() == Outcome()
    block.assert_agrees(2 * (100 + 100 + 300))


@pytest.mark.usefixtures("stuck")
def test_before_airflow_3_3_the_failed_attempts_are_missed(emulator: Emulator, clock: Clock) -> None:
    block = Block(emulator, store=None)
    failed_attempt(block, clock)
    block.up(wait_until_running=False)
    clock.advance(300)
    block.down()
    assert float(block.bill["worker_seconds"]) == pytest.approx(600, abs=TOLERANCE)
    assert block.billed == pytest.approx(800, abs=TOLERANCE)


@pytest.mark.usefixtures("stuck")
def test_the_workers_of_another_app_are_not_on_the_bill(
    block: Block, clock: Clock, emulator: Emulator
) -> None:
    failed_attempt(block, clock)
    emulator.service.add_app("another")
    assert block.up(app_id="another").error is None
    clock.advance(100)
    assert block.down() == Outcome()
    assert block.bill["app_id"] == "another"
    assert float(block.bill["worker_seconds"]) == pytest.approx(200, abs=TOLERANCE)


class Death(BaseException):
    """A SIGKILL."""


def die(*_: Any, **__: Any) -> None:
    raise Death


def killed_attempt(block: Block, where: str) -> None:
    """Run an attempt that dies at a place without a trace."""
    op, context = block.attempt_up(scale_down_on_failure=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"airflow_provider_rungen.execution.{where}", die)
        with pytest.raises(Death):
            op.execute(context)


@pytest.mark.parametrize(
    "where", ["apps.scale.wait_or_defer", "apps.scale.ScaleRun._note"], ids=["waiting", "right after the PUT"]
)
@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_scale_up_is_paid_for(block: Block, clock: Clock, where: str, retries: int) -> None:
    killed_attempt(block, where)
    assert block.workers() == 2
    block.up_state = "failed"
    clock.advance(200)
    for _ in range(retries):
        block.up()
    clock.advance(100)
    assert block.down() == Outcome()
    block.assert_agrees(600)


@KILLED
@pytest.mark.usefixtures("stuck")
def test_a_kill_that_lowers_the_app_is_paid_for(block: Block, clock: Clock, emulator: Emulator) -> None:
    op, context = block.attempt_up()
    context["ti"].max_tries = 0

    def is_up() -> bool:
        if emulator.service.count("get_app") <= 3:
            return False
        clock.advance(100)
        return True

    with signal_when(signal.SIGTERM, is_up, op.on_kill):
        assert run_task(op, context).error
    assert block.workers() == 0
    block.up_state = "failed"
    clock.advance(400)
    assert block.down() == Outcome()
    block.assert_agrees(200)
    assert float(block.bill["worker_seconds"]) < 300


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("is_cleared", [False, True])
def test_a_user_who_ends_the_deferred_setup_pays_until_then(
    block: Block, clock: Clock, monkeypatch: pytest.MonkeyPatch, is_cleared: bool
) -> None:
    monkeypatch.setattr(task_instances, "task_state", lambda _: "failed")
    op, context = block.attempt_up(deferrable=True)
    with pytest.raises(TaskDeferred) as deferral:
        op.execute(context)
    clock.advance(300)
    kind, kwargs = deferral.value.trigger.serialize()
    trigger = getattr(triggers, kind.rpartition(".")[2])(**kwargs)
    trigger.task_instance = context["ti"]
    asyncio.run(trigger.on_kill())
    assert block.workers() == 0
    block.up_state = "failed"
    clock.advance(300)
    if is_cleared:
        block.up(wait_until_running=False)
        clock.advance(100)
    assert block.down() == Outcome()
    block.assert_agrees(800 if is_cleared else 600)
    assert float(block.bill["worker_seconds"]) < 1000


@pytest.mark.parametrize("status", [403, 500])
def test_a_scale_up_that_is_refused_costs_nothing(
    block: Block, clock: Clock, emulator: Emulator, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    emulator.service.inject(Fault(on="update_app", status=status, times=5 if status == 500 else 1))
    assert block.up().error
    clock.advance(500)
    assert block.down() == Outcome()
    assert (block.billed, block.bill["worker_seconds"], block.bill["cost"]) == (0, "0.000", "0.0000")
    assert (block.bill["up_at"], block.bill["down_at"]) == (None, None)


def test_a_retry_of_the_teardown_bills_it_all(block: Block, clock: Clock, emulator: Emulator) -> None:
    block.up()
    clock.advance(100)
    emulator.service.inject(Fault(on="update_app", status=403))
    assert isinstance(block.down().error, RunGenAppError)
    so_far = block.bill
    assert so_far["down_at"] is None
    assert float(so_far["worker_seconds"]) == pytest.approx(200, abs=TOLERANCE)
    clock.advance(30)
    assert block.down() == Outcome()
    block.assert_agrees(260)


# --- apps that others use, too ------------------------------------------------------------------------------


def test_an_app_that_is_left_up_has_a_bill_so_far(
    block: Block, clock: Clock, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow_provider_rungen.client.workers import ScaleRecord

    caplog.set_level(logging.INFO)
    block.up()
    clock.advance(100)
    record = ScaleRecord(APP, 2, 2).to_json()
    pull = block._pull
    block._pull = lambda key, **which: record if "run_id" in which else pull(key, **which)  # type: ignore[method-assign]
    assert block.down(others={"other": {"app_down": None}}) == Outcome()
    assert block.workers() == 2
    assert block.bill["down_at"] is None
    block.assert_agrees(200)
    assert f"Bill of app {APP} so far: 2 workers for 1 min 40 s" in caplog.text


def test_an_app_that_was_up_before_counts_from_the_setup_on(
    block: Block, clock: Clock, emulator: Emulator
) -> None:
    emulator.service.scale(APP, 2)
    clock.advance(1000)
    block.up()
    clock.advance(100)
    block.down()
    assert float(block.bill["worker_seconds"]) == pytest.approx(200, abs=TOLERANCE)


def set_workers(emulator: Emulator, count: int) -> None:
    body = b'{"configuration": {"active_workers": %d}}' % count
    headers = {"x-api-key": emulator.service.api_key, "Content-Type": "application/json"}
    assert emulator.service.handle("PUT", f"/app/{APP}", headers, body).status == 200


@pytest.mark.parametrize("count", [0, 5])
def test_a_number_that_somebody_else_has_set_counts_since_then(
    block: Block, clock: Clock, emulator: Emulator, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    block.up()
    clock.advance(100)
    set_workers(emulator, count)
    clock.advance(100)
    block.down()
    block.assert_agrees(200 + 100 * count)
    assert ("up to 5 workers for 3 min" in caplog.text) == (count == 5)


# --- nothing to run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, "0", False, "False", "false", None, "None", "", " 0 "])
def test_with_nothing_to_run_the_app_stays_down(block: Block, emulator: Emulator, value: Any) -> None:
    assert block.up(only_if=value) == Outcome(value=APP)
    assert block.down() == Outcome()
    assert emulator.service.records() == [], "nothing is asked for, either"
    assert (block.bill["worker_seconds"], block.bill["cost"]) == ("0.000", "0.0000")


@pytest.mark.parametrize("value", [1, "17", True, "True", 10_000])
def test_with_something_to_run_the_app_goes_up(block: Block, value: Any) -> None:
    assert block.up(only_if=value) == Outcome(value=APP)
    assert block.workers() == 2
    block.down()
    assert block.workers() == 0


def test_an_app_of_others_is_left_up_when_there_is_nothing_to_run(block: Block, emulator: Emulator) -> None:
    emulator.service.scale(APP, 1)
    block.up(only_if=0)
    block.down()
    assert block.workers() == 1


def test_what_an_earlier_attempt_scaled_up_is_scaled_down(block: Block, clock: Clock) -> None:
    killed_attempt(block, "apps.scale.wait_or_defer")
    clock.advance(100)
    assert block.up(only_if=0) == Outcome(value=APP)
    assert block.workers() == 2
    assert block.down() == Outcome()
    assert block.workers() == 0
    block.assert_agrees(200)


@pytest.mark.parametrize("value", [-1, 1.5, "many", [], {}, "-1"])
def test_what_says_neither_yes_nor_no_is_refused(block: Block, emulator: Emulator, value: Any) -> None:
    outcome = block.up(only_if=value)
    assert isinstance(outcome.error, AirflowFailException)
    assert "only_if" in str(outcome.error)
    assert emulator.service.records() == []


# --- the DAG ------------------------------------------------------------------------------------------------


def job(task_id: str) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(task_id=task_id, input={"prompt": "x"})


def test_the_bill_counts_the_jobs_of_the_block() -> None:
    with DAG("d", schedule=None):
        before = job("before")
        with scaled_app(APP) as outer:
            first = job("first")
            RunGenRunJobOperator.partial(task_id="mapped").expand(input=[{}])
            RunGenCollectResultsOperator(task_id="collect", job_id=first.output)
            RunGenJobSensor(task_id="wait", job_id=first.output)
            with scaled_app("other", name="inner") as inner:
                job("inside")
        job("after") << before
    assert outer.down.jobs_of == {
        **{each: [each] for each in ("first", "mapped")},
        **{each: ["first"] for each in ("collect", "wait")},
    }
    assert inner.down.jobs_of == {"inside": ["inside"]}


class Collecting(RunGenCollectResultsOperator):
    """A collect operator of a user's."""


def test_the_bill_knows_whose_jobs_are_collected() -> None:
    with DAG("d", schedule=None):
        before = job("before")
        with scaled_app(APP) as gpu:
            first, second = job("first"), job("second")
            Collecting(task_id="subclass", job_id=first.output)
            Collecting.partial(task_id="mapped").expand(job_id=second.output)
            Collecting(task_id="both", job_id=[first.output, second.output])
            Collecting(task_id="outside", job_id=before.output)
            Collecting(task_id="unknown", job_id=["some", "ids"])
            Collecting(task_id="template", job_id="{{ ti.xcom_pull('first') }}") << first
            with scaled_app("other", name="inner"):
                inside = job("inside")
            Collecting(task_id="after", job_id=inside.output)
    assert gpu.down.jobs_of == {
        "first": ["first"],
        "second": ["second"],
        "subclass": ["first"],
        "mapped": ["second"],
        "both": ["first", "second"],
        "outside": ["before"],
        "unknown": ["unknown"],
        "template": ["first"],
    }


@pytest.mark.parametrize("price", ["1.20", "cheap", "1.20 $/h", "1.20 USD/week", 1.2])
def test_a_price_that_cannot_be_read_is_refused_when_the_dag_is_parsed(price: Any) -> None:
    with DAG("d", schedule=None), pytest.raises(ValueError, match="price must be the price of one worker"):
        scaled_app(APP, price=price).__enter__()


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


def counts_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    module = import_module("airflow_provider_rungen._airflow.metrics")
    sent: dict[str, int] = {}
    monkeypatch.setattr(module, "incr", lambda name, count=1: sent.update({name: count}))
    return lambda: {name: count for name, count in sent.items() if name.startswith("bill.")}


def test_the_bill_is_counted_once_it_is_final(
    block: Block, clock: Clock, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counts_of(monkeypatch)
    block.usage = {"paint": [{"jobs": 1, "execution_seconds": 120}]}
    block.up()
    clock.advance(1800)
    emulator.service.inject(Fault(on="update_app", status=403))
    assert block.down().error
    assert counts() == {}
    block.down(jobs_of={"paint": ["paint"]})
    assert counts() == {
        "bill.worker_seconds": pytest.approx(3600, abs=TOLERANCE),
        "bill.busy_seconds": 120,
        "bill.cost.usd": pytest.approx(1200, abs=2),
    }


@pytest.mark.feature("assets")
def test_an_asset_event_has_the_bill(block: Block) -> None:
    block.up()
    block.down()
    assert block.events[OUTLET].extra == {"app_id": APP, "bill": block.bill}


@pytest.mark.feature("lineage")
def test_a_teardown_that_fails_reports_the_app_and_the_bill_so_far(block: Block, emulator: Emulator) -> None:
    block.up()
    emulator.service.inject(Fault(on="update_app", status=403))
    assert block.down().error
    lineage: Any = block.down_op.get_openlineage_facets_on_failure(None)
    assert [dataset.name for dataset in lineage.inputs] == [f"app/{APP}"]
    assert lineage.run_facets["rungen_bill"].worker_seconds == block.bill["worker_seconds"]


def test_a_facet_of_the_run_is_the_bill(block: Block) -> None:
    serde = pytest.importorskip("openlineage.client.serde").Serde
    block.up()
    block.down()
    facets = block.down_op.get_openlineage_facets_on_complete(None)
    assert facets is not None
    facet = serde.to_dict(facets.run_facets["rungen_bill"])
    known = {name: value for name, value in block.bill.items() if value is not None}
    assert {name: value for name, value in facet.items() if not name.startswith("_")} == known
