"""Many jobs in one task: what the operator returns, what the store keeps, what the server saw."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from bad_answers import Fault
from conftest import APP, FakeStore
from operator_kit import KILLED, Attempts, Died, DyingStore
from rungen_emulator import Emulator
from wire import Connections

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.exceptions import RunGenForbiddenError
from airflow_provider_rungen.execution.jobs.places import StorePlace
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.links import RunGenAppLink
from airflow_provider_rungen.operators import RunGenRunBatchOperator
from airflow_provider_rungen.runs.log import read_attempts, read_parts
from airflow_provider_rungen.runs.rows import Row

pytestmark = pytest.mark.usefixtures("unsettled")
NO_WAIT: dict[str, Any] = {"wait_for_completion": False}


def saved_rows(store: Any) -> list[Row]:
    """Return what a later attempt finds in a store."""
    place = StorePlace(store, try_number=100)
    records = read_attempts(place)
    writers = {record.writer for record in records}
    plans = {record.plan for record in records if record.plan}
    files = [file for plan in plans for _, part in read_parts(place, plan, writers) for file in part]
    return [row for file in files for row in file.rows.values()]


def saved_ids(store: Any) -> set[str]:
    """Return the jobs that a later attempt finds in a store."""
    return {job.id for row in saved_rows(store) for job in row.jobs}


def prompts(count: int, **emulator: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {n}", **({"emulator": emulator} if emulator else {})} for n in range(count)]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Task(Attempts):
    """A batch task."""

    @property
    def failed(self) -> list[int]:
        return [each["index"] for each in self.ti.xcoms["failed"]]

    def prompts(self, ids: list[str]) -> list[str]:
        """Return the prompts of jobs."""
        by_id = {job["id"]: job["input"]["prompt"] for job in self.emulator.service.jobs()}
        return [by_id[job_id] for job_id in ids]


Make = Callable[..., Task]


@pytest.fixture
def make(rungen_emulator: Emulator) -> Make:
    return lambda inputs, **options: Task(rungen_emulator, RunGenRunBatchOperator, inputs=inputs, **options)


# --- inputs, ids and failures ---


@pytest.mark.contract
@pytest.mark.parametrize("count", [1, 3, 40, 250])
def test_ids_come_in_the_order_of_the_inputs(make: Make, mode: bool, count: int) -> None:
    task = make(prompts(count), deferrable=mode)
    ids = task.attempt().value
    assert task.prompts(ids) == [item["prompt"] for item in prompts(count)]
    assert task.created == count
    assert (task.ti.xcoms["job_ids"], task.failed) == (ids, [])


@pytest.mark.contract
def test_no_inputs_are_no_jobs(make: Make, mode: bool) -> None:
    task = make([], deferrable=mode)
    assert task.attempt().value == []
    assert task.emulator.service.count("run") == 0


@pytest.mark.contract
def test_without_waiting_the_jobs_run_on_and_no_more_are_sent_at_a_time_than_allowed(
    make: Make, connections: Connections
) -> None:
    task = make(prompts(60, seconds=60), max_concurrency=3, **NO_WAIT)
    assert len(task.attempt().value) == 60
    assert task.statuses() == ["RUNNING"] * 60
    assert task.emulator.service.count("get") == 0
    assert connections.most <= 3


@pytest.mark.contract
@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([{"prompt": "a"}, {"prompt": float("nan")}], r"inputs\[1\]\.prompt"),
        ("file:///no/such/file.jsonl", "no/such/file"),
        ("nosuchscheme://x/y", "nosuchscheme"),
    ],
)
def test_nothing_is_sent_when_an_input_is_wrong(make: Make, inputs: Any, told: str) -> None:
    task = make(inputs)
    assert re.search(told, str(task.attempt().error))
    assert task.emulator.service.count("run") == 0


@pytest.mark.contract
def test_what_failed_is_named_with_its_line_job_and_reason(make: Make, tmp_path: Path, mode: bool) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "fail: out of memory"}\n{"prompt": "c"}\n')
    task = make(str(path), deferrable=mode, max_failed=1)
    job_id = task.attempt().value[1]
    error = f"out of memory (job {job_id}, app {APP})"
    assert task.ti.xcoms["failed"] == [
        {"index": 1, "file": str(path), "line": 3, "job_id": job_id, "error": error}
    ]


def mixed(count: int) -> list[dict[str, Any]]:
    """Every fifth fails, every seventh is refused."""
    inputs = prompts(count)
    for n in range(0, count, 5):
        inputs[n] = {"prompt": f"fail: out of memory {n}"}
    for n in range(0, count, 7):
        inputs[n] = {"prompt": ""}
    return inputs


REFUSED_OF_40 = list(range(0, 40, 7))
FAILED_OF_40 = sorted({*range(0, 40, 5), *REFUSED_OF_40})


@pytest.mark.contract
def test_too_many_failures_fail_the_task_are_named_and_a_retry_runs_only_them(make: Make, mode: bool) -> None:
    task = make(mixed(40), deferrable=mode)
    told = str(task.attempt().error)
    assert f"{len(FAILED_OF_40)} of 40 inputs failed" in told
    assert "out of memory 5" in told
    assert f"and {len(FAILED_OF_40) - 10} more" in told
    assert task.failed == FAILED_OF_40
    task.attempt()
    assert task.failed == FAILED_OF_40
    # those refused make no job
    assert task.created == (40 - len(REFUSED_OF_40)) + (len(FAILED_OF_40) - len(REFUSED_OF_40))


@pytest.mark.contract
@pytest.mark.parametrize("max_failed", [len(FAILED_OF_40), len(FAILED_OF_40) / 40, 0.9])
def test_failures_that_are_allowed_are_told(make: Make, mode: bool, max_failed: float) -> None:
    task = make(mixed(40), deferrable=mode, max_failed=max_failed)
    ids = task.attempt().value
    assert [index for index, job_id in enumerate(ids) if job_id is None] == REFUSED_OF_40
    assert task.failed == FAILED_OF_40


@pytest.mark.contract
def test_an_input_that_a_page_refuses_is_a_failure_and_no_outage(make: Make) -> None:
    task = make(prompts(2), max_concurrency=1, max_failed=1)
    task.emulator.service.inject(Fault(on="run", status=413, kind="html"))
    task.emulator.service.inject(Fault(on="run", status=413, kind="html", skip=1))
    ids = task.attempt().value
    assert ids[0] is None
    assert ids[1] is not None


@pytest.mark.contract
@pytest.mark.parametrize("max_failed", [-1, 1.0, 1.5, True, "1", float("nan")])
def test_a_max_failed_that_is_none_is_told_when_the_dag_is_parsed(max_failed: Any) -> None:
    with pytest.raises(ValueError, match="max_failed"):
        RunGenRunBatchOperator(task_id="t", inputs=[], max_failed=max_failed)


@pytest.mark.contract
def test_more_jobs_than_an_event_holds_that_the_service_forgot_have_failed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("execution.jobs.runner.VISIBILITY", "triggers.job.VISIBILITY", "client.retry.GONE"):
        monkeypatch.setattr(f"airflow_provider_rungen.{name}_GRACE", 0.0)
    task = make(prompts(130), deferrable=True, stop_after=None)
    task.emulator.service.inject(Fault(on="get", status=404, times=None))
    assert "130 of 130 inputs failed" in str(task.attempt().error)
    assert task.failed == list(range(130))


def test_results_are_not_held(make: Make, mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's results may be larger, together, than any machine's memory."""

    class LargeResult:
        """Stands for megabytes."""

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
    task = make(prompts(100), deferrable=mode, wait_for_completion=True)
    assert len(task.attempt().value) == 100
    task.attempt()
    assert len(most) >= 100
    assert max(most) < 10


# --- inputs that change, retries and clears ---


@pytest.mark.contract
def test_inputs_that_change_and_change_back_are_bought_and_billed_once(make: Make, mode: bool) -> None:
    before = [*prompts(149), *prompts(1, fail="no luck")]
    changed = [{"prompt": "another"}, *before[1:100], *reversed(before[100:])]
    task = make(before, deferrable=mode)
    task.max_tries = 5
    for inputs, created in ((before, 150), (changed, 152), (before, 153), (changed, 154)):
        assert task.attempt(inputs=inputs).error is not None
        assert (task.created, task.ti.xcoms["usage"]["jobs"]) == (created, created)


@pytest.mark.contract
def test_jobs_of_several_earlier_plans_are_billed_once_after_a_clear(make: Make, mode: bool) -> None:
    task = make([], deferrable=mode)
    for letters in ("aa", "baab", "ab", "ba"):
        if letters == "ab":
            task.max_tries = task.tries + 3  # as a clear sets it
        assert task.attempt(inputs=[{"prompt": letter} for letter in letters]).error is None
        assert task.ti.xcoms["usage"]["jobs"] == task.created


def test_a_retry_in_an_outage_does_not_ask_for_every_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    task = make(prompts(600, seconds=60), **NO_WAIT)
    ids = task.attempt().value
    service = task.emulator.service
    service.inject(Fault(on="get", status=503, times=None))
    assert "(503)" in str(task.attempt().error)
    assert service.count("get") <= 256 * 5
    service.clear_faults()
    assert task.attempt().value == ids
    assert task.created == 600


@pytest.mark.contract
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "That submits all 4 inputs again; with on_clear='resume', only 1."),
        ({"on_clear": "resume"}, "That submits only 1 of 4 inputs."),
    ],
)
def test_the_advice_says_what_a_clear_submits(make: Make, options: dict[str, Any], advice: str) -> None:
    error = make([*prompts(3), {"prompt": ""}], **options).attempt().error
    assert isinstance(error, AirflowFailException)
    assert str(error).endswith(advice)


@pytest.mark.contract
@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_cleared_attempt_that_died_finds_nothing_of_before_the_clear(make: Make, writes: int) -> None:
    task = make(prompts(250))
    before = task.attempt().value
    task.max_tries += 1
    kept, task.store = task.store.kept, DyingStore(writes)
    task.store.kept = kept
    with contextlib.suppress(Died):
        task.attempt()
    ids = task.attempt().value
    assert len(set(ids)) == 250
    assert not set(before) & set(ids)


# --- refusals that mean all of them, and a service in trouble ---


@pytest.mark.parametrize(("status", "max_tries"), [(402, 2), (402, 0), (404, 0)])
def test_a_refusal_that_means_all_of_them_ends_the_batch_and_leaves_its_jobs_to_a_retry(
    make: Make, monkeypatch: pytest.MonkeyPatch, status: int, max_tries: int
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 0.5)
    task = make(prompts(200, seconds=60))
    task.max_tries = max_tries
    task.emulator.service.inject(Fault(on="run", status=status, times=None, skip=25))
    assert str(status) in str(task.attempt().error)
    assert task.emulator.service.count("run") < 25 + 3 * 16
    assert task.statuses() == ["RUNNING" if max_tries else "CANCELED"] * 25


@pytest.mark.contract
@pytest.mark.parametrize(("status", "max_tries"), [(401, 2), (403, 2), (403, 0)])
def test_a_refusal_of_the_key_cancels_and_names_all_jobs_and_a_retry_takes_them_up(
    make: Make, status: int, max_tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(prompts(60, seconds=60), **NO_WAIT)
    task.max_tries = max_tries
    task.emulator.service.inject(Fault(on="run", status=status, times=None, skip=25))
    error = task.attempt().error
    assert type(error) is RunGenForbiddenError
    assert "Canceled nothing: 25 jobs of app flux-schnell may still run" in str(error)
    assert task.statuses() == ["RUNNING"] * 25
    if not max_tries:
        assert all(job_id in caplog.text for job_id in task.ids())
        return
    task.emulator.service.clear_faults()
    caplog.set_level("INFO")
    assert len(set(task.attempt().value)) == task.created == 60
    line = "Submitted 35 of 60 inputs to app flux-schnell; 25 have a job of an earlier attempt"
    assert line in caplog.messages


def test_a_service_in_trouble_is_not_sent_all_inputs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 1.0)
    task = make(prompts(500))
    task.emulator.service.inject(Fault(on="run", status=500, times=None))
    assert "(500)" in str(task.attempt().error)
    assert task.emulator.service.count("run") < 40
    task.emulator.service.clear_faults()
    assert len(set(task.attempt().value)) == 500


@pytest.mark.contract
def test_a_batch_that_fails_for_good_without_waiting_leaves_no_job_behind(make: Make) -> None:
    task = make([*prompts(20, seconds=60), {"prompt": ""}], **NO_WAIT)
    assert isinstance(task.attempt().error, AirflowFailException)
    assert task.statuses() == ["CANCELED"] * 20


# --- unknown fates, and jobs that nobody knows otherwise ---


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


def fail_to_push(key: str, value: Any) -> None:
    raise OSError("the API server is gone")


@pytest.mark.parametrize("ends", ["refused", "store", "push"])
def test_jobs_that_no_retry_resumes_are_named_when_their_ids_are_not_pushed(
    make: Make, ends: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may run on, or have completed: nobody could collect or cancel them by id."""
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.2)
    task = make(prompts(60, seconds=0))
    if ends == "refused":
        task.store = None
        task.emulator.service.inject(Fault(on="run", status=403, times=None, skip=55))
    elif ends == "store":
        task.store = FailingStore(lambda: task.created > 0)
    else:
        task.max_tries, task.on_push = 0, fail_to_push
    assert task.attempt().error is not None
    named = " ".join(line for line in caplog.messages if line.startswith("No retry resumes these jobs"))
    assert task.created > 0
    assert all(job_id in named for job_id in task.ids())


@pytest.mark.contract
def test_each_job_that_may_still_run_is_named(
    make: Make, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(prompts(14, seconds=600), deferrable=mode)
    task.emulator.service.inject(Fault(on="cancel", status=409, times=None))
    task.max_tries = 0
    assert task.attempt(timeout=0.5).error is not None
    assert set(task.statuses()) == {"RUNNING"}
    said = [message for message in caplog.messages if re.search("still run|Could not cancel", message)]
    assert all(any(job_id in line for line in said) for job_id in task.ids())


@pytest.mark.parametrize("ends", ["refused", "push", "late"])
def test_every_unknown_fate_is_told_whatever_ends_the_attempt(
    make: Make, ends: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.2)
    task = make(prompts(8, seconds=60), timeout=0.5)
    task.emulator.service.inject(Fault(on="run", kind="empty", times=4))
    if ends == "refused":
        task.emulator.service.inject(Fault(on="run", status=404))
    elif ends == "push":
        task.on_push = fail_to_push
    assert task.attempt().error is not None
    assert len([line for line in caplog.messages if line.startswith("Fate unknown: 4 inputs")]) == 1


@pytest.mark.contract
def test_an_unknown_fate_is_a_failure_of_its_input_alone(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(prompts(30))
    task.emulator.service.inject(Fault(on="run", kind="reset_after", skip=10))
    assert "1 of 30 inputs failed" in str(task.attempt().error)
    [failed] = task.failed
    assert task.created == 30
    caplog.set_level("INFO")
    ids = task.attempt().value
    assert task.created == 31
    assert task.prompts(ids)[failed] == f"picture {failed}"
    line = "Submitted 1 of 30 inputs to app flux-schnell; 29 have a job of an earlier attempt"
    assert line in caplog.messages


@pytest.mark.contract
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
    make: Make, mode: bool, options: dict[str, Any], said: str
) -> None:
    task = make(prompts(8, seconds=0.2), deferrable=mode, **options)
    task.emulator.service.inject(Fault(on="run", kind="reset_after", times=2))
    assert said in str(task.attempt().error)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("on_clear", "said"),
    [("new", "That submits all 4 inputs again;"), ("resume", "A clear runs only these again")],
)
def test_the_error_of_the_last_attempt_says_what_a_clear_does(make: Make, on_clear: str, said: str) -> None:
    task = make([*prompts(3), *prompts(1, fail="out of memory")], on_clear=on_clear)
    task.max_tries = 0
    error = str(task.attempt().error)
    assert said in error
    assert "retry" not in error


@pytest.mark.parametrize(
    ("on_clear", "is_discarded", "what"),
    [("new", False, "all inputs"), ("resume", False, "these"), ("resume", True, "all inputs")],
)
def test_an_unknown_fate_says_what_a_clear_submits(
    make: Make, monkeypatch: pytest.MonkeyPatch, on_clear: str, is_discarded: bool, what: str
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.task.attempts.CLEAR_DISCARDS_STATE", is_discarded)
    task = make(prompts(8), on_unknown_submission="fail", on_clear=on_clear)
    task.emulator.service.inject(Fault(on="run", kind="reset_after"))
    for _ in range(2):
        assert str(task.attempt().error).endswith(f"then clear the task to submit {what} again.")


@pytest.mark.contract
def test_an_id_that_all_answers_name_is_the_job_of_the_first_input_alone(make: Make) -> None:
    task = make(prompts(5), max_concurrency=1, **NO_WAIT)
    liar = Fault(on="run", status=201, body={"id": "liar"}, taken=True, times=None)
    task.emulator.service.inject(liar)
    assert task.attempt(max_failed=4).value == ["liar", None, None, None, None]
    assert task.failed == [1, 2, 3, 4]
    outcome = task.attempt(on_unknown_submission="fail")
    assert "for up to 4 inputs (the first is inputs[1])" in str(outcome.error)
    assert task.created == 5


# --- a store that fails, or that somebody else has written to ---


def test_a_store_that_fails_loses_no_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.5)
    task = make(prompts(200, seconds=60), **NO_WAIT)
    task.store = FailingStore(lambda: task.created >= 50)
    assert "the store is down" in str(task.attempt().error)
    running = {job["id"] for job in task.emulator.service.jobs() if job["status"] == "RUNNING"}
    assert 0 < len(running) < task.created
    assert running == saved_ids(task.store)
    task.store.times = 0
    assert len(set(task.attempt().value)) == 200
    assert task.statuses().count("RUNNING") == 200


def test_ids_that_are_saved_at_last_are_not_canceled(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.0)
    task = make(prompts(40, seconds=60), max_concurrency=4)
    task.store = FailingStore(lambda: task.created > 0, times=1)
    assert "the store is down" in str(task.attempt().error)
    assert len(saved_ids(task.store)) == task.created > 0
    assert set(task.statuses()) == {"RUNNING"}


@pytest.mark.contract
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
    make: Make, change: Callable[[Any], Any]
) -> None:
    task = make(prompts(3))
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


# --- too late, and killed ---


@pytest.mark.contract
def test_too_late_cancels_all_of_them_and_a_retry_has_the_whole_time(make: Make, mode: bool) -> None:
    task = make(prompts(30, seconds=1), timeout=0.3, deferrable=mode)
    error = str(task.attempt().error)
    assert "Not over in time" in error
    assert " and 29 more, app " in error
    assert task.statuses() == ["CANCELED"] * 30
    assert len(set(task.attempt(timeout=60).value)) == 30
    assert task.created == 60


@pytest.mark.contract
def test_only_what_is_not_over_is_canceled(
    make: Make, capsys: pytest.CaptureFixture[str], mode: bool
) -> None:
    task = make([*prompts(60), *prompts(3, seconds=60)], timeout=2, deferrable=mode, defer_after=1)
    assert " and 2 more, app " in str(task.attempt().error)
    assert Counter(task.statuses()) == {"COMPLETED": 60, "CANCELED": 3}
    assert "not canceled" not in capsys.readouterr().out
    if not mode:
        assert task.emulator.service.count("cancel") == 3


@pytest.mark.contract
def test_each_of_many_jobs_has_its_own_time_to_be_canceled(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(prompts(90, seconds=60), timeout=3, poll_interval=1)
    connection = task.emulator.airflow_connection(max_requests_per_second=80)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)
    task.emulator.service.inject(Fault(on="cancel", status=503, times=3, skip=80))
    assert " and 89 more, app " in str(task.attempt().error)
    assert task.statuses() == ["CANCELED"] * 90


@pytest.mark.contract
@KILLED
def test_a_kill_while_it_submits_cancels_every_job(make: Make) -> None:
    task = make(prompts(400, seconds=60), timeout=20)
    task.state = "failed"
    task.attempt_killed(lambda: task.emulator.service.count("run") >= 100)
    assert set(task.statuses()) == {"CANCELED"}
    assert task.created < 400


@KILLED
def test_a_kill_withdraws_what_waits_for_its_turn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(prompts(8), max_concurrency=4, on_unknown_submission="fail")
    connection = task.emulator.airflow_connection(max_requests_per_second=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)
    # one has a job, and four wait
    task.attempt_killed(lambda: len(saved_rows(task.store)) == 5)
    assert task.emulator.service.count("run") == 1
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", task.emulator.airflow_connection())
    assert task.attempt().error is None
    assert task.created == 8


@pytest.mark.contract
@pytest.mark.usefixtures("with_links")
def test_a_kill_while_a_link_is_pushed_submits_nothing(make: Make) -> None:
    task = make(prompts(40, seconds=60))
    task.on_push = lambda key, _: task.op.on_kill() if key == RunGenAppLink.key else None
    assert "killed" in str(task.attempt().error)
    assert task.emulator.service.count("run") == 0


@pytest.mark.contract
@KILLED
def test_a_kill_says_what_it_cannot_cancel(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    task = make(prompts(40, seconds=60), max_concurrency=3)
    task.state = "failed"
    task.emulator.service.inject(Fault(on="run", kind="hang", taken=True, times=3, skip=20))
    task.attempt_killed(lambda: task.emulator.service.count("run") >= 23)
    assert Counter(task.statuses()) == {"CANCELED": 20, "RUNNING": 3}
    [line] = [line for line in caplog.messages if "cannot be canceled" in line]
    assert line.startswith("Fate unknown: 3 submissions to app flux-schnell got no answer in time")
    assert "Submitted 20 of 40 inputs to app flux-schnell" in caplog.messages


@pytest.mark.contract
@KILLED
def test_a_kill_that_waits_for_answers_ends_before_airflow_does_it(make: Make) -> None:
    task = make(prompts(310, seconds=60), max_concurrency=3)
    task.state = "failed"
    service = task.emulator.service
    service.inject(Fault(on="run", kind="hang", times=3, skip=300))
    service.inject(Fault(on="cancel", kind="hang", times=None))
    task.attempt_killed(lambda: service.count("run") >= 303)
    assert service.count("cancel") > 0
