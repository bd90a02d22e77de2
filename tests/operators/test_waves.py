"""Many inputs, few in flight: what the server saw of tables that submit in waves, or stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, cast

import pydantic
import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    TaskDeferred,
)
from bad_answers import Fault
from conftest import (
    APP,
    SOON,
    Died,
    FakeStore,
    FakeTaskInstance,
    Outcome,
    TrackedTaskInstance,
    linger,
    rows_in,
    run_task,
    signal_when,
    stopped_when,
)
from operator_kit import FAST, KILLED, Attempts, submitted, wait_until
from rungen_emulator import Emulator, Service
from rungen_emulator.messages import Reply

from airflow_provider_rungen import _airflow
from airflow_provider_rungen.client import poll_state, retry
from airflow_provider_rungen.client.job_search import COUNTER_THRESHOLD
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.execution.task.outcomes import error_to_json
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.operators import (
    Ledger,
    RunGenCollectResultsOperator,
    RunGenRunTableOperator,
)
from airflow_provider_rungen.sensors import RunGenJobSensor

#: A table with outputs, and one of results alone.
TABLE, BARE = "table", "bare"
KINDS = (TABLE, BARE)
COUNT = 26
CONNECTION = "AIRFLOW_CONN_RUNGEN_DEFAULT"
LIMIT = 6
#: What is pushed when the first inputs are submitted.
JOB_LINK = RunGenJobLink.key
#: A module that is imported when the attempt begins, and one that it imports.
SINKS = [f"airflow_provider_rungen.execution.sinks.{name}" for name in ("result_sink", "contact_sheet")]


def inputs(count: int = COUNT, **emulator: Any) -> list[dict[str, Any]]:
    options = {"seconds": 0.15} | emulator
    return [{"prompt": f"picture {n}", "emulator": options} for n in range(count)]


def failing(count: int = COUNT, **emulator: Any) -> list[dict[str, Any]]:
    return inputs(count, fail="out of memory", **emulator)


class Task(Attempts):
    """
    A task that runs many inputs, attempted again and again, in a folder of its own.

    Jobs of a deferrable task run while it is deferred only, so that it defers however slow the machine is.
    """

    def __init__(self, emulator: Emulator, folder: Path, kind: str, given: Any, **options: Any) -> None:
        waves = {"max_in_flight": LIMIT}
        super().__init__(emulator, partial(self.operator, kind), **waves | options)
        self.folder, self.given = folder, given
        #: The workers of the app while a trigger runs.
        self.workers = 3
        #: Whether no job runs while the task is on a worker that may defer.
        self.is_held = True

    def operator(self, kind: str, **options: Any) -> Any:
        own: dict[str, Any] = {"table": self.given}
        if kind == TABLE:
            own["destination"] = (self.folder / "out").as_uri()
        else:
            own["results"] = (self.folder / "out" / "results.jsonl").as_uri()
        return RunGenRunTableOperator(**own | options)

    def scale(self, workers: int) -> None:
        self.emulator.service.scale("flux-schnell", workers)

    def attempt(self, **changes: Any) -> Outcome:
        """Run the next attempt to its end, deferrals included."""
        op = self.begin(**changes)
        return self.lead(lambda: op.execute(self.context))

    def complete(self, event: Any) -> Any:
        return self.op.execute_complete(self.context, event)

    def go_on(self, trigger: Any) -> Outcome:
        """Run an attempt that was deferred to its end."""
        return self.lead(partial(self.complete, self.fire(trigger)))

    def lead(self, step: Callable[[], Any]) -> Outcome:
        op, outcome = self.op, Outcome()
        stays = not op.deferrable or not self.is_held
        while True:
            self.scale(100 if stays else 0)
            try:
                outcome.value = step()
            except TaskDeferred as deferral:
                event = self.fire(deferral.trigger)
                outcome.events.append(event)
                step = partial(self.complete, event)
                continue
            except Exception as error:
                outcome.error = error
            return outcome

    def fire(self, trigger: Any) -> Any:
        """Run a trigger, and return what its event says."""

        async def first_event() -> Any:
            stream = type(trigger)(**trigger.serialize()[1]).run()
            try:
                return await anext(stream)
            finally:
                await stream.aclose()

        self.scale(self.workers)
        event = asyncio.run(first_event())
        self.scale(0)
        return event.payload

    def until_deferred(self, step: Callable[[], Any]) -> Any:
        """Do a step that ends with a deferral, and return its trigger."""
        with pytest.raises(TaskDeferred) as deferral:
            step()
        return deferral.value.trigger

    def attempt_until_deferred(self, **changes: Any) -> Any:
        """Run the next attempt until it defers, and return its trigger."""
        op = self.begin(**changes)
        self.scale(0)
        return self.until_deferred(lambda: op.execute(self.context))

    def complete_until_deferred(self, event: Any) -> Any:
        """Go on after a deferral until the next one, and return its trigger."""
        return self.until_deferred(lambda: self.complete(event))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return self.emulator.service.jobs()

    @property
    def bought(self) -> Counter[str]:
        """How many jobs each prompt has."""
        return Counter(job["input"]["prompt"] for job in self.jobs)

    @property
    def ends(self) -> Counter[str]:
        """How many jobs have each status."""
        return Counter(self.statuses())

    @property
    def most_in_flight(self) -> int:
        """The most jobs that were queued or running at a time, by the server's clock."""
        changes = [(job["created"], 1) for job in self.jobs]
        changes += [(job["finished"], -1) for job in self.jobs if job["finished"] is not None]
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results table."""
        return rows_in(self.folder / "out")

    @property
    def failed(self) -> list[int]:
        """The inputs that failed, as the task reports them."""
        return [row["index"] for row in self.results if row["status"] in ("failed", "refused")]

    def pictures(self) -> int:
        """Return how many outputs are stored."""
        return len(list(self.folder.rglob("*.png")))

    def prompts(self) -> list[str]:
        """Return the prompts of the jobs in the results table, in its order."""
        by_id = {job["id"]: job["input"]["prompt"] for job in self.jobs}
        return [by_id[row["job_id"]] for row in self.results]

    def assert_each_is_bought_once(self) -> None:
        """Check that all inputs have one job, in their order, and that there were never too many."""
        assert self.prompts() == [each["prompt"] for each in inputs()]
        assert set(self.bought.values()) == {1}
        assert self.most_in_flight <= LIMIT


Make = Callable[..., Task]


@pytest.fixture(autouse=True)
def _short_waves(unsettled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a trigger fire for a part of its jobs at once, instead of once a minute."""
    monkeypatch.setattr("airflow_provider_rungen.triggers.job.MIN_ROUND_TIME", 0.0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make(rungen_emulator: Emulator, tmp_path: Path) -> Make:
    return lambda kind, given, **options: Task(rungen_emulator, tmp_path, kind, given, **options)


# --- max_in_flight ---


@pytest.mark.contract
@pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
def test_no_more_are_in_flight_than_allowed(make: Make, kind: str, mode: bool, has_store: bool) -> None:
    task = make(kind, inputs(), deferrable=mode)
    task.store = FakeStore() if has_store else None
    outcome = task.attempt()
    assert outcome.error is None
    task.assert_each_is_bought_once()
    assert task.ends == {"COMPLETED": COUNT}
    usage = task.ti.xcoms["usage"]
    assert usage.pop("execution_seconds") == pytest.approx(0.15 * COUNT, abs=0.1)
    assert usage == {"jobs": COUNT, "completed": COUNT, "failed": 0, "reused": 0}
    assert (len(outcome.events) > 2) is mode
    if mode:
        assert task.most_in_flight == LIMIT


@pytest.mark.contract
@pytest.mark.parametrize("limit", [1, 2, 7, 8, None])
def test_every_bound_works(make: Make, mode: bool, limit: int | None) -> None:
    task = make(BARE, inputs(8), deferrable=mode, max_in_flight=limit)
    assert task.attempt().value["completed"] == 8
    assert task.most_in_flight <= (limit or 8)


@pytest.mark.contract
@pytest.mark.parametrize("value", [0, True, "1"])
def test_a_limit_that_is_none_is_refused_when_the_dag_is_parsed(make: Make, kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        make(kind, inputs(), max_in_flight=value).begin()


@pytest.mark.contract
def test_a_job_that_is_over_is_not_polled_again_in_each_wave(make: Make, kind: str) -> None:
    task = make(kind, inputs(40), deferrable=True, max_in_flight=10)
    task.workers = 5
    assert len(task.attempt().events) > 3
    ended = {job["id"]: job["finished"] for job in task.jobs}
    records = [record for record in task.emulator.service.records() if record.operation == "get"]
    polls = [(record.path.rpartition("/")[2], record.time) for record in records]
    assert {job_id for job_id, _ in polls} == ended.keys()
    # once by the worker before a deferral, perhaps, once by the trigger, once for the outputs
    assert sum(time >= ended[job_id] for job_id, time in polls) <= 40 * 3


@pytest.mark.contract
def test_saved_inputs_are_not_read_again(make: Make, kind: str, tmp_path: Path) -> None:
    def lose_the_source(key: str, _: Any) -> None:
        if key == "rungen_log":
            task.op.table = "/gone.csv"

    task = make(kind, inputs(), deferrable=True)
    task.on_push = lose_the_source
    outcome = task.attempt()
    assert outcome.error is None
    task.assert_each_is_bought_once()
    left = [path for path in tmp_path.rglob("plans/*") if "picture" in path.read_text()]
    assert not left, "they may be secret"


@pytest.mark.contract
def test_a_table_of_results_alone_has_those_of_all_waves(make: Make, mode: bool) -> None:
    task = make(BARE, inputs(), deferrable=mode)
    assert task.attempt().error is None
    assert [row["status"] for row in task.results] == ["completed"] * COUNT
    assert all("images" in row["result"] for row in task.results)
    assert task.most_in_flight <= LIMIT


@pytest.mark.contract
def test_refused_inputs_are_not_sent_again_by_the_next_wave(make: Make, kind: str, mode: bool) -> None:
    given, refused = inputs(), [0, 3, 4, 11, 25]
    for n in refused:
        given[n] = {"prompt": ""}
    task = make(kind, given, deferrable=mode, max_failed=5)
    assert task.attempt().error is None
    assert task.emulator.service.count("run") == COUNT
    assert task.most_in_flight <= LIMIT
    assert task.failed == refused


@pytest.mark.contract
def test_failures_of_all_waves_are_reported(make: Make, kind: str, mode: bool) -> None:
    failed = [1, 2, 9, 10, 20]
    given = [each if n in failed else inputs()[n] for n, each in enumerate(failing())]
    task = make(kind, given, deferrable=mode)
    error = str(task.attempt().error)
    assert "5 of 26" in error
    assert error.count("out of memory") == 5
    assert "A retry runs only these again" in error
    assert task.failed == failed
    assert (task.ti.xcoms["usage"]["completed"], task.ti.xcoms["usage"]["failed"]) == (21, 5)
    for row in (task.results[n] for n in failed):
        assert row["error"] == f"Failed: out of memory (job {row['job_id']}, app {APP})", "once"
        assert row["execution_seconds"] == pytest.approx(0.15), "it is paid for"
    task.attempt()
    assert {prompt for prompt, count in task.bought.items() if count == 2} == {f"picture {n}" for n in failed}


@pytest.mark.contract
def test_more_failures_than_an_event_names_are_all_reported(make: Make, mode: bool) -> None:
    """Every sixth completes, so nothing stops it."""
    fail = [n for n in range(300) if n % 6]
    given = [(failing if n % 6 else inputs)(300, seconds=0.3)[n] for n in range(300)]
    task = make(BARE, given, deferrable=mode, max_in_flight=240)
    task.workers = 100
    error = str(task.attempt().error)
    assert "250 of 300 rows failed" in error
    assert error.count("out of memory") == 10
    assert task.failed == fail
    assert task.ti.xcoms["usage"]["failed"] == 250


@pytest.mark.contract
def test_an_unknown_fate_is_not_sent_again_by_the_next_wave(make: Make, mode: bool) -> None:
    task = make(BARE, inputs(), deferrable=mode)
    task.emulator.service.inject(Fault(on="run", kind="reset_after", skip=2))
    assert "1 of 26 rows failed" in str(task.attempt().error)
    assert len(task.failed) == 1
    assert set(task.bought.values()) == {1}


@pytest.mark.contract
def test_the_deadline_holds_over_waves_and_what_completed_is_stored(
    make: Make, kind: str, mode: bool
) -> None:
    given = [*inputs(LIMIT), *inputs(COUNT, seconds=60)[LIMIT:]]
    task = make(kind, given, deferrable=mode, timeout=4)
    task.max_tries = 0
    assert "Not over in time" in str(task.attempt().error)
    assert task.ends["COMPLETED"] == LIMIT
    assert task.ends.total() - LIMIT == task.ends["CANCELED"] <= LIMIT
    assert task.pictures() == (LIMIT if kind == TABLE else 0)


# --- the breaker ---


def stopped(task: Task, error: BaseException | None, allowed: int = LIMIT) -> str:
    """Check what a stopped task left behind, and return its error."""
    told = str(error)
    assert told.startswith("Stopped: ")
    assert not task.ends.keys() & {"QUEUED", "RUNNING"}
    assert task.most_in_flight <= allowed
    return told


def broken(count: int = COUNT) -> list[dict[str, Any]]:
    """Return inputs of which the first twenty fail, and the others take long."""
    return [*failing(20), *inputs(count, seconds=60)[20:]]


@pytest.mark.contract
@pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
def test_a_broken_app_is_not_sent_everything(make: Make, kind: str, mode: bool, has_store: bool) -> None:
    task = make(kind, broken(60), deferrable=mode)
    task.store = FakeStore() if has_store else None
    told = stopped(task, task.attempt().error)
    assert "20 jobs in a row failed" in told
    assert told.count("out of memory") == 10
    unsent = 60 - len(task.jobs)
    canceled = 40 - unsent
    jobs = f", {canceled} job{'s' * (canceled != 1)} canceled (billed for what they ran)"
    assert f"{unsent} of 60 inputs were not bought{jobs if canceled else '.'}" in told
    assert task.ends == {"FAILED": 20} | ({"CANCELED": canceled} if canceled else {})
    usage = task.ti.xcoms["usage"]
    assert (usage["completed"], usage["failed"]) == (0, 60 - unsent)
    ran_for = sum(job["finished"] - job["started"] for job in task.jobs if job["started"])
    assert usage["execution_seconds"] == pytest.approx(ran_for, abs=0.01), "canceled jobs are billed, too"
    rows = Counter(row["status"] for row in task.results)
    assert rows == {"failed": 20 + unsent, "canceled": canceled}
    bought = [row for row in task.results if row["status"] == "failed" and row["job_id"]]
    assert all(row["execution_seconds"] for row in bought), "they are paid for"
    ran = [row["execution_seconds"] for row in task.results]
    assert usage["execution_seconds"] == pytest.approx(sum(filter(None, ran)), abs=0.01)


@pytest.mark.contract
def test_a_retry_goes_on_from_there(make: Make, kind: str, mode: bool) -> None:
    given = [*inputs(2, seconds=0), *failing(140, seconds=0.2)[2:]]
    task = make(kind, given, deferrable=mode, max_in_flight=20)
    task.workers = 20
    told = stopped(task, task.attempt().error, 20)
    assert "jobs in a row failed" in told
    assert task.ends["FAILED"] >= 100
    assert task.ends["COMPLETED"] == 2
    assert task.pictures() == (2 if kind == TABLE else 0)
    task.given = [*inputs(2, seconds=0), *inputs(10)[2:]]
    assert task.attempt().error is None
    completed = Counter(job["input"]["prompt"] for job in task.jobs if job["status"] == "COMPLETED")
    assert completed == Counter(f"picture {n}" for n in range(10))


@pytest.mark.contract
def test_failures_are_counted_over_waves_and_deferrals(make: Make, mode: bool) -> None:
    """`test_progress` says which count."""
    task = make(BARE, failing(COUNT), deferrable=mode, max_in_flight=2)
    task.workers = 1
    outcome = task.attempt()
    assert re.match(r"Stopped: 2[01] jobs in a row failed", str(outcome.error))
    assert 20 <= task.ends["FAILED"] <= 21
    assert len(outcome.events) >= 3 * mode


@pytest.mark.contract
def test_the_first_twenty_failures_stop_it(make: Make, kind: str) -> None:
    task = make(kind, [*failing(20), *inputs(50, seconds=60)[20:]], deferrable=False)
    del task.options["max_in_flight"]
    assert "Stopped: 20 jobs in a row failed" in str(task.attempt().error)
    assert task.ends == {"FAILED": 20, "CANCELED": 30}


@pytest.mark.contract
def test_when_all_is_over_nothing_is_stopped(make: Make, mode: bool) -> None:
    task = make(BARE, failing(20), deferrable=mode, max_in_flight=5)
    assert "20 of 20 rows failed" in str(task.attempt().error)


@pytest.mark.contract
def test_results_that_cannot_be_used_are_failures(make: Make, kind: str, mode: bool) -> None:
    schema = {"type": "object", "required": ["verdict"]}
    task = make(kind, inputs(), deferrable=mode, max_in_flight=2, output_type=schema)
    assert "jobs in a row failed" in str(task.attempt().error)
    assert len(task.jobs) < COUNT


@pytest.mark.contract
def test_it_cancels_its_own_jobs_though_kills_do_not(make: Make, mode: bool) -> None:
    task = make(BARE, broken(), deferrable=mode, cancel_on_kill=False)
    stopped(task, task.attempt().error)
    assert task.ends == {"FAILED": 20, "CANCELED": len(task.jobs) - 20}


@pytest.fixture
def ledger(tmp_path: Path, mode: bool) -> dict[str, Any]:
    return {"ledger": Ledger((tmp_path / "ledger").as_uri()), "deferrable": mode}


def next_night(task: Task) -> Task:
    """Make it a task of the next run, which finds only what the ledger has."""
    task.store, task.run_id = None, "night 2"
    return task


@pytest.mark.contract
def test_the_jobs_of_others_are_in_flight_too(make: Make, tmp_path: Path) -> None:
    both = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "deferrable": True}
    make(TABLE, inputs(LIMIT, seconds=60), **both).attempt_until_deferred()
    task = next_night(make(TABLE, inputs(2 * LIMIT, seconds=60), **both))
    task.attempt_until_deferred()
    assert task.created == LIMIT


@pytest.mark.contract
def test_it_never_cancels_the_jobs_of_others(make: Make, ledger: dict[str, Any]) -> None:
    other = make(TABLE, inputs(2, seconds=60), **ledger | {"deferrable": True})
    other.attempt_until_deferred()
    given = [*inputs(2, seconds=60), *failing(22)[2:], *inputs(COUNT, seconds=60)[22:]]
    task = make(TABLE, given, **ledger)
    task.run_id = "night 2"
    assert str(task.attempt().error).startswith("Stopped: 20 jobs in a row failed")
    assert {job["status"] for job in task.jobs[:2]} <= {"QUEUED", "RUNNING"}
    assert not {job["status"] for job in task.jobs[2:]} & {"QUEUED", "RUNNING"}


@pytest.mark.contract
@pytest.mark.parametrize("status", [402, 409])
def test_jobs_that_cannot_be_canceled_are_named(make: Make, mode: bool, status: int) -> None:
    task = make(BARE, broken(), deferrable=mode)
    task.emulator.service.inject(Fault(on="cancel", status=status, times=None))
    error = str(task.attempt().error)
    left = task.ends["RUNNING"] + task.ends["QUEUED"]
    assert left > 0
    assert f"{left} jobs could not be canceled and may still run" in error


@pytest.mark.contract
def test_refusals_in_a_row_stop_it(make: Make, kind: str, mode: bool) -> None:
    given = [*inputs(2), *[{"prompt": "", "seed": n} for n in range(200)]]
    task = make(kind, given, deferrable=mode, max_in_flight=20)
    task.is_held = False  # the worker waits for what was accepted
    error = task.attempt().error
    told = stopped(task, error, 20)
    assert isinstance(error, AirflowFailException)
    assert re.match(r"Stopped: 1[0-3]\d inputs in a row were refused", told)
    assert task.ends == {"COMPLETED": 2}
    assert 102 <= task.emulator.service.count("run") < 140


@pytest.mark.contract
def test_refusals_are_counted_over_waves(make: Make) -> None:
    given = [{"prompt": "", "seed": n} for n in range(40)]
    task = make(BARE, given, max_in_flight=1)
    stopped(task, task.attempt().error)
    assert task.emulator.service.count("run") == 20


# --- kills ---


@pytest.mark.contract
@KILLED
def test_a_kill_leaves_no_job_at_the_service(make: Make, kind: str) -> None:
    """Whatever the number of inputs, a kill cancels all jobs in the time that it has."""
    task = make(kind, inputs(2000, seconds=60), max_in_flight=300)
    task.max_tries = 0
    task.scale(100)
    task.attempt_killed(lambda: task.created >= 300)
    assert task.ends == {"CANCELED": 300}


@pytest.mark.contract
@KILLED
def test_a_kill_in_a_later_wave_cancels_what_is_in_flight(make: Make, kind: str) -> None:
    task = make(kind, [*inputs(8, seconds=0.1), *inputs(40, seconds=60)[8:]])
    task.max_tries = 0
    task.attempt_killed(lambda: task.created >= 12)
    assert set(task.ends) == {"COMPLETED", "CANCELED"}


@pytest.mark.contract
@KILLED
def test_a_kill_while_unwanted_jobs_are_canceled_cancels_them(make: Make, kind: str) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.attempt_until_deferred()
    task.given, task.max_tries = [{"prompt": "another", "emulator": {"seconds": 60}}], 0
    task.emulator.service.inject(Fault(on="cancel", status=503, times=len(task.jobs)))
    task.attempt_killed(lambda: task.emulator.service.count("cancel") >= 2)
    assert set(task.ends) == {"CANCELED"}


@pytest.mark.contract
@pytest.mark.parametrize(("number", "has_store"), [(1, True), (2, True), (2, False)])
def test_an_attempt_killed_while_deferred_is_resumed(
    make: Make, kind: str, mode: bool, number: int, *, has_store: bool
) -> None:
    """Those that still run count: there are never more than allowed, and nothing is bought twice."""
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    task.store = FakeStore() if has_store else None
    trigger = task.attempt_until_deferred()
    if number == 2:
        task.complete_until_deferred(task.fire(trigger))
    outcome = task.attempt(deferrable=mode)
    assert outcome.error is None
    task.assert_each_is_bought_once()
    assert task.ti.xcoms["usage"]["jobs"] == COUNT, "those of all attempts"


@pytest.mark.contract
@pytest.mark.parametrize("echo", [b'"prompt": "?"', b'"prompt": null'], ids=["other", "left out"])
@pytest.mark.parametrize("is_changed", [False, True], ids=["same", "another order"])
def test_a_service_that_returns_other_inputs_is_no_reason_to_buy_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, echo: bytes, mode: bool, *, is_changed: bool
) -> None:
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    task.store = None
    task.attempt_until_deferred()
    if is_changed:
        task.given = inputs(seconds=0.4)[::-1]
    service, edits = task.emulator.service, []
    handle = service.handle

    def edit(*request: Any) -> Any:
        reply = handle(*request)
        body, count = re.subn(rb'"prompt": ?"picture [^"]*"', echo, reply.body)
        edits.append(count)
        return replace(reply, body=body)

    monkeypatch.setattr(service, "handle", edit)
    assert task.attempt(deferrable=mode).error is None
    assert sum(edits)
    assert set(task.bought.values()) == {1}
    assert task.ends == {"COMPLETED": COUNT}
    assert (task.ti.xcoms["usage"]["jobs"], task.ti.xcoms["usage"]["reused"]) == (COUNT, 0)


@pytest.mark.contract
def test_jobs_that_changed_inputs_do_not_want_are_canceled_and_billed(make: Make, kind: str) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.attempt_until_deferred()
    unwanted = len(task.jobs)
    task.given = [{"prompt": f"another {n}", "emulator": {"seconds": 0.1}} for n in range(3)]
    assert task.attempt(deferrable=False).error is None
    assert task.ends == {"CANCELED": unwanted, "COMPLETED": 3}
    usage = task.ti.xcoms["usage"]
    assert (usage["jobs"], usage["failed"], usage["completed"]) == (unwanted + 3, unwanted, 3)


@pytest.mark.contract
def test_jobs_that_ended_before_their_inputs_were_gone_are_billed_with_their_seconds(make: Make) -> None:
    task = make(BARE, inputs(seconds=0.4), deferrable=True)
    task.attempt_until_deferred()
    unwanted = len(task.jobs)
    task.scale(100)
    wait_until(lambda: task.ends == {"COMPLETED": unwanted})
    task.given = [{"prompt": "another", "emulator": {"seconds": 0.4}}]
    assert task.attempt(deferrable=False).error is None
    usage = task.ti.xcoms["usage"]
    assert (usage["jobs"], usage["failed"], usage["completed"]) == (unwanted + 1, 0, unwanted + 1)
    assert usage["execution_seconds"] == pytest.approx(0.4 * (unwanted + 1), rel=0.2)


@pytest.mark.contract
def test_a_retry_after_a_failure_that_airflow_did_not_learn_of_buys_nothing_again(
    make: Make, kind: str
) -> None:
    task = make(kind, inputs(4, seconds=0.1))
    task.emulator.service.inject(Fault(on="run", status=400, skip=2))
    assert task.attempt().error is not None
    assert task.created == 3
    assert task.attempt().error is None
    assert set(task.bought.values()) == {1}


@pytest.mark.contract
def test_the_last_attempt_cancels_what_two_plans_before_it_bought(make: Make) -> None:
    task = make(TABLE, inputs(3, seconds=60), deferrable=True)
    task.attempt_until_deferred()
    task.given = task.given[:2]
    task.attempt_until(JOB_LINK, deferrable=False)
    assert task.attempt(deferrable=False, table="/gone.csv").error is not None
    assert task.ends == {"CANCELED": 3}


@pytest.mark.contract
def test_jobs_that_nobody_waits_for_and_that_are_not_canceled_are_named(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(BARE, [*inputs(1), *inputs(3, seconds=60)[1:]], deferrable=True)
    task.options["cancel_on_kill"], task.max_tries = False, 1
    task.attempt_until_deferred()
    task.scale(4)
    while task.ends["COMPLETED"] < 1:
        time.sleep(0.01)
    open_ids = [job["id"] for job in task.jobs if job["status"] != "COMPLETED"]
    task.given = [{"prompt": "another"}]
    caplog.clear()
    task.attempt_until_deferred()
    line = next(each for each in caplog.messages if each.startswith("May still run"))
    assert all(job_id in line for job_id in open_ids)
    assert task.ends["CANCELED"] == 0


@pytest.mark.contract
def test_the_last_attempt_cancels_what_one_with_a_ledger_bought(make: Make, ledger: dict[str, Any]) -> None:
    task = make(TABLE, inputs(3, seconds=60), **ledger)
    task.attempt_until_deferred(deferrable=True)
    for _ in range(2):
        assert "without it its jobs cannot be resumed" in str(task.attempt(ledger=None).error)
    assert task.ends == {"CANCELED": 3}


@pytest.mark.contract
def test_a_submission_of_unknown_fate_counts_though_its_input_is_gone(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(BARE, inputs(4, seconds=0.1))
    task.emulator.service.inject(Fault(on="run", kind="reset_after"))
    assert task.attempt().error is not None
    created = len(task.jobs)
    task.given = [{"prompt": "another", "emulator": {"seconds": 0.1}}]
    assert task.attempt().error is None
    assert "Fate unknown: jobs may exist for 1 input that are gone" in caplog.text
    assert len(task.jobs) == created + 1


@pytest.mark.contract
def test_a_job_that_the_service_does_not_know_yet_is_resumed_though_inputs_were_added(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(retry, "GONE_GRACE", 30.0)
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    task.attempt_until_deferred()
    task.emulator.service.inject(Fault(on="get", status=404))
    task.given = [*inputs(seconds=0.4), {"prompt": "one more"}]
    assert task.attempt(deferrable=False).error is None
    assert set(task.bought.values()) == {1}
    assert task.ends == {"COMPLETED": COUNT + 1}


@pytest.mark.contract
@pytest.mark.parametrize("writes", [2, 4, 9, 17])
def test_an_attempt_that_died_at_any_write_is_resumed(
    make: Make, mode: bool, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, replace, left = make(BARE, inputs(), deferrable=mode), os.replace, [writes]

    def die_at_last(source: Any, target: Any, **options: Any) -> None:
        left[0] -= "/.rungen/" in str(target)
        if left[0] == 0:
            raise Died
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", die_at_last)
    with contextlib.suppress(Died):
        task.attempt()
    left[0] = -1
    assert task.attempt().error is None
    assert task.prompts() == [each["prompt"] for each in inputs()]
    # only those whose ids were not saved yet are bought again
    assert sum(count - 1 for count in task.bought.values()) <= LIMIT


@pytest.mark.contract
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_attempt_that_died_between_two_waves_is_resumed(make: Make, kind: str, nth: int) -> None:
    """It dies when it has submitted a wave, before the deferral that follows."""
    task = make(kind, inputs(), deferrable=True)
    pushes: list[str] = []

    def die(key: str, value: Any) -> None:
        pushes.append(key)
        if pushes.count("rungen_log") == nth:
            raise Died

    task.on_push = die
    with pytest.raises(Died):
        task.attempt()
    task.on_push = None
    outcome = task.attempt()
    assert outcome.error is None
    task.assert_each_is_bought_once()


@pytest.mark.contract
def test_a_mark_while_deferred_cancels_what_is_in_flight(make: Make) -> None:
    task = make(BARE, inputs(2000, seconds=60), deferrable=True, max_in_flight=500)
    trigger = task.attempt_until_deferred()
    trigger.task_instance = TrackedTaskInstance("failed")
    asyncio.run(trigger.on_kill())
    assert task.ends == {"CANCELED": 500}


@pytest.mark.contract
def test_a_deferral_that_airflow_ended_cancels_only_what_is_in_flight(make: Make) -> None:
    task = make(BARE, [*inputs(8), *inputs(COUNT, seconds=60)[8:]], deferrable=True)
    task.max_tries = 0
    task.complete_until_deferred(task.fire(task.attempt_until_deferred()))
    with pytest.raises(Exception, match="Airflow ended the wait"):
        task.op.resume_execution("__fail__", {"error": "lost"}, task.context)
    assert not task.ends.keys() & {"QUEUED", "RUNNING"}
    assert task.emulator.service.count("cancel") <= LIMIT


@pytest.mark.contract
@pytest.mark.parametrize("is_canceled", [True, False])
def test_jobs_that_run_on_hold_up_no_attempt_that_fails(make: Make, is_canceled: bool) -> None:
    given = [*inputs(2), *inputs(LIMIT, seconds=60)[2:]]
    task = make(TABLE, given, deferrable=True, cancel_on_kill=is_canceled)
    service, task.max_tries = task.emulator.service, 0
    service.inject(Fault(on="cancel", status=409, times=None))
    task.attempt_until_deferred()
    broken = task.jobs[-1]["id"]
    service.inject(Fault(on="get", status=500, times=None, job_id=broken))
    task.scale(LIMIT)
    while task.ends["COMPLETED"] < 2:
        time.sleep(0.01)
    before = len(service.records())
    with pytest.raises(Exception, match="Airflow ended the wait"):
        task.op.resume_execution("__fail__", {"error": "lost"}, task.context)
    assert task.pictures() == 2, "what completed unseen is paid for"
    asked = Counter(each.path for each in service.records()[before:] if each.operation == "get")
    del asked[f"/app/flux-schnell/job/{broken}"]
    # with a cancel, a few times why it is refused
    assert max(asked.values()) <= (7 if is_canceled else 2)


# --- a ledger ---


@pytest.mark.contract
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_model_that_is_changed_during_a_run_is_warned_of(
    make: Make, ledger: dict[str, Any], caplog: pytest.LogCaptureFixture, is_changed: bool
) -> None:
    task = make(TABLE, inputs(4), **ledger | {"deferrable": True})
    trigger = task.attempt_until_deferred()
    if is_changed:
        with RunGenHook() as hook:
            hook.update_app(app_id=APP, workflow={"model_url": "https://models.example/other.safetensors"})
    assert task.go_on(trigger).error is None
    warned = f"The model of app {APP} was changed during this run" in caplog.text
    assert warned is is_changed


@pytest.mark.contract
def test_with_a_ledger_a_wave_looks_nothing_up_twice(make: Make, ledger: dict[str, Any]) -> None:
    first = make(TABLE, inputs(10), **ledger)
    first.store = None
    assert first.attempt().error is None
    task = next_night(make(TABLE, [*inputs(), *inputs(4)], **ledger))
    outcome = task.attempt()
    assert outcome.error is None
    assert (outcome.value["reused"], outcome.value["completed"]) == (14, COUNT + 4)
    assert set(task.bought.values()) == {1}
    assert (task.ti.xcoms["usage"]["jobs"], task.ti.xcoms["usage"]["reused"]) == (COUNT - 10, 10)
    assert task.most_in_flight <= LIMIT


@pytest.mark.contract
def test_reused_rows_are_in_the_table_of_a_task_that_stops(make: Make, ledger: dict[str, Any]) -> None:
    assert make(TABLE, inputs(5), **ledger).attempt().error is None
    task = make(TABLE, [*inputs(5), *failing(40)[5:]], **ledger)
    task.run_id = "night 2"
    stopped(task, task.attempt().error)
    rows = Counter(row["status"] for row in task.results)
    assert rows["completed"] == 5
    assert rows["failed"] >= 20
    assert sum(rows.values()) == 40


# --- bad days of later waves ---


@pytest.mark.contract
@pytest.mark.parametrize("limit", [1, 4])
def test_an_outage_slows_small_waves_down_too(make: Make, limit: int) -> None:
    task = make(BARE, inputs(60), deferrable=False, max_in_flight=limit, timeout=5)
    task.emulator.service.inject(Fault(on="run", status=500, times=None))
    task.attempt()
    assert task.emulator.service.count("run") < 40


def test_what_completed_is_stored_when_the_rest_cannot_be_sent(
    make: Make, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 0.5)
    task = make(TABLE, inputs(), deferrable=mode)
    task.max_tries = 0
    task.emulator.service.inject(Fault(on="run", status=402, times=None, skip=18))
    assert task.attempt().error is not None
    assert task.pictures() >= 12


@pytest.mark.contract
@pytest.mark.parametrize("event", [True, False])
def test_no_job_is_left_when_the_log_is_gone_after_a_deferral(make: Make, kind: str, event: bool) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.store, task.max_tries = None, 0
    task.attempt_until_deferred()
    shutil.rmtree(task.folder / "out" / ".rungen")
    step = ("execute_complete", {"event": {"outcome": "go on"}}) if event else ("__fail__", {"error": "lost"})
    with pytest.raises(RunGenError, match=r"Could not read the (log|plan) of the task run: .* it is missing"):
        task.op.resume_execution(*step, task.context)
    assert task.ends == {"CANCELED": LIMIT}


def test_a_triggerer_whose_clock_is_ahead_ends_no_job(make: Make, kind: str) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.attempt_until_deferred()
    event = {"error": error_to_json(RunGenJobTimeoutError("over", app_id="flux-schnell"))}
    task.complete_until_deferred(event)
    assert "CANCELED" not in task.ends


@pytest.mark.contract
def test_a_retry_with_another_destination_buys_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    task = make(TABLE, failing(16), deferrable=False)
    assert task.attempt().error is not None
    made, elsewhere = len(task.jobs), (task.folder / "elsewhere").as_uri()
    outcome = task.attempt(destination=elsewhere)
    assert "The destination is another one than in an earlier attempt" in str(outcome.error)
    assert len(task.jobs) == made
    # after a clear, nobody needs the log
    task.max_tries = 9
    task.attempt(destination=elsewhere)
    assert "The destination is another one than before the clear" in caplog.text
    assert len(task.jobs) == made + 16
    # nor is the log of the first what the last attempt left
    outcome = task.attempt()
    assert "The destination is another one than in an earlier attempt" in str(outcome.error)
    assert len(task.jobs) == made + 16


@pytest.mark.contract
def test_a_ledger_does_not_stand_in_for_the_log_of_another_destination(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(TABLE, failing(16), deferrable=False)
    ledger, elsewhere = (task.folder / "ledger").as_uri(), (task.folder / "elsewhere").as_uri()
    assert task.attempt(ledger=ledger).error is not None
    made = len(task.jobs)
    for given in (ledger, Ledger(ledger, version="2")):
        outcome = task.attempt(destination=elsewhere, ledger=given)
        assert "The destination is another one than in an earlier attempt" in str(outcome.error)
    assert len(task.jobs) == made
    # the advice is true
    task.max_tries = 9
    task.attempt(destination=elsewhere, ledger=ledger)
    assert "The destination is another one than before the clear" in caplog.text
    assert len(task.jobs) == made + 16
    # before 3.3, nobody knows where the log was
    task.store = None
    task.attempt(destination=f"{elsewhere}/2", ledger=ledger)
    assert "Earlier attempts left no log in" in caplog.text


@pytest.mark.contract
def test_a_destination_may_come_and_go_with_each_clear(make: Make) -> None:
    task = make(BARE, inputs(), deferrable=False)
    for number, destination in enumerate([None, (task.folder / "out").as_uri()] * 2):
        task.max_tries = number * 2
        assert task.attempt(destination=destination).value["completed"] == COUNT
        assert len(task.jobs) == COUNT


@pytest.mark.contract
def test_an_answer_that_is_too_large_is_fetched_once_the_limit_is_raised(
    make: Make, kind: str, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "GONE_GRACE", 0.5)
    monkeypatch.setattr(poll_state, "RESULT_GRACE", 0.2)
    given = inputs(4)
    given[2]["emulator"] = {"seconds": 0.15, "result": {"text": "x" * 50_000}}
    task = make(kind, given, deferrable=mode)
    monkeypatch.setenv(CONNECTION, task.emulator.airflow_connection(max_response_bytes=90_000))
    outcome = task.attempt()
    assert "raise Largest answer" in str(outcome.error)
    assert task.ti.xcoms["usage"]["failed"] == 0
    monkeypatch.setenv(CONNECTION, task.emulator.airflow_connection())
    assert task.attempt().error is None
    assert task.ends == {"COMPLETED": 4}


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("the API server is down")


@pytest.mark.parametrize("is_short", [True, False])
def test_an_outage_of_the_destination_is_no_failure_of_the_inputs(
    make: Make, disk: Disk, is_short: bool
) -> None:
    task = make(TABLE, inputs(4), deferrable=True, max_failed="any")
    trigger = task.attempt_until_deferred()
    disk.files = "manifest"
    disk.faults.append(disk.fail_once if is_short else disk.fail)
    error = task.go_on(trigger).error
    assert (error is None) is is_short
    if is_short:
        assert task.pictures() == 4
    disk.faults.clear()
    assert task.attempt().error is None
    assert task.created == 4


@pytest.mark.parametrize("fails_all", [True, False])
@pytest.mark.parametrize("has_next", [True, False])
def test_an_outage_of_the_destination_is_no_failure_of_the_jobs_that_are_collected(
    make: Make, disk: Disk, tmp_path: Path, has_next: bool, fails_all: bool
) -> None:
    task, ti = make(BARE, inputs(2)), FakeTaskInstance()
    assert task.attempt().error is None
    first, second = (job["id"] for job in task.jobs)
    options = FAST | {"destination": (tmp_path / "out").as_uri(), "max_failed": "any"}
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=[first, second], **options)
    ti.max_tries, disk.files = int(has_next), "manifest" if fails_all else f"{first}.*manifest"
    disk.faults.append(disk.fail)
    is_allowed = not has_next and not fails_all
    assert (run_task(collect, {"ti": ti}).error is None) is is_allowed


@pytest.fixture
def collected(make: Make, tmp_path: Path) -> Callable[[], int]:
    """Collect two jobs after a deferral, and return how many have a result."""
    task = make(BARE, inputs(2))
    assert task.attempt().error is None
    (tmp_path / "out").mkdir(exist_ok=True)  # which the attempt that was deferred has made
    ids, places = [job["id"] for job in task.jobs], {"destination": "out", "results": "results.jsonl"}
    options = FAST | {name: (tmp_path / place).as_uri() for name, place in places.items()}
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=ids, **options)

    def go_on() -> int:
        context: Any = {"ti": FakeTaskInstance()}
        value = collect.execute_complete(context, {"outcome": "go on", "in_flight": 0})
        return cast("int", value["completed"])

    return go_on


@pytest.mark.contract
def test_a_write_of_a_table_that_fails_once_is_made_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ledger, a clear would buy all again."""
    task, replace, failed = make(TABLE, inputs(4)), os.replace, list[Any]()
    task.max_tries = 0

    def fail_once(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith("results.jsonl") and not failed:
            failed.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", fail_once)
    value = task.attempt().value
    assert (value["rows"], value["completed"], len(failed)) == (4, 4, 1)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("case", "is_allowed"),
    [
        *(((TABLE, 4, broken, 1), False) for broken in ("all", "one")),
        ((TABLE, 4, "all but a failed one", 1), False),
        *(((TABLE, 4, broken, 0), broken == "one") for broken in ("all", "one", "all but a failed one")),
        *(((TABLE, 40, "all", retries), False) for retries in (0, 1)),  # some are not even tried
        *(((TABLE, 40, "all, as it is refused", retries), True) for retries in (0, 1)),
    ],
    ids=str,
)
def test_an_outage_of_the_host_of_outputs_is_no_failure_of_the_inputs(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, int, str, int],
    is_allowed: bool,
) -> None:
    """But a host that refuses a file says something of it."""
    kind, count, broken, retries = case
    bad = failing(1) if "failed" in broken else []
    task = make(kind, [*inputs(count - len(bad)), *bad], deferrable=False, max_failed="any")
    task.max_tries, task.workers = retries, 100
    service, handle = task.emulator.service, task.emulator.service.handle
    status = 403 if broken == "all, as it is refused" else 503

    def break_first(method: str, path: str, *rest: Any) -> Any:
        first = task.jobs[0]["id"] if broken == "one" and "/outputs/" in path else ""
        is_broken = "/outputs/" in path and first in path
        return Reply(status) if is_broken else handle(method, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(service, "handle", break_first)
        error = task.attempt().error
    assert (error is None) is is_allowed
    assert ("as max_failed allows" in caplog.text) is is_allowed
    if not is_allowed and broken != "one":
        assert f"{count - len(bad)} jobs were not collected: " in str(error)
        assert f"answered {status}" in str(error)
    if not is_allowed and retries:
        runs = "what failed otherwise" if bad else "no job"
        assert str(error).endswith(f" A retry runs {runs} again, and downloads the outputs.")
        assert task.attempt().error is None
        assert (task.pictures(), task.created) == (count - len(bad), count + len(bad))


@pytest.mark.contract
def test_nothing_is_stored_once_the_results_say_that_it_is_not(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(TABLE, inputs(4), deferrable=False)
    task.max_tries, task.workers = 0, 100
    handle = task.emulator.service.handle

    def break_until_written(method: str, path: str, *rest: Any) -> Any:
        is_out = "/outputs/" in path and not (task.folder / "out" / "results.jsonl").exists()
        return Reply(503) if is_out else handle(method, path, *rest)

    monkeypatch.setattr(task.emulator.service, "handle", break_until_written)
    assert "4 of 4 rows failed" in str(task.attempt().error)
    assert [row["status"] for row in task.results] == ["failed"] * 4
    assert task.pictures() == 0


@pytest.mark.contract
def test_a_check_that_fails_in_a_retry_fails_it_whatever_may_fail(make: Make) -> None:
    calls = list[Any]()

    def check(result: Any, _: Any) -> None:
        calls.append(result)
        if len(calls) in (1, 3):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    task = make(TABLE, inputs(4), deferrable=False, check=check, max_failed="any")
    for _ in range(2):
        assert "check failed: OSError" in str(task.attempt().error)
    assert task.attempt().value["completed"] == 4
    assert task.created == 4


@pytest.mark.contract
@pytest.mark.parametrize(
    ("fault", "max_failed"),
    [
        *((Fault(on="get", status=status, times=None), "any") for status in (402, 429, 503)),
        (Fault(on="get", status=200, body="<html>", times=None), "any"),
        (Fault(on="get", kind="reset_before", times=None), 3),
    ],
    ids=str,
)
def test_an_outage_of_the_service_is_no_failure_of_the_jobs_that_are_collected(
    make: Make, rungen_emulator: Emulator, tmp_path: Path, fault: Fault, max_failed: Any
) -> None:
    task, ti = make(BARE, inputs(4)), FakeTaskInstance()
    assert task.attempt().error is None
    ids = [job["id"] for job in task.jobs]
    options = FAST | {"destination": (tmp_path / "out").as_uri(), "max_failed": max_failed}
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=ids, **options)
    (tmp_path / "out").mkdir(exist_ok=True)
    ti.max_tries = 1
    for each in ids[1:]:
        rungen_emulator.service.inject(replace(fault, job_id=each))
    context: Any = {"ti": ti}
    with pytest.raises(RunGenError):
        collect.execute_complete(context, {"outcome": "go on", "in_flight": 0})
    rungen_emulator.service.clear_faults()
    assert len(collect.execute_complete(context, {"outcome": "go on", "in_flight": 0})) == 4


@pytest.mark.contract
@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_that_was_stopped_fails_if_an_outage_took_what_had_completed(make: Make, retries: int) -> None:
    given = [*inputs(4, seconds=0), *failing(140, seconds=0.05)[4:]]
    task = make(TABLE, given, deferrable=False, max_failed="any", max_in_flight=4)
    task.max_tries, task.workers = retries, 100
    task.emulator.service.inject(Fault(on="output", status=503, times=None))
    error = task.attempt().error
    assert (error is not None) is bool(retries)
    if retries:
        assert re.search(r"Stopped: \d+ jobs in a row failed", str(error))
        task.emulator.service.clear_faults()
        assert task.attempt().value["completed"] == 4


@pytest.mark.contract
@pytest.mark.parametrize(("status", "count", "retries"), [(403, 20, 1), (503, 20, 0), (503, 50, 0)])
def test_files_that_cannot_be_fetched_keep_no_other_from_being_stored(
    make: Make, monkeypatch: pytest.MonkeyPatch, *, status: int, count: int, retries: int
) -> None:
    """Though many come first, and in a row."""
    task = make(TABLE, inputs(60, seconds=0), deferrable=False, max_failed="any")
    task.max_tries, task.workers = retries, 100
    service, handle = task.emulator.service, task.emulator.service.handle
    tried = list[str]()

    def break_first(method: str, path: str, *rest: Any) -> Any:
        if "/outputs/" in path:
            job_id = path.split("/")[2]
            if job_id not in tried:
                tried.append(job_id)
            if job_id in tried[:count]:
                return Reply(status)
        return handle(method, path, *rest)

    monkeypatch.setattr(service, "handle", break_first)
    assert task.attempt().error is None
    assert task.pictures() == 60 - count
    assert task.created == 60


@pytest.mark.contract
@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EFBIG, errno.EIO, errno.EINVAL])
def test_a_file_that_can_never_be_stored_makes_no_retry_buy_what_may_fail(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    replace, refused = os.replace, set[str]()

    def refuse_one(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith(".png"):
            refused.add(min(refused, default=str(target)))
        if str(target) in refused:
            raise OSError(number, os.strerror(number))
        replace(source, target, **options)

    task = make(TABLE, [*inputs(2), *failing(1)], deferrable=False, max_failed="any")
    monkeypatch.setattr(os, "replace", refuse_one)
    assert (task.attempt().error is None) is (number in (errno.ENAMETOOLONG, errno.EFBIG))
    assert refused
    assert task.created == 3


@pytest.mark.contract
@pytest.mark.parametrize("key", ["rungen_log", "results"])
def test_an_xcom_that_fails_once_is_pushed_again(make: Make, key: str) -> None:
    task, failed = make(TABLE, inputs(4), deferrable=True), list[str]()
    task.max_tries = 0

    def fail_once(pushed: str, _: Any) -> None:
        if pushed == key and not failed:
            failed.append(key)
            _fail()

    task.on_push = fail_once
    assert task.attempt().error is None
    assert failed == [key]
    assert task.ends == {"COMPLETED": 4}


def taking(seconds: float) -> Callable[..., None]:
    """Return a check that takes so long for each row, and rejects none."""
    return lambda *_: time.sleep(seconds)


@pytest.mark.contract
def test_an_attempt_whose_time_is_up_while_no_job_runs_fails(make: Make) -> None:
    """However many may fail: a task that is green has no retry."""
    task = make(TABLE, inputs(20, seconds=0), max_in_flight=5, max_failed="any", timeout=1, check=taking(0.3))
    error = task.attempt().error
    assert isinstance(error, RunGenJobTimeoutError)
    assert "15 of 20 inputs were not submitted" in str(error)
    assert "Raise timeout (now 1 s)" in str(error)
    assert task.ends == {"COMPLETED": 5}


@pytest.mark.contract
def test_an_attempt_whose_time_is_up_while_the_service_takes_no_job_fails(make: Make) -> None:
    task = make(TABLE, inputs(20, seconds=0), max_in_flight=5, max_failed="any", timeout=2)
    task.emulator.service.inject(Fault(on="run", status=429, times=None, skip=5))
    error = task.attempt().error
    assert isinstance(error, RunGenJobTimeoutError)
    assert "15 of 20 inputs were not submitted: " in str(error)
    assert "(429)" in str(error)
    assert task.ends == {"COMPLETED": 5}


class Disk:
    """Reads of some files, which fail while there are faults."""

    files: str  #: A pattern of their paths.

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[Callable[[], object]] = []
        monkeypatch.setattr(os, "open", partial(self._open, os.open))

    def _open(self, original: Callable[..., Any], path: Any, *args: Any, **options: Any) -> Any:
        if self.faults and isinstance(path, str) and re.search(self.files, path):
            self.faults[0]()
        return original(path, *args, **options)

    def fail(self) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fail_once(self) -> None:
        self.faults.clear()
        self.fail()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 1.0)
    return Disk(monkeypatch)


@pytest.mark.contract
@KILLED
def test_a_kill_while_airflow_does_not_answer_reads_nothing_more(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(BARE, inputs(4, seconds=60), deferrable=True)
    task.max_tries = 0
    task.attempt_until_deferred()
    asked: list[str] = []

    def ask(*_: Any, **__: Any) -> None:
        asked.append("")
        linger()

    monkeypatch.setattr(task.ti, "xcom_pull", ask)
    task.store.get = ask
    with (
        signal_when(signal.SIGTERM, lambda: bool(asked), task.op.on_kill) as sent,
        pytest.raises(AirflowException, match=r"was killed\. Jobs submitted before may still run"),
    ):
        task.complete({"outcome": "go on"})
    assert time.monotonic() - sent[0] < SOON
    assert len(asked) == 1


@pytest.mark.contract
@KILLED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
@pytest.mark.parametrize("key", [JOB_LINK, "rungen_log"])
def test_neither_a_kill_nor_a_time_limit_waits_for_an_xcom(make: Make, key: str, number: Any) -> None:
    task = make(BARE, inputs(4, seconds=60), deferrable=key != JOB_LINK)
    task.max_tries, task.state = 0, "failed"
    met, over = threading.Event(), threading.Event()

    def push(pushed: str, _: Any) -> None:
        if pushed == key:
            met.set()
            over.wait(60)

    task.on_push = push
    op = task.begin()
    with stopped_when(op, number, met.is_set):
        run_task(op, task.context)
    assert task.ends == {"CANCELED": 4}
    over.set()


@pytest.mark.contract
def test_a_kill_in_the_middle_of_an_import_says_what_may_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(TABLE, inputs(LIMIT, seconds=60), deferrable=True)
    task.attempt_until_deferred()  # its worker is lost
    task.max_tries, task.state = 1, "failed"
    op = task.begin()

    class Killer(MetaPathFinder):
        def find_spec(self, name: str, *_: Any) -> None:
            if name == SINKS[-1]:
                op.on_kill()

    for name in SINKS:
        monkeypatch.setattr(name, import_module(name))  # so that the package has them again afterwards
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Killer(), *sys.meta_path])
    with pytest.raises(AirflowException, match=r"was killed\. Jobs submitted before may still run"):
        op.execute(task.context)


@KILLED
@pytest.mark.parametrize("user", ["check", "output_type", "output_type of files", "sensor"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
def test_a_signal_ends_a_function_of_the_user_that_hangs(make: Make, user: str, number: Any) -> None:
    met = threading.Event()

    def check(*_: Any) -> None:
        met.set()
        linger()

    class Picture(pydantic.BaseModel):
        text: str

        @pydantic.field_validator("text")
        @classmethod
        def look(cls, text: str) -> str:
            check()
            return text

    over, count = 2, COUNTER_THRESHOLD + 2
    result = {"text": "a fox"}
    given = [*inputs(over, result=result), *inputs(count, seconds=60)[over:]]
    options = {"check": check} if user == "check" else {"output_type": Picture}
    task = make(TABLE if "files" in user else BARE, given, deferrable=False, **options)
    task.max_tries, task.state = 0, "failed"
    task.scale(100)
    op = task.begin()
    if user == "sensor":
        ids = submitted(*given)
        op = RunGenJobSensor(
            task_id="task", job_id=ids, output_type=Picture, poke_interval=0.1, cancel_on_kill=True
        )
    with stopped_when(op, number, met.is_set):
        run_task(op, task.context)
    assert task.ends == {"COMPLETED": over, "CANCELED": count - over}


@pytest.mark.contract
@pytest.mark.parametrize("forgets", [False, True])
def test_a_refused_key_says_that_a_clear_resumes_what_runs(
    make: Make, *, forgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_airflow, "CLEAR_DISCARDS_STATE", forgets)
    task = make(TABLE, inputs(4, seconds=1), deferrable=False, max_in_flight=None)
    task.max_tries = 0
    task.emulator.service.inject(Fault(on="run", status=403, skip=2, times=None))
    error = task.attempt().error
    assert "Canceled nothing: 2 jobs" in str(error)
    assert "clear the task to resume" in str(error)
    task.emulator.service.clear_faults()
    task.clear()
    if forgets:
        task.store = FakeStore()
    assert task.attempt().error is None
    assert task.created == 4


@pytest.mark.contract
@pytest.mark.parametrize("has_ledger", [False, True], ids=["added", "removed"])
def test_a_ledger_that_comes_or_goes_between_attempts_buys_nothing(
    make: Make, has_ledger: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given = [*inputs(4), *failing(6)[4:]]
    task = make(TABLE, given, deferrable=False)
    ledger = (task.folder / "ledger").as_uri()
    options = {True: {"ledger": ledger}, False: {}}
    assert task.attempt(**options[has_ledger]).error is not None
    made, failed = len(given), 2
    outcome = task.attempt(**options[not has_ledger])
    if has_ledger:
        assert "An earlier attempt had a ledger" in str(outcome.error)
        assert (len(task.jobs), task.ti.xcoms["usage"]["jobs"]) == (made, made)
        task.attempt(ledger=ledger)
    assert len(task.jobs) == made + failed
    assert "Inputs changed" not in caplog.text


@pytest.mark.contract
def test_a_ledger_that_comes_with_a_clear_learns_what_was_bought(make: Make) -> None:
    task = make(TABLE, inputs(), deferrable=False)
    options = {"ledger": (task.folder / "ledger").as_uri()}
    assert task.attempt().error is None
    task.max_tries = 9
    assert task.attempt(**options).error is None
    task.next_run("night 2")
    assert task.attempt(**options, destination=(task.folder / "elsewhere").as_uri()).error is None
    assert len(task.jobs) == COUNT


@pytest.mark.contract
def test_a_ledger_that_comes_while_a_task_is_deferred_is_for_the_next_attempt(make: Make) -> None:
    task = make(TABLE, inputs(), deferrable=True)
    trigger = task.attempt_until_deferred()
    ledger = task.folder / "ledger"
    task.op.ledger = Ledger(ledger.as_uri())
    outcome = task.go_on(trigger)
    assert outcome.error is None
    task.assert_each_is_bought_once()
    assert not ledger.exists()


@pytest.mark.contract
@pytest.mark.parametrize("part", ["runs", "runs/*/attempts", "runs/*/jobs"])
@pytest.mark.parametrize("more", [0, 1], ids=["the same inputs", "one more"])
def test_a_log_that_airflow_knows_of_and_that_is_gone_buys_nothing(
    make: Make, kind: str, part: str, more: int
) -> None:
    task = make(kind, failing(16), deferrable=False)
    assert task.attempt().error is not None
    made = len(task.jobs)
    [log] = (task.folder / "out" / ".rungen").glob(part)
    log.rename(task.folder / "elsewhere")
    task.given = [*failing(16), *inputs(more)]
    outcome = task.attempt()
    assert re.search("The log of the task run is missing|files of attempt .* are missing", str(outcome.error))
    assert len(task.jobs) == made
    if part != "runs/*/jobs":
        # after a clear, nobody needs it
        task.max_tries = 9
        task.attempt()
        assert len(task.jobs) == made + 16 + more


@pytest.mark.contract
@pytest.mark.parametrize("max_tries", [2, 0], ids=["retry", "clear"])
def test_an_attempt_that_was_cut_off_leaves_all_to_its_successor(
    make: Make, kind: str, max_tries: int
) -> None:
    """With Airflow's task state store alone, Airflow sees to that; see `test_places`."""
    task = make(kind, inputs(), deferrable=True)
    task.max_tries = max_tries
    event = task.fire(task.attempt_until_deferred())
    first, context = task.op, task.context
    task.max_tries = 2
    trigger = task.attempt_until_deferred()  # the successor
    made = len(task.jobs)
    with pytest.raises(Exception, match="is cut off"):
        first.execute_complete(context, event)
    assert len(task.jobs) == made
    assert not (task.folder / "out" / "results.jsonl").exists()
    assert task.go_on(trigger).error is None
    assert task.ends == {"COMPLETED": COUNT}
    assert set(task.bought.values()) == {1}


class FailsOnce(Service):
    """A service whose first job fails at its end."""

    has_failed = False

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        if method == "POST" and not self.has_failed:
            self.has_failed = True
            body = body.replace(b'"seconds"', b'"fail": "no luck", "seconds"')
        return super().handle(method, path, headers, body)


@pytest.mark.contract
def test_a_job_that_is_bought_again_has_the_whole_time(
    make: Make, mode: bool, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    task = make(kind, inputs(2, seconds=2), timeout=3.5)
    task.emulator.service = FailsOnce(workers=10)
    task.is_held = False
    task.attempt_until_deferred(deferrable=True)
    caplog.clear()
    assert task.attempt(deferrable=mode).error is None
    assert task.ends == {"FAILED": 1, "COMPLETED": 2}
    assert "Submitted 1 of 2 inputs to app flux-schnell; 1 have a job of an earlier attempt" in caplog.text


@pytest.mark.contract
def test_a_wave_that_begins_again_after_its_worker_was_lost_buys_nothing_twice(make: Make, kind: str) -> None:
    task = make(kind, inputs(), deferrable=True)
    event = task.fire(task.attempt_until_deferred())
    pushed = list(task.ti.pushed)
    task.complete_until_deferred(event)  # it has submitted more
    task.ti.pushed = pushed
    with pytest.raises(RunGenError, match="changed since the deferral"):
        task.kind(task_id="task", **task.options).execute_complete(task.context, event)
    outcome = task.attempt()
    assert outcome.error is None
    task.assert_each_is_bought_once()


@pytest.mark.contract
def test_lost_repeated_and_spurious_events_change_nothing(make: Make, kind: str) -> None:
    task = make(kind, inputs(), deferrable=True)
    event = task.fire(task.attempt_until_deferred())
    trigger = task.complete_until_deferred(event)
    task.scale(0)
    # nothing is new whatever they say
    for spurious in ({}, {"ended": "0-999", "in_flight": 0}, {"ended": "0"}, event):
        trigger = task.complete_until_deferred({"outcome": "go on", "app_id": "flux-schnell"} | spurious)
    outcome = task.go_on(trigger)
    assert outcome.error is None
    task.assert_each_is_bought_once()
    assert task.ends == {"COMPLETED": COUNT}


@pytest.mark.contract
def test_what_the_log_counts_as_submitted_rises_from_wave_to_wave(
    make: Make, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make(TABLE, inputs(), deferrable=mode).attempt()
    assert (
        f"Submitted {LIMIT} of {COUNT} inputs to app flux-schnell; 20 wait for others to end" in caplog.text
    )
    counts = [int(found) for found in re.findall(rf"Submitted (\d+) of {COUNT} inputs", caplog.text)]
    assert len(counts) > 2
    assert counts == sorted(set(counts))
    assert counts[-1] == COUNT
