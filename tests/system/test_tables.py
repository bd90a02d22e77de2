"""Kill, mark and clear tables of a real Airflow: nothing is paid for twice, as the emulator counted."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from client_mistakes import keys_leaked
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.results import read_results
from system.stage import AirflowInstance, Place, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(400), pytest.mark.contract]

MODES = ("table_blocking", "table_deferred")
#: How many submissions are in flight, and cut when a task is killed.
IN_FLIGHT = 16


@pytest.fixture
def begin(start: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """Start a run of a table, by default with a store of its own."""
    homes = iter(range(100))

    def begin(dag_id: str, count: int, seconds: float, **conf: Any) -> Run:
        place = {"home": f"{tmp_path}/{next(homes)}"} | conf
        return start(dag_id, count=count, seconds=seconds, **place)

    return begin


@pytest.fixture
def faults(emulator: Emulator) -> Iterator[Callable[..., None]]:
    """Inject faults, until the test ends."""
    yield lambda **fault: emulator.service.inject(Fault(times=None, **fault))
    emulator.service.clear_faults()


def check(run: Run, count: int, tries: int = 1, cut: int = 0) -> None:
    """Check that a run succeeds, with one completed job for each row, and at most those that were cut."""
    assert run.wait_for_end(300) == "success", run.log(run.task()["try_number"])
    bought, results = run.bought(), run.airflow.xcom(run.dag_id, run.id, "run")
    assert len(bought) == count, run.log(tries)
    assert bought.total() - count <= cut
    assert set(run.jobs_by_status()) == {"COMPLETED"}, "none is canceled"
    assert run.task()["try_number"] == tries
    ids = [row["job_id"] for row in read_results(results).rows(status="completed")]
    assert len(set(ids)) == count
    assert set(ids) <= {job["id"] for job in run.jobs()}


def requests(emulator: Emulator, operation: str) -> int:
    return sum(record.operation == operation for record in emulator.service.records())


def test_each_attempt_and_each_dag_buys_only_what_is_missing(
    emulator: Emulator, begin: Callable[..., Run], place: Place
) -> None:
    def summary(run: Run) -> tuple[int, int, int]:
        assert run.wait_for_end() == "success", run.log()
        found = run.airflow.xcom(run.dag_id, run.id, "run")
        return found["rows"], found["jobs"], found["reused"]

    first = begin("table_deferred", 10, 0.5, home=place.uri)
    again = begin("table_blocking", 10, 0.5, home=place.uri, like=first)
    counts = [summary(run) for run in (first, again)]
    assert sum(jobs for _, jobs, _ in counts) == 10, "two at once buy each row once"
    assert sum(reused for *_, reused in counts) == 10

    lines = [*(f"{n},product {n}" for n in range(8)), "8,a new product", "9,another"]
    place.write("products.csv", "\n".join(["sku,title", *lines, ""]).encode())
    changed = begin("table_of_a_file", 0, 0.5, home=place.uri, like=first)
    assert summary(changed) == (10, 2, 8)
    log = changed.log()
    assert re.search(r"10 rows: 2 to buy, about .* of GPU, 0\.00 USD, 8 known\.", log)
    assert re.search(
        r"10 completed, 8 reused\. This run bought 2 jobs \(.+ USD\)\. Results: \S+/photos\.parquet", log
    )
    uri = f"{place.uri}/results/photos.parquet"
    stored = pq.read_table(io.BytesIO(place.read(uri))).to_pylist()
    assert [row["sku"] for row in stored] == [str(n) for n in range(10)]
    assert place.read(stored[0]["output"]).startswith(b"\x89PNG")

    changed.clear()
    changed.wait_for_state("success")
    # the same task run: what it has bought, it does not reuse
    changed.wait_for_log("This attempt bought 0, this run 2 jobs", try_number=2)
    again_stored = pq.read_table(io.BytesIO(place.read(uri))).to_pylist()
    assert [row["output"] for row in again_stored] == [row["output"] for row in stored]
    assert Counter(changed.bought().values()) == {1: 12}
    assert "X-Amz-Signature" not in first.log() + again.log() + log + changed.log(2)
    assert keys_leaked(emulator.service) == 0


def test_a_kill_while_submitting_buys_again_only_what_was_cut(
    begin: Callable[..., Run], faults: Callable[..., None], emulator: Emulator
) -> None:
    # what is sent after these has a job, and no answer
    faults(on="run", kind="hang", taken=True, skip=100)
    runs = [begin(dag_id, 100, 1) for dag_id in MODES]

    def are_stuck() -> bool:
        jobs = [len(run.jobs()) for run in runs]
        return min(jobs) > 0 and sum(jobs) > 100

    until(are_stuck, 90, lambda: str([run.log() for run in runs]))
    for run in runs:
        run.kill()
    emulator.service.clear_faults()
    for run in runs:
        check(run, 100, tries=2, cut=IN_FLIGHT)
    assert any("being bought elsewhere" in run.log(2) for run in runs)


def test_a_kill_while_waiting_buys_nothing_twice(
    airflow: AirflowInstance, emulator: Emulator, begin: Callable[..., Run]
) -> None:
    canceled = requests(emulator, "cancel")
    killed, terminated, lost = runs = [begin("table_blocking", 20, 35) for _ in range(3)]
    deferred = begin("table_deferred", 20, 60)
    processes: dict[str, int] = {}
    for run in runs:
        run.wait_for_log("Submitted 20 of 20 inputs")
        if run is killed:
            run.kill()
        elif run is terminated:
            run.kill(number=signal.SIGTERM)
        else:
            processes = task_processes(airflow, run)
            os.kill(processes["task"], signal.SIGSTOP)  # an orphaned task would go on
            os.kill(processes["supervisor"], signal.SIGKILL)
    deferred.wait_for_trigger()
    for pid in airflow.processes("airflow triggerer"):
        os.kill(pid, signal.SIGKILL)
    airflow.start_component("triggerer")
    try:
        for run in (killed, terminated, lost):
            check(run, 20, tries=2)
            assert "20 rows: 0 to buy, 20 running" in run.log(2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes["task"], signal.SIGKILL)
    check(deferred, 20)
    assert deferred.log().count("Waiting in the triggerer") == 1, "a worker starts once, when all have ended"
    assert "The next attempt goes on with 20 jobs" in terminated.log()
    assert requests(emulator, "cancel") == canceled


@pytest.mark.parametrize(("place", "dag_id"), [("file", MODES[0]), ("s3", MODES[1])], indirect=["place"])
def test_a_kill_while_storing_buys_nothing_twice(
    emulator: Emulator, begin: Callable[..., Run], faults: Callable[..., None], place: Place, dag_id: str
) -> None:
    asked = requests(emulator, "output")
    # the first half arrives, and nothing of the rest
    faults(on="output", kind="hang", skip=10)
    run = begin(dag_id, 20, 0.5, home=place.uri)
    until(lambda: requests(emulator, "output") - asked > 10, 90, run.log)
    run.kill()
    emulator.service.clear_faults()
    check_s3 = place.uri.startswith("s3")
    assert run.wait_for_end() == "success", run.log(2)
    assert (len(run.bought()), run.jobs_by_status()) == (20, {"COMPLETED": 20})
    summary = run.airflow.xcom(run.dag_id, run.id, "run")
    assert (summary["completed"], summary["jobs"], check_s3) == (20, 20, dag_id == MODES[1])


def test_a_clear_leaves_what_runs_to_the_next_attempt(emulator: Emulator, begin: Callable[..., Run]) -> None:
    canceled = requests(emulator, "cancel")
    blocking, deferred = begin("table_blocking_once", 20, 30), begin("table_deferred_once", 20, 75)
    blocking.wait_for_log("Submitted 20 of 20 inputs")
    blocking.clear()
    deferred.wait_for_trigger()
    deferred.clear()
    for run in (blocking, deferred):
        check(run, 20, tries=2)
        assert "20 rows: 0 to buy, 20 running" in run.log(2)
    assert requests(emulator, "cancel") == canceled


def test_a_mark_and_a_kill_without_a_next_attempt_cancel_all_jobs(begin: Callable[..., Run]) -> None:
    runs = [begin(dag_id, 300, 600) for dag_id in (*MODES, "table_blocking_once")]
    for run in runs:
        run.wait_for_log("Submitted 300 of 300 inputs", timeout=120)
    runs[1].wait_for_trigger()
    for run in runs[:2]:
        run.mark("failed")
    runs[2].kill(number=signal.SIGTERM)
    for run in runs:
        run.wait_for_jobs(300, "CANCELED", timeout=45)
        assert run.jobs_by_status() == {"CANCELED": 300}
        assert run.wait_for_end() == "failed"
        assert run.task()["try_number"] == 1
