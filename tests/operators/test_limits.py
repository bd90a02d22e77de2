"""Before the money is spent: limits that refuse, plans that speak money, samples. The server counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from test_table import MODES, Table, picture, products

from airflow_provider_rungen.decorators import rungen_table_task
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.emulator.testing import run_operator
from airflow_provider_rungen.operators import (
    RunGenPlanTableOperator,
    RunGenRunTableOperator,
    scaled_app,
)

pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> bool:
    return MODES[request.param]


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Table]:
    # a worker costs 1 in a second
    links = {"job_url": "https://console.example/{job_id}"}
    connection = rungen_emulator.airflow_connection(price="3600 USD/h", **links)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


def other_picture(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"a better photo of {row['title']}"}


BAD_LIMITS: dict[str, Any] = {
    "limit": (0, True, "many", "-1", "1.5", ""),
}


@pytest.mark.parametrize("is_template", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_LIMITS for value in BAD_LIMITS[name]]
)
def test_a_limit_that_is_none_is_an_error(
    rungen_emulator: Emulator, tmp_path: Path, name: str, value: Any, is_template: bool
) -> None:
    def make(given: Any) -> Any:
        options: dict[str, Any] = {"table": products(1), "key": "sku", "results": f"{tmp_path}/x.csv"}
        return RunGenRunTableOperator(task_id="x", **options | {name: given})

    message = f"{name} must be a positive whole number, not "
    if is_template:
        error = run_operator(make("{{ params.most }}"), context={"params": {"most": value}}).error
        assert isinstance(error, AirflowFailException)
        assert str(error) == f"{message}{str(value)!r}"
        assert rungen_emulator.service.count("run") == 0
    else:
        with pytest.raises(ValueError, match=re.escape(f"{message}{value!r}")):
            make(value)


# --- plans ---


def test_a_plan_speaks_money(run: Callable[..., Table]) -> None:
    task = run(products(6), to_input=lambda row: None if row["sku"] == "sku-1" else picture(row))
    assert task.attempt().error is None
    task.next_run("night 2")
    task.operator = RunGenPlanTableOperator
    # all are new, so that it is known of other entries how long they take
    assert task.attempt(to_input=other_picture).value == 6
    plan = task.ti.xcoms["plan"]
    assert plan["cost"] == pytest.approx(plan["seconds"], abs=0.001)
    assert 6 * 0.25 < plan["cost"] < 6
    assert {"rows": 6, "jobs": 6, "reused": 0, "skipped": 0, "currency": "USD"}.items() <= plan.items()
    assert task.attempt(table=products(7)).value == 1
    assert {"rows": 7, "jobs": 1, "reused": 5, "skipped": 1}.items() <= task.ti.xcoms["plan"].items()


def test_a_plan_has_the_price_of_the_block_that_waits_for_it(run: Callable[..., Table]) -> None:
    task = run(products(2))
    assert task.attempt().error is None
    with DAG("d", schedule=None) as dag:
        plan = RunGenPlanTableOperator(task_id="plan", **task.options | {"to_input": other_picture})
        with scaled_app(only_if=plan.output, price="7200 EUR/h"):
            RunGenRunTableOperator(task_id="photos", **task.options)
    pushed = run_operator(plan, context={"dag": dag}).xcoms["plan"]
    assert (pushed["cost"], pushed["currency"]) == (pytest.approx(2 * pushed["seconds"], abs=0.001), "EUR")


def test_a_function_is_planned_as_it_runs(run: Callable[..., Table]) -> None:
    options = run(products(3)).options | {"limit": 2, "outlets": [], "retries": 2}
    del options["to_input"]
    with DAG("d", schedule=None, params={"when": "dawn"}) as dag:

        @rungen_table_task(**options)
        def photos(row: dict[str, Any], style: str, params: Any = None) -> Any:
            return {"prompt": f"{style} photo of {row['title']} at {params['when']}"}

        plan: Any = photos.plan("outdoor")
        other: Any = photos.override(task_id="all", limit=None).plan.override(retries=0)("outdoor")
        mapped: Any = photos.plan.expand(style=["indoor", "outdoor"])
        plan >> photos("outdoor")
    assert {"photos", "photos_plan", "all_plan", "photos_plan__1"} == set(dag.task_dict)
    assert [plan.operator.retries, other.operator.retries] == [2, 0]
    assert run_operator(plan).value == 2
    assert run_operator(dag.task_dict["photos"]).error is None
    assert [run_operator(each).value for each in (plan, other)] == [0, 1]
    assert [run_operator(mapped, map_index=index).value for index in (0, 1)] == [2, 0]


def test_to_input_may_take_the_params_of_the_dag(run: Callable[..., Table]) -> None:
    def at(row: dict[str, Any], params: dict[str, Any]) -> Any:
        return {"prompt": f"{row['title']} at {params['when']}"}

    task = run(products(1))
    for to_input in (at, picture, lambda params: {"prompt": params["title"]}, dict):
        rows = [{"sku": "x", "title": "product 0", "prompt": "its own"}]
        options = task.options | {"table": rows, "to_input": to_input}
        op = RunGenRunTableOperator(task_id="x", **options)
        assert run_operator(op, context={"params": {"when": "dawn"}}).error is None
    prompts = [job["input"].get("prompt") for job in task.emulator.service.jobs()]
    assert prompts == ["product 0 at dawn", "photo of product 0", "product 0", "its own"]


# --- samples ---


def test_a_sample_is_not_paid_twice(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(9), deferrable=mode, max_in_flight=2)
    task.attempt_until("rungen_job_link")
    outcome = task.attempt(limit="3")
    assert (outcome.error, outcome.value["rows"], task.created) == (None, 3, 3)
    assert task.column("sku") == ["sku-0", "sku-1", "sku-2"]
    task.next_run("all rows")
    assert task.attempt(limit="None").value["reused"] == 3
    assert task.created == 9
