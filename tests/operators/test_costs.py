"""The column ``cost`` of a results table: what a job ran, times the price of the block or the connection."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task
from conftest import Outcome, OutletEvents, TrackedTaskInstance, run_task
from operator_kit import FAST, MODES, run_mapped, submitted, taking
from rungen_emulator import Emulator
from rungen_emulator.testing import run_operator

from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.execution.apps.bill import add_costs
from airflow_provider_rungen.execution.table.result_rows import ResultRow, Status
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    scaled_app,
)

pytestmark = pytest.mark.usefixtures("unsettled")

APP = "gpu"
# a worker costs 1 in a second
PRICE = "3600 USD/h"
HERE: dict[str, Any] = {"app_id": APP, **FAST}


class Night:
    """A DAG, and the results tables that it writes, on an app that is up."""

    def __init__(self, emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        emulator.service.add_app(APP, workers=2)
        self.emulator, self.folder, self._monkeypatch = emulator, folder, monkeypatch
        self.dag: Any = DAG("night", schedule=None)

    def set_price(self) -> None:
        """Set the price of the connection."""
        connection = self.emulator.airflow_connection(price=PRICE)
        self._monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)

    def run(self, op: Any, pulled: Any = None) -> Outcome:
        """Run a task, which pulls a value of another one."""
        ti: Any = TrackedTaskInstance()
        ti.task, ti.task_id = op, op.task_id
        if pulled is not None:
            ti.xcom_pull = lambda **_: pulled
        return run_task(op, {"ti": ti, "dag": self.dag, "outlet_events": OutletEvents()})

    def table(self, count: int, task_id: str = "paint", **options: Any) -> Any:
        rows: list[dict[str, Any]] = [
            {"id": number, "prompt": f"{number}", "emulator": {"seconds": 0.2 * (number + 1)}}
            for number in range(count)
        ]
        for row in rows[: options.pop("failing", 0)]:
            row["emulator"]["fail"] = "no luck"
        own: dict[str, Any] = {"task_id": task_id, "table": rows, "key": "id", "results": self.uri(task_id)}
        return RunGenRunTableOperator(**own | HERE | options)

    def uri(self, name: str, suffix: str = "jsonl") -> str:
        return (self.folder / f"{name}.{suffix}").as_uri()

    def rows(self, name: str = "paint") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    def costs(self, name: str = "paint") -> list[float | None]:
        return [None if row["cost"] is None else float(row["cost"]) for row in self.rows(name)]


@pytest.fixture
def night(rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    return Night(rungen_emulator, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "price", "cost"),
    [
        *((0.2, PRICE, Decimal("0.2")), (0, PRICE, Decimal(0)), (None, PRICE, None)),
        (0.2, "0.01 USD/h", Decimal("0.00000056")),
    ],
)
def test_a_row_costs_its_seconds_times_the_price(
    seconds: float | None, price: str, cost: Decimal | None
) -> None:
    row = ResultRow(index=0, status=Status.FAILED, execution_seconds=seconds)
    assert [each.cost for each in add_costs([row], parse_price(price))] == [cost]


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("is_in_block", [False, True])
def test_a_row_has_the_price_of_the_block_or_else_of_the_connection(
    night: Night, deferrable: bool, is_in_block: bool
) -> None:
    night.set_price()
    with night.dag:
        paint = night.table(2, deferrable=deferrable)
        with scaled_app(APP, 2, price="36 USD/h"):
            again = night.table(2, "again", deferrable=deferrable)
    assert night.run(again if is_in_block else paint).error is None
    expected = [0.002, 0.004] if is_in_block else [0.2, 0.4]
    assert night.costs("again" if is_in_block else "paint") == pytest.approx(expected)


@pytest.mark.contract
def test_reused_and_failed_rows_have_a_cost_and_skipped_ones_have_none(night: Night) -> None:
    options: dict[str, Any] = {"max_failed": 2, "failing": 1, "destination": night.uri("pictures", "d")}
    options |= {"ledger": night.uri("ledger", "d")}
    with night.dag, scaled_app(APP, 2, price=PRICE):
        paint, again = night.table(3, **options), night.table(3, "again", **options)
    for op in (paint, again):
        op.to_input = lambda row: None if row["id"] == 1 else row
        assert night.run(op).error is None
        assert [row["status"] for row in night.rows(op.task_id)] == ["failed", "skipped", "completed"]
        assert night.costs(op.task_id) == [pytest.approx(0.2), None, pytest.approx(0.6)], "it ran, too"
    assert [row["reused"] for row in night.rows("again")] == [False, False, True]


@pytest.mark.contract
def test_a_task_that_collects_in_the_block_has_its_price(night: Night) -> None:
    with night.dag, scaled_app(APP, 2, price=PRICE):
        jobs = [RunGenRunJobOperator(task_id=f"paint_{n}", input=taking(0.3), **HERE) for n in range(2)]
        results = night.uri("collect")
        job_id = [job.output for job in jobs]
        collect = RunGenCollectResultsOperator(task_id="collect", job_id=job_id, results=results, **HERE)
    collect.job_id = [night.run(job).value for job in jobs]
    assert night.run(collect).error is None
    assert night.costs("collect") == pytest.approx([0.3, 0.3])


@pytest.mark.contract
def test_a_mapped_task_that_collects_in_the_block_has_its_price(night: Night) -> None:
    with night.dag, scaled_app(APP, 2, price=PRICE):
        kind: Any = RunGenRunJobOperator
        paint = kind.partial(task_id="paint", **HERE).expand(input=[taking(0.3)] * 2)
    with night.dag:
        results = f"{night.folder}/collect-{{{{ ti.map_index }}}}.jsonl"
        mapped: Any = RunGenCollectResultsOperator.partial(task_id="collect", results=results, **HERE)
        collect = mapped.expand(job_id=paint.output)
    with RunGenHook() as hook:
        ids = [hook.run_job(app_id=APP, input=taking(0.3)).id for _ in range(2)]
    for index in range(2):
        result = run_mapped(collect, index, upstream={"paint": ids})
        assert result.error is None
        assert night.costs(f"collect-{index}") == pytest.approx([0.3])
        page = result.xcoms["rungen_page"]
        assert (page["up"], page["down"], page["price"]) == ("app_up", "app_down", PRICE)


@pytest.mark.contract
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_task_that_collects_from_two_blocks_has_the_price_of_its_own(
    night: Night, *, is_mapped: bool
) -> None:
    collectors: dict[str, Any] = {}

    def collect(task_id: str, *jobs: Any) -> None:
        given: dict[str, Any] = {"task_id": task_id, "job_id": [each.output for each in jobs], **FAST}
        kind: Any = RunGenCollectResultsOperator
        collectors[task_id] = kind.partial(**given).expand(max_failed=[0]) if is_mapped else kind(**given)

    def batch(task_id: str) -> Any:
        return RunGenRunJobOperator(task_id=task_id, input=taking(0.1), **HERE)

    with night.dag:
        with scaled_app(APP, name="outer", price="1 USD/h"):
            first = batch("first")
            with scaled_app(APP, name="inner", price="5 USD/h"):
                second = batch("second")
                collect("in_inner", first, second)
                collect("of_outer", first)
            collect("in_outer", second, first)
        with scaled_app(APP, name="last", price="9 USD/h"):
            third = batch("third")
            collect("in_last", first, third)
            collect("of_block_before", first)
        collect("behind", third)
    upstream = dict(zip(("first", "second", "third"), submitted(*[taking(0.1)] * 3), strict=True))
    found: dict[str, Any] = {}
    for task_id, op in collectors.items():
        result = run_mapped(op, 0, upstream=upstream) if is_mapped else run_operator(op, upstream=upstream)
        assert result.error is None
        page = result.xcoms["rungen_page"]
        found[task_id] = page["up"], page["down"], page["price"]
    blocks = {"outer": "1 USD/h", "inner": "5 USD/h", "last": "9 USD/h"}
    outer, inner, last = ((f"{name}_up", f"{name}_down", price) for name, price in blocks.items())
    assert found == {
        "in_inner": inner,
        "in_outer": outer,
        "in_last": last,
        # a block that runs none of the jobs has no price for them
        "of_outer": outer,
        "of_block_before": outer,
        "behind": last,
    }


@pytest.mark.contract
@pytest.mark.parametrize(("declared", "costs"), [(PRICE, [0.2]), ("cheap", [None])])
def test_the_price_may_be_the_output_of_a_task(
    night: Night, declared: str, costs: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    @task
    def price() -> Any: ...

    with night.dag, scaled_app(APP, 2, price=price()):
        paint = night.table(1)
    assert night.run(paint, declared).error is None, "which a wrong price is not worth"
    assert night.costs() == costs
    line = "No costs without a price: ValueError: must be the price of one worker"
    assert (line in caplog.text) == (costs == [None])


@pytest.mark.contract
@pytest.mark.parametrize("count", [0, 1])
def test_parquet_has_decimals(night: Night, count: int) -> None:
    read_table = pytest.importorskip("pyarrow.parquet").read_table
    night.set_price()
    with night.dag:
        paint = night.table(count, results=night.uri("paint", "parquet"))
    assert night.run(paint).error is None
    table = read_table(night.folder / "paint.parquet")
    assert str(table.schema.field("cost").type) == "decimal128(38, 8)"
    assert table.column("cost").to_pylist() == [Decimal("0.2")] * count
