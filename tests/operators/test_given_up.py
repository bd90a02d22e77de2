"""Rows that fail again and again: how many jobs the server counts until they are given up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from operator_kit import Table, picture, products
from rungen_emulator import Emulator

from airflow_provider_rungen.operators import Ledger, RunGenPlanTableOperator

Run = Callable[..., Table]

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def poisoned(row: dict[str, Any]) -> dict[str, Any]:
    return picture(row) | ({"emulator": {"fail": "no memory"}} if row["sku"] > "sku-1" else {})


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    """Make a task with two rows that complete, and two that fail, of which each may fail twice."""

    def make(**options: Any) -> Table:
        ledger = Ledger((tmp_path / "ledger").as_uri(), max_attempts=2)
        more: dict[str, Any] = {"to_input": poisoned, "ledger": ledger, "max_failed": 0.5} | options
        return Table(rungen_emulator, tmp_path, products(4), **more)

    return make


def nights(task: Table, count: int, **changes: Any) -> list[int]:
    """Return how many jobs some runs bought, each from the ledger of the last."""
    bought = []
    for _ in range(count):
        before = task.created
        assert task.attempt(**changes).error is None
        bought.append(task.created - before)
        task.next_run(task.run_id + "1")
    return bought


def test_a_row_is_given_up_until_the_ledger_is_told_to_forget(run: Run, mode: bool) -> None:
    task = run(deferrable=mode)
    assert nights(task, 4) == [4, 2, 0, 0]
    assert task.column("status") == ["completed"] * 2 + ["given_up"] * 2
    assert task.column("job_id")[2:] == [None, None]
    last = [job["id"] for job in task.emulator.service.jobs()][4:]
    assert sorted(task.column("error")[2:]) == sorted(
        f"given up after 2 failed jobs, the last: no memory (job {each}, app flux-schnell)" for each in last
    )
    uri = task.options["ledger"].uri
    # a task that does not count goes on, and adds nothing
    assert nights(task, 2, ledger=Ledger(uri)) == [2, 2]
    assert nights(task, 1) == [0]
    assert nights(task, 1, ledger=Ledger(uri, max_attempts=3)) == [2]
    assert nights(task, 1, ledger=Ledger(uri, max_attempts=3)) == [0]
    assert nights(task, 3, ledger=Ledger(uri, version="2", max_attempts=1)) == [4, 0, 0]
    assert nights(task, 2, ledger=Ledger(uri, refresh=True, max_attempts=1)) == [4, 4]


def test_a_job_that_fails_while_nobody_looks_counts(run: Run, mode: bool) -> None:
    task = run(deferrable=mode)
    task.max_tries = 3
    for bought in (4, 6):
        task.attempt_until("rungen_job_link")
        assert task.created == bought
        give_up_at = time.monotonic() + 30
        while any(job["status"] in ("QUEUED", "RUNNING") for job in task.emulator.service.jobs()):
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
    assert task.attempt().error is None
    assert task.created == 6
    assert task.column("status") == ["completed"] * 2 + ["given_up"] * 2


def test_a_correct_input_is_a_new_one(run: Run) -> None:
    task = run()
    assert nights(task, 3) == [4, 2, 0]
    assert nights(task, 1, to_input=picture) == [2]
    assert task.column("status") == ["completed"] * 4


@pytest.mark.parametrize("is_expired", [True, False], ids=["expired", "removed"])
def test_a_row_that_was_stored_before_is_given_up_too(run: Run, tmp_path: Path, is_expired: bool) -> None:
    ledger = Ledger((tmp_path / "ledger").as_uri(), max_attempts=2, ignore=("emulator",))
    task = run(ledger=ledger, to_input=picture)
    assert nights(task, 1) == [4]
    if is_expired:
        ledger.expires = 1e-9
    else:
        for job in task.emulator.service.jobs()[2:]:
            shutil.rmtree(tmp_path / "photos" / job["id"])
    fresh = 2 if is_expired else 0
    assert nights(task, 4, to_input=poisoned) == [fresh + 2, fresh + 2, fresh, fresh]
    assert task.column("status") == ["completed"] * 2 + ["given_up"] * 2
    # for a task that lets nothing expire, what is stored still counts
    assert nights(task, 1, ledger=replace(ledger, expires=None), max_failed=0.5) == [0]
    assert task.column("status")[2:] == (["completed"] if is_expired else ["given_up"]) * 2


def test_retries_count_and_fail_without_one_when_all_is_given_up(run: Run, mode: bool) -> None:
    task = run(deferrable=mode, max_failed=0)
    for created in (4, 6, 6):
        error = task.attempt().error
        assert task.created == created
    assert isinstance(error, AirflowFailException)
    parts = ("2 of 4 rows failed", "given up after 2 failed jobs", "max_attempts")
    assert all(part in str(error) for part in parts)


def test_what_is_given_up_is_so_where_an_attempt_stops(run: Run, mode: bool) -> None:
    rows = products(145)

    def broken(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | {"emulator": {"fail": "no memory"}}

    options = {"deferrable": mode, "max_failed": "any"}
    task = run(table=rows[130:], to_input=broken, **options)
    nights(task, 2)
    task.next_run("stopped")
    error = task.attempt(table=rows, max_in_flight=16, max_failed=0).error
    assert "Stopped: " in str(error)
    assert task.column("status")[130:] == ["given_up"] * 15


def test_a_canceled_job_does_not_count(run: Run) -> None:
    task = run()
    task.options["ledger"].ignore = ("emulator",)
    assert nights(task, 1) == [4]
    lasting: Any = lambda row: picture(row) | {"emulator": {"seconds": 60}}  # noqa: E731
    assert "Not over in time" in str(task.attempt(to_input=lasting, timeout=0.3).error)
    assert task.statuses().count("CANCELED") == 2
    task.next_run("after the canceled one")
    assert nights(task, 2) == [2, 0]


def test_a_plan_counts_no_job_for_them(run: Run) -> None:
    task = run()
    nights(task, 2)
    task.kind = RunGenPlanTableOperator
    assert task.attempt().value == 0
    plan = task.ti.xcoms["plan"]
    assert (plan["rows"], plan["jobs"], plan["reused"], plan["skipped"], plan["cost"]) == (4, 0, 2, 0, 0)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3"])
def test_a_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="max_attempts of a Ledger must be 1 or more"):
        Ledger("/ledger", max_attempts=value)
