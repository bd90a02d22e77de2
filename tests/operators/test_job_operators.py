"""The operators, without a database: what they return, push, raise, and leave behind, in both modes."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException, TaskDeferred
from bad_answers import Fault
from conftest import APP, KEY, SOON, FakeStore, FakeTaskInstance, Outcome, run_task, signal_when

from airflow_provider_rungen.client import job_log as watch
from airflow_provider_rungen.decorators.rungen import RunGenDecoratedOperator
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConfigError,
    RunGenError,
    RunGenForbiddenError,
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
    RunGenRunBatchOperator,
    RunGenRunJobOperator,
)

pytestmark = pytest.mark.usefixtures("unsettled")

INPUT = {"prompt": "a red fox"}
LONG = {**INPUT, "emulator": {"seconds": 60}}
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
# The exception of a kill may strike in a finalizer, which swallows it. The task has to end all the same.
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def taking(seconds: float, **more: Any) -> dict[str, Any]:
    return {**INPUT, "emulator": {"seconds": seconds, **more}}


def run_op(**options: Any) -> RunGenRunJobOperator:
    options = {"task_id": "run", "input": INPUT, "poll_interval": 0.02, "defer_after": 0, **options}
    return RunGenRunJobOperator(**options)


@pytest.mark.parametrize("kind", [RunGenRunJobOperator, RunGenRunBatchOperator])
def test_a_deferral_without_a_wait_is_refused(kind: Any) -> None:
    given: dict[str, Any] = {"input": {}} if kind is RunGenRunJobOperator else {"inputs": []}
    options = {"task_id": "run", **given, "wait_for_completion": False}
    with pytest.raises(ValueError, match="wait_for_completion=True"):
        kind(**options, deferrable=True)
    assert kind(**options, deferrable=False).deferrable is False
    assert kind(**options | {"wait_for_completion": True}, deferrable=True).deferrable is True


def test_a_deferral_by_default_needs_no_wait() -> None:
    with DAG("deferring", schedule=None, default_args={"deferrable": True}):
        assert run_op().deferrable is True
        mapped = RunGenRunJobOperator.partial(task_id="mapped").expand(input=[INPUT])
    task: Any = mapped.unmap({"input": INPUT})
    assert task.deferrable is True
    # Airflow's default is read once, when the module is imported
    script = "; ".join(
        [
            "from airflow_provider_rungen.operators import RunGenRunJobOperator",
            "print(RunGenRunJobOperator(task_id='run', input={}).deferrable)",
        ]
    )
    environment = os.environ | {"AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"


def collect_op(job_id: Any, **options: Any) -> RunGenCollectResultsOperator:
    return RunGenCollectResultsOperator(
        **{"task_id": "collect", "job_id": job_id, "poll_interval": 0.02, "defer_after": 0, **options}
    )


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def states(emulator: Emulator) -> list[str]:
    return [job["status"] for job in emulator.service.jobs()]


class LazySequence:
    """As much of a sequence as the output of a mapped task is."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


# --- run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_default", [False, True])
def test_running_without_waiting_gives_the_id_at_once(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, by_default: bool
) -> None:
    with DAG("submitting", schedule=None, default_args={"deferrable": by_default}):
        op = run_op(input=LONG)
    assert op.deferrable is by_default
    outcome = run_task(op, context)
    [job] = rungen_emulator.service.jobs()
    assert outcome == Outcome(value=job["id"])
    assert ti.xcoms["job_id"] == job["id"]
    assert job["input"] == LONG
    assert rungen_emulator.service.count("get") == 0
    assert states(rungen_emulator) == ["RUNNING"]


@MODES
def test_running_and_waiting_gives_the_id(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, deferrable: bool
) -> None:
    op = run_op(input=taking(0.3), wait_for_completion=True, deferrable=deferrable)
    outcome = run_task(op, context)
    [job] = rungen_emulator.service.jobs()
    assert (outcome.value, outcome.error) == (job["id"], None)
    assert ti.xcoms["job_id"] == job["id"]
    assert states(rungen_emulator) == ["COMPLETED"]
    assert len(outcome.events) == deferrable


@MODES
def test_the_id_is_pushed_before_the_waiting(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, deferrable: bool
) -> None:
    seen: list[int] = []
    ti.on_push = lambda key, _: seen.append(rungen_emulator.service.count("get")) if key == "job_id" else None
    run_task(run_op(input=taking(0.1), wait_for_completion=True, deferrable=deferrable), context)
    assert seen == [0]
    assert rungen_emulator.service.count("get") > 0


@MODES
def test_a_failed_job_fails_the_task_with_the_services_words(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    op = run_op(input=taking(0.2, fail="out of memory"), wait_for_completion=True, deferrable=deferrable)
    outcome = run_task(op, context)
    [job] = rungen_emulator.service.jobs()
    assert type(outcome.error) is RunGenJobFailedError
    told = f"Failed: out of memory (job {job['id']}, app {APP}). "
    assert str(outcome.error) == told + "Correct its input if that is the reason, and run it again."
    assert (outcome.error.app_id, outcome.error.job_id) == (APP, job["id"])
    assert rungen_emulator.service.count("cancel") == 0


@MODES
def test_a_job_canceled_by_somebody_else_fails_the_task(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, deferrable: bool
) -> None:
    def cancel(key: str, value: Any) -> None:
        if key == "job_id":
            with RunGenHook() as hook:
                hook.cancel_job(job_id=value)

    ti.on_push = cancel
    outcome = run_task(run_op(input=LONG, wait_for_completion=True, deferrable=deferrable), context)
    assert type(outcome.error) is RunGenJobCanceledError
    assert ti.xcoms["job_id"] in str(outcome.error)


@MODES
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
    rungen_emulator: Emulator, context: Any, deferrable: bool, limit: dict[str, Any]
) -> None:
    op = run_op(input=LONG, wait_for_completion=True, deferrable=deferrable, **limit)
    started = time.monotonic()
    outcome = run_task(op, context)
    [job] = rungen_emulator.service.jobs()
    assert 0.25 < time.monotonic() - started < SOON
    assert type(outcome.error) is RunGenJobTimeoutError
    assert (outcome.error.app_id, outcome.error.job_id) == (APP, job["id"])
    assert job["id"] in str(outcome.error)
    assert "timeout" in str(outcome.error)
    assert states(rungen_emulator) == ["CANCELED"]


HOPELESS: dict[str, Any] = {
    "bad input": (lambda e: None, {"input": {"prompt": ""}}, "prompt"),
    "input of no kind": (lambda e: None, {"input": "{{ {'prompt': 'x'} }}"}, "dict"),
    "input that is no JSON": (lambda e: None, {"input": {"prompt": float("nan")}}, "input.prompt"),
    "no such app": (lambda e: None, {"app_id": "no-such-app"}, "no such app"),
    "app that is no id": (lambda e: None, {"app_id": "a/../b"}, "app_id"),
    "payment required": (lambda e: e.service.inject(Fault(on="run", status=402)), {}, "402"),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_what_is_hopeless_is_not_tried_again(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, case: str
) -> None:
    arrange, options, told = HOPELESS[case]
    arrange(rungen_emulator)
    outcome = run_task(run_op(**options), context)
    assert isinstance(outcome.error, AirflowFailException)
    assert told in str(outcome.error)
    assert KEY not in str(outcome.error)
    assert rungen_emulator.service.stats()["jobs_created"] == 0
    assert "job_id" not in ti.xcoms


def test_a_wrong_key_may_be_replaced_before_a_retry(rungen_emulator: Emulator, context: Any) -> None:
    rungen_emulator.service.api_key = "another"
    error = run_task(run_op(), context).error
    assert type(error) is RunGenForbiddenError
    assert error.retryable
    rungen_emulator.service.api_key = KEY
    assert run_task(run_op(), context).error is None


@pytest.mark.parametrize("make", [run_op, partial(collect_op, "job-1")], ids=["run", "collect"])
def test_a_wrong_connection_may_be_corrected_before_a_retry(
    context: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"conn_type": "rungen", "extra": {"proxy": "nowhere"}}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(wrong))
    error = run_task(make(rungen_conn_id="wrong"), context).error
    assert isinstance(error, RunGenConfigError)
    assert error.retryable


@pytest.mark.parametrize("name", ["poll_interval", "timeout"])
@pytest.mark.parametrize("bad", [0, None])
def test_a_duration_that_is_none_breaks_the_dag_file(name: str, bad: Any) -> None:
    for make in (run_op, lambda **options: collect_op("j", **options)):
        with pytest.raises(ValueError, match=name):
            make(**{name: bad})


# --- retries ------------------------------------------------------------------------------------------------


def test_the_trace_is_left_before_the_job_is_submitted_and_holds_no_input(
    rungen_emulator: Emulator, context: Any
) -> None:
    class Watching(FakeStore):
        def set(self, key: str, value: Any, **_: Any) -> None:
            if content := value.get("content"):
                text = zlib.decompress(base64.b64decode(content)).decode()
                if (kind := value["name"].partition("/")[0]) != "names":
                    kept.append((kind, rungen_emulator.service.count("run"), text))
            super().set(key, value)

    kept: list[tuple[str, int, str]] = []
    store = context["task_state_store"] = Watching()
    outcome = run_task(run_op(input={"prompt": "my secret prompt"}), context)
    # first the record of the attempt and the intent, then the id, and at the end the record again
    assert [entry[:2] for entry in kept] == [("attempts", 0), ("jobs", 0), ("jobs", 1), ("attempts", 1)]
    # nobody waits for the job, so that the record names it as one that may still run
    assert [outcome.value in text for *_, text in kept] == [False, False, True, True]
    written = str(store.kept) + str(kept)
    assert "my secret prompt" not in written
    assert KEY not in written


# --- killed -------------------------------------------------------------------------------------------------


@KILLED
@pytest.mark.feature("kill")
def test_a_kill_cancels_the_job_and_ends_the_task(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance
) -> None:
    op = run_op(input=LONG, wait_for_completion=True, timeout=60)
    with signal_when(signal.SIGTERM, lambda: rungen_emulator.service.count("get") > 1, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert sent
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert not isinstance(outcome.error, AirflowFailException)
    assert states(rungen_emulator) == ["CANCELED"]
    assert ti.xcoms["job_id"]


@KILLED
def test_a_kill_in_the_middle_of_a_log_line_is_not_lost(
    rungen_emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(logging.Handler):
        """What every handler of the standard library does about an exception, a kill among them."""

        def emit(self, record: logging.LogRecord) -> None:
            try:
                if not killed and "Running" in record.getMessage():
                    killed.append(time.monotonic())
                    op.on_kill()
            except Exception:
                self.handleError(record)

    killed: list[float] = []
    op = run_op(input=LONG, wait_for_completion=True, timeout=60)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(watch.log, "handlers", [Handler()])
    outcome = run_task(op, context)
    assert killed
    assert time.monotonic() - killed[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert "killed" in str(outcome.error)


@pytest.mark.usefixtures("on_the_wire")
@KILLED
def test_a_kill_while_a_look_hangs_ends_the_task(rungen_emulator: Emulator, context: Any) -> None:
    rungen_emulator.service.inject(Fault(on="get", kind="hang", skip=1))
    op = run_op(input=LONG, wait_for_completion=True, timeout=60)
    with signal_when(signal.SIGTERM, lambda: rungen_emulator.service.count("get") > 1, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert states(rungen_emulator) == ["CANCELED"]


@pytest.mark.usefixtures("on_the_wire")
@KILLED
@pytest.mark.feature("kill")
def test_a_kill_during_the_submission_waits_for_the_id_and_cancels_the_job(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance
) -> None:
    rungen_emulator.service.inject(Fault(on="run", kind="drip", drip_seconds=0.002))
    op = run_op(input=LONG)
    with signal_when(signal.SIGTERM, lambda: rungen_emulator.service.count("run") > 0, op.on_kill) as sent:
        outcome = run_task(op, context)
    [job] = rungen_emulator.service.jobs()
    assert sent
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert ti.xcoms["job_id"] == job["id"]
    assert job["status"] == "CANCELED"


@pytest.mark.usefixtures("on_the_wire")
@KILLED
def test_a_time_limit_that_strikes_during_the_submission_does_not_lose_the_job(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance
) -> None:
    class TaskTimeout(BaseException):
        """What Airflow raises from its alarm; it then calls ``on_kill``."""

    def strike() -> None:
        raise TaskTimeout

    rungen_emulator.service.inject(Fault(on="run", kind="drip", drip_seconds=0.002))
    op = run_op(input=LONG)
    with (
        signal_when(signal.SIGALRM, lambda: rungen_emulator.service.count("run") > 0, strike) as sent,
        pytest.raises(TaskTimeout),
    ):
        run_task(op, context, timeout=None)
    op.on_kill()
    [job] = rungen_emulator.service.jobs()
    assert sent
    assert ti.xcoms.get("job_id") == job["id"]
    assert job["status"] == "CANCELED"


# --- collect ------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("wait", [True, False])
def test_one_id_gives_one_result_and_a_list_a_list(
    rungen_emulator: Emulator, context: Any, deferrable: bool, wait: bool
) -> None:
    seconds = 0.2 if wait else 0
    ids = submitted(*[taking(seconds, result={"n": number}) for number in range(3)])
    options: dict[str, Any] = {"deferrable": deferrable, "wait_for_completion": wait}

    assert run_task(collect_op(ids[0], **options), context).value == {"n": 0}
    assert run_task(collect_op([ids[0]], **options), context).value == [{"n": 0}]
    order = [ids[2], ids[0], ids[2], ids[1]]
    assert run_task(collect_op(order, **options), context).value == [{"n": 2}, {"n": 0}, {"n": 2}, {"n": 1}]
    assert run_task(collect_op(tuple(ids), **options), context).value == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert run_task(collect_op(LazySequence(*ids), **options), context).value == [
        {"n": 0},
        {"n": 1},
        {"n": 2},
    ]
    assert run_task(collect_op([], **options), context).value == []


@pytest.mark.parametrize("result", [None, "", False, {"images": [{"image": "https://x/y?z"}]}])
def test_a_result_is_returned_as_it_is(rungen_emulator: Emulator, context: Any, result: Any) -> None:
    [job_id] = submitted(taking(0, result=result))
    assert run_task(collect_op(job_id), context) == Outcome(value=result)


@MODES
def test_collecting_a_failed_job_is_hopeless(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    good, bad, gone = submitted(taking(0), taking(0.2, fail="out of memory"), taking(60))
    with RunGenHook() as hook:
        hook.cancel_job(job_id=gone)
    outcome = run_task(collect_op([good, bad], deferrable=deferrable), context)
    assert isinstance(outcome.error, AirflowFailException)
    told = f"Failed: out of memory (job {bad}, app {APP}). "
    assert str(outcome.error) == told + "Correct its input if that is the reason, and run it again."
    outcome = run_task(collect_op([gone], deferrable=deferrable), context)
    assert isinstance(outcome.error, AirflowFailException)
    assert "Canceled" in str(outcome.error)
    outcome = run_task(collect_op([good, bad, gone], deferrable=deferrable), context)
    assert isinstance(outcome.error, AirflowFailException)
    assert all(each in str(outcome.error) for each in ("2 jobs", bad, gone))
    assert good not in str(outcome.error)


def test_a_failed_job_that_is_named_twice_is_told_once(rungen_emulator: Emulator, context: Any) -> None:
    [bad] = submitted(taking(0, fail="x"))
    outcome = run_task(collect_op([bad, bad]), context)
    assert str(outcome.error).count(bad) == 1


def test_collecting_without_waiting_what_is_not_over_is_an_error_that_may_pass(
    rungen_emulator: Emulator, context: Any
) -> None:
    slow, bad = submitted(LONG, taking(0, fail="x"))
    outcome = run_task(collect_op(slow, wait_for_completion=False), context)
    assert type(outcome.error) is RunGenJobError
    assert "Not over yet" in str(outcome.error)
    assert str(outcome.error).endswith(". Wait for it first.")
    assert states(rungen_emulator)[0] == "RUNNING"
    # with a failed one among them, trying again cannot help
    outcome = run_task(collect_op([slow, bad], wait_for_completion=False), context)
    assert isinstance(outcome.error, AirflowFailException)


@MODES
def test_collecting_ends_in_time_and_leaves_the_jobs(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    ids = submitted(LONG, LONG)
    outcome = run_task(collect_op(ids, timeout=0.2, deferrable=deferrable), context)
    assert type(outcome.error) is RunGenJobTimeoutError
    assert ids[0] in str(outcome.error)
    assert str(outcome.error).endswith(". Raise timeout or execution_timeout if it needs longer.")
    assert outcome.error.app_id == APP
    assert states(rungen_emulator) == ["RUNNING", "RUNNING"]


@KILLED
def test_a_kill_leaves_collected_jobs_alone(rungen_emulator: Emulator, context: Any) -> None:
    ids = submitted(LONG, LONG)
    op = collect_op(ids)
    with signal_when(signal.SIGTERM, lambda: rungen_emulator.service.count("get") > 1, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert states(rungen_emulator) == ["RUNNING", "RUNNING"]


def test_a_result_url_is_not_logged(
    rungen_emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ids = submitted(taking(0.1))
    with caplog.at_level("DEBUG", logger="airflow_provider_rungen"):
        outcome = run_task(collect_op(ids, deferrable=True), context)
    assert "X-Amz-Signature" in str(outcome.value)
    assert "X-Amz-Signature" not in caplog.text
    assert "X-Amz-Signature" not in str(outcome.events)


# --- schemas ------------------------------------------------------------------------------------------------

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.mark.parametrize("source", ["flux-schnell", "file"])
@pytest.mark.feature("schemas")
def test_an_input_that_does_not_fit_its_schema_is_not_sent(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, source: str
) -> None:
    if source == "file":
        path = tmp_path / "schema.json"
        path.write_text('{"properties": {"width": {"minimum": 1}}}')
        source = f"file://{path}"
    context["task_state_store"] = store = FakeStore()
    outcome = run_task(run_op(input={**INPUT, "width": -5}, input_schema=source), context)
    assert type(outcome.error) is AirflowFailException
    assert f"input.width: -5 is less than the minimum of 1 (input_schema {source})" in str(outcome.error)
    assert rungen_emulator.service.records() == []
    assert store.kept == {}
    assert run_task(run_op(input={**INPUT, "width": 64}, input_schema=source), context).error is None


def test_a_schema_that_is_gone_does_not_keep_a_retry_from_its_job(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, tmp_path: Path
) -> None:
    path = tmp_path / "schema.json"
    path.write_text("{}")
    context["task_state_store"] = FakeStore()
    ti.max_tries = 3
    first = run_task(run_op(input_schema=str(path)), context)
    path.unlink()
    ti.try_number = 2
    second = run_task(run_op(input_schema=str(path), wait_for_completion=True), context)
    assert second == first
    outcome = run_task(run_op(input={"prompt": "another"}, input_schema=str(path)), context)
    assert type(outcome.error) is AirflowFailException
    assert "cannot be read" in str(outcome.error)
    assert rungen_emulator.service.count("run") == 1


@MODES
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.feature("schemas")
def test_a_result_that_does_not_fit_its_schema_is_hopeless(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, deferrable: bool, wait: bool
) -> None:
    seconds = 0.2 if wait else 0
    good, bad, worse = submitted(
        *[taking(seconds, result=result) for result in ({"text": "x"}, {"text": 7}, {})]
    )
    options: dict[str, Any] = {"deferrable": deferrable, "wait_for_completion": wait, "result_schema": TEXT}
    assert run_task(collect_op(good, **options), context).value == {"text": "x"}
    outcome = run_task(collect_op([good, bad], **options), context)
    assert type(outcome.error) is AirflowFailException
    assert type(outcome.error.__cause__) is RunGenResultError
    assert str(outcome.error) == (
        f"The result of job {bad} of app {APP} does not fit result_schema: "
        "result.text: 7 is not of type 'string'. Look at the result, or correct the schema."
    )
    outcome = run_task(collect_op([bad, good, worse], **options), context)
    assert type(outcome.error) is AirflowFailException
    assert all(told in str(outcome.error) for told in ("2 jobs", bad, worse, "'text' is a required"))
    assert good not in str(outcome.error)


# --- cancel -------------------------------------------------------------------------------------------------


def test_canceling_gives_the_ids_of_what_was_canceled(rungen_emulator: Emulator, context: Any) -> None:
    over, slow, queued = submitted(taking(0), LONG, LONG)
    ids: Any = LazySequence(over, slow, None, queued)
    op = RunGenCancelJobOperator(task_id="cancel", job_id=ids)
    assert run_task(op, context) == Outcome(value=[slow, queued])
    assert states(rungen_emulator) == ["COMPLETED", "CANCELED", "CANCELED"]
    assert run_task(RunGenCancelJobOperator(task_id="c", job_id=over), context) == Outcome(value=[])
    assert run_task(RunGenCancelJobOperator(task_id="c", job_id=[]), context) == Outcome(value=[])


def test_canceling_what_is_over_fails_when_told_to(rungen_emulator: Emulator, context: Any) -> None:
    over, slow = submitted(taking(0), LONG)
    op = RunGenCancelJobOperator(task_id="cancel", job_id=[over], fail_if_over=True)
    outcome = run_task(op, context)
    assert isinstance(outcome.error, AirflowFailException)
    assert over in str(outcome.error)
    assert states(rungen_emulator) == ["COMPLETED", "RUNNING"]
    assert slow


def test_a_job_that_cannot_be_canceled_fails_the_task_after_the_others_are(
    rungen_emulator: Emulator, context: Any
) -> None:
    stubborn, slow = submitted(LONG, LONG)
    rungen_emulator.service.inject(Fault(on="cancel", status=409, job_id=stubborn, times=None))
    for ids, canceled in (([stubborn, slow], 1), ([stubborn], 1)):
        outcome = run_task(RunGenCancelJobOperator(task_id="cancel", job_id=ids), context)
        assert type(outcome.error) is RunGenAPIError
        assert f"but it is RUNNING (job {stubborn}, app {APP})" in str(outcome.error)
        assert rungen_emulator.service.stats()["jobs_cancelled"] == canceled
    assert states(rungen_emulator) == ["RUNNING", "CANCELED"]


def test_no_job_keeps_the_others_from_being_canceled(
    rungen_emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    over, broken, *slow = submitted(taking(0), LONG, LONG, LONG)
    rungen_emulator.service.inject(Fault(on="cancel", status=500, job_id=broken, times=5))
    op = RunGenCancelJobOperator(task_id="c", job_id=["unknown", over, broken, *slow], fail_if_over=True)
    error = run_task(op, context).error
    assert states(rungen_emulator) == ["COMPLETED", "RUNNING", "CANCELED", "CANCELED"]
    assert all(each in str(error) for each in ("3 jobs could not be canceled", "unknown", over, broken))
    assert any("unknown" in line and over in line and broken in line for line in caplog.messages)
    # it cancels the one that the service had no answer for
    assert isinstance(error, RunGenError)
    assert error.retryable
    run_task(op, context)
    assert states(rungen_emulator) == ["COMPLETED", "CANCELED", "CANCELED", "CANCELED"]


@MODES
def test_a_job_that_cannot_be_canceled_is_named(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    rungen_emulator.service.inject(Fault(on="cancel", status=409, times=None))
    outcome = run_task(
        run_op(input=LONG, wait_for_completion=True, timeout=0.3, deferrable=deferrable), context
    )
    [job] = rungen_emulator.service.jobs()
    assert job["status"] == "RUNNING"
    left = f"Could not cancel job {job['id']} of app {APP}, which may still run"
    assert left in str(outcome.error)


def test_canceling_what_there_is_not_is_hopeless(rungen_emulator: Emulator, context: Any) -> None:
    outcome = run_task(RunGenCancelJobOperator(task_id="cancel", job_id="unknown"), context)
    assert isinstance(outcome.error, AirflowFailException)
    assert "unknown" in str(outcome.error)


# --- templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [collect_op, lambda job_id, **o: RunGenCancelJobOperator(task_id="c", job_id=job_id, **o)]
)
def test_ids_are_rendered(make: Any) -> None:
    op = make(["{{ id }}", "x"], app_id="{{ app }}", rungen_conn_id="{{ conn }}")
    op.render_template_fields(cast(Any, {"id": "job", "app": "an-app", "conn": "a_conn"}))
    assert (op.job_id, op.app_id, op.rungen_conn_id) == (["job", "x"], "an-app", "a_conn")


def test_the_template_fields_are_plain_attributes() -> None:
    for op in (run_op(), collect_op("j"), RunGenCancelJobOperator(task_id="c", job_id="j")):
        for name in op.template_fields:
            assert name in vars(op), "a template field must not be computed: Airflow reads it when it parses"


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_job_that_the_service_knows_only_after_a_moment_is_not_given_up(
    rungen_emulator: Emulator, context: Any, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.jobs.runner.VISIBILITY_GRACE", 0.5)
    rungen_emulator.service.inject(Fault(on="get", status=404, times=2))
    outcome = run_task(run_op(wait_for_completion=True, deferrable=deferrable), context)
    assert outcome.value
    assert states(rungen_emulator) == ["COMPLETED"]


@pytest.mark.parametrize("kind", ["run", "batch"])
@pytest.mark.parametrize("ended", [None, "0-99"])
def test_an_event_is_only_a_hint_to_look_at_the_jobs(
    rungen_emulator: Emulator, context: Any, ended: Any, kind: str
) -> None:
    """It may say that too little is over, or too much, or nothing that can be read."""
    op: Any = run_op(input=taking(0.3), wait_for_completion=True, deferrable=True)
    if kind == "batch":
        options: dict[str, Any] = {"wait_for_completion": True, "deferrable": True, "defer_after": 0}
        op = RunGenRunBatchOperator(task_id="run", inputs=[taking(0.3)], poll_interval=0.02, **options)
    with pytest.raises(TaskDeferred):
        op.execute(context)
    op.defer_after = 60
    value = op.execute_complete(context, {"outcome": "go on", "ended": ended, "extra": 1})
    [job] = rungen_emulator.service.jobs()
    assert (value, job["status"]) == (job["id"] if kind == "run" else [job["id"]], "COMPLETED")


# --- ids as templates write them ----------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["None", "['None']"])
def test_a_template_that_renders_to_nothing_is_no_id(
    rungen_emulator: Emulator, context: Any, nothing: str
) -> None:
    for op in (collect_op(nothing), RunGenCancelJobOperator(task_id="cancel", job_id=nothing)):
        error = run_task(op, context).error
        assert isinstance(error, AirflowFailException)
        assert "job_id" in str(error)
    assert rungen_emulator.service.records() == []


# --- a kill that comes early --------------------------------------------------------------------------------


def early(kind: str) -> Any:
    if kind == "decorated":
        return RunGenDecoratedOperator(
            task_id="t", python_callable=lambda: taking(0), op_args=[], op_kwargs={}
        )
    if kind == "batch":
        return RunGenRunBatchOperator(task_id="t", inputs=[taking(0)] * 3)
    if kind == "create":
        workflow = {"model_url": "https://models.example/flux"}
        return RunGenCreateAppOperator(
            task_id="t", name="new", configuration={"gpu_tier": "BASIC"}, workflow=workflow
        )
    return run_op(input=taking(0))


@pytest.mark.parametrize("kind", ["job", "batch", "decorated", "create"])
def test_a_kill_before_the_task_begins_sends_nothing(
    rungen_emulator: Emulator, context: Any, kind: str
) -> None:
    """Airflow calls on_kill() while it renders the templates, too, and then executes all the same."""
    op = early(kind)
    op.on_kill()
    outcome = run_task(op, context)
    assert "The task was killed." in str(outcome.error)
    assert rungen_emulator.service.count("run") == rungen_emulator.service.count("create_app") == 0


@pytest.mark.parametrize("make", [run_op, lambda: collect_op(["a"])])
def test_an_operator_that_has_run_can_be_pickled(rungen_emulator: Emulator, context: Any, make: Any) -> None:
    op = make()
    run_task(op, context)
    assert pickle.loads(pickle.dumps(op)).task_id == op.task_id  # noqa: S301 - our own


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_list_of_nothing_that_may_fail_gives_nothing(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    assert run_task(collect_op([None], max_failed=1, deferrable=deferrable), context).value == [None]


def test_a_kill_while_the_record_is_read_sends_nothing(rungen_emulator: Emulator, context: Any) -> None:
    op = run_op(input=taking(0))

    class Store(FakeStore):
        def get(self, key: str) -> Any:
            op.on_kill()
            return super().get(key)

    context["task_state_store"] = Store()
    assert "The task was killed." in str(run_task(op, context).error)
    assert rungen_emulator.service.count("run") == 0
