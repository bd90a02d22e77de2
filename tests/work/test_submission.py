"""A retry finds the job of the attempt before it: what the store holds, and what the server saw."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from bad_answers import Fault
from conftest import (
    APP,
    SOON,
    Clock,
    Died,
    FakeStore,
    Outcome,
    TrackedTaskInstance,
    run_task,
    signal_when,
    stopped_when,
)
from rungen_emulator import Emulator

from airflow_provider_rungen.client.retry import ATTEMPTS
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenForbiddenError,
    RunGenJobTimeoutError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.operators import RunGenRunJobOperator
from airflow_provider_rungen.task import store_writer
from airflow_provider_rungen.task.outcomes import error_to_json
from airflow_provider_rungen.triggers import base as triggers

INPUT: dict[str, Any] = {"prompt": "a lighthouse"}
LONG = INPUT | {"emulator": {"seconds": 600}}
MODES: dict[str, dict[str, Any]] = {
    "no wait": {},
    "blocking": {"wait_for_completion": True, "deferrable": False},
    "deferred": {"wait_for_completion": True, "deferrable": True},
}


class Store(FakeStore):
    """A store that something can happen to."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self._emulator = emulator
        #: Called before a value is kept that names a job.
        self.on_id: Callable[[], None] = lambda: None

    def set(self, key: str, value: Any, **_: Any) -> None:
        if self._names_a_job(value):
            self.on_id()
        super().set(key, value)

    @property
    def has_id(self) -> bool:
        """Whether it names a job."""
        return any(self._names_a_job(json.loads(value)) for value in list(self.kept.values()))

    def _names_a_job(self, value: Any) -> bool:
        return any(job["id"] in str(value) for job in self._emulator.service.jobs())


class Task:
    """A task that is attempted again and again."""

    def __init__(self, emulator: Emulator, **options: Any) -> None:
        self.emulator = emulator
        self.options: dict[str, Any] = {"input": INPUT, "poll_interval": 0.02} | options
        self.store: Store | None = Store(emulator)
        self.max_tries, self.tries = 2, 0
        self.clear_number = 0
        self.on_push: Callable[[str, Any], None] | None = None

    def begin(self, **changes: Any) -> None:
        """Make what the next attempt is run with."""
        self.tries += 1
        self.ti = TrackedTaskInstance()
        self.ti.on_push = self.on_push
        self.ti.try_number, self.ti.max_tries = self.tries, self.max_tries
        run = SimpleNamespace(clear_number=self.clear_number)
        self.context: Any = {"ti": self.ti, "task_state_store": self.store, "dag_run": run}
        options = self.options | changes
        if not options.get("wait_for_completion"):
            options.pop("deferrable", None)  # there is nothing to defer
        self.op = RunGenRunJobOperator(task_id="task", **options)

    def attempt(self, **changes: Any) -> Outcome:
        self.begin(**changes)
        return run_task(self.op, self.context)

    @property
    def kept(self) -> dict[str, Any]:
        """What the store holds."""
        assert self.store is not None
        return self.store.kept

    def clear(self) -> None:
        self.max_tries += 1
        self.clear_number += 1

    def job_ids(self) -> list[str]:
        return [job["id"] for job in self.emulator.service.jobs()]

    def statuses(self) -> list[str]:
        return [job["status"] for job in self.emulator.service.jobs()]


@pytest.fixture
def emulator(rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setattr(triggers, "SETTLING_TIME", 0)  # no real deferring process has to go down first
    return rungen_emulator


@pytest.fixture(params=MODES)
def task(request: pytest.FixtureRequest, emulator: Emulator) -> Task:
    return Task(emulator, **MODES[request.param])


def die_after_submission(task: Task) -> str:
    """Run an attempt that ends when its job is submitted and saved."""

    def die(key: str, value: Any) -> None:
        if key == "job_id":
            raise Died

    on_push, task.on_push = task.on_push, die
    with pytest.raises(Died):
        task.attempt()
    task.on_push = on_push
    return task.job_ids()[-1]


def lose_the_api_server(key: str, value: Any) -> None:
    """Fail as a push to XCom does."""
    raise OSError("the API server is gone")


@pytest.mark.contract
def test_a_running_job_is_taken_up_again(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    task.emulator.service.configure({"job_seconds": 0.5})
    job_id = die_after_submission(task)
    with caplog.at_level(logging.INFO):
        outcome = task.attempt()
    assert outcome.value == job_id
    assert task.job_ids() == [job_id]
    [decision] = [line for line in caplog.messages if line.startswith("Resuming")]
    assert decision == f"Resuming a job that is not over (job {job_id}, app {APP})"


@pytest.mark.contract
@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_a_job_that_did_not_complete_is_run_again(task: Task, end: str) -> None:
    how = {"seconds": 0, "fail": "CUDA out of memory"} if end == "failed" else {"seconds": 600}
    task.options["input"] = INPUT | {"emulator": how}
    job_id = die_after_submission(task)
    if end == "canceled":
        service = task.emulator.service
        path = f"/app/{APP}/job/{job_id}"
        assert service.handle("PUT", path, {"x-api-key": service.api_key}).status == 200
        task.emulator.service.inject(
            Fault(on="get", status=200, body={"data": {"status": "COMPLETED", "request": {}}}, skip=1)
        )
    outcome = task.attempt()
    assert len(task.job_ids()) == 2
    if end == "canceled":
        assert outcome.value == task.job_ids()[1]


@pytest.mark.contract
def test_a_job_that_the_service_does_not_know_yet_is_not_run_again(task: Task) -> None:
    job_id = die_after_submission(task)
    task.emulator.service.inject(Fault(on="get", status=404))
    assert task.attempt().value == job_id
    assert task.job_ids() == [job_id]


def test_an_outage_while_a_retry_looks_costs_no_job(waiting: Task) -> None:
    job_id = die_after_submission(waiting)
    waiting.max_tries = waiting.tries + 1  # it is the last
    waiting.emulator.service.inject(Fault(on="get", status=503, times=2 * ATTEMPTS))
    assert waiting.attempt().value == job_id
    assert waiting.job_ids() == [job_id]


@pytest.mark.contract
def test_a_forgotten_job_is_run_again(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(task.emulator, monkeypatch)
    job_id = die_after_submission(task)
    clock.advance(60)
    task.emulator.service.inject(Fault(on="get", status=404, times=None, job_id=job_id))
    with caplog.at_level(logging.INFO):
        outcome = task.attempt()
    assert outcome.value == task.job_ids()[1]
    assert (
        f"Submitting a new job: that of an earlier attempt is gone (job {job_id}, app {APP})"
        in caplog.messages
    )
    assert f"Not known any more to app {APP} (another API key or team_id?): {job_id}" in caplog.messages


@pytest.mark.contract
@pytest.mark.parametrize("change", [{"input": {"prompt": "a windmill"}}, {"app_id": "another"}], ids=str)
def test_a_changed_input_or_app_is_run_anew(task: Task, change: dict[str, Any]) -> None:
    die_after_submission(task)
    task.emulator.service.add_app("another", workers=1)
    assert task.attempt(**change).value == task.job_ids()[1]


@pytest.mark.contract
def test_a_job_that_is_replaced_is_left_alone_where_kills_do_not_cancel(task: Task) -> None:
    die_after_submission(task)
    task.clear()
    assert task.attempt(cancel_on_kill=False).value == task.job_ids()[1]
    assert "CANCELED" not in task.statuses()


@pytest.mark.contract
def test_a_cleared_task_is_run_anew(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    task.options["input"] = INPUT | {"emulator": {"seconds": 0.3}}
    die_after_submission(task)
    task.clear()
    with caplog.at_level(logging.INFO):
        assert task.attempt().value == task.job_ids()[1]
    assert any(line.startswith("The task was cleared: canceling its") for line in caplog.messages)
    assert task.statuses()[0] == "CANCELED"
    if not task.options.get("wait_for_completion"):  # the job is found until a wait was a success
        assert task.attempt().value == task.job_ids()[1]
    assert (task.kept == {}) == bool(task.options.get("wait_for_completion"))


@pytest.mark.contract
def test_an_airflow_without_a_store_says_so_and_works(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(emulator)
    task.store = None
    with caplog.at_level(logging.INFO):
        assert task.attempt().value == task.job_ids()[0]
    assert len([line for line in caplog.messages if line.startswith("Not durable")]) == 1


@pytest.mark.contract
@pytest.mark.parametrize("kind", ["reset_after", "empty", "truncate", "no_id"])
def test_an_unknown_fate_is_its_own_error_and_resubmitted_with_a_warning(
    emulator: Emulator, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(emulator)
    emulator.service.inject(Fault(on="run", kind=kind))
    assert type(task.attempt().error) is RunGenSubmissionUnknownError
    assert len(task.job_ids()) == 1
    with caplog.at_level(logging.WARNING):
        assert task.attempt().value == task.job_ids()[1]
    assert any("Submitting again, which may bill twice" in line for line in caplog.messages)
    usage = task.ti.xcoms["usage"]
    assert (usage["jobs"], usage["lost"]) == (1, 1)


@pytest.mark.contract
def test_the_clock_of_a_job_that_is_taken_up_again_does_not_start_anew(emulator: Emulator) -> None:
    task = Task(emulator, timeout=0.2, **MODES["blocking"])
    task.options["input"] = LONG
    die_after_submission(task)
    outcome = task.attempt(timeout=600)  # the deadline is that of the submission
    assert "Not over in time" in str(outcome.error)
    assert task.statuses() == ["CANCELED"]


@pytest.mark.contract
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", MODES)
def test_an_id_that_cannot_be_pushed_leaves_no_job_behind(emulator: Emulator, mode: str) -> None:
    task = Task(emulator, **MODES[mode], input=LONG)

    task.on_push = lose_the_api_server
    for tries, statuses in ((1, ["RUNNING"]), (2, ["RUNNING"]), (3, ["CANCELED"])):
        assert isinstance(task.attempt().error, OSError)
        assert (task.tries, task.statuses()) == (tries, statuses)


@pytest.mark.contract
def test_a_retry_that_cannot_begin_leaves_no_job_of_an_earlier_attempt(task: Task) -> None:
    task.options["input"] = LONG
    die_after_submission(task)
    assert "input.prompt" in str(task.attempt(input={"prompt": float("nan")}).error)
    assert task.statuses() == ["CANCELED"]


@pytest.mark.contract
def test_a_kill_while_a_job_is_taken_up_cancels_it(task: Task) -> None:
    task.options["input"] = LONG
    die_after_submission(task)
    service = task.emulator.service
    service.inject(Fault(on="get", kind="hang"))
    task.begin()
    task.ti.state = "failed"
    with signal_when(signal.SIGTERM, lambda: service.count("get") == 1, task.op.on_kill):
        assert "killed" in str(run_task(task.op, task.context).error)
    assert task.statuses() == ["CANCELED"]


@pytest.fixture
def deferred(emulator: Emulator) -> Callable[..., Task]:
    """Run an attempt that waits in the triggerer."""

    def defer(max_tries: int = 2, **options: Any) -> Task:
        task = Task(emulator, **MODES["deferred"], input=LONG, **options)
        task.max_tries = max_tries
        task.begin()
        with pytest.raises(TaskDeferred):
            task.op.execute(task.context)
        return task

    return defer


NEXT = pytest.mark.parametrize(("max_tries", "statuses"), [(2, ["RUNNING"]), (0, ["CANCELED"])])


@pytest.mark.contract
@NEXT
def test_a_deferral_that_airflow_ended_keeps_the_job_only_for_a_next_attempt(
    deferred: Callable[..., Task], max_tries: int, statuses: list[str]
) -> None:
    task = deferred(max_tries)
    with pytest.raises(RunGenError, match="Trigger timeout"):
        task.op.resume_execution("__fail__", {"error": "Trigger timeout"}, task.context)
    assert task.statuses() == statuses


@pytest.mark.contract
@pytest.mark.parametrize("airflow", ["3.2", "3.3"])
def test_a_record_that_is_gone_after_a_deferral_is_an_error(
    emulator: Emulator, deferred: Callable[..., Task], airflow: str
) -> None:
    task = deferred()
    if airflow == "3.2":
        task.context["task_state_store"] = None
    else:
        task.kept.clear()
    with pytest.raises(RunGenError, match=f"rungen_job in Airflow's database is gone.*jobs of app {APP}"):
        task.op.execute_complete(task.context, {"outcome": "go on"})


@pytest.mark.parametrize(
    ("kind", "statuses"), [(RunGenJobTimeoutError, ["CANCELED"]), (RunGenError, ["RUNNING"])]
)
def test_an_event_that_ends_the_wait_keeps_the_job_only_for_a_next_attempt(
    deferred: Callable[..., Task], kind: Any, statuses: list[str]
) -> None:
    task = deferred()
    with pytest.raises(RunGenError, match="it took long"):
        task.op.execute_complete(task.context, {"error": error_to_json(kind("it took long"))})
    assert task.statuses() == statuses


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_in_the_triggerer_cancels_no_job(deferred: Callable[..., Task], status: int) -> None:
    task = deferred(0, retries=0)
    event = {"error": error_to_json(RunGenForbiddenError("Could not get the job", status_code=status))}
    with pytest.raises(RunGenForbiddenError, match=r"Canceled nothing.*collect or cancel by id"):
        task.op.execute_complete(task.context, event)
    assert task.statuses() == ["RUNNING"]


# --- a proxy in between -------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_proxy_that_hides_the_answer_buys_one_job_for_one_task(emulator: Emulator, status: int) -> None:
    task = Task(emulator)
    emulator.service.inject(Fault(on="run", kind="html", status=status, taken=True, times=None))
    assert task.attempt().error is not None
    assert emulator.service.count("run") == len(task.job_ids()) == 1


# --- a store that fails -------------------------------------------------------------------------------------


class StoreError(Exception):
    """What a store raises that cannot be reached."""


def failing(task: Task, times: int) -> None:
    """Make the store refuse the job's id so many times."""
    left = [times]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise StoreError

    assert task.store is not None
    task.store.on_id = fail


def is_saved(task: Task) -> bool:
    assert task.store is not None
    return task.store.has_id


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.2)


@pytest.mark.contract
@pytest.mark.usefixtures("impatient")
def test_an_id_that_the_store_did_not_take_is_saved_at_once(task: Task) -> None:
    task.options |= {"input": LONG, "wait_for_completion": False}
    failing(task, 2)
    job_id = task.attempt().value
    assert is_saved(task)
    assert task.attempt().value == job_id


@pytest.mark.contract
@pytest.mark.usefixtures("impatient")
def test_a_job_whose_id_the_store_does_not_take_is_canceled(task: Task) -> None:
    """Since no attempt could find it."""
    task.options["input"] = LONG
    failing(task, 1000)
    assert isinstance(task.attempt().error, StoreError)
    assert task.statuses() == ["CANCELED"]


@pytest.mark.contract
@pytest.mark.parametrize("value", [7, [], {"job": 7}, {"deadline": "x"}, {"usage": {"ends": 7}}], ids=str)
def test_a_record_that_somebody_changed_is_named_and_nothing_is_sent(emulator: Emulator, value: Any) -> None:
    task = Task(emulator)
    task.kept["rungen_job"] = json.dumps(value)
    assert "rungen_job in Airflow's database was changed; nothing more is sent" in str(task.attempt().error)
    assert task.job_ids() == []


@pytest.mark.contract
def test_nothing_is_sent_while_the_store_cannot_be_read(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    task = Task(emulator)

    def fail(key: str) -> Any:
        raise StoreError

    monkeypatch.setattr(task.store, "get", fail)
    assert isinstance(task.attempt().error, StoreError)
    assert task.job_ids() == []


@pytest.mark.contract
@pytest.mark.usefixtures("impatient")
def test_a_kill_while_the_store_is_written_comes_after_the_write(emulator: Emulator) -> None:
    task = Task(emulator, **MODES["blocking"], input=LONG)
    tries: list[str] = []

    def kill() -> None:
        if "written" in tries:  # why it failed names the job, too
            return
        tries.append("begun")
        if len(tries) < 3:
            raise StoreError
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        tries.append("written")

    assert task.store is not None
    task.store.on_id = kill
    task.begin()
    with signal_when(signal.SIGTERM, lambda: False, task.op.on_kill):
        assert "killed" in str(run_task(task.op, task.context).error)
    assert tries == ["begun"] * 3 + ["written"]
    assert is_saved(task)
    assert task.statuses() == ["RUNNING"]


@pytest.mark.contract
def test_a_kill_while_the_store_hangs_cancels_the_job_in_time(emulator: Emulator) -> None:
    task = Task(emulator, **MODES["blocking"], input=LONG)
    is_met, is_over = threading.Event(), threading.Event()

    def hang() -> None:
        is_met.set()
        is_over.wait(30)

    assert task.store is not None
    task.store.on_id = hang
    task.begin()
    with signal_when(signal.SIGTERM, is_met.is_set, task.op.on_kill) as sent:
        error = run_task(task.op, task.context).error
    took = time.monotonic() - sent[0]
    is_over.set()
    assert "killed" in str(error)
    assert task.statuses() == ["CANCELED"]
    assert took < 5  # then Airflow cuts it off


# --- whose job is it? ---------------------------------------------------------------------------------------


def killed(
    task: Task, state: str | None = "running", *, on_ask: Callable[[], Any] = lambda: None, **changes: Any
) -> BaseException:
    """Kill an attempt while it waits; return its error."""
    task.options["input"] = LONG
    service = task.emulator.service
    before = service.count("get")
    task.begin(**changes)
    task.ti.state, task.ti.on_ask = state, on_ask
    with signal_when(signal.SIGTERM, lambda: service.count("get") > before + 1, task.op.on_kill) as sent:
        error = run_task(task.op, task.context).error
    assert error is not None
    assert time.monotonic() - sent[0] < SOON
    return error


@pytest.fixture
def waiting(emulator: Emulator) -> Task:
    return Task(emulator, **MODES["blocking"])


@pytest.mark.contract
@pytest.mark.parametrize(
    "state", ["running", "queued", "scheduled", "up_for_retry", "deferred", None, "no such word"]
)
def test_a_kill_leaves_the_job_to_the_next_attempt(waiting: Task, state: str | None) -> None:
    error = killed(waiting, state)
    [job_id] = waiting.job_ids()
    assert str(error) == f"The task was killed. The next attempt resumes job {job_id} of app {APP}."
    assert waiting.statuses() == ["RUNNING"]


@pytest.mark.contract
def test_a_zombie_leaves_the_job_to_its_successor(waiting: Task) -> None:
    """It is asked to stop when its successor waits for the job already."""
    waiting.options["input"] = LONG
    successor = Task(waiting.emulator, **waiting.options)
    successor.store, successor.tries = waiting.store, 1
    found: list[str] = []

    def succeed() -> bool:
        if waiting.emulator.service.count("get") > 1:
            found.append(successor.attempt(wait_for_completion=False).value)
        return bool(found)

    waiting.begin()
    with signal_when(signal.SIGTERM, succeed, waiting.op.on_kill):
        assert "killed" in str(run_task(waiting.op, waiting.context).error)
    assert found == waiting.job_ids()
    assert waiting.statuses() == ["RUNNING"]


@pytest.mark.contract
@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed", "restarting"])
def test_a_kill_by_a_user_cancels_the_job(waiting: Task, state: str) -> None:
    assert str(killed(waiting, state)) == "The task was killed."
    assert waiting.statuses() == ["CANCELED"]


@pytest.mark.contract
def test_a_clear_while_the_task_runs_is_no_retry(waiting: Task) -> None:
    """Airflow leaves all the numbers of the task as they are."""
    killed(waiting, "restarting", cancel_on_kill=True)
    waiting.emulator.service.inject(Fault(on="get", status=200, body={"data": {"status": "COMPLETED"}}))
    assert waiting.attempt(wait_for_completion=False).value == waiting.job_ids()[1]


@pytest.mark.contract
def test_a_kill_without_an_answer_of_airflow_leaves_the_job(waiting: Task) -> None:
    """As when it interrupted a call to the supervisor, which holds a lock."""
    lock = threading.Lock()
    with lock:
        killed(waiting, "failed", on_ask=lock.acquire)
    assert waiting.statuses() == ["RUNNING"]


@pytest.mark.contract
@pytest.mark.parametrize("reason", ["no tries", "no store"])
def test_a_kill_that_no_attempt_follows_cancels_the_job_unasked(waiting: Task, reason: str) -> None:
    if reason == "no tries":
        waiting.max_tries = 0
    else:
        waiting.store = None
    killed(waiting)
    assert waiting.ti.asked == 0
    assert waiting.statuses() == ["CANCELED"]


@pytest.mark.contract
def test_a_kill_names_a_job_that_it_was_told_to_leave(waiting: Task) -> None:
    error = killed(waiting, "failed", cancel_on_kill=False)
    [job_id] = waiting.job_ids()
    assert str(error).endswith(f"Job {job_id} of app {APP} may still run (cancel_on_kill).")
    assert waiting.statuses() == ["RUNNING"]


@pytest.mark.contract
@pytest.mark.parametrize("status", [500, 409])
def test_a_kill_names_a_job_that_it_could_not_cancel(waiting: Task, status: int) -> None:
    waiting.max_tries = 0
    waiting.emulator.service.inject(Fault(on="cancel", status=status, times=None))
    error = killed(waiting)
    [job_id] = waiting.job_ids()
    said = rf"It may still run. Could not cancel the job \({status}\): .+ \(job {job_id}, app {APP}\)"
    assert re.search(said, str(error))


@pytest.mark.contract
def test_the_execution_timeout_cancels_the_job_though_tries_are_left(waiting: Task) -> None:
    waiting.options["input"] = LONG
    waiting.begin()
    service = waiting.emulator.service
    with stopped_when(waiting.op, signal.SIGALRM, lambda: service.count("get") > 1):
        waiting.op.execute(waiting.context)
    assert waiting.ti.asked == 0
    assert waiting.statuses() == ["CANCELED"]


# --- a key that is refused, a connection that is broken -----------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("mode", ["blocking", "deferred"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_cancels_no_job_and_a_retry_takes_it_up(emulator: Emulator, mode: str, status: int) -> None:
    task = Task(emulator, **MODES[mode], input=LONG)
    emulator.service.inject(Fault(on="get", status=status, times=None))
    error = task.attempt().error
    [job_id] = task.job_ids()
    assert type(error) is RunGenForbiddenError
    assert f"({status})" in str(error)
    assert f"Canceled nothing: job {job_id} of app {APP} may still run" in str(error)
    assert task.statuses() == ["RUNNING"]
    emulator.service.clear_faults()
    assert task.attempt(wait_for_completion=False).value == job_id


@pytest.mark.contract
@pytest.mark.parametrize("broken", ["gone", "no key"])
@pytest.mark.parametrize("mode", ["blocking", "deferred"])
def test_a_connection_that_breaks_cancels_no_job_and_is_tried_again(
    emulator: Emulator, mode: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(emulator, **MODES[mode], input=LONG)
    task.max_tries = 5
    job_id = die_after_submission(task)
    with monkeypatch.context() as patch:
        if broken == "gone":
            patch.delenv("AIRFLOW_CONN_RUNGEN_DEFAULT")
        else:
            patch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps({"conn_type": "rungen"}))
        error = task.attempt().error
        with pytest.raises(RunGenError, match=job_id):
            task.op.execute_complete(task.context, {"outcome": "go on"})
    assert isinstance(error, RunGenError)
    assert error.retryable
    assert f"job {job_id} of app {APP} may still run" in str(error)
    assert task.statuses() == ["RUNNING"]
    assert task.attempt(wait_for_completion=False).value == job_id


# --- cleared ------------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("is_cleared", [True, False])
def test_a_clear_after_the_last_failure_runs_a_new_job(task: Task, *, is_cleared: bool) -> None:
    """And no other attempt, which comes if Airflow did not learn how the last one ended."""
    task.options["input"] = INPUT | {"emulator": {"seconds": 0.2}}
    task.on_push = lose_the_api_server
    task.tries = 2
    assert isinstance(task.attempt(cancel_on_kill=False).error, OSError)
    task.on_push = None
    if is_cleared:
        task.clear()
    assert task.attempt().value == task.job_ids()[is_cleared]
    assert len(task.job_ids()) == 1 + is_cleared
