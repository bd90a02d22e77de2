"""Many inputs, few in flight: what the server saw of batches and tables that submit in waves, or stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskDeferred
from bad_answers import Fault
from conftest import FakeStore, Outcome, TrackedTaskInstance, signal_when

from airflow_provider_rungen.client import poll_state, progress
from airflow_provider_rungen.decorators.rungen import RunGenDecoratedOperator
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.jobs import submitting
from airflow_provider_rungen.execution.task.outcomes import error_to_json
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import Ledger, RunGenRunBatchOperator, RunGenRunTableOperator
from airflow_provider_rungen.runs.part_files import PART_ROWS

BATCH, STORED, TABLE, FUNCTION = "batch", "stored batch", "table", "function"
KINDS = (BATCH, STORED, TABLE, FUNCTION)
MODES = {"blocking": False, "deferred": True}
COUNT = 26
#: What an entry of the ledger has only if there is a stored job.
JOB_FIELDS = {"manifest", "execution_seconds"}
LIMIT = 6


def inputs(count: int = COUNT, **emulator: Any) -> list[dict[str, Any]]:
    options = {"seconds": 0.15} | emulator
    return [{"prompt": f"picture {n}", "emulator": options} for n in range(count)]


def failing(count: int = COUNT, **emulator: Any) -> list[dict[str, Any]]:
    return inputs(count, fail="out of memory", **emulator)


def saved_inputs(folder: Path) -> list[Path]:
    """Return the files of the plan that have inputs."""
    return [path for path in folder.rglob("plans/*") if "picture" in path.read_text()]


class Died(BaseException):
    """Ends an attempt as abruptly as a test can."""


class Task:
    """
    A task that runs many inputs, attempted again and again, in a folder of its own.

    Jobs of a deferrable task run while it is deferred only, so that it defers however slow the machine is.
    """

    def __init__(self, emulator: Emulator, folder: Path, kind: str, given: Any, **options: Any) -> None:
        self.emulator, self.folder, self.kind, self.given = emulator, folder, kind, given
        self.options: dict[str, Any] = {
            "poll_interval": 0.02,
            "defer_after": 0,
            "max_in_flight": LIMIT,
            "stop_after": None,
        } | options
        self.store: Any = FakeStore()
        self.max_tries, self.tries = 2, 0
        self.state: str | None = "running"
        self.calls = 0
        #: The workers of the app while a trigger runs.
        self.workers = 3
        #: Whether no job runs while the task is on a worker that may defer.
        self.is_held = True
        self.on_push: Callable[[str, Any], None] | None = None
        self.run_id = "night 1"

    def operator(self, **changes: Any) -> Any:
        options = self.options | changes
        destination = (self.folder / "out").as_uri()
        if self.kind == BATCH:
            return RunGenRunBatchOperator(task_id="task", inputs=self.given, **options)
        if self.kind == STORED:
            return RunGenRunBatchOperator(
                task_id="task", inputs=self.given, destination=destination, **options
            )
        if self.kind == TABLE:
            rows = [{"n": n, "input": json.dumps(each)} for n, each in enumerate(self.given)]
            return RunGenRunTableOperator(
                task_id="task",
                table=rows,
                key="n",
                to_input=lambda row: json.loads(row["input"]),
                **{"destination": destination} | options,
            )

        def function() -> Any:
            self.calls += 1
            return self.given

        return RunGenDecoratedOperator(
            task_id="task", python_callable=function, op_args=[], op_kwargs={}, **options
        )

    def begin(self, **changes: Any) -> tuple[Any, Any]:
        """Return the operator and context of the next attempt."""
        self.tries += 1
        self.ti = TrackedTaskInstance(self.state)
        self.ti.try_number, self.ti.max_tries = self.tries, self.max_tries
        self.ti.run_id = self.run_id
        self.ti.on_push = self.on_push
        self.op = self.operator(**changes)
        return self.op, {"ti": self.ti, "task_state_store": self.store, "outlet_events": {}}

    def scale(self, workers: int) -> None:
        self.emulator.service.scale("flux-schnell", workers)

    def attempt(self, **changes: Any) -> Outcome:
        """Run the next attempt to its end."""
        op, context = self.begin(**changes)
        return self.lead(partial(op.execute, context))

    def go_on(self, trigger: Any) -> Outcome:
        """Run an attempt that was deferred to its end."""
        context: Any = {"ti": self.ti, "task_state_store": self.store, "outlet_events": {}}
        return self.lead(partial(self.op.execute_complete, context, self.fire(trigger).payload))

    def lead(self, step: Callable[[], Any]) -> Outcome:
        """Run an attempt to its end, deferrals included."""
        op, outcome = self.op, Outcome()
        is_waiting = self.kind == FUNCTION and op.destination is None
        stays = not op.deferrable or is_waiting or not self.is_held
        while True:
            self.scale(100 if stays else 0)
            try:
                outcome.value = step()
            except TaskDeferred as deferral:
                event = self.fire(deferral.trigger).payload
                outcome.events.append(event)
                context: Any = {"ti": self.ti, "task_state_store": self.store, "outlet_events": {}}
                step = partial(op.execute_complete, context, event)
                continue
            except Exception as error:
                outcome.error = error
            return outcome

    def fire(self, trigger: Any) -> Any:
        """Run a trigger, and return its event."""

        async def first_event() -> Any:
            stream = type(trigger)(**trigger.serialize()[1]).run()
            try:
                return await anext(stream)
            finally:
                await stream.aclose()

        self.scale(self.workers)
        event = asyncio.run(first_event())
        self.scale(0)
        return event

    def attempt_until_deferred(self, **changes: Any) -> Any:
        """Run the next attempt until it defers, and return its trigger."""
        op, context = self.begin(**changes)
        self.scale(100 if self.kind == FUNCTION else 0)
        with pytest.raises(TaskDeferred) as deferral:
            op.execute(context)
        return deferral.value.trigger

    def complete_until_deferred(self, event: Any) -> Any:
        """Go on after a deferral until the next one, and return its trigger."""
        context: Any = {"ti": self.ti, "task_state_store": self.store}
        with pytest.raises(TaskDeferred) as deferral:
            self.op.execute_complete(context, event.payload)
        return deferral.value.trigger

    def kill(self) -> None:
        self.op.on_kill()

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return self.emulator.service.jobs()

    @property
    def bought(self) -> Counter[str]:
        """How many jobs each prompt has."""
        return Counter(job["input"]["prompt"] for job in self.jobs)

    @property
    def statuses(self) -> Counter[str]:
        return Counter(job["status"] for job in self.jobs)

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
        text = (self.folder / "out" / "results.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def prompts_of(self, value: Any) -> list[str]:
        """Return the prompts that the return value is about, in its order."""
        by_id = {job["id"]: job["input"]["prompt"] for job in self.jobs}
        if self.kind == TABLE:
            return [by_id[row["job_id"]] for row in self.results]
        if self.kind == STORED:
            return [by_id[each["job_id"]] for each in value]
        if self.kind == FUNCTION:
            assert len(value) == len(by_id)
            return [by_id[job_id] for job_id in self.ti.xcoms["job_ids"]]
        return [by_id[job_id] for job_id in value]


@pytest.fixture(autouse=True)
def _short_waves(unsettled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a trigger fire for a part of its jobs at once, instead of once a minute."""
    monkeypatch.setattr("airflow_provider_rungen.triggers.job.MIN_WAVE", 0.0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> bool:
    return MODES[request.param]


@pytest.fixture
def make(rungen_emulator: Emulator, tmp_path: Path) -> Callable[..., Task]:
    return lambda kind, given, **options: Task(rungen_emulator, tmp_path, kind, given, **options)


# --- max_in_flight ---


@pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
def test_no_more_are_in_flight_than_allowed(
    make: Callable[..., Task], kind: str, mode: bool, has_store: bool
) -> None:
    task = make(kind, inputs(), deferrable=mode)
    if not has_store:
        task.store = None
    outcome = task.attempt()
    assert outcome.error is None
    assert task.prompts_of(outcome.value) == [each["prompt"] for each in inputs()]
    assert task.most_in_flight <= LIMIT
    assert set(task.bought.values()) == {1}
    assert task.statuses == {"COMPLETED": COUNT}
    usage = task.ti.xcoms["usage"]
    assert (usage["jobs"], usage["completed"], usage["failed"], usage["reused"]) == (COUNT, COUNT, 0, 0)
    assert usage["execution_seconds"] == pytest.approx(0.15 * COUNT, abs=0.1)
    # a function without a destination stays on the worker until all is sent
    assert (len(outcome.events) > 2) is (mode and kind != FUNCTION)
    if mode and kind != FUNCTION:
        assert task.most_in_flight == LIMIT
    assert task.calls == (kind == FUNCTION)


@pytest.mark.parametrize("limit", [1, 2, 7, 8, None])
def test_every_bound_works(make: Callable[..., Task], mode: bool, limit: int | None) -> None:
    task = make(BATCH, inputs(8), deferrable=mode, max_in_flight=limit)
    assert len(set(task.attempt().value)) == 8
    assert task.most_in_flight <= (limit or 8)


def test_without_a_wait_there_is_no_bound(make: Callable[..., Task]) -> None:
    task = make(BATCH, inputs(seconds=60), wait_for_completion=False, deferrable=False)
    assert len(set(task.attempt().value)) == COUNT
    assert task.statuses == {"RUNNING": COUNT}


@pytest.mark.parametrize("name", ["max_in_flight", "stop_after"])
@pytest.mark.parametrize("value", [0, True, "1"])
def test_a_limit_that_is_none_is_refused_when_the_dag_is_parsed(
    make: Callable[..., Task], kind: str, name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=name):
        make(kind, inputs(), **{name: value}).operator()


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
def test_a_job_that_is_over_is_not_polled_again_in_each_wave(make: Callable[..., Task], kind: str) -> None:
    task = make(kind, inputs(40), deferrable=True, max_in_flight=10)
    task.workers = 5
    outcome = task.attempt()
    assert len(outcome.events) > 3
    collected = 0 if kind == BATCH else 40
    # small waits poll each of their jobs, without the app's counters; jobs that run are polled, too
    by_job = Counter(record.path for record in task.emulator.service.records() if record.operation == "get")
    ended = {job["id"]: job["finished"] for job in task.jobs}
    late = Counter(
        record.path
        for record in task.emulator.service.records()
        if record.operation == "get" and record.time >= ended[record.path.rpartition("/")[2]]
    )
    assert len(by_job) == 40
    # once by the worker before a deferral, perhaps, once by the trigger, once for the outputs
    assert sum(late.values()) <= 40 * 2 + collected


@pytest.mark.parametrize("kind", [BATCH, STORED])
def test_a_wave_is_small_in_the_database(make: Callable[..., Task], kind: str) -> None:
    task = make(kind, inputs(180), deferrable=True, max_in_flight=120)
    task.workers = 60
    outcome = task.attempt()
    assert outcome.error is None
    assert len(json.dumps(outcome.events[0])) < 2000
    assert len(json.dumps(task.ti.xcoms["rungen_log"])) < 2000


def test_a_wave_writes_its_own_part_of_the_log(make: Callable[..., Task]) -> None:
    task = make(TABLE, inputs(6 * PART_ROWS, seconds=0.02), deferrable=True, max_in_flight=PART_ROWS)
    task.workers = 100
    seen: dict[str, int] = {}
    waves: list[list[int]] = []
    sizes: list[int] = []

    def look(key: str, value: Any) -> None:
        if key == "rungen_log":
            files = {path.name: path.stat().st_mtime_ns for path in task.folder.rglob("jobs/*/*.jsonl")}
            waves.append([int(name[:6]) for name, time in files.items() if seen.get(name) != time])
            seen.update(files)
            sizes.append(len(json.dumps(value)))

    task.on_push = look
    assert task.attempt().error is None
    assert len(waves) >= 6
    assert all(max(parts) - min(parts) <= 2 for parts in waves if parts), "the parts that are over stay"
    assert max(sizes) < 2000


def test_inputs_of_a_file_are_read_again(make: Callable[..., Task], mode: bool, tmp_path: Path) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in inputs()))
    task = make(BATCH, str(path), deferrable=mode)
    assert task.prompts_of(task.attempt().value) == [each["prompt"] for each in inputs()]


def test_inputs_that_change_while_deferred_are_not_submitted(
    make: Callable[..., Task], tmp_path: Path
) -> None:
    """What was bought stays known: the task ends when it is over, and names it."""
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in inputs()))
    task = make(BATCH, str(path), deferrable=True)

    def change(key: str, _: Any) -> None:
        if key == "rungen_log":
            path.write_text('{"prompt": "another"}\n')

    task.on_push = change
    error = task.attempt().error
    assert "the inputs changed while the task was deferred" in str(error)
    assert task.statuses == {"COMPLETED": len(task.jobs)}
    assert len(task.jobs) < COUNT
    assert [each for each in task.ti.xcoms["job_ids"] if each] == [job["id"] for job in task.jobs]
    assert [each["index"] for each in task.ti.xcoms["failed"]] == list(range(len(task.jobs), COUNT))


@pytest.mark.parametrize("kind", [STORED, TABLE])
def test_saved_inputs_are_not_read_again(make: Callable[..., Task], kind: str, tmp_path: Path) -> None:
    task = make(kind, inputs(), deferrable=True)
    begun = task.begin

    def begin(**changes: Any) -> Any:
        op, context = begun(**changes)
        task.on_push = task.ti.on_push = lambda key, _: (
            setattr(op, "inputs" if kind == STORED else "table", "/gone.csv") if key == "rungen_log" else None
        )
        return op, context

    task.begin = begin  # type: ignore[method-assign]
    outcome = task.attempt()
    assert outcome.error is None
    assert set(task.bought.values()) == {1}
    assert len(task.bought) == COUNT
    assert not saved_inputs(tmp_path), "they may be secret"


def test_a_table_of_results_alone_has_those_of_all_waves(make: Callable[..., Task], mode: bool) -> None:
    task = make(TABLE, inputs(), deferrable=mode)
    options = {"destination": None, "results": (task.folder / "out" / "results.jsonl").as_uri()}
    task.options |= options
    outcome = task.attempt()
    assert outcome.error is None
    assert [row["status"] for row in task.results] == ["completed"] * COUNT
    assert all("images" in row["result"] for row in task.results)
    assert task.most_in_flight <= LIMIT


def test_a_function_with_a_destination_is_called_once(make: Callable[..., Task], tmp_path: Path) -> None:
    task = make(FUNCTION, inputs(), deferrable=True, destination=(tmp_path / "out").as_uri())
    outcome = task.attempt()
    assert len(outcome.events) > 1
    assert [each["job_id"] for each in outcome.value] == [job["id"] for job in task.jobs]
    assert task.calls == 1
    assert task.most_in_flight == LIMIT


def test_refused_inputs_are_not_sent_again_by_the_next_wave(
    make: Callable[..., Task], kind: str, mode: bool
) -> None:
    given = inputs()
    for n in (0, 3, 4, 11, 25):
        given[n] = {"prompt": ""}
    task = make(kind, given, deferrable=mode, max_failed=5)
    outcome = task.attempt()
    assert outcome.error is None
    assert task.emulator.service.count("run") == COUNT
    assert task.most_in_flight <= LIMIT
    if kind == TABLE:
        assert [row["index"] for row in task.results if row["status"] == "refused"] == [0, 3, 4, 11, 25]
    else:
        assert [each["index"] for each in task.ti.xcoms["failed"]] == [0, 3, 4, 11, 25]


def test_failures_of_all_waves_are_reported(make: Callable[..., Task], kind: str, mode: bool) -> None:
    given = inputs()
    failed = [1, 2, 9, 10, 20]
    for n in failed:
        given[n] = failing(n + 1)[n]
    task = make(kind, given, deferrable=mode)
    error = str(task.attempt().error)
    assert "5 of 26" in error
    assert error.count("out of memory") == 5
    assert "A retry runs only these again" in error
    if kind == TABLE:
        assert [row["index"] for row in task.results if row["status"] == "failed"] == failed
    else:
        assert [each["index"] for each in task.ti.xcoms["failed"]] == failed
    assert (task.ti.xcoms["usage"]["completed"], task.ti.xcoms["usage"]["failed"]) == (21, 5)
    task.attempt()
    assert {prompt for prompt, count in task.bought.items() if count == 2} == {f"picture {n}" for n in failed}


def test_more_failures_than_an_event_names_are_all_reported(make: Callable[..., Task], mode: bool) -> None:
    given = [*failing(250, seconds=0.3), *inputs(50, seconds=0.3)]
    task = make(BATCH, given, deferrable=mode, max_in_flight=240)
    task.workers = 100
    error = str(task.attempt().error)
    assert "250 of 300 inputs failed" in error
    assert error.count("out of memory") == 10
    assert [each["index"] for each in task.ti.xcoms["failed"]] == list(range(250))
    assert task.ti.xcoms["usage"]["failed"] == 250


def test_an_unknown_fate_is_not_sent_again_by_the_next_wave(make: Callable[..., Task], mode: bool) -> None:
    task = make(BATCH, inputs(), deferrable=mode, max_concurrency=1)
    task.emulator.service.inject(Fault(on="run", kind="reset_after", skip=2))
    assert "1 of 26 inputs failed" in str(task.attempt().error)
    assert [each["index"] for each in task.ti.xcoms["failed"]] == [2]
    assert set(task.bought.values()) == {1}
    outcome = task.attempt(on_unknown_submission="fail")
    assert "up to 1 inputs (the first is inputs[2])" in str(outcome.error)


def test_the_deadline_holds_over_waves(make: Callable[..., Task], mode: bool) -> None:
    given = [*inputs(LIMIT), *inputs(COUNT, seconds=60)[LIMIT:]]
    task = make(BATCH, given, deferrable=mode, timeout=4)
    assert "Not over in time" in str(task.attempt().error)
    assert task.statuses["COMPLETED"] == LIMIT
    assert task.statuses.total() - LIMIT == task.statuses["CANCELED"] <= LIMIT


def test_a_task_that_was_submitted_in_waves_ends_on_a_worker(make: Callable[..., Task]) -> None:
    """The last trigger has seen only the jobs of the last wave."""
    options = {"end_from_trigger": True, "dag": DAG("dag", schedule=None)}
    task = make(BATCH, inputs(8), deferrable=True, max_in_flight=4, **options)
    outcome = task.attempt()
    assert outcome.error is None
    assert len(outcome.value) == 8
    used = task.ti.xcoms["usage"]
    assert (used["jobs"], used["completed"], used["failed"], used["reused"]) == (8, 8, 0, 0)
    assert used["execution_seconds"] == pytest.approx(0.15 * 8, abs=0.1)


# --- the breaker ---


def stopped(task: Task, error: BaseException | None, allowed: int = LIMIT) -> str:
    """Check what a stopped task left behind, and return its error."""
    told = str(error)
    assert told.startswith("Stopped: ")
    assert "(stop_after=3)" in told
    assert not task.statuses.keys() & {"QUEUED", "RUNNING"}
    assert task.most_in_flight <= allowed
    return told


@pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
def test_a_broken_app_is_not_sent_everything(
    make: Callable[..., Task], kind: str, mode: bool, has_store: bool
) -> None:
    given = failing(60)
    for n in range(3, 60):
        given[n]["emulator"] = {"seconds": 60}
    task = make(kind, given, deferrable=mode, stop_after=3)
    if not has_store:
        task.store = None
    told = stopped(task, task.attempt().error)
    assert "3 jobs in a row failed" in told
    assert told.count("out of memory") == 3
    unsent = 60 - len(task.jobs)
    assert (
        f"57 of 60 inputs were not bought ({57 - unsent} jobs canceled, {unsent} inputs not submitted)"
        in told
    )
    assert task.statuses == {"FAILED": 3, "CANCELED": 57 - unsent}
    usage = task.ti.xcoms["usage"]
    assert (usage["completed"], usage["failed"]) == (0, 60 - unsent)
    if kind == TABLE:
        rows = Counter(row["status"] for row in task.results)
        assert rows == {"failed": 3 + unsent, "canceled": 57 - unsent}
    else:
        assert [each["index"] for each in task.ti.xcoms["failed"]] == list(range(60))


def test_a_retry_goes_on_from_there(make: Callable[..., Task], kind: str, mode: bool) -> None:
    given = [*inputs(8), *failing(12)[8:], *inputs(COUNT)[12:]]
    task = make(kind, given, deferrable=mode, stop_after=3)
    stopped(task, task.attempt().error)
    completed = task.statuses["COMPLETED"]
    assert completed >= 5
    if kind in (STORED, TABLE):
        assert len(list((task.folder / "out").glob("*/*.png"))) == completed
    outcome = task.attempt(stop_after=None, max_failed=4)
    assert outcome.error is None
    counts = Counter(job["input"]["prompt"] for job in task.jobs if job["status"] == "COMPLETED")
    assert set(counts.values()) == {1}
    assert len(counts) == COUNT - 4


def test_a_success_in_between_keeps_it_going(make: Callable[..., Task], mode: bool) -> None:
    given = [failing(n + 1)[n] if n % 3 else inputs(n + 1)[n] for n in range(COUNT)]
    task = make(BATCH, given, deferrable=mode, stop_after=3, max_in_flight=1, max_failed=0.9)
    outcome = task.attempt()
    assert outcome.error is None
    assert len(task.jobs) == COUNT


def test_failures_are_counted_over_waves_and_deferrals(make: Callable[..., Task], mode: bool) -> None:
    task = make(BATCH, [*inputs(2), *failing(COUNT)[2:]], deferrable=mode, stop_after=5, max_in_flight=2)
    task.workers = 1
    outcome = task.attempt()
    assert re.match(r"Stopped: [56] jobs in a row failed \(stop_after=5\)", str(outcome.error))
    assert task.statuses["COMPLETED"] == 2
    assert 5 <= task.statuses["FAILED"] <= 6
    assert len(outcome.events) >= 3 * mode


@pytest.mark.parametrize("kind", [BATCH, TABLE])
def test_none_turns_it_off(make: Callable[..., Task], kind: str, mode: bool) -> None:
    task = make(kind, failing(30), deferrable=mode, stop_after=None, max_failed=30)
    assert task.attempt().error is None
    assert task.statuses == {"FAILED": 30}


def test_by_default_twenty_failures_stop_it(make: Callable[..., Task], kind: str) -> None:
    task = make(kind, [*failing(20), *inputs(50, seconds=60)[20:]], deferrable=False)
    del task.options["stop_after"], task.options["max_in_flight"]
    error = str(task.attempt().error)
    assert "Stopped: 20 jobs in a row failed (stop_after=20)" in error
    assert task.statuses == {"FAILED": 20, "CANCELED": 30}


def test_when_all_is_over_nothing_is_stopped(make: Callable[..., Task], mode: bool) -> None:
    task = make(BATCH, failing(3), deferrable=mode, stop_after=3, max_in_flight=1)
    assert "3 of 3 inputs failed" in str(task.attempt().error)


@pytest.mark.parametrize("kind", [FUNCTION, TABLE])
def test_results_that_cannot_be_used_are_failures(make: Callable[..., Task], kind: str, mode: bool) -> None:
    schema = {"type": "object", "required": ["verdict"]}
    task = make(kind, inputs(), deferrable=mode, stop_after=3, max_in_flight=2, result_schema=schema)
    assert "jobs in a row failed (stop_after=3)" in str(task.attempt().error)
    assert len(task.jobs) < COUNT / 2


def test_canceled_jobs_are_no_failures(make: Callable[..., Task]) -> None:
    task = make(BATCH, inputs(COUNT, seconds=0.2), stop_after=3, max_failed=COUNT)

    def cancel(key: str, value: Any) -> None:
        if key == "job_ids":
            for job in task.jobs[:5]:
                path = f"/app/flux-schnell/job/{job['id']}"
                task.emulator.service.handle("PUT", path, {"x-api-key": task.emulator.service.api_key})

    task.on_push = cancel
    assert task.attempt().error is None
    assert task.statuses["COMPLETED"] == COUNT - 5


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_it_cancels_its_own_jobs_in_any_case(
    make: Callable[..., Task], mode: bool, cancel_on_kill: bool
) -> None:
    given = [*failing(3), *inputs(COUNT, seconds=60)[3:]]
    task = make(BATCH, given, deferrable=mode, stop_after=3, cancel_on_kill=cancel_on_kill)
    stopped(task, task.attempt().error)
    assert task.statuses == {"FAILED": 3, "CANCELED": len(task.jobs) - 3}


def test_it_never_cancels_the_jobs_of_others(make: Callable[..., Task], mode: bool, tmp_path: Path) -> None:
    options = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "stop_after": 3}
    other = make(TABLE, inputs(2, seconds=60), deferrable=True, **options)
    other.attempt_until_deferred()
    given = [*inputs(2, seconds=60), *failing(5)[2:], *inputs(COUNT, seconds=60)[5:]]
    task = make(TABLE, given, deferrable=mode, **options)
    task.run_id = "night 2"
    error = str(task.attempt().error)
    assert error.startswith("Stopped: 3 jobs in a row failed")
    assert {job["status"] for job in task.jobs[:2]} <= {"QUEUED", "RUNNING"}
    assert not {job["status"] for job in task.jobs[2:]} & {"QUEUED", "RUNNING"}


@pytest.mark.parametrize("status", [402, 409])
def test_jobs_that_cannot_be_canceled_are_named(make: Callable[..., Task], mode: bool, status: int) -> None:
    task = make(BATCH, [*failing(3), *inputs(COUNT, seconds=60)[3:]], deferrable=mode, stop_after=3)
    task.emulator.service.inject(Fault(on="cancel", status=status, times=None))
    error = str(task.attempt().error)
    left = task.statuses["RUNNING"] + task.statuses["QUEUED"]
    assert left > 0
    assert f"{left} jobs could not be canceled and may still run" in error


def test_refusals_in_a_row_stop_it(make: Callable[..., Task], kind: str, mode: bool) -> None:
    given = [*inputs(2), *[{"prompt": "", "seed": n} for n in range(40)]]
    task = make(kind, given, deferrable=mode, stop_after=3, max_concurrency=1, max_in_flight=20)
    task.is_held = False  # the worker waits for what was accepted
    error = task.attempt().error
    told = stopped(task, error, 20)
    assert isinstance(error, AirflowFailException)
    assert "3 inputs in a row were refused" in told
    assert "37 of 42 inputs were not bought (0 jobs canceled, 37 inputs not submitted)" in told
    assert task.statuses == {"COMPLETED": 2}
    assert task.emulator.service.count("run") == 5


def test_refusals_are_counted_over_waves(make: Callable[..., Task]) -> None:
    given = [{"prompt": "", "seed": n} for n in range(40)]
    task = make(BATCH, given, stop_after=3, max_concurrency=1, max_in_flight=1)
    stopped(task, task.attempt().error)
    assert task.emulator.service.count("run") == 3


def test_an_accepted_input_in_between_keeps_it_going(make: Callable[..., Task]) -> None:
    given = [{"prompt": ""} if n % 3 else inputs(n + 1)[n] for n in range(COUNT)]
    task = make(BATCH, given, stop_after=3, max_concurrency=1, max_failed=0.9)
    assert task.attempt().error is None
    assert task.emulator.service.count("run") == COUNT


# --- kills ---


def test_a_kill_leaves_no_job_at_the_service(make: Callable[..., Task], kind: str) -> None:
    """Whatever the number of inputs, a kill cancels all jobs in the time that it has."""
    task = make(kind, inputs(2000, seconds=60), deferrable=False, max_in_flight=300)
    task.max_tries = 0
    in_the_middle = lambda: task.emulator.service.stats()["jobs_created"] >= 300  # noqa: E731
    with signal_when(signal.SIGTERM, in_the_middle, task.kill) as sent:
        error = task.attempt().error
    assert sent
    assert "killed" in str(error)
    assert task.statuses == {"CANCELED": 300}


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
def test_a_kill_in_a_later_wave_cancels_what_is_in_flight(make: Callable[..., Task], kind: str) -> None:
    given = [*inputs(8, seconds=0.1), *inputs(40, seconds=60)[8:]]
    task = make(kind, given, deferrable=False)
    task.max_tries = 0
    later = lambda: task.emulator.service.stats()["jobs_created"] >= 12  # noqa: E731
    with signal_when(signal.SIGTERM, later, task.kill):
        assert "killed" in str(task.attempt().error)
    assert set(task.statuses) == {"COMPLETED", "CANCELED"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_an_attempt_killed_while_deferred_is_resumed(
    make: Callable[..., Task], kind: str, mode: bool, number: int
) -> None:
    """Those that still run count: there are never more than allowed, and nothing is bought twice."""
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    trigger = task.attempt_until_deferred()
    if number == 2 and kind != FUNCTION:
        task.complete_until_deferred(task.fire(trigger))
    outcome = task.attempt(deferrable=mode)
    assert outcome.error is None
    assert task.prompts_of(outcome.value) == [each["prompt"] for each in inputs()]
    assert set(task.bought.values()) == {1}
    assert task.most_in_flight <= LIMIT


@pytest.mark.parametrize("echo", [b'"prompt": "?"', b'"prompt": null'], ids=["other", "left out"])
@pytest.mark.parametrize("kind", [STORED, TABLE])
def test_a_service_that_returns_other_inputs_is_no_reason_to_buy_again(
    make: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, kind: str, echo: bytes, mode: bool
) -> None:
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    task.store = None
    task.attempt_until_deferred()

    class Edited:
        """The service, with other inputs in its answers."""

        def __init__(self, transport: Any) -> None:
            self._transport = transport
            self.count = 0

        def handle_request(self, *request: Any) -> Any:
            answer = self._transport.handle_request(*request)
            body, count = re.subn(rb'"prompt": ?"picture [^"]*"', echo, answer.body)
            self.count += count
            return SimpleNamespace(status=answer.status, headers=answer.headers, body=body)

    edited = Edited(RunGenHook.transport)
    monkeypatch.setattr(RunGenHook, "transport", edited)
    assert task.attempt(deferrable=mode).error is None
    assert edited.count
    assert set(task.bought.values()) == {1}
    assert task.statuses == {"COMPLETED": COUNT}


@pytest.mark.parametrize("kind", [STORED, TABLE])
def test_without_a_store_the_destination_is_enough(make: Callable[..., Task], kind: str, mode: bool) -> None:
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    task.store = None
    task.complete_until_deferred(task.fire(task.attempt_until_deferred()))
    outcome = task.attempt(deferrable=mode)
    assert outcome.error is None
    assert set(task.bought.values()) == {1}
    assert task.most_in_flight <= LIMIT
    assert task.ti.xcoms["usage"]["jobs"] == COUNT, "those of all attempts"


@pytest.mark.parametrize("kind", [BATCH, STORED])
def test_jobs_that_changed_inputs_do_not_want_are_canceled_and_billed(
    make: Callable[..., Task], kind: str
) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.attempt_until_deferred()
    unwanted = sum(task.statuses.values())
    task.given = [{"prompt": f"another {n}", "emulator": {"seconds": 0.1}} for n in range(3)]
    assert task.attempt(deferrable=False).error is None
    assert task.statuses == {"CANCELED": unwanted, "COMPLETED": 3}
    usage = task.ti.xcoms["usage"]
    assert (usage["jobs"], usage["failed"], usage["completed"]) == (unwanted + 3, unwanted, 3)


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
def test_a_job_that_the_service_does_not_know_yet_is_resumed_though_inputs_were_added(
    make: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(poll_state, "GONE_GRACE", 30.0)
    task = make(kind, inputs(seconds=0.4), deferrable=True)
    task.attempt_until_deferred()
    task.emulator.service.inject(Fault(on="get", status=404))
    task.given = [*inputs(seconds=0.4), {"prompt": "one more"}]
    assert task.attempt(deferrable=False).error is None
    assert set(task.bought.values()) == {1}
    assert task.statuses == {"COMPLETED": COUNT + 1}


class DyingStore(FakeStore):
    """Ends the attempt at the n-th write."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.writes = writes

    def set(self, key: str, value: Any, **_: Any) -> None:
        self.writes -= 1
        if self.writes == 0:
            raise Died
        super().set(key, value)


@pytest.mark.parametrize("writes", [2, 4, 9, 17])
def test_an_attempt_that_died_at_any_write_is_resumed(
    make: Callable[..., Task], mode: bool, writes: int
) -> None:
    task = make(BATCH, inputs(), deferrable=mode, max_concurrency=2)
    task.store = DyingStore(writes)
    with contextlib.suppress(Died):
        task.attempt()
    outcome = task.attempt()
    assert outcome.error is None
    assert task.prompts_of(outcome.value) == [each["prompt"] for each in inputs()]
    # only those whose ids were not saved yet are bought again
    assert sum(count - 1 for count in task.bought.values()) <= 2


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_attempt_that_died_between_two_waves_is_resumed(
    make: Callable[..., Task], kind: str, nth: int
) -> None:
    """It dies when it has submitted a wave, before the deferral that follows."""
    task = make(kind, inputs(), deferrable=True)
    pushes = 0

    def die(key: str, value: Any) -> None:
        nonlocal pushes
        pushes += key == "rungen_log"
        if pushes == nth:
            raise Died

    task.on_push = die
    with pytest.raises(Died):
        task.attempt()
    task.on_push = None
    outcome = task.attempt()
    assert outcome.error is None
    assert set(task.bought.values()) == {1}
    assert len(task.bought) == COUNT
    assert task.most_in_flight <= LIMIT


def test_a_mark_while_deferred_cancels_what_is_in_flight(make: Callable[..., Task]) -> None:
    task = make(BATCH, inputs(2000, seconds=60), deferrable=True, max_in_flight=500)
    trigger = task.attempt_until_deferred()
    trigger.task_instance = TrackedTaskInstance("failed")
    asyncio.run(trigger.on_kill())
    assert task.statuses == {"CANCELED": 500}


def test_a_deferral_that_airflow_ended_cancels_only_what_is_in_flight(make: Callable[..., Task]) -> None:
    task = make(BATCH, [*inputs(8), *inputs(COUNT, seconds=60)[8:]], deferrable=True)
    task.max_tries = 0
    trigger = task.attempt_until_deferred()
    task.complete_until_deferred(task.fire(trigger))
    context: Any = {"ti": task.ti, "task_state_store": task.store}
    with pytest.raises(Exception, match="Airflow ended the wait"):
        task.op.resume_execution("__fail__", {"error": "lost"}, context)
    assert not task.statuses.keys() & {"QUEUED", "RUNNING"}
    assert task.emulator.service.count("cancel") <= LIMIT


# --- a ledger ---


def test_with_a_ledger_a_wave_looks_nothing_up_twice(
    make: Callable[..., Task], mode: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "deferrable": mode}
    first = make(TABLE, inputs(10), **options)
    first.store = None
    assert first.attempt().error is None
    task = make(TABLE, [*inputs(), *inputs(4)], **options)
    task.store, task.run_id = None, "night 2"
    outcome = task.attempt()
    assert outcome.error is None
    assert (outcome.value["reused"], outcome.value["completed"]) == (14, COUNT + 4)
    assert set(task.bought.values()) == {1}
    assert task.ti.xcoms["usage"]["jobs"] == COUNT - 10
    assert task.ti.xcoms["usage"]["reused"] == 10
    assert task.most_in_flight <= LIMIT


def be_killed_before_the_ids_are_written(ledger: Path) -> list[Path]:
    """Change the entries of a ledger into claims."""
    claims = list(ledger.glob("??/*.json"))
    for path in claims:
        entry = json.loads(path.read_text()) | {"state": "claimed", "job_id": ""}
        path.write_text(json.dumps({name: entry[name] for name in entry.keys() - JOB_FIELDS}))
    return claims


def test_inputs_that_another_run_has_claimed_hold_nothing_up(
    make: Callable[..., Task], mode: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "deferrable": mode}
    assert make(TABLE, inputs(10), **options).attempt().error is None
    claims = be_killed_before_the_ids_are_written(tmp_path / "ledger")
    task = make(TABLE, inputs(), **options)
    task.store, task.run_id = None, "night 2"
    waits: list[int] = []

    def wait(seconds: float) -> None:
        assert seconds == submitting.WAIT_INTERVAL
        waits.append(len(task.jobs))
        if len(waits) == 3:
            for path in claims:
                path.unlink()

    monkeypatch.setattr(submitting, "time", SimpleNamespace(time=time.time, sleep=wait))
    assert task.attempt().error is None
    # all others were submitted before it waited, and each of them once
    assert waits == [COUNT] * 3
    assert Counter(task.bought.values()) == {1: COUNT - 10, 2: 10}
    assert {row["status"] for row in task.results} == {"completed"}
    assert task.most_in_flight <= LIMIT


def test_rows_that_another_run_has_claimed_until_the_deadline_say_so(
    make: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "deferrable": False}
    assert make(TABLE, inputs(3), **options).attempt().error is None
    be_killed_before_the_ids_are_written(tmp_path / "ledger")
    task = make(TABLE, inputs(4), timeout=2, **options)
    task.store, task.run_id = None, "night 2"
    monkeypatch.setattr(submitting, "WAIT_INTERVAL", 0.1)
    assert task.attempt().error is not None
    assert [row["error"] for row in task.results][:3] == [
        "it was not submitted: another run has claimed it"
    ] * 3
    assert set(task.bought.values()) == {1}


def test_a_job_that_another_run_has_claimed_until_the_deadline_says_so(
    make: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "destination": str(tmp_path)}
    assert make(FUNCTION, inputs(1)[0], **options).attempt().error is None
    be_killed_before_the_ids_are_written(tmp_path / "ledger")
    task = make(FUNCTION, inputs(1)[0], timeout=1, **options)
    task.store, task.run_id = None, "night 2"
    monkeypatch.setattr(submitting, "WAIT_INTERVAL", 0.1)
    error = task.attempt().error
    assert isinstance(error, RunGenJobTimeoutError)
    assert error.message.startswith("The time was up before the job: it was not submitted: another run")
    assert len(task.jobs) == 1


def test_reused_rows_are_in_the_table_of_a_task_that_stops(
    make: Callable[..., Task], mode: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"ledger": Ledger((tmp_path / "ledger").as_uri()), "deferrable": mode}
    assert make(TABLE, inputs(5), **options).attempt().error is None
    task = make(TABLE, [*inputs(5), *failing(COUNT)[5:]], stop_after=3, **options)
    task.run_id = "night 2"
    stopped(task, task.attempt().error)
    rows = Counter(row["status"] for row in task.results)
    assert rows["completed"] == 5
    assert rows["failed"] >= 3
    assert sum(rows.values()) == COUNT


def test_the_log_says_what_waits(make: Callable[..., Task], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make(BATCH, inputs(), deferrable=False).attempt()
    assert (
        f"Submitted {LIMIT} of {COUNT} inputs to app flux-schnell; 20 wait for others to end" in caplog.text
    )


# --- bad days of later waves ---


@pytest.mark.parametrize("limit", [1, 4])
def test_an_outage_slows_small_waves_down_too(make: Callable[..., Task], limit: int) -> None:
    task = make(BATCH, inputs(60), deferrable=False, max_in_flight=limit, timeout=5)
    task.emulator.service.inject(Fault(on="run", status=500, times=None))
    task.attempt()
    assert task.emulator.service.count("run") < 40


@pytest.mark.parametrize("kind", [STORED, TABLE])
def test_what_completed_is_stored_when_the_rest_cannot_be_sent(
    make: Callable[..., Task], kind: str, mode: bool, tmp_path: Path
) -> None:
    task = make(kind, inputs(), deferrable=mode)
    task.max_tries = 0
    task.emulator.service.inject(Fault(on="run", status=402, times=None, skip=18))
    assert task.attempt().error is not None
    assert len(list(tmp_path.rglob("*.png"))) >= 12


def test_what_completed_is_stored_when_the_deadline_passes(
    make: Callable[..., Task], mode: bool, tmp_path: Path
) -> None:
    task = make(STORED, [*inputs(12), *inputs(COUNT, seconds=60)[12:]], deferrable=mode, timeout=4)
    task.max_tries = 0
    assert "Not over in time" in str(task.attempt().error)
    assert len(list(tmp_path.rglob("*.png"))) == 12


def test_all_ids_are_pushed_when_a_later_wave_fails(make: Callable[..., Task]) -> None:
    task = make(BATCH, inputs(), deferrable=False)
    task.emulator.service.inject(Fault(on="run", status=402, times=None, skip=18))
    task.attempt()
    assert len([each for each in task.ti.xcoms["job_ids"] if each]) == len(task.jobs)


@pytest.mark.parametrize("kind", [STORED, TABLE])
@pytest.mark.parametrize("event", [True, False])
def test_no_job_is_left_when_the_log_is_gone_after_a_deferral(
    make: Callable[..., Task], kind: str, event: bool
) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.store, task.max_tries = None, 0
    task.attempt_until_deferred()
    shutil.rmtree(task.folder / "out" / ".rungen")
    context: Any = {"ti": task.ti, "task_state_store": None}
    step = ("execute_complete", {"event": {"outcome": "go on"}}) if event else ("__fail__", {"error": "lost"})
    with pytest.raises(RunGenError, match=r"Could not read the (log|plan) of the task run: .* it is missing"):
        task.op.resume_execution(*step, context)
    assert task.statuses == {"CANCELED": LIMIT}


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
def test_a_triggerer_whose_clock_is_ahead_ends_no_job(make: Callable[..., Task], kind: str) -> None:
    task = make(kind, inputs(seconds=60), deferrable=True)
    task.attempt_until_deferred()
    event = {"error": error_to_json(RunGenJobTimeoutError("over", app_id="flux-schnell"))}
    with pytest.raises(TaskDeferred):
        task.op.execute_complete({"ti": task.ti, "task_state_store": task.store}, event)
    assert "CANCELED" not in task.statuses


@pytest.mark.parametrize("event", [None, "over", []])
def test_an_event_that_is_none_leaves_the_jobs_to_the_retry(make: Callable[..., Task], event: Any) -> None:
    task = make(STORED, inputs(seconds=60), deferrable=True)
    task.attempt_until_deferred()
    with pytest.raises(RunGenError):
        task.op.execute_complete({"ti": task.ti, "task_state_store": task.store}, event)
    assert "CANCELED" not in task.statuses


@pytest.mark.parametrize("kind", [STORED, TABLE])
@pytest.mark.parametrize("part", ["runs", "runs/*/attempts", "runs/*/jobs"])
@pytest.mark.parametrize("more", [0, 1], ids=["the same inputs", "one more"])
def test_a_log_that_airflow_knows_of_and_that_is_gone_buys_nothing(
    make: Callable[..., Task], kind: str, part: str, more: int
) -> None:
    task = make(kind, failing(), deferrable=False, stop_after=None)
    assert task.attempt().error is not None
    made = len(task.jobs)
    [log] = (task.folder / "out" / ".rungen").glob(part)
    log.rename(task.folder / "elsewhere")
    task.given = [*failing(), *inputs(more)]
    outcome = task.attempt()
    assert re.search("The log of the task run is missing|files of attempt .* are missing", str(outcome.error))
    assert len(task.jobs) == made
    if part == "runs/*/jobs":
        return
    # after a clear, nobody needs it
    task.max_tries = 9
    task.attempt()
    assert len(task.jobs) == made + COUNT + more


@pytest.mark.parametrize("kind", [STORED, TABLE])
@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "empty"])
def test_a_damaged_part_leaves_no_job_of_the_others_after_a_deferral(
    make: Callable[..., Task], kind: str, is_there: bool
) -> None:
    task = make(kind, inputs(2 * PART_ROWS, seconds=60), deferrable=True, max_in_flight=2 * PART_ROWS)
    task.store, task.max_tries = None, 0
    task.attempt_until_deferred()
    [path] = task.folder.rglob("jobs/*/000000.*")
    path.write_text("") if is_there else path.unlink()
    with pytest.raises(RunGenError, match=rf"{path.name}: it .* {PART_ROWS} jobs of app .* may still run"):
        task.op.execute_complete({"ti": task.ti, "task_state_store": None}, {"outcome": "go on"})
    assert task.statuses["CANCELED"] == PART_ROWS


@pytest.mark.parametrize("kind", [STORED, TABLE])
def test_inputs_of_a_part_that_is_gone_when_it_is_over_are_not_called_unsent(
    make: Callable[..., Task], kind: str
) -> None:
    task = make(kind, inputs(4 * PART_ROWS, seconds=0.02), deferrable=True, max_in_flight=PART_ROWS)
    task.store, task.workers = None, 100

    def remove(key: str, value: Any) -> None:
        if key == "rungen_log" and 0 not in value["parts"]:
            for path in task.folder.rglob("jobs/*/000000.*"):
                path.unlink()

    task.on_push = remove
    error = task.attempt().error
    assert re.search("Could not read the log of the task run: .*000000.*: it is missing", str(error))
    assert not (task.folder / "out" / "results.jsonl").exists()
    assert task.attempt().error is not None  # and nothing is bought again
    assert set(task.bought.values()) == {1}


@pytest.mark.parametrize("kind", [STORED, TABLE])
@pytest.mark.parametrize("max_tries", [2, 0], ids=["retry", "clear"])
def test_an_attempt_that_was_cut_off_leaves_all_to_its_successor(
    make: Callable[..., Task], kind: str, max_tries: int
) -> None:
    """With Airflow's task state store alone, Airflow sees to that; see `test_places`."""
    task = make(kind, inputs(), deferrable=True, on_clear="resume")
    task.max_tries = max_tries
    event = task.fire(task.attempt_until_deferred())
    first, ti = task.op, task.ti
    task.max_tries = 2
    trigger = task.attempt_until_deferred()  # the successor
    made = len(task.jobs)
    with pytest.raises(Exception, match="is cut off"):
        first.execute_complete({"ti": ti, "task_state_store": task.store}, event.payload)
    assert len(task.jobs) == made
    assert kind != TABLE or not (task.folder / "out" / "results.jsonl").exists()
    assert task.go_on(trigger).error is None
    assert task.statuses == {"COMPLETED": COUNT}
    assert set(task.bought.values()) == {1}


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
def test_a_wave_that_begins_again_after_its_worker_was_lost_buys_nothing_twice(
    make: Callable[..., Task], kind: str
) -> None:
    task = make(kind, inputs(), deferrable=True)
    event = task.fire(task.attempt_until_deferred())
    pushed = list(task.ti.pushed)
    task.complete_until_deferred(event)  # it has submitted more
    task.ti.pushed = pushed
    context: Any = {"ti": task.ti, "task_state_store": task.store}
    with pytest.raises(RunGenError, match="changed since the deferral"):
        task.operator().execute_complete(context, event.payload)
    outcome = task.attempt()
    assert outcome.error is None
    assert set(task.bought.values()) == {1}
    assert task.prompts_of(outcome.value) == [each["prompt"] for each in inputs()]


@pytest.mark.parametrize("kind", [BATCH, STORED, TABLE])
def test_lost_repeated_and_spurious_events_change_nothing(make: Callable[..., Task], kind: str) -> None:
    task = make(kind, inputs(), deferrable=True)
    trigger = task.attempt_until_deferred()
    events = [task.fire(trigger)]
    trigger = task.complete_until_deferred(events[0])
    task.scale(0)
    # nothing is new whatever they say
    for spurious in ({}, {"ended": "0-999", "in_flight": 0}, {"ended": "0"}, events[0].payload):
        event = SimpleNamespace(payload={"outcome": "go on", "app_id": "flux-schnell"} | spurious)
        trigger = task.complete_until_deferred(event)
    outcome = task.go_on(trigger)
    assert outcome.error is None
    assert task.prompts_of(outcome.value) == [each["prompt"] for each in inputs()]
    assert task.statuses == {"COMPLETED": COUNT}
    assert set(task.bought.values()) == {1}
    assert task.most_in_flight <= LIMIT


@pytest.mark.parametrize("mode", MODES)
def test_what_the_log_counts_as_submitted_rises_from_wave_to_wave(
    make: Callable[..., Task], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make(STORED, inputs(), deferrable=MODES[mode]).attempt()
    counts = [int(found) for found in re.findall(rf"Submitted (\d+) of {COUNT} inputs", caplog.text)]
    assert len(counts) > 2
    assert counts == sorted(set(counts))
    assert counts[-1] == COUNT


def test_what_the_log_counts_as_done_rises_from_wave_to_wave_and_attempt_to_attempt(
    make: Callable[..., Task], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL", 0.0)
    given = [*failing(5), *inputs(55)]
    given[10] = {"prompt": ""}
    task = make(STORED, given, deferrable=False, max_in_flight=24)
    pattern = r"(\d+) of (\d+) done, (\d+) queued or running, (?:(\d+) not submitted yet, )?(\d+) failed"
    for failed in (6, 6):  # a retry runs what failed again
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert f"{failed} of 60 inputs failed" in str(task.attempt().error)
        lines = re.findall(pattern, caplog.text)
        found = [tuple(int(number or 0) for number in line) for line in lines]
        assert {total for _, total, *_ in found} == {len(given)}
        assert all(done + running + unsent == total for done, total, running, unsent, _ in found)
        for counts in zip(*((done, failures) for done, *_, failures in found), strict=True):
            assert list(counts) == sorted(counts)
