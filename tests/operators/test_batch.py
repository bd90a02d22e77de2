"""Many jobs in one task: what the operator returns, what the store keeps, what the server saw."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from bad_answers import Fault
from conftest import APP, SOON, FakeStore, Outcome, TrackedTaskInstance, run_task, signal_when

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import RunGenForbiddenError
from airflow_provider_rungen.execution.jobs.places import StorePlace
from airflow_provider_rungen.execution.sending import sender
from airflow_provider_rungen.links import RunGenAppLink
from airflow_provider_rungen.operators import RunGenRunBatchOperator
from airflow_provider_rungen.runs.log import read_attempts, read_parts

pytestmark = pytest.mark.usefixtures("unsettled")
MODES = {"blocking": False, "deferred": True}


class Task:
    """A batch task that is attempted again and again."""

    def __init__(self, emulator: Emulator, **options: Any) -> None:
        emulator.service.scale("flux-schnell", 1000)
        self.emulator = emulator
        self.options: dict[str, Any] = {"poll_interval": 0.02, "defer_after": 0} | options
        self.store: Any = FakeStore()
        self.max_tries, self.tries = 2, 0
        self.state: str | None = "running"
        self.ti = TrackedTaskInstance()
        self.on_push: Callable[[str, Any], None] | None = None

    def attempt(self, **changes: Any) -> Outcome:
        self.tries += 1
        self.ti = TrackedTaskInstance(self.state)
        self.ti.on_push = self.on_push
        self.ti.try_number, self.ti.max_tries = self.tries, self.max_tries
        options = self.options | changes
        if not options.get("wait_for_completion", True):
            options.pop("deferrable", None)  # there is nothing to defer
        self.op = RunGenRunBatchOperator(task_id="task", **options)
        context: Any = {"ti": self.ti, "task_state_store": self.store}
        return run_task(self.op, context)

    @property
    def created(self) -> int:
        return int(self.emulator.service.stats()["jobs_created"])

    def statuses(self) -> list[str]:
        return [job["status"] for job in self.emulator.service.jobs()]

    def prompts(self) -> dict[str, str]:
        return {job["id"]: job["input"]["prompt"] for job in self.emulator.service.jobs()}


def saved_ids(store: Any) -> set[str]:
    """Return the jobs that a later attempt finds in a store."""
    place = StorePlace(store, try_number=100)
    records = read_attempts(place)
    writers = {record.writer for record in records}
    plans = {record.plan for record in records if record.plan}
    files = [file for plan in plans for _, part in read_parts(place, plan, writers) for file in part]
    return {job.id for file in files for row in file.rows.values() for job in row.jobs}


def prompts(count: int, **emulator: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {n}", **({"emulator": emulator} if emulator else {})} for n in range(count)]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> bool:
    return MODES[request.param]


def test_each_job_that_may_still_run_is_named(
    rungen_emulator: Emulator, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rungen_emulator.service.inject(Fault(on="cancel", status=409, times=None))
    task = Task(rungen_emulator, inputs=prompts(14, seconds=600), deferrable=mode)
    task.max_tries = 0
    assert task.attempt(timeout=0.5).error is not None
    assert set(task.statuses()) == {"RUNNING"}
    said = [message for message in caplog.messages if re.search("still run|Could not cancel", message)]
    assert all(any(job["id"] in line for line in said) for job in rungen_emulator.service.jobs())


def test_inputs_that_change_and_change_back_are_bought_and_billed_once(
    rungen_emulator: Emulator, mode: bool
) -> None:
    before = [*prompts(149), *prompts(1, fail="no luck")]
    changed = [{"prompt": "another"}, *before[1:100], *reversed(before[100:])]
    task = Task(rungen_emulator, deferrable=mode)
    task.max_tries = 5
    for inputs, created in ((before, 150), (changed, 152), (before, 153), (changed, 154)):
        assert task.attempt(inputs=inputs).error is not None
        assert (task.created, task.ti.xcoms["usage"]["jobs"]) == (created, created)


def test_jobs_of_several_earlier_plans_are_billed_once_after_a_clear(
    rungen_emulator: Emulator, mode: bool
) -> None:
    task = Task(rungen_emulator, deferrable=mode)
    for letters in ("aa", "baab", "ab", "ba"):
        if letters == "ab":
            task.max_tries = task.tries + 3  # as a clear sets it
        assert task.attempt(inputs=[{"prompt": letter} for letter in letters]).error is None
        assert task.ti.xcoms["usage"]["jobs"] == task.created


@pytest.mark.parametrize("count", [1, 3, 40, 250])
def test_ids_come_in_the_order_of_the_inputs(rungen_emulator: Emulator, mode: bool, count: int) -> None:
    task = Task(rungen_emulator, inputs=prompts(count), deferrable=mode)
    ids = task.attempt().value
    assert [task.prompts()[job_id] for job_id in ids] == [item["prompt"] for item in prompts(count)]
    assert task.created == count
    assert (task.ti.xcoms["job_ids"], task.ti.xcoms["failed"]) == (ids, [])


def test_no_inputs_are_no_jobs(rungen_emulator: Emulator, mode: bool) -> None:
    task = Task(rungen_emulator, inputs=[], deferrable=mode)
    assert task.attempt().value == []
    assert rungen_emulator.service.count("run") == 0


def test_without_waiting_the_jobs_run_on(rungen_emulator: Emulator) -> None:
    task = Task(rungen_emulator, inputs=prompts(20, seconds=60), wait_for_completion=False)
    assert len(task.attempt().value) == 20
    assert task.statuses() == ["RUNNING"] * 20
    assert rungen_emulator.service.count("get") == 0


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([{"prompt": "a"}, {"prompt": float("nan")}], r"inputs\[1\]\.prompt"),
        ("file:///no/such/file.jsonl", "no/such/file"),
        ("nosuchscheme://x/y", "nosuchscheme"),
    ],
)
def test_nothing_is_sent_when_an_input_is_wrong(rungen_emulator: Emulator, inputs: Any, told: str) -> None:
    outcome = Task(rungen_emulator, inputs=inputs).attempt()
    with pytest.raises(Exception, match=told):
        raise outcome.error or AssertionError("no error")
    assert rungen_emulator.service.count("run") == 0


def test_what_failed_is_named_with_its_line_job_and_reason(
    rungen_emulator: Emulator, tmp_path: Path, mode: bool
) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "fail: out of memory"}\n{"prompt": "c"}\n')
    task = Task(rungen_emulator, inputs=str(path), deferrable=mode, max_failed=1)
    ids = task.attempt().value
    [failed] = task.ti.xcoms["failed"]
    assert failed == {
        "index": 1,
        "file": str(path),
        "line": 3,
        "job_id": ids[1],
        "error": f"out of memory (job {ids[1]}, app {APP})",
    }


@pytest.mark.usefixtures("on_the_wire")
def test_no_more_are_under_way_than_allowed(rungen_emulator: Emulator) -> None:
    task = Task(rungen_emulator, inputs=prompts(60), max_concurrency=3, wait_for_completion=False)
    assert len(task.attempt().value) == 60
    assert rungen_emulator.service.stats()["max_open_connections"] <= 3


def mixed(count: int) -> list[dict[str, Any]]:
    """Every fifth fails, every seventh is refused."""
    inputs = prompts(count)
    for n in range(0, count, 5):
        inputs[n] = {"prompt": f"fail: out of memory {n}"}
    for n in range(0, count, 7):
        inputs[n] = {"prompt": ""}
    return inputs


FAILED_OF_40 = sorted(set(range(0, 40, 5)) | set(range(0, 40, 7)))


def test_too_many_failures_fail_the_task_and_are_named(rungen_emulator: Emulator, mode: bool) -> None:
    task = Task(rungen_emulator, inputs=mixed(40), deferrable=mode)
    outcome = task.attempt()
    told = str(outcome.error)
    assert f"{len(FAILED_OF_40)} of 40 inputs failed" in told
    assert "out of memory 5" in told
    assert f"and {len(FAILED_OF_40) - 10} more" in told
    assert [each["index"] for each in task.ti.xcoms["failed"]] == FAILED_OF_40


@pytest.mark.parametrize("max_failed", [len(FAILED_OF_40), len(FAILED_OF_40) / 40, 0.9])
def test_failures_that_are_allowed_are_told(rungen_emulator: Emulator, mode: bool, max_failed: float) -> None:
    task = Task(rungen_emulator, inputs=mixed(40), deferrable=mode, max_failed=max_failed)
    ids = task.attempt().value
    assert [index for index, job_id in enumerate(ids) if job_id is None] == list(range(0, 40, 7))
    assert [each["index"] for each in task.ti.xcoms["failed"]] == FAILED_OF_40


def test_more_jobs_than_an_event_holds_that_the_service_forgot_have_failed(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("execution.jobs.runner", "triggers.job"):
        monkeypatch.setattr(f"airflow_provider_rungen.{module}.VISIBILITY_GRACE", 0.0)
    monkeypatch.setattr("airflow_provider_rungen.client.poll_state.GONE_GRACE", 0.0)
    rungen_emulator.service.inject(Fault(on="get", status=404, times=None))
    task = Task(rungen_emulator, inputs=prompts(130), deferrable=True, stop_after=None)
    assert "130 of 130 inputs failed" in str(task.attempt().error)
    assert [each["index"] for each in task.ti.xcoms["failed"]] == list(range(130))


def test_a_retry_runs_only_what_failed(rungen_emulator: Emulator, mode: bool) -> None:
    task = Task(rungen_emulator, inputs=mixed(40), deferrable=mode)
    task.attempt()
    jobs = task.created
    again = len(FAILED_OF_40) - len(range(0, 40, 7))  # those refused make no job
    task.attempt()
    assert task.created == jobs + again
    assert [each["index"] for each in task.ti.xcoms["failed"]] == FAILED_OF_40


def test_a_retry_in_an_outage_does_not_ask_for_every_job(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    task = Task(rungen_emulator, inputs=prompts(600, seconds=60), wait_for_completion=False)
    ids = task.attempt().value
    rungen_emulator.service.inject(Fault(on="get", status=503, times=None))
    assert "(503)" in str(task.attempt().error)
    assert rungen_emulator.service.count("get") <= 256 * 5
    rungen_emulator.service.clear_faults()
    assert task.attempt().value == ids
    assert task.created == 600


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "That submits all 4 inputs again; with on_clear='resume', only 1."),
        ({"on_clear": "resume"}, "That submits only 1 of 4 inputs."),
    ],
)
def test_the_advice_says_what_a_clear_submits(
    rungen_emulator: Emulator, options: dict[str, Any], advice: str
) -> None:
    task = Task(rungen_emulator, inputs=[*prompts(3), {"prompt": ""}], **options)
    error = task.attempt().error
    assert isinstance(error, AirflowFailException)
    assert str(error).endswith(advice)


@pytest.mark.parametrize("status", [402, 404])
def test_a_refusal_that_means_all_of_them_ends_the_batch_and_leaves_no_job(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 0.5)
    rungen_emulator.service.inject(Fault(on="run", status=status, times=None, skip=25))
    task = Task(rungen_emulator, inputs=prompts(200, seconds=60))
    outcome = task.attempt()
    assert str(status) in str(outcome.error)
    assert rungen_emulator.service.count("run") < 25 + 3 * 16
    assert task.statuses() == ["CANCELED"] * 25


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_key_cancels_no_job_and_a_retry_takes_them_up(
    rungen_emulator: Emulator, status: int
) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=status, times=None, skip=25))
    task = Task(rungen_emulator, inputs=prompts(60, seconds=60), wait_for_completion=False)
    error = task.attempt().error
    assert type(error) is RunGenForbiddenError
    assert "Canceled nothing: 25 jobs of app flux-schnell may still run" in str(error)
    assert task.statuses() == ["RUNNING"] * 25
    rungen_emulator.service.clear_faults()
    assert len(set(task.attempt().value)) == task.created == 60


def test_a_refusal_of_the_key_that_no_retry_follows_names_all_jobs(
    rungen_emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=403, times=None, skip=25))
    task = Task(rungen_emulator, inputs=prompts(60, seconds=60), wait_for_completion=False)
    task.max_tries = 0
    assert type(task.attempt().error) is RunGenForbiddenError
    assert all(job["id"] in caplog.text for job in rungen_emulator.service.jobs())
    assert task.statuses() == ["RUNNING"] * 25


@pytest.mark.parametrize("ends", ["refused", "store", "push"])
def test_jobs_that_no_retry_resumes_are_named_when_their_ids_are_not_pushed(
    rungen_emulator: Emulator, ends: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may run on, or have completed: nobody could collect or cancel them by id."""

    def fail(key: str, value: Any) -> None:
        raise OSError("the API server is gone")

    monkeypatch.setattr(sender, "STORE_RETRY_BUDGET", 0.2)
    task = Task(rungen_emulator, inputs=prompts(60, seconds=0))
    if ends == "refused":
        task.store = None
        rungen_emulator.service.inject(Fault(on="run", status=403, times=None, skip=55))
    elif ends == "store":
        task.store = FailingStore(lambda: task.created > 0)
    else:
        task.max_tries, task.on_push = 0, fail
    assert task.attempt().error is not None
    named = " ".join(line for line in caplog.messages if line.startswith("No retry resumes these jobs"))
    assert task.created > 0
    assert all(job["id"] in named for job in rungen_emulator.service.jobs())


@pytest.mark.parametrize("ends", ["refused", "push", "late"])
def test_every_unknown_fate_is_told_whatever_ends_the_attempt(
    rungen_emulator: Emulator, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: str, value: Any) -> None:
        raise OSError("the API server is gone")

    task = Task(rungen_emulator, inputs=prompts(8, seconds=60), timeout=0.5)
    rungen_emulator.service.inject(Fault(on="run", kind="empty", times=4))
    if ends == "refused":
        rungen_emulator.service.inject(Fault(on="run", status=404))
    elif ends == "push":
        task.on_push = fail
    assert task.attempt().error is not None
    assert len([line for line in caplog.messages if line.startswith("Fate unknown: 4 inputs")]) == 1


def test_an_unknown_fate_is_a_failure_of_its_input_alone(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="run", kind="reset_after", skip=10))
    task = Task(rungen_emulator, inputs=prompts(30))
    outcome = task.attempt()
    assert "1 of 30 inputs failed" in str(outcome.error)
    [failed] = task.ti.xcoms["failed"]
    assert task.created == 30
    ids = task.attempt().value
    assert task.created == 31
    assert task.prompts()[ids[failed["index"]]] == f"picture {failed['index']}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "A retry runs only these again, and may pay twice for 2 inputs of unknown fate"),
        (
            {"on_unknown_submission": "fail"},
            "A retry submits nothing, and fails because of 2 inputs of unknown fate",
        ),
        ({"on_unknown_submission": "fail", "durable": False}, "A retry runs all inputs again"),
    ],
)
def test_an_error_says_what_a_retry_does_about_unknown_fates(
    rungen_emulator: Emulator, mode: bool, options: dict[str, Any], said: str
) -> None:
    rungen_emulator.service.inject(Fault(on="run", kind="reset_after", times=2))
    task = Task(rungen_emulator, inputs=prompts(8, seconds=0.2), deferrable=mode, **options)
    assert said in str(task.attempt().error)


@pytest.mark.parametrize(
    ("on_clear", "is_discarded", "what"),
    [("new", False, "all inputs"), ("resume", False, "these"), ("resume", True, "all inputs")],
)
def test_an_unknown_fate_says_what_a_clear_submits(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, on_clear: str, is_discarded: bool, what: str
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.task.attempts.CLEAR_DISCARDS_STATE", is_discarded)
    rungen_emulator.service.inject(Fault(on="run", kind="reset_after"))
    task = Task(rungen_emulator, inputs=prompts(8), on_unknown_submission="fail", on_clear=on_clear)
    for _ in range(2):
        assert str(task.attempt().error).endswith(f"then clear the task to submit {what} again.")


class LargeResult:
    """Stands for megabytes."""


class Died(BaseException):
    """Ends an attempt as abruptly as a test can."""


class DyingStore(FakeStore):
    """Ends the attempt at the n-th write."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.writes = writes

    def set(self, key: str, value: Any, **_: Any) -> None:
        assert len(json.dumps(value)) < 64 * 1024
        self.writes -= 1
        if self.writes == 0:
            raise Died
        super().set(key, value)


class FailingStore(FakeStore):
    """Cannot be written to while it is down, for so many writes at the most."""

    def __init__(self, is_down: Callable[[], bool], times: int = 10_000) -> None:
        super().__init__()
        self.is_down, self.times = is_down, times

    def set(self, key: str, value: Any, **_: Any) -> None:
        if self.times and self.is_down():
            self.times -= 1
            raise RuntimeError("the store is down")
        super().set(key, value)


def test_a_store_that_fails_loses_no_job(rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "STORE_RETRY_BUDGET", 0.5)
    task = Task(rungen_emulator, inputs=prompts(200, seconds=60), wait_for_completion=False)
    task.store = FailingStore(lambda: task.created >= 50)
    assert "the store is down" in str(task.attempt().error)
    running = {job["id"] for job in rungen_emulator.service.jobs() if job["status"] == "RUNNING"}
    assert 0 < len(running) < task.created
    assert running == saved_ids(task.store)
    task.store.times = 0
    assert len(set(task.attempt().value)) == 200
    assert task.statuses().count("RUNNING") == 200


def test_ids_that_are_saved_at_last_are_not_canceled(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "STORE_RETRY_BUDGET", 0.0)
    task = Task(rungen_emulator, inputs=prompts(40, seconds=60), max_concurrency=4)
    task.store = FailingStore(lambda: task.created > 0, times=1)
    assert "the store is down" in str(task.attempt().error)
    assert len(saved_ids(task.store)) == task.created > 0
    assert set(task.statuses()) == {"RUNNING"}


def test_an_id_that_all_answers_name_is_the_job_of_the_first_input_alone(rungen_emulator: Emulator) -> None:
    task = Task(rungen_emulator, inputs=prompts(5), max_concurrency=1, wait_for_completion=False)
    rungen_emulator.service.inject(Fault(on="run", status=201, body={"id": "liar"}, taken=True, times=None))
    error = task.attempt(max_failed=4)
    assert error.value == ["liar", None, None, None, None]
    assert [each["index"] for each in task.ti.xcoms["failed"]] == [1, 2, 3, 4]
    outcome = task.attempt(on_unknown_submission="fail")
    assert "for up to 4 inputs (the first is inputs[1])" in str(outcome.error)
    assert task.created == 5


def test_a_batch_that_fails_for_good_without_waiting_leaves_no_job_behind(rungen_emulator: Emulator) -> None:
    inputs = [*prompts(20, seconds=60), {"prompt": ""}]
    task = Task(rungen_emulator, inputs=inputs, wait_for_completion=False)
    assert isinstance(task.attempt().error, AirflowFailException)
    assert task.statuses() == ["CANCELED"] * 20


@pytest.mark.parametrize(
    "change",
    [
        lambda value: 7,
        lambda value: [],
        lambda value: {},
        lambda value: value | {"name": 7},
        lambda value: value | {"content": "no base64"},
        lambda value: value | {"content": value["content"][:-4]},
    ],
)
def test_a_value_of_the_store_that_was_changed_is_named_and_nothing_is_sent(
    rungen_emulator: Emulator, change: Callable[[Any], Any]
) -> None:
    task = Task(rungen_emulator, inputs=prompts(3))
    task.attempt()
    names = {key: task.store.get(key).get("name", "plans/") for key in task.store.kept}
    # of the plan, only its name is looked at
    keys = [key for key, name in names.items() if not name.startswith("plans/")]
    assert len(keys) == 3
    for key in keys:
        value = task.store.get(key)
        task.store.set(key, change(value))
        assert f"{key} in Airflow's database was changed; nothing more is sent" in str(task.attempt().error)
        task.store.set(key, value)
    assert task.created == 3


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_cleared_attempt_that_died_finds_nothing_of_before_the_clear(
    rungen_emulator: Emulator, writes: int
) -> None:
    task = Task(rungen_emulator, inputs=prompts(250))
    before = task.attempt().value
    task.max_tries += 1
    kept, task.store = task.store.kept, DyingStore(writes)
    task.store.kept = kept
    with contextlib.suppress(Died):
        task.attempt()
    ids = task.attempt().value
    assert len(set(ids)) == 250
    assert not set(before) & set(ids)


def test_too_late_cancels_all_of_them(rungen_emulator: Emulator, mode: bool) -> None:
    task = Task(rungen_emulator, inputs=prompts(30, seconds=60), timeout=0.5, deferrable=mode)
    outcome = task.attempt()
    assert " and 29 more, app " in str(outcome.error)
    assert task.statuses() == ["CANCELED"] * 30


def test_a_retry_after_the_time_was_up_has_the_whole_time(rungen_emulator: Emulator, mode: bool) -> None:
    task = Task(rungen_emulator, inputs=prompts(8, seconds=1), timeout=0.3, deferrable=mode)
    assert "Not over in time" in str(task.attempt().error)
    assert len(set(task.attempt(timeout=60).value)) == 8
    assert task.created == 16


@pytest.mark.parametrize("operation", ["run", "get_app"])
def test_a_kill_cancels_every_job_that_was_submitted(rungen_emulator: Emulator, operation: str) -> None:
    count = 400
    task = Task(rungen_emulator, inputs=prompts(count, seconds=60), timeout=20)
    task.state = "failed"
    at = 100 if operation == "run" else 1
    is_there = lambda: rungen_emulator.service.count(operation) >= at  # noqa: E731 - reads best beside its use
    kill = lambda: task.op.on_kill()  # noqa: E731, PLW0108 - there is no operator yet
    with signal_when(signal.SIGTERM, is_there, kill):
        outcome = task.attempt()
    assert "killed" in str(outcome.error)
    assert set(task.statuses()) == {"CANCELED"}
    if operation == "run":
        assert task.created < count


@pytest.mark.usefixtures("with_links")
def test_a_kill_while_a_link_is_pushed_submits_nothing(rungen_emulator: Emulator) -> None:
    task = Task(rungen_emulator, inputs=prompts(40, seconds=60))

    def kill_at_the_first_link(key: str, _: Any) -> None:
        if key == RunGenAppLink.key:
            task.op.on_kill()

    task.on_push = kill_at_the_first_link
    assert "killed" in str(task.attempt().error)
    assert rungen_emulator.service.count("run") == 0


@pytest.mark.usefixtures("on_the_wire")
def test_a_kill_says_what_it_cannot_cancel(
    rungen_emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rungen_emulator.service.inject(Fault(on="run", kind="hang", taken=True, times=3, skip=20))
    task = Task(rungen_emulator, inputs=prompts(40, seconds=60), max_concurrency=3)
    task.state = "failed"
    is_there = lambda: rungen_emulator.service.count("run") >= 23  # noqa: E731 - reads best beside its use
    with signal_when(signal.SIGTERM, is_there, lambda: task.op.on_kill()) as sent:  # noqa: PLW0108 - as above
        assert "killed" in str(task.attempt().error)
    assert time.monotonic() - sent[0] < SOON
    assert Counter(task.statuses()) == {"CANCELED": 20, "RUNNING": 3}
    [line] = [line for line in caplog.messages if "cannot be canceled" in line]
    assert line.startswith("Fate unknown: 3 submissions to app flux-schnell got no answer in time")
    assert "Submitted 20 of 40 inputs to app flux-schnell" in caplog.messages


@pytest.mark.usefixtures("on_the_wire")
def test_a_kill_that_waits_for_answers_ends_before_airflow_does_it(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="run", kind="hang", times=3, skip=300))
    rungen_emulator.service.inject(Fault(on="cancel", kind="hang", times=None))
    task = Task(rungen_emulator, inputs=prompts(310, seconds=60), max_concurrency=3)
    task.state = "failed"
    is_there = lambda: rungen_emulator.service.count("run") >= 303  # noqa: E731 - reads best beside its use
    with signal_when(signal.SIGTERM, is_there, lambda: task.op.on_kill()) as sent:  # noqa: PLW0108 - as above
        assert "killed" in str(task.attempt().error)
    assert time.monotonic() - sent[0] < SOON
    assert rungen_emulator.service.count("cancel") > 0


def test_only_what_is_not_over_is_canceled(
    rungen_emulator: Emulator, capsys: pytest.CaptureFixture[str], mode: bool
) -> None:
    inputs = [*prompts(60), *prompts(3, seconds=60)]
    task = Task(rungen_emulator, inputs=inputs, timeout=2, deferrable=mode, defer_after=1)
    assert " and 2 more, app " in str(task.attempt().error)
    assert Counter(task.statuses()) == {"COMPLETED": 60, "CANCELED": 3}
    assert "not canceled" not in capsys.readouterr().out
    if not mode:
        assert rungen_emulator.service.count("cancel") == 3


@pytest.mark.usefixtures("on_the_wire")
def test_each_of_many_jobs_has_its_own_time_to_be_canceled(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(rungen_emulator.airflow_connection()) | {
        "extra": {"app_id": "flux-schnell", "max_requests_per_second": 80}
    }
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(connection))
    rungen_emulator.service.inject(Fault(on="cancel", status=503, times=3, skip=80))
    task = Task(rungen_emulator, inputs=prompts(90, seconds=60), timeout=3, poll_interval=1)
    assert " and 89 more, app " in str(task.attempt().error)
    assert task.statuses() == ["CANCELED"] * 90


def test_results_are_not_held(rungen_emulator: Emulator, mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's results may be larger, together, than any machine's memory."""
    held, most = weakref.WeakSet[LargeResult](), []
    read = Job.from_json

    def from_json(*args: Any, **options: Any) -> Job:
        job = read(*args, **options)
        if job.result is None:
            return job
        most.append(len(held))
        held.add(result := LargeResult())
        return replace(job, result=result)

    monkeypatch.setattr(Job, "from_json", from_json)
    task = Task(rungen_emulator, inputs=prompts(100), deferrable=mode, wait_for_completion=True)
    assert len(task.attempt().value) == 100
    task.attempt()
    assert len(most) >= 100
    assert max(most) < 10


@pytest.mark.parametrize("max_failed", [-1, 1.0, 1.5, True, "1", float("nan")])
def test_a_max_failed_that_is_none_is_told_when_the_dag_is_parsed(max_failed: Any) -> None:
    with pytest.raises(ValueError, match="max_failed"):
        RunGenRunBatchOperator(task_id="t", inputs=[], max_failed=max_failed)


def test_a_service_in_trouble_is_not_sent_all_inputs(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 1.0)
    rungen_emulator.service.inject(Fault(on="run", status=500, times=None))
    task = Task(rungen_emulator, inputs=prompts(500))
    assert "(500)" in str(task.attempt().error)
    assert rungen_emulator.service.count("run") < 40
    rungen_emulator.service.clear_faults()
    assert len(set(task.attempt().value)) == 500
