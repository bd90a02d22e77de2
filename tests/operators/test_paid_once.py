"""Each input is paid for once: what the server counted over attempts, runs, tasks and DAGs."""

from __future__ import annotations

import contextvars
import gzip
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from bad_answers import Fault
from operator_kit import Attempts, Inputs, Table, picture, products, submitted
from rungen_emulator import Emulator, Service
from rungen_emulator.messages import Reply

from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenPlanTableOperator

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]

Run = Callable[..., Table]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


def poisoned(row: dict[str, Any]) -> dict[str, Any]:
    return picture(row) | ({"emulator": {"fail": "no memory"}} if row["sku"] > "sku-1" else {})


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    return picture(row) | {"emulator": {"seconds": 60}}


def nights(task: Table, count: int = 1, **changes: Any) -> list[int]:
    """Return how many jobs some runs bought, each from what the last one left."""
    bought = []
    for _ in range(count):
        before = task.created
        assert task.attempt(**changes).error is None
        bought.append(task.created - before)
        task.next_run(task.run_id + "1")
    return bought


# --- what is known ---


def test_what_is_stored_is_bought_once(run: Run, mode: bool) -> None:
    task = run(products(6), deferrable=mode)
    assert nights(task) == [6]
    first = task.column("job_id")
    before = len(task.emulator.service.records())
    outcome = task.attempt()
    assert (task.column("job_id"), task.column("reused"), outcome.events) == (first, [True] * 6, [])
    assert [record.operation for record in task.emulator.service.records()[before:]] == ["get_app"]
    task.next_run("more")
    assert nights(task, table=products(8)[4:]) == [2]
    assert task.column("job_id")[:2] == first[4:]


def test_equal_inputs_share_a_job(rungen_emulator: Emulator, tmp_path: Path, mode: bool) -> None:
    given = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "steps": 4}, {"steps": 4.0, "prompt": "a"}]
    task = Inputs(rungen_emulator, tmp_path, [*given, *given], deferrable=mode)
    assert task.attempt().error is None
    ids = task.column("job_id")
    assert task.created == len(set(ids)) == 3
    assert ids[2] == ids[3] == ids[6] == ids[7]
    assert task.column("reused") == [False, False, False, True, True, True, True, True]


def test_each_row_may_have_a_job_of_its_own(run: Run, mode: bool) -> None:
    same: Any = lambda row: {"prompt": "a red fox"}  # noqa: E731
    task = run(products(3), to_input=same, per_row=True, deferrable=mode)
    assert nights(task, 2) == [3, 0]
    assert nights(task, table=[*products(4)[1:], *products(1)]) == [1], "a row is told by its key"
    assert nights(task, per_row=False) == [1]


def test_another_dag_with_the_same_destination_buys_nothing(run: Run, mode: bool) -> None:
    first, second = run(products(4), deferrable=mode), run(products(5), deferrable=mode)
    second.dag_id = "another"
    second.options["results"] = None
    assert (nights(first), nights(second)) == ([4], [1])
    assert second.ti.xcoms["usage"]["jobs"] == 1
    [written] = (first.folder / "photos" / "results").glob("another.task/*.jsonl")
    assert written.read_text().count('"completed"') == 5


def test_another_version_or_model_makes_all_new(run: Run) -> None:
    task = run(products(3))
    assert nights(task, 2) == [3, 0]
    assert nights(task, 2, version="2026-12") == [3, 0]
    assert nights(task, 2, app_id="llama-text") == [3, 0]
    assert nights(task, 1) == [0]


def test_reuse_says_what_of_other_runs_counts(run: Run, mode: bool) -> None:
    task = run(products(3), deferrable=mode)
    assert nights(task) == [3]
    assert nights(task, 2, reuse=False) == [3, 3]
    task.run_began = datetime.now(UTC) + timedelta(days=8)
    assert nights(task, reuse=timedelta(days=9)) == [0]
    assert nights(task, reuse=timedelta(days=7)) == [3]
    task.run_began = None
    # what this very run bought always counts
    assert task.attempt(reuse=False).error is None
    before = task.created
    task.clear()
    assert task.attempt(reuse=False).error is None
    assert task.created == before


def test_a_retry_goes_on_with_what_a_killed_attempt_bought(run: Run, mode: bool) -> None:
    task = run(products(6), deferrable=mode)
    task.attempt_until(RunGenJobLink.key)
    assert task.created == 6
    outcome = task.attempt()
    assert outcome.value["completed"] == task.created == 6
    assert outcome.value["jobs"] == 6, "the bill has those of all attempts"


def test_a_clear_cancels_nothing_and_buys_what_is_missing(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode)
    task.attempt_until(RunGenJobLink.key)
    task.clear()
    assert task.attempt(table=products(5)).value["completed"] == 5
    assert (task.created, task.statuses()) == (5, ["COMPLETED"] * 5)
    task.clear()
    assert task.attempt(table=products(5)).value["completed"] == 5
    assert task.created == 5


def test_what_failed_is_bought_anew_and_the_rest_is_not(run: Run, mode: bool) -> None:
    # the service refuses one, and two fail
    task = run(products(4), deferrable=mode, to_input=poisoned)
    task.emulator.service.inject(Fault(on="run", status=400, body={"error": "too rude"}))
    error = str(task.attempt().error)
    assert "3 of 4 rows failed" in error
    assert "too rude" in error
    assert "no memory" in error
    assert Counter(task.column("status")) == {"completed": 1, "failed": 2, "refused": 1}
    assert task.created == 3
    assert task.attempt(max_failed=2).error is None
    assert task.created == 3 + 3
    assert task.column("status") == ["completed"] * 2 + ["failed"] * 2


def test_a_file_that_is_gone_is_bought_again(run: Run, mode: bool) -> None:
    task = run(products(3), deferrable=mode)
    assert nights(task) == [3]
    Path(task.column("output")[1].removeprefix("file://")).unlink()
    assert nights(task, 2) == [1, 0]


def test_many_files_that_are_gone_may_be_a_mount_that_is_missing(run: Run) -> None:
    task = run(products(101))
    assert nights(task) == [101]
    shutil.rmtree(task.folder / "photos" / "files")
    error = str(task.attempt().error)
    assert "the files of 101 purchases are gone; nothing was sent" in error
    assert "max_jobs" in error
    assert task.created == 101
    assert task.attempt(max_jobs=101).error is None
    assert task.created == 202


def test_seconds_that_no_job_can_have_run_are_not_kept(run: Run, mode: bool) -> None:
    class Odd(Service):
        def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
            reply = super().handle(method, path, headers, body)
            answer = re.sub(rb'("execution_time": )"[0-9.]+"', rb'\1"1764302000000"', reply.body)
            return replace(reply, body=answer)

    task = run(products(3), deferrable=mode, to_input=poisoned, max_failed=1)
    task.emulator.service = Odd(workers=10)
    assert nights(task, 2) == [3, 1]
    assert task.column("seconds") == [None] * 3


# --- what fails again and again ---


def test_a_row_is_given_up_until_the_limit_is_raised(run: Run, mode: bool) -> None:
    task = run(products(4), to_input=poisoned, deferrable=mode, max_failed=0.5, max_attempts=2)
    assert nights(task, 4) == [4, 2, 0, 0]
    assert task.column("status") == ["completed"] * 2 + ["given_up"] * 2
    last = [job["id"] for job in task.emulator.service.jobs()][4:]
    assert sorted(task.column("job_id")[2:]) == sorted(last)
    assert set(task.column("error")[2:]) == {"given up after 2 failed jobs, the last: no memory"}
    assert nights(task, 3, max_attempts=3) == [2, 0, 0]
    assert nights(task, 3, version="2", max_attempts=1) == [4, 0, 0]
    assert nights(task, 2, reuse=False, max_attempts=1) == [4, 4]
    assert nights(task, to_input=picture) == [2], "a corrected input is a new one"


def test_retries_count_and_there_is_none_when_all_is_given_up(run: Run, mode: bool) -> None:
    task = run(products(4), to_input=poisoned, deferrable=mode, max_attempts=2)
    for created in (4, 6, 6):
        error = task.attempt().error
        assert task.created == created
    assert isinstance(error, AirflowFailException)
    parts = ("2 of 4 rows failed", "given up after 2 failed jobs", "max_attempts")
    assert all(part in str(error) for part in parts)


def test_a_job_that_fails_while_nobody_looks_counts(run: Run, mode: bool) -> None:
    task = run(products(4), to_input=poisoned, deferrable=mode, max_failed=2, max_attempts=2)
    task.attempt_until(RunGenJobLink.key)
    assert task.created == 4
    give_up_at = time.monotonic() + 30
    while any(status in ("QUEUED", "RUNNING") for status in task.statuses()):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert task.attempt().error is None
    assert task.created == 6, "the two that failed are bought once more"
    assert nights(task, 2) == [0, 0]
    assert task.column("status") == ["completed"] * 2 + ["given_up"] * 2


def test_a_canceled_job_does_not_count(run: Run) -> None:
    task = run(products(2), max_attempts=1)
    assert "Not over in time" in str(task.attempt(to_input=lasting, timeout=0.3).error)
    assert task.statuses() == ["CANCELED"] * 2
    task.next_run("night 2")
    assert "Not over in time" in str(task.attempt(to_input=lasting, timeout=0.3).error)
    assert task.created == 4


def test_a_plan_counts_no_job_for_what_is_given_up(run: Run) -> None:
    task = run(products(4), to_input=poisoned, max_failed=2, max_attempts=1)
    assert nights(task) == [4]
    task.kind = RunGenPlanTableOperator
    assert task.attempt().value == 0
    plan = task.ti.xcoms["plan"]
    assert (plan["rows"], plan["jobs"], plan["reused"], plan["skipped"], plan["cost"]) == (4, 0, 2, 0, 0)


# --- what was forgotten ---


def test_what_others_left_open_is_recorded_and_belongs_to_nobody(run: Run, tmp_path: Path) -> None:
    ahead = [0.0]

    def lasts(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | {"emulator": {"seconds": 60 if int(row["sku"][4:]) % 2 else 0}}

    owner = run(products(60), to_input=lasts)
    service, store = owner.emulator.service, tmp_path / "photos" / ".rungen"
    service.clock = lambda: time.time() + ahead[0]
    owner.attempt_until(RunGenJobLink.key)
    ahead[0] = 10
    assert Counter(owner.statuses()) == {"COMPLETED": 30, "RUNNING": 30}
    bought = owner.ids()
    running = {job["id"] for job in service.jobs() if job["status"] == "RUNNING"}
    for path in (store / "open").iterdir():
        os.utime(path, (time.time() - 25 * 3600,) * 2)

    def named() -> set[str]:
        names = (path.name.split(".", 2) for path in (store / "open").iterdir())
        return {name[2] for name in names if len(name) == 3}

    # each has a job that fails, so that its error names its jobs
    table, other = run(products(64)[60:62], to_input=poisoned), run(products(64)[62:], to_input=poisoned)
    table.dag_id, other.dag_id = "another", "a third"
    ended, failing = submitted({"prompt": "a"}, {"prompt": "b", "emulator": {"fail": "no memory"}})
    collecting = Attempts(
        owner.emulator,
        RunGenCollectResultsOperator,
        job_id=[ended, failing],
        destination=owner.options["destination"],
        results=(tmp_path / "collected.jsonl").as_uri(),
    )
    collecting.dag_id = "collecting"
    for task in (table, collecting, other):
        before = owner.ids()
        error: Any = task.attempt().error
        new = [ended, failing] if task is collecting else owner.ids()[len(before) :]
        assert (len(new), task.ti.xcoms["usage"]["jobs"]) == (2, 2)
        assert "lost" not in task.ti.xcoms["usage"]
        assert error.job_ids
        assert set(error.job_ids) <= set(new)
        assert named() == running

    done = b"".join(gzip.decompress(path.read_bytes()) for path in (store / "done").iterdir())
    records = [json.loads(line) for line in done.splitlines()]
    assert {each["job"] for each in records if each["status"] == "completed"} >= {*bought} - running
    assert [each for each in records if each["status"] == "lost"] == []

    ahead[0], before = 100, owner.ids()
    outcome = owner.attempt()
    assert (outcome.value["completed"], owner.ids()) == (60, before)
    assert (outcome.value["jobs"], set(owner.column("job_id"))) == (60, set(bought))


# --- at the same time ---


@pytest.mark.parametrize("count", [2, 3])
def test_runs_at_the_same_time_buy_each_input_once(
    rungen_emulator: Emulator, tmp_path: Path, mode: bool, count: int
) -> None:
    options: dict[str, Any] = {"deferrable": mode, "max_in_flight": 40, "poll_interval": 0.05}
    tasks = [Table(rungen_emulator, tmp_path, products(120), **options) for _ in range(count)]
    for number, task in enumerate(tasks):
        task.run_id, task.options["results"] = f"run {number}", None

    def attempt(task: Table) -> Any:
        return task.attempt()

    with ThreadPoolExecutor(count) as pool:
        begun = [pool.submit(contextvars.copy_context().run, attempt, task) for task in tasks]
        outcomes = [each.result(timeout=120) for each in begun]
    assert [outcome.error for outcome in outcomes] == [None] * count
    assert [outcome.value["completed"] for outcome in outcomes] == [120] * count
    assert rungen_emulator.service.stats()["jobs_created"] == 120
    # each job is on one bill
    assert sum(outcome.value["jobs"] for outcome in outcomes) == 120


def test_a_submission_whose_answer_is_lost_is_bought_by_the_next_attempt(run: Run, mode: bool) -> None:
    task = run(products(3), deferrable=mode)
    task.emulator.service.inject(Fault(on="run", kind="reset_after", skip=1))
    outcome = task.attempt()
    assert "1 of 3 rows failed" in str(outcome.error)
    assert Counter(task.column("status")) == {"completed": 2, "failed": 1}
    assert task.ti.xcoms["usage"]["lost"] == 1
    assert task.created == 3
    assert task.attempt().value["completed"] == 3
    assert task.created == 4
    assert (task.ti.xcoms["usage"]["jobs"], task.ti.xcoms["usage"]["lost"]) == (3, 1)


def test_when_every_answer_is_lost_it_stops(run: Run, mode: bool) -> None:
    task = run(products(200), deferrable=mode, max_in_flight=50)
    task.emulator.service.inject(Fault(on="run", kind="reset_after", times=None))
    error = str(task.attempt().error)
    assert "Stopped: " in error
    assert task.created <= 50
