"""Before the money is spent: limits that refuse, plans that speak money, samples. The server counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from test_table import MODES, Table, picture, products

from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.emulator.testing import run_operator
from airflow_provider_rungen.operators import (
    RunGenRunTableOperator,
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
