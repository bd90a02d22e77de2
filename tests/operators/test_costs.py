"""The column ``cost`` of a results table: what a job ran, times the price of the connection."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG
from conftest import Outcome, OutletEvents, TrackedTaskInstance, run_task
from operator_kit import FAST, MODES, taking
from rungen_emulator import Emulator

from airflow_provider_rungen.apps.bill import add_costs
from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    scaled_app,
)
from airflow_provider_rungen.results.rows import ResultRow, Status

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
        own |= {"destination": f"{self.folder}/store"}
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
    row = ResultRow(index=0, status=Status.FAILED, seconds=seconds)
    assert [each.cost for each in add_costs([row], parse_price(price))] == [cost]


@pytest.mark.contract
@MODES
def test_a_row_has_the_price_of_the_connection(night: Night, deferrable: bool) -> None:
    night.set_price()
    with night.dag, scaled_app(APP, 2):
        paint = night.table(2, deferrable=deferrable)
    assert night.run(paint).error is None
    assert night.costs() == pytest.approx([0.2, 0.4])


@pytest.mark.contract
def test_reused_and_failed_rows_have_a_cost_and_skipped_ones_have_none(night: Night) -> None:
    options: dict[str, Any] = {"max_failed": 2, "failing": 1}
    night.set_price()
    with night.dag:
        paint, again = night.table(3, **options), night.table(3, "again", **options)
    for op in (paint, again):
        op.to_input = lambda row: None if row["id"] == 1 else row
        assert night.run(op).error is None
        assert [row["status"] for row in night.rows(op.task_id)] == ["failed", "skipped", "completed"]
        assert night.costs(op.task_id) == [pytest.approx(0.2), None, pytest.approx(0.6)], "it ran, too"
    assert [row["reused"] for row in night.rows("again")] == [False, False, True]


@pytest.mark.contract
def test_a_task_that_collects_in_the_block_has_its_price(night: Night) -> None:
    night.set_price()
    with night.dag:
        jobs = [RunGenRunJobOperator(task_id=f"paint_{n}", input=taking(0.3), **HERE) for n in range(2)]
        options = {"destination": f"{night.folder}/store", "results": night.uri("collect")} | HERE
        job_id = [job.output for job in jobs]
        collect = RunGenCollectResultsOperator(task_id="collect", job_id=job_id, **options)
    collect.job_id = [night.run(job).value for job in jobs]
    assert night.run(collect).error is None
    assert night.costs("collect") == pytest.approx([0.3, 0.3])


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
