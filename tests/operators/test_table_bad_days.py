"""Tables on bad days: services, results and outputs that fail, and what the server counted then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from bad_answers import Fault
from operator_kit import Table, picture, products
from rungen_emulator import Emulator

from airflow_provider_rungen.task import store_writer

Run = Callable[..., Table]

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("unsettled")]

HAS_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


@pytest.mark.parametrize("kind", ["wrong_types", "garbage"])
def test_an_app_that_cannot_be_read_once_costs_nothing(run: Run, kind: str) -> None:
    task = run(products(2))
    assert task.attempt().error is None
    task.next_run("2")
    task.emulator.service.inject(Fault(on="get_app", kind=kind))
    task.attempt()
    assert task.attempt().error is None
    assert task.created == 2


def test_results_that_cannot_be_written_cost_nothing(
    run: Run, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.3)
    task = run(products(3), deferrable=mode)
    blocked = task.folder / "photos" / "results.jsonl"
    (blocked / "x").mkdir(parents=True)
    assert task.attempt().error is not None
    shutil.rmtree(blocked)
    value = task.attempt().value
    assert (value["completed"], value["jobs"], task.created) == (3, 3, 3)


def test_a_share_is_one_of_the_rows_that_run(run: Run, mode: bool) -> None:
    bad = {"prompt": "x", "emulator": {"fail": "no memory"}}
    inputs = {"sku-0": None, "sku-1": None, "sku-2": bad}
    task = run(products(4), deferrable=mode, to_input=lambda row: inputs.get(row["sku"], picture(row)))
    assert "1 of 2 rows failed, 0 may" in str(task.attempt(max_failed=0.49).error)
    assert task.attempt(max_failed=0.5).error is None


@pytest.mark.parametrize(
    "uri",
    [
        "file://{folder}/results?X-Amz-Signature=SECRETVALUE&x=.csv",
        "memory://me:SECRETVALUE@host/results.jsonl",
    ],
)
def test_no_secret_of_a_uri_is_shown(run: Run, caplog: pytest.LogCaptureFixture, uri: str) -> None:
    text: Any = lambda row: {"prompt": "x", "emulator": {"result": {"text": "x"}}}  # noqa: E731
    task = run(products(1), to_input=text)
    outcome = task.attempt(results=uri.format(folder=task.folder))
    shown = json.dumps([str(outcome.error), outcome.value, task.ti.pushed, caplog.text], default=str)
    assert "SECRETVALUE" not in shown


def test_an_output_type_that_nothing_fits_costs_other_tasks_nothing(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode, max_failed=4)
    strict = {"output_type": {"type": "object", "required": ["text"]}, "max_attempts": 2}
    assert task.attempt().value["completed"] == 4
    for number, created in enumerate((8, 8)):  # what was bought does not fit, and neither does the next
        task.next_run(f"strict {number}")
        assert task.attempt(**strict).value["failed"] == 4
        assert task.created == created
    task.next_run("any")
    assert (task.attempt().value["completed"], task.created) == (4, 8)


def test_outputs_that_expired_before_they_were_stored_are_bought_again(run: Run, mode: bool) -> None:
    task = run(products(2), deferrable=mode)
    task.attempt_until("rungen_job_link")
    [expired, _] = task.ids()
    fault = Fault(on="output", status=403, times=None, job_id=expired, body=HAS_EXPIRED)
    task.emulator.service.inject(fault)
    task.next_run("8 days later")
    assert task.attempt().value["completed"] == 2
    assert sorted(task.column("reused")) == [False, True]
    assert task.created == 3


@pytest.mark.parametrize("status", [302, 401, 404, 451, 503])
def test_outputs_that_are_refused_are_tried_again_and_not_bought(
    run: Run, mode: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.001)
    monkeypatch.setattr("airflow_provider_rungen.outputs.outage.OUTAGE_TIME", 0.1)
    task = run(products(3), deferrable=mode)
    task.emulator.service.inject(Fault(on="output", status=status, times=None))
    for attempt in ("first", "retry", "cleared", "next run"):
        if attempt == "cleared":
            task.clear()
        elif attempt == "next run":
            task.next_run("2")
        error = task.attempt().error
        assert not isinstance(error, AirflowFailException)
        assert f"127.0.0.1 answered {status}" in str(error)
    task.emulator.service.clear_faults()
    assert task.attempt().error is None
    assert task.column("status") == ["completed"] * 3
    assert task.created == 3


def test_the_seconds_of_jobs_that_are_canceled_at_the_deadline_count(run: Run, mode: bool) -> None:
    task = run(
        products(3), deferrable=mode, to_input=lambda row: picture(row) | {"emulator": {"seconds": 60}}
    )
    assert "Not over in time" in str(task.attempt(timeout=0.5).error)
    assert task.statuses() == ["CANCELED"] * 3
    ran_for = [job["finished"] - job["started"] for job in task.emulator.service.jobs()]
    assert task.ti.xcoms["usage"]["execution_seconds"] == pytest.approx(sum(ran_for), abs=0.05)
    assert task.column("status") == ["canceled"] * 3


def test_jobs_are_adopted_after_a_change_of_the_key(
    run: Run, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run(products(3), deferrable=mode)
    task.attempt_until("rungen_job_link")
    task.emulator.service.api_key = "rungen-new-key"
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", task.emulator.airflow_connection())
    assert task.attempt().value["completed"] == task.created == 3
