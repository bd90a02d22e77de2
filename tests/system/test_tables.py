"""From a table to a table in a real Airflow: nothing is paid for twice, judged by what the emulator saw."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from client_mistakes import keys_leaked
from rungen_emulator import Emulator, Fault

from system.stage import AirflowInstance, Place, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]


class Nights:
    """Runs of the table DAGs over one table, and the jobs of all of them."""

    def __init__(self, start: Callable[..., Run], place: Place, seconds: float = 0.5) -> None:
        self.start, self.place, self.seconds = start, place, seconds
        self.prompt = ""

    def write(self, rows: int, changed: int = 0) -> None:
        lines = [f"{n},product {n}{' renewed' if n < changed else ''}" for n in range(rows)]
        self.place.write("products.csv", "\n".join(["sku,title", *lines, ""]).encode())

    def run(self, dag_id: str) -> Run:
        conf: dict[str, Any] = {"home": self.place.uri}
        if self.prompt:  # rows have the same inputs as in the first night
            conf["input"] = {"prompt": self.prompt, "emulator": {"seconds": self.seconds}}
        run = self.start(dag_id, seconds=self.seconds, **conf)
        self.prompt = self.prompt or run.prompt
        run.prompt = self.prompt
        return run

    def results(self) -> list[dict[str, Any]]:
        content = self.place.read(f"{self.place.uri}/results/photos.parquet")
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
        return rows


@pytest.fixture
def nights(start: Callable[..., Run], place: Place) -> Nights:
    return Nights(start, place)


def check_paid_once(run: Run, jobs: int) -> None:
    """Check that each input has exactly one job, and that none was canceled."""
    bought = Counter(job["input"]["prompt"] for job in run.jobs())
    assert set(bought.values()) == {1}
    assert len(bought) == jobs
    assert run.jobs_by_status() == {"COMPLETED": jobs}


def test_the_next_night_and_a_clear_buy_only_what_changed(
    airflow: AirflowInstance, emulator: Emulator, nights: Nights
) -> None:
    nights.write(rows=10)
    run = nights.run("table_deferred")
    assert run.wait_for_end() == "success", run.log()
    summary = airflow.xcom(run.dag_id, run.id, "run")
    assert (summary["rows"], summary["jobs"], summary["reused"]) == (10, 10, 0)
    assert "10 rows: 10 bought, 0 reused" in run.log()
    nights.write(rows=10, changed=2)
    run = nights.run("table_blocking")
    assert run.wait_for_end() == "success", run.log()
    assert "10 rows: 2 bought, 8 reused" in run.log()
    check_paid_once(run, 12)
    first = nights.results()
    run.clear()
    run.wait_for_state("success")
    # the same task run: what it has bought, it does not reuse
    until(lambda: "10 rows: 2 bought, 8 reused" in run.log(run.task()["try_number"]), 60, run.log)
    assert [row["output"] for row in nights.results()] == [row["output"] for row in first]
    assert [row["sku"] for row in first] == [str(n) for n in range(10)]
    assert nights.place.read(first[0]["output"]).startswith(b"\x89PNG")
    check_paid_once(run, 12)
    log = run.log() + run.log(2)
    assert "X-Amz-Signature" not in log
    assert keys_leaked(emulator.service) == 0


@pytest.mark.parametrize("dag_id", ["table_blocking"])
def test_a_kill_while_waiting_buys_nothing_twice(nights: Nights, dag_id: str) -> None:
    nights.seconds = 15
    nights.write(rows=20)
    run = nights.run(dag_id)
    run.wait_for_jobs(20)
    until(lambda: "Submitted 20 of 20 inputs" in run.log(), 30, run.log)
    os.kill(task_processes(run.airflow, run)["task"], signal.SIGKILL)
    assert run.wait_for_end() == "success", run.log(2)
    assert run.task()["try_number"] == 2
    check_paid_once(run, 20)
    assert [row["status"] for row in nights.results()] == ["completed"] * 20


@pytest.mark.parametrize("dag_id", ["table_deferred"])
def test_a_kill_while_storing_buys_and_fetches_nothing_twice(
    emulator: Emulator, nights: Nights, dag_id: str
) -> None:
    nights.write(rows=20)
    asked = emulator.service.count("output")
    # the first half arrives, and nothing of the rest
    emulator.service.inject(Fault(on="output", kind="hang", times=None, skip=10))
    try:
        run = nights.run(dag_id)
        # a deferred table stores the jobs that have ended, and not all at once
        until(lambda: emulator.service.count("output") - asked > 10, 90, run.log)
        os.kill(task_processes(run.airflow, run)["task"], signal.SIGKILL)
    finally:
        emulator.service.clear_faults()
    assert run.wait_for_end() == "success", run.log(2)
    check_paid_once(run, 20)
    assert [row["status"] for row in nights.results()] == ["completed"] * 20


def test_a_deferred_table_that_is_marked_failed_is_canceled_and_bought_anew(nights: Nights) -> None:
    nights.seconds = 60
    nights.write(rows=5)
    run = nights.run("table_deferred")
    run.wait_for_jobs(5)
    run.wait_for_trigger()
    run.mark("failed")
    run.wait_for_jobs(5, "CANCELED")
    nights.seconds = 1
    nights.prompt = ""
    run = nights.run("table_deferred")
    assert run.wait_for_end() == "success", run.log()
    check_paid_once(run, 5)
