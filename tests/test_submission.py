"""A retry finds the job of the attempt before it: what the store holds, and what the server saw."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import APP, FakeStore, Outcome, TrackedTaskInstance, run_task, signal_when

from airflow_provider_rungen import triggers
from airflow_provider_rungen.emulator import Emulator, Fault
from airflow_provider_rungen.exceptions import RunGenError, RunGenSubmissionUnknownError
from airflow_provider_rungen.operators import RunGenRunJobOperator

INPUT = {"prompt": "a lighthouse"}
MODES: dict[str, dict[str, Any]] = {
    "no wait": {},
    "blocking": {"wait_for_completion": True, "deferrable": False},
    "deferred": {"wait_for_completion": True, "deferrable": True},
}


class Store(FakeStore):
    """A store that something can happen to."""

    def __init__(self) -> None:
        super().__init__()
        self.on_set: Callable[[Any], None] = lambda value: None

    def set(self, key: str, value: Any, **_: Any) -> None:
        self.on_set(value)
        super().set(key, value)


class Task:
    """A task that is attempted again and again."""

    def __init__(self, emulator: Emulator, **options: Any) -> None:
        self.emulator = emulator
        self.options: dict[str, Any] = {"input": INPUT, "poll_interval": 0.02, "defer_after": 0} | options
        self.store: Store | None = Store()
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
        self.op = RunGenRunJobOperator(task_id="task", **self.options | changes)

    def attempt(self, **changes: Any) -> Outcome:
        self.begin(**changes)
        return run_task(self.op, self.context)

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


class Died(BaseException):
    """Ends an attempt as abruptly as a test can."""


def die_after_submission(task: Task) -> str:
    def die(value: Any) -> None:
        if value["job_id"]:
            assert task.store is not None
            task.store.kept["rungen_submission"] = json.dumps(value)
            raise Died

    assert task.store is not None
    task.store.on_set = die
    with pytest.raises(Died):
        task.attempt()
    task.store.on_set = lambda value: None
    return task.job_ids()[-1]


def test_a_running_job_is_taken_up_again(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    task.emulator.service.configure({"job_seconds": 0.5})
    job_id = die_after_submission(task)
    with caplog.at_level(logging.INFO):
        outcome = task.attempt()
    assert outcome.value == job_id
    assert task.job_ids() == [job_id]
    [decision] = [line for line in caplog.messages if "earlier attempt" in line]
    assert decision.endswith("taking it up again")


def test_a_completed_job_is_used(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    task.emulator.service.configure({"job_seconds": 0})
    job_id = die_after_submission(task)
    with caplog.at_level(logging.INFO):
        assert task.attempt().value == job_id
    assert task.job_ids() == [job_id]
    assert f"RunGen job {job_id} of an earlier attempt completed: using it" in caplog.messages


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
            Fault(on="get", status=200, body={"data": {"status": "COMPLETED"}}, skip=1)
        )
    outcome = task.attempt()
    assert len(task.job_ids()) == 2
    if end == "canceled":
        assert outcome.value == task.job_ids()[1]


def test_a_job_that_the_service_does_not_know_yet_is_not_run_again(task: Task) -> None:
    job_id = die_after_submission(task)
    task.emulator.service.inject(Fault(on="get", status=404))
    assert task.attempt().value == job_id
    assert task.job_ids() == [job_id]


def test_a_forgotten_job_is_run_again(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    job_id = die_after_submission(task)
    assert task.store is not None
    record = task.store.get("rungen_submission")
    task.store.set("rungen_submission", record | {"submitted_at": record["submitted_at"] - 60})
    task.emulator.service.inject(Fault(on="get", status=404))
    with caplog.at_level(logging.INFO):
        outcome = task.attempt()
    assert outcome.value == task.job_ids()[1]
    assert (
        f"RunGen no longer knows job {job_id} of an earlier attempt: submitting a new one" in caplog.messages
    )


def test_a_changed_input_is_run_anew(task: Task) -> None:
    die_after_submission(task)
    assert task.attempt(input={"prompt": "a windmill"}).value == task.job_ids()[1]


def test_a_job_that_is_replaced_is_left_alone_where_kills_do_not_cancel(task: Task) -> None:
    die_after_submission(task)
    task.clear()
    assert task.attempt(cancel_on_kill=False).value == task.job_ids()[1]
    assert "CANCELED" not in task.statuses()


def test_another_app_is_run_anew(task: Task) -> None:
    die_after_submission(task)
    task.emulator.service.add_app("another", workers=1)
    assert task.attempt(app_id="another").value == task.job_ids()[1]


def test_a_cleared_task_is_run_anew(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    task.options["input"] = INPUT | {"emulator": {"seconds": 0.3}}
    die_after_submission(task)
    task.clear()
    with caplog.at_level(logging.INFO):
        assert task.attempt().value == task.job_ids()[1]
    assert any(line.startswith("The task was cleared since it submitted") for line in caplog.messages)
    assert task.statuses()[0] == "CANCELED"
    # and the attempt after the clear is found by the one after it
    assert task.attempt().value == task.job_ids()[1]


def test_without_durable_every_attempt_submits(emulator: Emulator) -> None:
    task = Task(emulator, durable=False)
    task.attempt()
    task.attempt()
    assert len(task.job_ids()) == 2
    assert task.store is not None
    assert task.store.kept == {}


def test_an_airflow_without_a_store_says_so_and_works(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(emulator)
    task.store = None
    with caplog.at_level(logging.INFO):
        assert task.attempt().value == task.job_ids()[0]
    assert len([line for line in caplog.messages if "cannot take up what it submitted" in line]) == 1


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
    assert any("which may run and bill it twice" in line for line in caplog.messages)
    assert task.attempt().value == task.job_ids()[1]


def test_an_unknown_fate_can_fail_the_task_for_good(emulator: Emulator) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    task = Task(emulator, on_unknown_submission="fail")
    emulator.service.inject(Fault(on="run", kind="reset_after"))
    assert isinstance(task.attempt().error, AirflowFailException)
    assert len(task.job_ids()) == 1
    task.clear()
    assert task.attempt().value == task.job_ids()[1]


def test_a_retry_after_an_unknown_fate_can_fail_the_task_for_good(emulator: Emulator) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    task = Task(emulator, on_unknown_submission="fail")

    def die(value: Any) -> None:
        if value["job_id"]:
            raise Died

    assert task.store is not None
    task.store.on_set = die
    with pytest.raises(Died):
        task.attempt()
    task.store.on_set = lambda value: None
    error = task.attempt().error
    assert isinstance(error, AirflowFailException)
    assert isinstance(error.__cause__, RunGenSubmissionUnknownError)
    assert len(task.job_ids()) == 1
    task.clear()
    assert task.attempt().value == task.job_ids()[1]


def test_a_refused_submission_leaves_no_intent(emulator: Emulator) -> None:
    task = Task(emulator, on_unknown_submission="fail")
    emulator.service.inject(Fault(on="run", status=403))
    assert task.attempt().error is not None
    assert task.job_ids() == []
    assert task.attempt().value == task.job_ids()[0]


def test_a_store_that_fails_after_the_submission_does_not_give_the_job_up(emulator: Emulator) -> None:
    def fail(value: Any) -> None:
        if value["job_id"]:
            raise OSError("disk full")

    task = Task(emulator, **MODES["blocking"])
    assert task.store is not None
    task.store.on_set = fail
    assert task.attempt().value == task.job_ids()[0]
    assert task.statuses() == ["COMPLETED"]


def test_nothing_is_sent_when_the_intent_cannot_be_kept(emulator: Emulator) -> None:
    def fail(value: Any) -> None:
        raise OSError("disk full")

    task = Task(emulator)
    assert task.store is not None
    task.store.on_set = fail
    assert isinstance(task.attempt().error, OSError)
    assert task.job_ids() == []


@pytest.mark.parametrize("garbage", ["text", 7, [], {}, {"max_tries": 2}, {"job_id": None, "max_tries": 2}])
def test_garbage_in_the_store_is_no_job(emulator: Emulator, garbage: Any) -> None:
    task = Task(emulator)
    assert task.store is not None
    task.store.kept["rungen_submission"] = json.dumps(garbage)
    assert task.attempt().value == task.job_ids()[0]


def test_the_clock_of_a_job_that_is_taken_up_again_does_not_start_anew(emulator: Emulator) -> None:
    task = Task(emulator, timeout=0.2, **MODES["blocking"])
    task.options["input"] = INPUT | {"emulator": {"seconds": 600}}
    die_after_submission(task)
    assert task.store is not None
    record = task.store.get("rungen_submission")
    outcome = task.attempt(timeout=600)  # the deadline is that of the submission
    assert "not over in time" in str(outcome.error)
    assert task.store.get("rungen_submission") == record
    assert task.statuses() == ["CANCELED"]


@pytest.mark.parametrize("mode", ["blocking", "deferred"])
def test_a_wait_that_ends_for_good_leaves_no_job_behind(emulator: Emulator, mode: str) -> None:
    task = Task(emulator, **MODES[mode], input=INPUT | {"emulator": {"seconds": 600}})
    emulator.service.inject(Fault(on="get", status=402, skip=1 if mode == "deferred" else 0))
    outcome = task.attempt()
    assert "402" in str(outcome.error)
    assert task.statuses() == ["CANCELED"]


@pytest.mark.parametrize("mode", MODES)
def test_an_id_that_cannot_be_pushed_leaves_no_job_behind(emulator: Emulator, mode: str) -> None:
    task = Task(emulator, **MODES[mode], input=INPUT | {"emulator": {"seconds": 600}})

    def fail(key: str, value: Any) -> None:
        raise OSError("the API server is gone")

    task.on_push = fail
    for tries, statuses in ((1, ["RUNNING"]), (2, ["RUNNING"]), (3, ["CANCELED"])):
        assert isinstance(task.attempt().error, OSError)
        assert (task.tries, task.statuses()) == (tries, statuses)


def test_a_retry_that_cannot_begin_leaves_no_job_of_an_earlier_attempt(task: Task) -> None:
    task.options["input"] = INPUT | {"emulator": {"seconds": 600}}
    die_after_submission(task)
    assert "input.prompt" in str(task.attempt(input={"prompt": float("nan")}).error)
    assert task.statuses() == ["CANCELED"]


def test_a_kill_while_a_job_is_taken_up_cancels_it(task: Task) -> None:
    task.options["input"] = INPUT | {"emulator": {"seconds": 600}}
    die_after_submission(task)
    service = task.emulator.service
    service.inject(Fault(on="get", kind="hang"))
    task.begin()
    task.ti.state = "failed"
    with signal_when(signal.SIGTERM, lambda: service.count("get") == 1, task.op.on_kill):
        assert "killed" in str(run_task(task.op, task.context).error)
    assert task.statuses() == ["CANCELED"]


@pytest.mark.parametrize(("tries", "statuses"), [(0, ["RUNNING"]), (2, ["CANCELED"])])
def test_a_deferral_that_airflow_ended_keeps_the_job_only_for_a_next_attempt(
    emulator: Emulator, tries: int, statuses: list[str]
) -> None:
    task = Task(emulator, **MODES["deferred"], input=INPUT | {"emulator": {"seconds": 600}})
    die_after_submission(task)
    task.tries = tries
    task.begin()
    task.ti.xcom_push("job_id", task.job_ids()[0])
    with pytest.raises(RunGenError, match="Trigger timeout"):
        task.op.resume_execution("__fail__", {"error": "Trigger timeout"}, task.context)
    assert task.statuses() == statuses


# --- a proxy in between -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_proxy_that_hides_the_answer_buys_one_job_for_one_task(emulator: Emulator, status: int) -> None:
    task = Task(emulator, on_unknown_submission="fail")
    emulator.service.inject(Fault(on="run", kind="html", status=status, taken=True, times=None))
    assert task.attempt().error is not None
    assert emulator.service.count("run") == len(task.job_ids()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(on="run", status=503),
        Fault(on="run", status=429, body={"error": {"message": "slow down"}}),
        Fault(on="run", kind="html", status=503, headers={"Retry-After": "0"}),
    ],
    ids=["error", "nested error", "retry-after"],
)
def test_the_services_own_word_that_it_is_busy_is_believed(emulator: Emulator, fault: Fault) -> None:
    task = Task(emulator, on_unknown_submission="fail")
    emulator.service.inject(fault)
    assert task.attempt().value == task.job_ids()[0]
    assert emulator.service.count("run") == 2
