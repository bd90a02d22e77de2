"""The operators, without a database: what they return, push, raise, and leave behind, in both modes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException
from bad_answers import Fault
from conftest import APP, KEY, SOON, FakeStore, Outcome, signal_when, table_of
from operator_kit import FAST, KILLED, MODES, Stage, submitted, taking
from rungen_emulator import Emulator

from airflow_provider_rungen.decorators import RunGenDecoratedOperator
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
    RunGenResultError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenRunJobOperator,
)
from airflow_provider_rungen.task.xcom_keys import PAGE_KEY

pytestmark = pytest.mark.usefixtures("unsettled")

INPUT = {"prompt": "a red fox"}
LONG = taking(60)


def run_op(**options: Any) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(**{"task_id": "run", "input": INPUT, **FAST, **options})


def collect_op(job_id: Any, **options: Any) -> RunGenCollectResultsOperator:
    return RunGenCollectResultsOperator(**{"task_id": "collect", "job_id": job_id, **FAST, **options})


def cancel_op(job_id: Any, **options: Any) -> RunGenCancelJobOperator:
    return RunGenCancelJobOperator(task_id="cancel", job_id=job_id, **options)


@pytest.fixture
def stage(rungen_emulator: Emulator, context: Any) -> Stage:
    return Stage(rungen_emulator, context)


@pytest.mark.contract
def test_a_deferral_without_a_wait_is_refused() -> None:
    with pytest.raises(ValueError, match="wait_for_completion=True"):
        run_op(wait_for_completion=False, deferrable=True)
    assert run_op(wait_for_completion=False, deferrable=False).deferrable is False
    assert run_op(wait_for_completion=True, deferrable=True).deferrable is True


@pytest.mark.contract
def test_a_deferral_by_default_needs_no_wait() -> None:
    with DAG("deferring", schedule=None, default_args={"deferrable": True}):
        assert run_op().deferrable is True
        mapped = RunGenRunJobOperator.partial(task_id="mapped").expand(input=[INPUT])
    task: Any = mapped.unmap({"input": INPUT})
    assert task.deferrable is True
    # Airflow's default is read once, when the module is imported
    script = (
        "from airflow_provider_rungen.operators import RunGenRunJobOperator as Run;"
        "print(Run(task_id='run', input={}).deferrable)"
    )
    environment = os.environ | {"AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    done = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert done.splitlines()[-1] == "True"


class LazySequence:
    """As much of a sequence as the output of a mapped task is."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


# --- run ----------------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("by_default", [False, True])
def test_running_without_waiting_gives_the_id_at_once(stage: Stage, by_default: bool) -> None:
    with DAG("submitting", schedule=None, default_args={"deferrable": by_default}):
        op = run_op(input=LONG)
    assert op.deferrable is by_default
    outcome = stage.run(op)
    [job] = stage.service.jobs()
    assert outcome == Outcome(value=job["id"])
    assert (stage.ti.xcoms["job_id"], job["input"], job["status"]) == (job["id"], LONG, "RUNNING")
    assert stage.service.count("get") == 0


@MODES
def test_running_and_waiting_gives_the_id_which_is_pushed_before(stage: Stage, deferrable: bool) -> None:
    polls: list[int] = []
    stage.ti.on_push = lambda key, _: polls.append(stage.service.count("get")) if key == "job_id" else None
    op = run_op(input=taking(0.3), wait_for_completion=True, deferrable=deferrable)
    outcome = stage.run(op)
    [job] = stage.service.jobs()
    assert (outcome.value, outcome.error, stage.ti.xcoms["job_id"]) == (job["id"], None, job["id"])
    assert (polls, len(outcome.events), job["status"]) == ([0], deferrable, "COMPLETED")
    assert [key for key, _ in stage.ti.pushed].count(PAGE_KEY) == 1, "one request, for thousands of tasks"
    assert stage.ti.xcoms[PAGE_KEY]["rows"] == 1


@pytest.mark.contract
@MODES
def test_a_job_that_fails_or_that_somebody_else_cancels_fails_the_task(
    stage: Stage, deferrable: bool
) -> None:
    options: dict[str, Any] = {"wait_for_completion": True, "deferrable": deferrable}
    outcome = stage.run(run_op(input=taking(0.2, fail="out of memory"), **options))
    [job] = stage.service.jobs()
    assert type(outcome.error) is RunGenJobFailedError
    told = f"Failed: out of memory (job {job['id']}, app {APP}). "
    assert str(outcome.error) == told + "Correct its input if that is the reason, and run it again."
    assert stage.service.count("cancel") == 0

    def cancel(key: str, value: Any) -> None:
        if key == "job_id":
            with RunGenHook() as hook:
                hook.cancel_job(job_id=value)

    stage.ti.on_push = cancel
    outcome = stage.run(run_op(input=LONG, **options))
    assert type(outcome.error) is RunGenJobCanceledError
    assert stage.ti.xcoms["job_id"] in str(outcome.error)


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("workers", [0, 1], ids=["queued", "running"])
@pytest.mark.parametrize(
    "limit",
    [
        {"timeout": 0.3},
        {"timeout": timedelta(milliseconds=300)},
        {"execution_timeout": timedelta(seconds=0.3)},
    ],
)
@pytest.mark.feature("timeout")
def test_a_job_that_takes_too_long_is_canceled(
    stage: Stage, deferrable: bool, workers: int, limit: dict[str, Any]
) -> None:
    stage.service.scale(APP, workers)
    started = time.monotonic()
    op = run_op(input=LONG, wait_for_completion=True, deferrable=deferrable, **limit)
    error = stage.run(op).error
    [job] = stage.service.jobs()
    assert 0.25 < time.monotonic() - started < SOON
    assert type(error) is RunGenJobTimeoutError
    now = "1 d" if "execution_timeout" in limit else "0.3 s"
    assert str(error).endswith(f"Raise timeout (now {now}) or execution_timeout if it needs longer.")
    assert job["id"] in str(error)
    assert job["status"] == "CANCELED"


HOPELESS: dict[str, tuple[dict[str, Any], str]] = {
    "bad input": ({"input": {"prompt": ""}}, "prompt"),
    "input of no kind": ({"input": "{{ {'prompt': 'x'} }}"}, "dict"),
    "input that is no JSON": ({"input": {"prompt": float("nan")}}, "input.prompt"),
    "no such app": ({"app_id": "no-such-app"}, "no such app"),
    "app that is no id": ({"app_id": "a/../b"}, "app_id"),
}


@pytest.mark.contract
@pytest.mark.parametrize("case", HOPELESS)
def test_what_is_hopeless_is_not_tried_again(stage: Stage, case: str) -> None:
    options, told = HOPELESS[case]
    error = stage.error(run_op(**options), AirflowFailException)
    assert told in str(error)
    assert KEY not in str(error)
    assert stage.service.stats()["jobs_created"] == 0
    assert "job_id" not in stage.ti.xcoms


@pytest.mark.contract
def test_an_account_that_cannot_pay_ends_the_task_at_once(stage: Stage) -> None:
    stage.service.inject(Fault(on="run", status=402, times=None))
    error = stage.run(run_op()).error
    assert isinstance(error, AirflowFailException)
    assert "Check that the account" in str(error)
    assert stage.service.count("run") == 1


@pytest.mark.contract
def test_the_time_of_a_job_begins_when_the_service_has_taken_it(stage: Stage) -> None:
    stage.service.inject(Fault(on="run", status=429, headers={"Retry-After": "1"}))
    assert stage.run(run_op(wait_for_completion=True, timeout=0.8)).error is None
    assert stage.service.count("run") == 2


@pytest.mark.contract
@pytest.mark.parametrize("name", ["poll_interval", "timeout"])
@pytest.mark.parametrize("bad", [0, None])
def test_a_duration_that_is_none_breaks_the_dag_file(name: str, bad: Any) -> None:
    for make in (run_op, lambda **options: collect_op("j", **options)):
        with pytest.raises(ValueError, match=name):
            make(**{name: bad})


@pytest.mark.contract
def test_one_record_is_written_once_the_id_is_known_and_holds_no_input(stage: Stage) -> None:
    class Watching(FakeStore):
        def set(self, key: str, value: Any, **_: Any) -> None:
            kept.append((stage.service.count("run"), str(value)))
            super().set(key, value)

    kept: list[tuple[int, str]] = []
    stage.context["task_state_store"] = Watching()
    outcome = stage.run(run_op(input={"prompt": "my secret prompt"}))
    [(runs, text)] = kept
    assert runs == 1
    assert outcome.value in text
    assert "my secret prompt" not in text
    assert KEY not in text


# --- killed -------------------------------------------------------------------------------------------------


@pytest.mark.contract
@KILLED
@pytest.mark.feature("kill")
def test_a_kill_cancels_the_job_and_ends_the_task(stage: Stage) -> None:
    op = run_op(input=LONG, wait_for_completion=True, timeout=60)
    outcome = stage.kill_when(op, lambda: stage.service.count("get") > 1)
    assert not isinstance(outcome.error, AirflowFailException)
    assert stage.statuses == ["CANCELED"]
    assert stage.ti.xcoms["job_id"]


class TaskTimeout(BaseException):
    """What Airflow raises from its alarm; it then calls ``on_kill``."""


@pytest.mark.contract
@KILLED
@pytest.mark.feature("kill")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
def test_what_ends_the_submission_waits_for_the_id_and_cancels_the_job(
    stage: Stage, number: signal.Signals
) -> None:
    def strike() -> None:
        if number == signal.SIGALRM:
            raise TaskTimeout
        op.on_kill()

    stage.service.inject(Fault(on="run", kind="drip", drip_seconds=0.002))
    op = run_op(input=LONG)
    with signal_when(number, lambda: stage.service.count("run") > 0, strike) as sent:
        try:
            assert isinstance(stage.run(op, timeout=None).error, AirflowException)
        except TaskTimeout:
            op.on_kill()
    assert time.monotonic() - sent[0] < SOON
    [job] = stage.service.jobs()
    assert (stage.ti.xcoms.get("job_id"), job["status"]) == (job["id"], "CANCELED")


EARLY: dict[str, Callable[[], Any]] = {
    "job": run_op,
    "table": lambda: table_of(task_id="t", inputs=[INPUT] * 3),
    "decorated": lambda: RunGenDecoratedOperator(
        task_id="t", python_callable=lambda: INPUT, op_args=[], op_kwargs={}
    ),
    "create": lambda: RunGenCreateAppOperator(
        task_id="t",
        name="new",
        configuration={"gpu_tier": "BASIC"},
        workflow={"model_url": "https://x.example"},
    ),
}


@pytest.mark.contract
@pytest.mark.parametrize("kind", EARLY)
def test_a_kill_before_the_task_begins_or_while_it_reads_its_record_sends_nothing(
    stage: Stage, kind: str
) -> None:
    """Airflow calls on_kill() while it renders the templates, too, and then executes anyway."""
    op = EARLY[kind]()
    op.on_kill()
    assert "The task was killed." in str(stage.run(op).error)
    if kind == "create":
        return  # it reads no record
    reading = EARLY[kind]()

    class Store(FakeStore):
        def get(self, key: str) -> Any:
            reading.on_kill()
            return super().get(key)

    stage.context["task_state_store"] = Store()
    assert "The task was killed." in str(stage.run(reading).error)
    assert stage.service.count("run") == stage.service.count("create_app") == 0


# --- collect ------------------------------------------------------------------------------------------------


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("wait", [True, False])
def test_one_id_gives_one_result_and_a_list_a_list(stage: Stage, deferrable: bool, wait: bool) -> None:
    results = [{"n": number} for number in range(3)]
    a, b, c = submitted(*[taking(0.2 if wait else 0, result=result) for result in results])
    options: dict[str, Any] = {"deferrable": deferrable, "wait_for_completion": wait}
    assert stage.run(collect_op(a, **options)).value == {"n": 0}
    for ids, order in (
        ([a], [0]),
        ([c, a, c, b], [2, 0, 2, 1]),
        ((a, b, c), [0, 1, 2]),
        (LazySequence(a, b, c), [0, 1, 2]),
        ([], []),
    ):
        assert stage.run(collect_op(ids, **options)).value == [results[n] for n in order]


@pytest.mark.contract
@pytest.mark.parametrize("result", [None, "", False, {"images": [{"image": "https://x/y?z"}]}])
def test_a_result_is_returned_as_it_is(stage: Stage, result: Any) -> None:
    [job_id] = submitted(taking(0, result=result))
    assert stage.run(collect_op(job_id)) == Outcome(value=result)


@pytest.mark.contract
@MODES
def test_a_list_of_nothing_that_may_fail_gives_nothing(stage: Stage, deferrable: bool) -> None:
    assert stage.run(collect_op([None], max_failed=1, deferrable=deferrable)).value == [None]


@pytest.mark.contract
@MODES
def test_collecting_a_failed_job_is_hopeless_and_names_each_once(stage: Stage, deferrable: bool) -> None:
    good, bad, gone = submitted(taking(0), taking(0.2, fail="out of memory"), LONG)
    with RunGenHook() as hook:
        hook.cancel_job(job_id=gone)
    for ids, parts in (
        (bad, [f"Failed: out of memory (job {bad}, app {APP}). Correct its input", "and run it again."]),
        ([good, bad], ["1 of 2 jobs failed", f"index 1: out of memory (job {bad}, app {APP})"]),
        ([gone], ["Canceled"]),
        ([good, bad, gone], ["2 of 3 jobs failed", bad, gone]),
    ):
        error = stage.error(collect_op(ids, deferrable=deferrable), AirflowFailException)
        assert [str(error).count(part) for part in parts] == [1] * len(parts)
        assert good not in str(error)


@pytest.mark.contract
def test_collecting_without_waiting_what_is_not_over_is_an_error_that_may_pass(stage: Stage) -> None:
    slow, bad = submitted(LONG, taking(0, fail="x"))
    error = stage.error(collect_op(slow, wait_for_completion=False), RunGenJobError)
    assert "Not over yet" in str(error)
    assert str(error).endswith(". Wait for it first.")
    assert stage.statuses[0] == "RUNNING"
    # with a failed one among them, trying again cannot help
    error = stage.error(collect_op([slow, bad], wait_for_completion=False), AirflowFailException)


@pytest.mark.contract
@KILLED
@pytest.mark.parametrize("end", ["blocking", "deferred", "kill"])
def test_collecting_ends_in_time_and_leaves_the_jobs(stage: Stage, end: str) -> None:
    ids = submitted(LONG, LONG)
    if end == "kill":
        stage.kill_when(collect_op(ids), lambda: stage.service.count("get") > 1)
    else:
        error = stage.error(collect_op(ids, timeout=0.2, deferrable=end == "deferred"), RunGenJobTimeoutError)
        assert ids[0] in str(error)
        assert str(error).endswith(". Raise timeout or execution_timeout if it needs longer.")
    assert stage.statuses == ["RUNNING", "RUNNING"]


@pytest.mark.contract
def test_a_result_url_is_not_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="airflow_provider_rungen"):
        outcome = stage.run(collect_op(submitted(taking(0.1)), deferrable=True))
    assert "X-Amz-Signature" in str(outcome.value)
    assert "X-Amz-Signature" not in caplog.text + str(outcome.events)


# --- schemas ------------------------------------------------------------------------------------------------

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.mark.contract
@pytest.mark.parametrize("source", ["flux-schnell", "file"])
@pytest.mark.feature("schemas")
def test_an_input_that_does_not_fit_its_schema_is_not_sent(stage: Stage, tmp_path: Path, source: str) -> None:
    if source == "file":
        path = tmp_path / "schema.json"
        path.write_text('{"properties": {"width": {"minimum": 1}}}')
        source = f"file://{path}"
    stage.context["task_state_store"] = store = FakeStore()
    error = stage.error(run_op(input={**INPUT, "width": -5}, input_schema=source), AirflowFailException)
    assert f"input.width: -5 is less than the minimum of 1 (input_schema {source})" in str(error)
    assert (stage.service.records(), list(store.kept)) == ([], ["rungen_failure"])
    assert stage.run(run_op(input={**INPUT, "width": 64}, input_schema=source)).error is None


@pytest.mark.contract
def test_a_schema_that_is_gone_does_not_keep_a_retry_from_its_job(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text("{}")
    stage.context["task_state_store"] = FakeStore()
    stage.ti.max_tries = 3
    first = stage.run(run_op(input_schema=str(path)))
    path.unlink()
    stage.ti.try_number = 2
    assert stage.run(run_op(input_schema=str(path), wait_for_completion=True)) == first
    error = stage.error(run_op(input={"prompt": "another"}, input_schema=str(path)), AirflowFailException)
    assert "cannot be read" in str(error)
    assert stage.service.count("run") == 1


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.feature("schemas")
def test_a_result_that_does_not_fit_its_schema_is_hopeless(
    stage: Stage, deferrable: bool, wait: bool
) -> None:
    results: list[Any] = [{"text": "x"}, {"text": 7}, {}]
    good, bad, worse = submitted(*[taking(0.2 if wait else 0, result=result) for result in results])
    options: dict[str, Any] = {"deferrable": deferrable, "wait_for_completion": wait, "output_type": TEXT}
    assert stage.run(collect_op(good, **options)).value == {"text": "x"}
    error = stage.error(collect_op(bad, **options), AirflowFailException)
    assert type(error.__context__) is RunGenResultError
    assert str(error) == (
        f"The result of job {bad} of app {APP} does not fit output_type: "
        "result.text: 7 is not of type 'string'. Look at the result, or correct the schema."
    )
    error = stage.error(collect_op([bad, good, worse], **options), AirflowFailException)
    assert all(told in str(error) for told in ("2 of 3 jobs", bad, worse, "'text' is a required"))
    assert good not in str(error)


# --- cancel -------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_canceling_gives_the_ids_of_what_was_canceled(stage: Stage) -> None:
    over, slow, queued = submitted(taking(0), LONG, LONG)
    ids: Any = LazySequence(over, slow, None, queued)
    assert stage.run(cancel_op(ids)) == Outcome(value=[slow, queued])
    assert stage.statuses == ["COMPLETED", "CANCELED", "CANCELED"]
    assert stage.run(cancel_op(over)) == Outcome(value=[])
    assert stage.run(cancel_op([])) == Outcome(value=[])


@pytest.mark.contract
def test_canceling_what_there_is_not_is_hopeless(stage: Stage) -> None:
    submitted(LONG)
    assert "unknown" in str(stage.error(cancel_op("unknown"), AirflowFailException))
    assert stage.statuses == ["RUNNING"]


@pytest.mark.contract
def test_a_job_that_cannot_be_canceled_fails_the_task_after_the_others_are(stage: Stage) -> None:
    stubborn, slow = submitted(LONG, LONG)
    stage.service.inject(Fault(on="cancel", status=409, job_id=stubborn, times=None))
    for ids in ([stubborn, slow], [stubborn]):
        error = stage.error(cancel_op(ids), RunGenAPIError)
        assert f"but it is RUNNING (job {stubborn}, app {APP})" in str(error)
        assert stage.service.stats()["jobs_cancelled"] == 1
    assert stage.statuses == ["RUNNING", "CANCELED"]


def test_no_job_keeps_the_others_from_being_canceled(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    over, broken, *slow = submitted(taking(0), LONG, LONG, LONG)
    stage.service.inject(Fault(on="cancel", status=500, job_id=broken, times=5))
    op = cancel_op(["unknown", over, broken, *slow])
    error = stage.run(op).error
    assert stage.statuses == ["COMPLETED", "RUNNING", "CANCELED", "CANCELED"]
    assert all(each in str(error) for each in ("2 jobs could not be canceled", "unknown", broken))
    assert any("unknown" in line and broken in line for line in caplog.messages)
    # it cancels the one that the service had no answer for
    assert isinstance(error, RunGenError)
    assert error.retryable
    stage.run(op)
    assert stage.statuses == ["COMPLETED", "CANCELED", "CANCELED", "CANCELED"]


@pytest.mark.contract
@KILLED
def test_a_kill_names_the_jobs_that_are_not_canceled(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    ids = submitted(*5 * [LONG])
    stage.service.inject(Fault(on="cancel", kind="hang", times=None, skip=2))
    outcome = stage.kill_when(cancel_op(ids), lambda: stage.service.count("cancel") == 5)
    left = [each for each, status in zip(ids, stage.statuses, strict=True) if status != "CANCELED"]
    [named] = [line for line in caplog.messages if line.startswith(f"May still run, jobs of app {APP}: ")]
    assert len(left) == 3
    assert all(each in named for each in left)  # perhaps with one whose answer was on its way
    assert f"jobs of app {APP} may still run." in str(outcome.error)


# --- templates and ids --------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("make", [collect_op, cancel_op])
def test_ids_are_rendered_and_what_renders_to_nothing_is_no_id(
    stage: Stage, make: Callable[..., Any]
) -> None:
    op = make(["{{ id }}", "x"], app_id="{{ app }}", rungen_conn_id="{{ conn }}")
    op.render_template_fields(cast(Any, {"id": "job", "app": "an-app", "conn": "a_conn"}))
    assert (op.job_id, op.app_id, op.rungen_conn_id) == (["job", "x"], "an-app", "a_conn")
    for nothing in ("None", "['None']"):
        error = stage.error(make(nothing), AirflowFailException)
        assert "job_id" in str(error)
    assert stage.service.records() == []


@pytest.mark.contract
def test_the_template_fields_are_plain_attributes() -> None:
    for op in (run_op(), collect_op("j"), cancel_op("j")):
        for name in op.template_fields:
            assert name in vars(op), "a template field must not be computed: Airflow reads it when it parses"


@pytest.mark.contract
@pytest.mark.parametrize("make", [run_op, lambda: collect_op(["a"])])
def test_an_operator_that_has_run_can_be_pickled(stage: Stage, make: Any) -> None:
    op = make()
    stage.run(op)
    assert pickle.loads(pickle.dumps(op)).task_id == op.task_id  # noqa: S301 - our own
