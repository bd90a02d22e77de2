"""Tables whose inputs are in flight in parts: bounds, the breaker, kills, deferrals. The server counts."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from bad_answers import Fault
from conftest import Outcome, linger, run_task, stopped_when
from operator_kit import KILLED, Attempts, kill_when, wait_until
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import RunGenError, RunGenJobQueuedTimeoutError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.operators import RunGenRunTableOperator

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("unsettled")]

COUNT, LIMIT = 26, 6
#: What is pushed when the first inputs are submitted.
JOB_LINK = RunGenJobLink.key


def inputs(count: int = COUNT, **emulator: Any) -> list[dict[str, Any]]:
    options = {"seconds": 0.15} | emulator
    return [{"prompt": f"picture {n}", "emulator": options} for n in range(count)]


def failing(count: int = COUNT, **emulator: Any) -> list[dict[str, Any]]:
    return inputs(count, fail="out of memory", **emulator)


def broken(count: int = COUNT) -> list[dict[str, Any]]:
    """Return inputs of which the first twenty fail, and the others take long."""
    return [*failing(20), *inputs(count, seconds=60)[20:]]


class Task(Attempts):
    """
    A table of inputs, attempted again and again, in a folder of its own.

    Jobs of a deferrable task run while it is deferred only, so that it defers however slow the machine is.
    """

    def __init__(self, emulator: Emulator, folder: Path, given: Any, **options: Any) -> None:
        super().__init__(emulator, self.operator, **{"max_in_flight": LIMIT} | options)
        self.folder, self.given, self.store = folder, given, None
        #: The workers of the app while a trigger runs.
        self.workers = 3

    def operator(self, **options: Any) -> Any:
        places = {"destination": str(self.folder / "out"), "results": str(self.folder / "results.csv")}
        return RunGenRunTableOperator(**{"table": self.given, **places, **options})

    def scale(self, workers: int) -> None:
        self.emulator.service.scale("flux-schnell", workers)

    def attempt(self, **changes: Any) -> Outcome:
        """Run the next attempt to its end, deferrals included."""
        op = self.begin(**changes)
        return self.lead(lambda: op.execute(self.context))

    def complete(self, event: Any) -> Any:
        return self.op.execute_complete(self.context, event)

    def lead(self, step: Callable[[], Any]) -> Outcome:
        op, outcome = self.op, Outcome()
        while True:
            self.scale(0 if op.deferrable else 100)
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

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return self.emulator.service.jobs()

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
    def rows(self) -> Counter[str]:
        """How many rows of the results have each status."""
        lines = (self.folder / "results.csv").read_text().splitlines()[1:]
        return Counter(line.split(",")[1] for line in lines)

    def assert_each_is_bought_once(self) -> None:
        assert Counter(job["input"]["prompt"] for job in self.jobs) == Counter(
            each["prompt"] for each in inputs()
        )
        assert self.rows == {"completed": COUNT}
        assert self.most_in_flight <= LIMIT


Make = Callable[..., Task]


@pytest.fixture(autouse=True)
def _short_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a trigger fire for a part of its jobs at once, instead of once a minute."""
    monkeypatch.setattr("airflow_provider_rungen.triggers.job.MIN_ROUND_TIME", 0.0)


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make(rungen_emulator: Emulator, tmp_path: Path) -> Make:
    return lambda given, **options: Task(rungen_emulator, tmp_path, given, **options)


# --- max_in_flight ---


@pytest.mark.parametrize("limit", [1, 7, None])
def test_no_more_are_in_flight_than_allowed(make: Make, mode: bool, limit: int | None) -> None:
    task = make(inputs(), deferrable=mode, max_in_flight=limit)
    outcome = task.attempt()
    assert outcome.error is None
    assert (outcome.value["completed"], task.created) == (COUNT, COUNT)
    assert task.most_in_flight <= (limit or COUNT)


@pytest.mark.parametrize("value", [0, True, "1"])
def test_a_bound_that_is_none_is_refused_when_the_dag_is_parsed(make: Make, value: Any) -> None:
    with pytest.raises(ValueError, match="max_in_flight must be a positive whole number"):
        make(inputs(), max_in_flight=value).begin()


def test_the_jobs_of_others_are_in_flight_too(make: Make) -> None:
    make(inputs(LIMIT, seconds=60), deferrable=True).attempt_until_deferred()
    task = make(inputs(2 * LIMIT, seconds=60), deferrable=True)
    task.run_id = "night 2"
    task.attempt_until_deferred()
    assert task.created == LIMIT


def test_refused_inputs_are_sent_once(make: Make, mode: bool) -> None:
    task = make([*inputs(), {"prompt": ""}], deferrable=mode, max_failed=1)
    assert task.attempt().error is None
    assert task.rows == {"completed": COUNT, "refused": 1}
    assert task.emulator.service.count("run") == COUNT + 1


# --- the breaker ---


def stopped(task: Task, error: BaseException | None, allowed: int = LIMIT) -> str:
    """Check what a stopped task left behind, and return its error."""
    told = str(error)
    assert told.startswith("Stopped: ")
    assert not task.ends.keys() & {"QUEUED", "RUNNING"}
    assert task.most_in_flight <= allowed
    return told


def test_a_broken_app_is_not_sent_everything(make: Make, mode: bool) -> None:
    task = make(broken(60), deferrable=mode)
    told = stopped(task, task.attempt().error)
    assert "20 jobs in a row failed" in told
    assert told.count("out of memory") == 10
    unsent = 60 - task.created
    canceled = 40 - unsent
    assert f"{unsent} of 60 inputs were not bought" in told
    assert task.ends == {"FAILED": 20} | ({"CANCELED": canceled} if canceled else {})
    assert task.rows == {"failed": 20 + unsent} | ({"canceled": canceled} if canceled else {})
    usage = task.ti.xcoms["usage"]
    assert (usage["completed"], usage["failed"]) == (0, 60 - unsent)
    ran_for = sum(job["finished"] - job["started"] for job in task.jobs if job["started"])
    assert usage["execution_seconds"] == pytest.approx(ran_for, abs=0.01), "canceled jobs are billed, too"
    # a retry goes on from there
    task.given = inputs(10)
    assert task.attempt().error is None


def test_one_success_makes_it_a_hundred(make: Make, mode: bool) -> None:
    given = [*inputs(2, seconds=0), *failing(140, seconds=0.2)[2:]]
    task = make(given, deferrable=mode, max_in_flight=20)
    task.workers = 20
    assert "jobs in a row failed" in stopped(task, task.attempt().error, 20)
    assert 100 <= task.ends["FAILED"] < 138
    assert task.rows["completed"] == 2


def test_results_that_cannot_be_used_are_failures(make: Make, mode: bool) -> None:
    schema = {"type": "object", "required": ["verdict"]}
    task = make(inputs(), deferrable=mode, max_in_flight=2, output_type=schema)
    assert "jobs in a row failed" in str(task.attempt().error)
    assert task.created < COUNT


def test_it_never_cancels_the_jobs_of_others(make: Make, mode: bool) -> None:
    make(inputs(2, seconds=60), deferrable=True).attempt_until_deferred()
    given = [*inputs(2, seconds=60), *failing(22)[2:], *inputs(COUNT, seconds=60)[22:]]
    task = make(given, deferrable=mode, cancel_on_kill=False)
    task.run_id = "night 2"
    assert str(task.attempt().error).startswith("Stopped: 20 jobs in a row failed")
    assert {job["status"] for job in task.jobs[:2]} <= {"QUEUED", "RUNNING"}
    assert not {job["status"] for job in task.jobs[2:]} & {"QUEUED", "RUNNING"}


def test_refusals_in_a_row_stop_it(make: Make, mode: bool) -> None:
    given = [*inputs(2), *[{"prompt": "", "seed": n} for n in range(200)]]
    task = make(given, deferrable=mode, max_in_flight=20)
    error = task.attempt().error
    told = str(error)
    assert isinstance(error, AirflowFailException)
    assert re.match(r"Stopped: 1[0-3]\d inputs in a row were refused", told)
    assert 102 <= task.emulator.service.count("run") < 150


# --- an app without workers ---


def check_unstarted(task: Task, error: Any, count: int) -> None:
    """Check that a table failed whose jobs nobody started, and that these were canceled."""
    assert type(error) is RunGenJobQueuedTimeoutError
    told = str(error)
    assert told.startswith("Queued for too long: no worker since 20")
    assert "app flux-schnell). Scale the app up, with scaled_app or in its console. " in told
    assert task.ends == {"CANCELED": count}


def test_a_table_that_nobody_works_on_fails_in_time(make: Make, mode: bool) -> None:
    task = make(inputs(8), deferrable=mode, max_in_flight=None, queued_timeout=1)
    task.workers = 0
    task.scale(0)
    outcome = run_task(task.begin(), task.context)
    check_unstarted(task, outcome.error, 8)
    assert task.emulator.service.count("cancel") == 8
    assert len(outcome.events) == mode


def test_the_log_and_the_view_say_that_nobody_works_on_a_table(
    make: Make, mode: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.progress.PROGRESS_INTERVAL", 0.0)
    monkeypatch.setattr("airflow_provider_rungen.work.table_run._FLUSH_INTERVAL", 0.05)
    caplog.set_level("INFO")
    task = make(inputs(5), deferrable=mode, max_in_flight=None, timeout=60)
    task.scale(0)
    seen: list[dict[str, Any]] = []

    def views() -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in (task.folder / "out").glob("**/runs/*/*.json")]

    def wake() -> None:
        wait_until(lambda: any("hint" in view for view in views()))
        seen.extend(views())
        task.scale(3)

    waking = threading.Thread(target=wake)
    waking.start()
    outcome = run_task(task.begin(), task.context)
    waking.join()
    assert (outcome.error, task.ends) == (None, {"COMPLETED": 5})
    hint = "5 queued: app flux-schnell has no worker"
    assert [(view["hint"], view["counts"]["running"], view["counts"]["queued"]) for view in seen] == [
        (hint, 5, 5)
    ]
    assert f"0 of 5 done, {hint}, 0 failed" in caplog.text
    assert [("hint" in view, view["counts"]["queued"]) for view in views()] == [(False, 0)]


def test_no_deferral_starts_the_time_in_the_queue_afresh(make: Make) -> None:
    """Somebody cancels a job each half second, so that the table goes on after short waits."""
    task = make(inputs(4), deferrable=True, max_in_flight=None, queued_timeout=2)
    task.workers, over, began = 0, threading.Event(), time.monotonic()

    def cancel_some() -> None:
        with RunGenHook() as hook:
            for job_id in task.ids()[:3]:
                if over.wait(0.5):
                    return
                hook.cancel_job(job_id=job_id)

    trigger = task.attempt_until_deferred()
    canceling = threading.Thread(target=cancel_some)
    canceling.start()
    outcome = task.lead(lambda: task.complete(task.fire(trigger)))
    over.set()
    canceling.join()
    check_unstarted(task, outcome.error, 4)
    assert len(outcome.events) >= 2
    assert time.monotonic() - began >= 2


def test_a_table_whose_jobs_are_taken_now_and_then_is_waited_for(make: Make) -> None:
    task = make(inputs(8), deferrable=True, max_in_flight=None, queued_timeout=1)
    task.workers = 1
    trigger = task.attempt_until_deferred()
    for _ in range(3):
        event = task.fire(trigger)  # after which there is no worker
        time.sleep(0.6)
        trigger = task.until_deferred(partial(task.complete, event))
    assert task.lead(partial(task.complete, task.fire(trigger))).error is None


# --- kills ---


@KILLED
@pytest.mark.parametrize(("state", "tries"), [("failed", 2), ("running", 0)], ids=["marked", "last try"])
def test_a_kill_that_nothing_follows_cancels_all_in_its_time(make: Make, state: str, tries: int) -> None:
    task = make(inputs(2000, seconds=60), max_in_flight=300)
    task.max_tries, task.state = tries, state
    task.scale(100)
    task.attempt_killed(lambda: task.created == 300)
    assert task.ends == {"CANCELED": 300}


@KILLED
def test_a_kill_that_a_retry_follows_leaves_the_jobs_to_it(make: Make, mode: bool) -> None:
    task = make(inputs(), deferrable=False)
    task.scale(100)
    assert f"The next attempt goes on with {LIMIT} jobs" in task.attempt_killed(
        lambda: task.created == LIMIT, table=inputs(seconds=3), timeout=60
    )
    assert "CANCELED" not in task.ends
    assert task.attempt(table=inputs(seconds=3), deferrable=mode, max_in_flight=None).error is None
    assert task.created == COUNT


def test_a_mark_while_deferred_cancels_what_is_in_flight(make: Make) -> None:
    task = make(inputs(2000, seconds=60), deferrable=True, max_in_flight=500)
    trigger = task.attempt_until_deferred()
    trigger.task_instance = type(task.ti)("failed")
    asyncio.run(trigger.on_kill())
    assert task.ends == {"CANCELED": 500}


@KILLED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
def test_neither_a_kill_nor_a_time_limit_waits_for_an_xcom(make: Make, number: Any) -> None:
    task = make(inputs(4, seconds=60), deferrable=False)
    task.max_tries, task.state = 0, "failed"
    met, over = threading.Event(), threading.Event()

    def push(pushed: str, _: Any) -> None:
        if pushed == JOB_LINK:
            met.set()
            over.wait(60)

    task.on_push = push
    op = task.begin()
    with stopped_when(op, number, met.is_set):
        run_task(op, task.context)
    assert task.ends == {"CANCELED": 4}
    over.set()


@KILLED
@pytest.mark.parametrize("user", ["check", "output_type"])
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

    given = [*inputs(2, result={"text": "a fox"}), *inputs(LIMIT, seconds=60)[2:]]
    options = {"check": check} if user == "check" else {"output_type": Picture}
    task = make(given, deferrable=False, **options)
    task.max_tries, task.state = 0, "failed"
    task.scale(100)
    op = task.begin()
    with stopped_when(op, number, met.is_set):
        run_task(op, task.context)
    assert task.ends["CANCELED"] >= LIMIT - 2
    assert task.ends.keys() == {"COMPLETED", "CANCELED"}


@KILLED
def test_a_kill_while_a_submission_hangs_ends_it_and_cancels_what_runs(make: Make) -> None:
    task = make(inputs(seconds=60), deferrable=False)
    task.max_tries, task.state = 0, "failed"
    task.scale(100)
    task.emulator.service.inject(Fault(on="run", kind="hang", skip=3, times=None))
    op = task.begin()
    kill_when(op, task.context, lambda: task.emulator.service.count("run") > 3, AirflowException)
    assert task.ends == {"CANCELED": 3}


# --- deferrals ---


def test_a_deferral_that_airflow_ended_leaves_the_jobs_to_the_retry(make: Make) -> None:
    task = make(inputs(), deferrable=True)
    task.attempt_until_deferred()
    with pytest.raises(RunGenError, match="Airflow ended the wait in the triggerer: lost"):
        task.op.resume_execution("__fail__", {"error": "lost"}, task.context)
    assert task.attempt().error is None
    task.assert_each_is_bought_once()


def test_a_wave_that_begins_again_after_its_worker_was_lost_buys_nothing_twice(make: Make) -> None:
    task = make(inputs(), deferrable=True)
    event = task.fire(task.attempt_until_deferred())
    task.until_deferred(lambda: task.complete(event))  # it has submitted more
    assert task.lead(partial(task.complete, event)).error is None
    task.assert_each_is_bought_once()


def test_repeated_and_spurious_events_change_nothing(make: Make) -> None:
    task = make(inputs(), deferrable=True)
    event = task.fire(task.attempt_until_deferred())
    trigger = task.until_deferred(lambda: task.complete(event))
    task.scale(0)
    for spurious in ({}, {"ended": "0-999", "in_flight": 0}, {"ended": "0"}):
        odd = event | spurious
        trigger = task.until_deferred(lambda odd=odd: task.complete(odd))  # type: ignore[misc]
    assert task.lead(partial(task.complete, task.fire(trigger))).error is None
    task.assert_each_is_bought_once()


@pytest.mark.parametrize("is_changed", [False, True], ids=["gone", "changed"])
def test_a_plan_that_is_damaged_ends_the_attempt_and_a_retry_goes_on(make: Make, is_changed: bool) -> None:
    task = make(inputs(), deferrable=True)
    event = task.fire(task.attempt_until_deferred())
    for path in (task.folder / "out").glob(".rungen/runs/*/plan-*"):
        path.write_text("{}\n") if is_changed else path.unlink()
    with pytest.raises(RunGenError, match="could not go on after the deferral"):
        task.complete(event)
    assert task.attempt().error is None
    task.assert_each_is_bought_once()


def test_a_deferred_table_shows_how_far_it_is(make: Make) -> None:
    task = make(inputs(40), deferrable=True, max_in_flight=None)
    event = task.fire(task.attempt_until_deferred())
    task.until_deferred(partial(task.complete, event))
    [path] = (task.folder / "out").glob(".rungen/runs/*/*.json")
    view = json.loads(path.read_text())
    assert 0 < view["counts"]["completed"] < 40
    assert view["at"] > 0


def test_what_the_log_counts_as_submitted_rises_from_wave_to_wave(
    make: Make, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "airflow_provider_rungen")
    assert make(inputs(), deferrable=mode).attempt().error is None
    counts = [int(found) for found in re.findall(rf"Submitted (\d+) of {COUNT} inputs", caplog.text)]
    assert len(counts) > 2
    assert counts == sorted(set(counts))
    assert counts[-1] == COUNT
