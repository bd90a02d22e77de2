"""The column ``cost`` of a results table: what a job ran, times the price of the block or the connection."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task
from conftest import Clock, Outcome, OutletEvents, TrackedTaskInstance, run_task

from airflow_provider_rungen.client.price import parse_price
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.execution.apps.bill import add_costs
from airflow_provider_rungen.execution.table.results import ResultRow, Status
from airflow_provider_rungen.operators import (
    Ledger,
    RunGenCollectResultsOperator,
    RunGenRunBatchOperator,
    RunGenRunTableOperator,
    scaled_app,
)

pytestmark = pytest.mark.usefixtures("unsettled")

APP = "gpu"
# a worker costs 1 in a second
PRICE = "3600 USD/h"
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
FAST: dict[str, Any] = {"app_id": APP, "poll_interval": 0.02, "defer_after": 0}
# A poll, and the second to which the service tells the time of a change, for each of two workers.
TOLERANCE = 2 * 1.5


@pytest.fixture
def emulator(rungen_emulator: Emulator) -> Emulator:
    rungen_emulator.service.add_app(APP, init_seconds=0.1)
    return rungen_emulator


class Night:
    """A DAG, its XComs, and the results tables that it writes."""

    def __init__(self, emulator: Emulator, folder: Path, clock: Clock) -> None:
        self.emulator, self.folder, self.clock = emulator, folder, clock
        self.dag: Any = DAG("night", schedule=None)
        self.xcoms: dict[tuple[str, str], Any] = {}

    def run(self, op: Any, **changes: Any) -> Outcome:
        ti: Any = TrackedTaskInstance()
        ti.task, ti.task_id = op, op.task_id
        ti.xcom_push = lambda key, value: self.xcoms.update({(op.task_id, key): value})
        ti.xcom_pull = self._pull
        ti.get_dr_count = lambda **_: 1
        ti.get_task_states = lambda **_: {"run": dict.fromkeys(self.dag.task_dict, "success")}
        context: Any = {"ti": ti, "dag": self.dag, "outlet_events": OutletEvents(), **changes}
        return run_task(op, context)

    def scale_up(self, block: scaled_app) -> None:
        """Run the setup of a block, and let the app idle for a while."""
        assert self.run(block.up).error is None
        self.clock.advance(300)

    def _pull(self, task_ids: Any, key: str = "return_value", **_: Any) -> Any:
        if isinstance(task_ids, str):
            return self.xcoms.get((task_ids, key))
        return [self.xcoms.get((task_id, key)) for task_id in task_ids]

    def table(self, count: int, task_id: str = "paint", **options: Any) -> Any:
        """Return a task whose first job is steered."""
        rows: list[dict[str, Any]] = [
            {"id": number, "prompt": f"{task_id} {number}", "emulator": {"seconds": 0.2 * (number + 1)}}
            for number in range(count)
        ]
        for row in rows[:1]:
            row["emulator"] |= options.pop("first", {})
        results = self.uri(task_id)
        own: dict[str, Any] = {"task_id": task_id, "table": rows, "key": "id", "results": results}
        own["destination"] = (self.folder / "pictures").as_uri()
        return RunGenRunTableOperator(**own | FAST | options)

    def uri(self, name: str, suffix: str = "jsonl") -> str:
        return (self.folder / f"{name}.{suffix}").as_uri()

    def rows(self, name: str = "paint") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    def costs(self, name: str = "paint") -> list[Decimal | None]:
        return [None if row["cost"] is None else Decimal(row["cost"]) for row in self.rows(name)]

    def total(self, name: str = "paint") -> float:
        return float(sum(filter(None, self.costs(name))))

    @property
    def billed(self) -> float:
        return float(self.emulator.service.stats()["worker_seconds"][APP])


@pytest.fixture
def night(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    clock = Clock(emulator, monkeypatch)
    clock.advance(1000)  # the app was created some time ago
    return Night(emulator, tmp_path, clock)


def set_price(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, price: str = PRICE) -> None:
    conn = json.loads(emulator.airflow_connection())
    conn["extra"] = {**conn.get("extra", {}), "price": price}
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(conn))


@pytest.mark.parametrize(
    ("seconds", "price", "cost"),
    [
        *((0.2, PRICE, Decimal("0.2")), (0, PRICE, Decimal(0)), (None, PRICE, None), (1e300, PRICE, None)),
        (0.2, "0.01 USD/h", Decimal("0.00000056")),
    ],
)
def test_a_row_costs_its_seconds_times_the_price(
    seconds: float | None, price: str, cost: Decimal | None
) -> None:
    row = ResultRow(index=0, status=Status.FAILED, execution_seconds=seconds)
    assert [each.cost for each in add_costs([row], parse_price(price))] == [cost]


# --- in a block of scaled_app -------------------------------------------------------------------------------


@MODES
def test_a_row_costs_the_seconds_of_its_job_and_no_idle_time(night: Night, deferrable: bool) -> None:
    with night.dag, scaled_app(APP, 2, price=PRICE, poll_interval=0.02) as gpu:
        paint = night.table(3, deferrable=deferrable)
    night.scale_up(gpu)
    assert night.run(paint).error is None
    assert [float(cost or 0) for cost in night.costs()] == pytest.approx([0.2, 0.4, 0.6])
    night.run(gpu.down)
    bill = night.xcoms[gpu.down.task_id, "bill"]
    assert float(bill["cost"]) == pytest.approx(night.billed, abs=TOLERANCE)
    assert night.total() == pytest.approx(float(bill["busy_seconds"]), abs=0.001)


def test_reused_and_failed_rows_have_a_cost_and_skipped_ones_have_none(night: Night) -> None:
    ledger = Ledger((night.folder / "ledger").as_uri())
    with night.dag, scaled_app(APP, 2, price=PRICE, poll_interval=0.02) as gpu:
        paint = night.table(3, max_failed=2, first={"fail": "no luck"}, ledger=ledger)
        again = night.table(3, "again", max_failed=2, ledger=ledger)
    again.table = paint.table
    paint.to_input = again.to_input = lambda row: None if row["id"] == 1 else row
    night.scale_up(gpu)
    for each in (paint, again):
        assert night.run(each).error is None
        assert [row["status"] for row in night.rows(each.task_id)] == ["failed", "skipped", "completed"]
        failed, skipped, completed = night.costs(each.task_id)
        assert skipped is None
        assert (float(failed or 0), float(completed or 0)) == pytest.approx((0.2, 0.6)), "it ran, too"
    assert [row["reused"] for row in night.rows("again")] == [False, False, True]


def test_a_task_that_collects_in_the_block_has_its_price(night: Night) -> None:
    with night.dag, scaled_app(APP, 2, price=PRICE, poll_interval=0.02) as gpu:
        inputs = [{"prompt": "x", "emulator": {"seconds": 0.3}}] * 2
        paint = RunGenRunBatchOperator(task_id="paint", inputs=inputs, **FAST)
        collect = RunGenCollectResultsOperator(
            task_id="collect", job_id=paint.output, results=night.uri("collect"), **FAST
        )
    night.scale_up(gpu)
    collect.job_id = night.run(paint).value
    assert night.run(collect).error is None
    assert [float(cost or 0) for cost in night.costs("collect")] == pytest.approx([0.3, 0.3])


def test_the_price_may_be_the_output_of_a_task(night: Night) -> None:
    with night.dag:

        @task
        def price() -> str:
            return PRICE

        declared = price()
        with scaled_app(APP, 2, price=declared, poll_interval=0.02) as gpu:
            paint = night.table(1)
    assert gpu.up.upstream_task_ids == {"price"}, "the table, which waits for the setup, reads it too"
    night.xcoms["price", "return_value"] = PRICE
    night.scale_up(gpu)
    assert night.run(paint).error is None
    assert night.total() == pytest.approx(0.2)


def test_a_price_that_cannot_be_read_fails_no_table(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    with night.dag, scaled_app(APP, 2, price="{{ 'cheap' }}", poll_interval=0.02) as gpu:
        paint = night.table(1)
    night.scale_up(gpu)
    assert night.run(paint).error is None
    assert night.costs() == [None]
    assert "No costs without a price: ValueError: must be the price of one worker" in caplog.text


# --- elsewhere ----------------------------------------------------------------------------------------------


@MODES
def test_elsewhere_a_job_costs_what_it_ran(
    night: Night, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    set_price(emulator, monkeypatch)
    emulator.service.scale(APP, 2)
    with night.dag:
        paint = night.table(2, deferrable=deferrable)
    assert night.run(paint).error is None
    assert [float(cost or 0) for cost in night.costs()] == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize("count", [0, 1])
def test_parquet_has_decimals(
    night: Night, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    read_table = pytest.importorskip("pyarrow.parquet").read_table
    set_price(emulator, monkeypatch)
    emulator.service.scale(APP, 1)
    with night.dag:
        paint = night.table(count, results=night.uri("paint", "parquet"))
    assert night.run(paint).error is None
    table = read_table(night.folder / "paint.parquet")
    assert str(table.schema.field("cost").type) == "decimal128(38, 8)"
    assert table.column("cost").to_pylist() == [Decimal("0.2")] * count
