"""``@task.rungen``: the function gives the input, the task the result, once a job, in every mode."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, task
from conftest import APP, FakeStore, FakeTaskInstance, Outcome, run_task
from rungen_emulator import Emulator, Service
from rungen_emulator.messages import Reply

from airflow_provider_rungen.decorators import rungen_task
from airflow_provider_rungen.task import store_writer

pytestmark = pytest.mark.usefixtures("unsettled")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
OPTIONS: dict[str, Any] = {"app_id": "llama-text", "poll_interval": 0.02}


def saying(words: str, **emulator: Any) -> dict[str, Any]:
    return {"prompt": words, "emulator": {"seconds": 0.2, **emulator}}


def operator(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with DAG("decorated", schedule=None):
        decorated: Any = rungen_task(**OPTIONS | options)
        return decorated(function)(*args).operator


class Attempts:
    """One task that is tried again, and the inputs its function gives."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.given, self.options = list(given), options
        self.calls = self.tries = 0
        self.store, self.ti = FakeStore(), FakeTaskInstance()

    def attempt(self, dying_at: str | None = None) -> Outcome:
        def say() -> Any:
            self.calls += 1
            given = self.given.pop(0)
            if isinstance(given, Exception):
                raise given
            return given

        def die(key: str, _: Any) -> None:
            if key == dying_at:
                raise SystemExit("the worker dies")

        self.tries += 1
        self.ti = FakeTaskInstance()
        self.ti.try_number, self.ti.max_tries = self.tries, 2
        self.ti.on_push = die
        context: Any = {"ti": self.ti, "task_state_store": self.store}
        try:
            return run_task(operator(say, **self.options), context)
        except SystemExit as death:
            return Outcome(error=death)


@pytest.mark.contract
@MODES
def test_a_dict_is_a_job_and_its_result_is_returned(rungen_emulator: Emulator, deferrable: bool) -> None:
    prompt = "{{ conn.rungen_default.password }} {% raw"  # what a function returns is no template
    task = Attempts(saying(prompt), deferrable=deferrable)
    outcome = task.attempt()
    assert (outcome.value, outcome.error) == (f"You said: {prompt}", None)
    assert len(outcome.events) == deferrable
    [job] = rungen_emulator.service.jobs()
    assert task.ti.xcoms["job_id"] == job["id"]
    assert task.calls == 1


@pytest.mark.contract
def test_a_list_is_no_input_and_a_table_is_named(rungen_emulator: Emulator) -> None:
    error = Attempts([saying("one"), saying("two")]).attempt().error
    assert isinstance(error, AirflowFailException)
    assert str(error) == (
        "The function returned a list, not the input of a job (a dict); nothing was sent. "
        "For many inputs, use RunGenRunTableOperator."
    )
    assert rungen_emulator.service.count("run") == 0


@pytest.mark.contract
@MODES
@pytest.mark.parametrize(
    ("emulator", "options", "told"),
    [
        ({"fail": "x"}, {}, "Failed: x (job "),
        ({}, {"output_type": {"type": "object"}}, "does not fit output_type"),
        ({"seconds": 60}, {"timeout": 0.1}, "Not over in time"),
    ],
    ids=["failed", "misfit", "late"],
)
def test_a_job_without_a_usable_result_fails_the_task(
    rungen_emulator: Emulator, deferrable: bool, emulator: Any, options: Any, told: str
) -> None:
    outcome = Attempts(saying("x", **emulator), deferrable=deferrable, **options).attempt()
    assert told in str(outcome.error)


@pytest.mark.contract
@MODES
def test_outputs_are_stored_where_they_are_wanted(
    rungen_emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    options = {"app_id": APP, "destination": str(tmp_path), "output_type": "flux-schnell"}
    manifest = Attempts(saying("a fox"), deferrable=deferrable, **options).attempt().value
    [job] = rungen_emulator.service.jobs()
    assert manifest["job_id"] == job["id"]
    [file] = manifest["outputs"]
    assert Path(file["uri"]).stat().st_size == file["size"]


def test_a_destination_that_is_lost_in_the_wait_keeps_no_job_from_being_canceled(
    rungen_emulator: Emulator,
    context: Any,
    ti: FakeTaskInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.5)
    folder = tmp_path / "outputs"

    def lose_it(key: str, _: Any) -> None:
        if key == "job_id":
            shutil.rmtree(folder)
            folder.touch()

    ti.on_push = lose_it
    options = {"destination": str(folder), "deferrable": True, "timeout": 0.5}
    outcome = run_task(operator(lambda: saying("a fox", seconds=60), task_id="say", **options), context)
    assert len(outcome.events) == 1
    assert outcome.error is not None
    assert [job["status"] for job in rungen_emulator.service.jobs()] == ["CANCELED"]


@pytest.mark.contract
def test_the_function_is_given_the_context_and_its_arguments(
    rungen_emulator: Emulator, ti: FakeTaskInstance
) -> None:
    def say(word: str, ds: str | None = None, *, run_id: str | None = None) -> dict[str, Any]:
        return saying(f"{word} on {ds} in {run_id}")

    op = operator(say, "hello")
    context: Any = {"ti": ti, "ds": "2025-01-01", "run_id": "manual"}
    assert run_task(op, context).value == "You said: hello on 2025-01-01 in manual"


@pytest.mark.contract
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("not today"), "ValueError: not today"),
        (KeyError("title"), "KeyError: 'title'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (AirflowFailException("no use"), "no use"),
    ],
)
def test_an_error_of_the_function_is_its_own(
    rungen_emulator: Emulator, context: Any, error: Exception, shown: str
) -> None:
    def say() -> None:
        raise error

    assert run_task(operator(say), context).error is error
    assert context["ti"].xcoms["rungen_failure"]["error"] == shown
    assert rungen_emulator.service.count("run") == 0


@pytest.mark.contract
@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (OSError("no database"), ["RUNNING", "CANCELED"]),
        (AirflowSkipException("nothing to do"), ["CANCELED"] * 2),
        (AirflowFailException("no use"), ["CANCELED"] * 2),
    ],
)
def test_a_function_that_fails_keeps_jobs_only_for_a_next_attempt(
    rungen_emulator: Emulator, error: Exception, statuses: list[str]
) -> None:
    task = Attempts(saying("a fox", seconds=60), error, error)
    assert isinstance(task.attempt(dying_at="job_id").error, SystemExit)
    for status in statuses:
        assert task.attempt().error is error
        assert [job["status"] for job in rungen_emulator.service.jobs()] == [status]


@pytest.mark.contract
def test_a_result_is_one_xcom_whatever_the_function_is_annotated_with() -> None:
    assert operator(saying, "x").multiple_outputs is False
    assert operator(saying, "x", multiple_outputs=True).multiple_outputs is True


@pytest.mark.contract
@pytest.mark.parametrize("mapped", [False, True])
def test_default_args_for_other_tasks_take_no_result_away(
    rungen_emulator: Emulator, context: Any, mapped: bool
) -> None:
    def say(word: str) -> dict[str, Any]:
        return saying(word)

    others = {"wait_for_completion": False, "deferrable": True}
    with DAG("decorated", schedule=None, default_args=others):
        decorated: Any = rungen_task(**OPTIONS)(say)
        op = decorated.expand(word=["a fox"]).operator if mapped else decorated("a fox").operator
    if mapped:
        op = op.unmap({"op_kwargs": {"word": "a fox"}})
    outcome = run_task(op, context)
    assert (outcome.value, len(outcome.events)) == ("You said: a fox", 1)


@pytest.mark.contract
def test_what_the_function_decides_is_no_parameter() -> None:
    for name in ("input", "wait_for_completion"):
        with pytest.raises(TypeError, match=name):
            operator(saying, "x", **{name: False})


@pytest.mark.contract
def test_airflow_knows_the_decorator() -> None:
    with DAG("found", schedule=None):

        @task.rungen(app_id="llama-text", retries=3)
        def say(prompt: str) -> dict[str, Any]:
            return {"prompt": prompt}

        one: Any = say("a")
        mapped: Any = say.override(task_id="mapped").expand(prompt=["a", "b"])
    assert one.operator.custom_operator_name == "@task.rungen"
    assert (one.operator.app_id, one.operator.retries) == ("llama-text", 3)
    assert len(mapped.operator.operator_extra_links) == 3


@pytest.mark.contract
def test_a_schema_that_cannot_be_read_after_the_wait_leaves_a_job_that_is_over_alone(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("{}")

    def spoil(key: str, value: Any) -> None:
        if key == "job_id":
            schema.write_text("no JSON")

    ti = FakeTaskInstance()
    ti.on_push = spoil
    op = operator(lambda: saying("one"), task_id="say", deferrable=True, output_type=str(schema))
    error = str(run_task(op, {"ti": ti}).error)
    assert "cannot be read" in error
    assert "may still run" not in error
    assert [job["status"] for job in rungen_emulator.service.jobs()] == ["COMPLETED"]


class FailsOnce(Service):
    """A service whose first job fails at its end."""

    has_failed = False

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        if method == "POST" and not self.has_failed:
            self.has_failed = True
            body = body.replace(b'"seconds"', b'"fail": "no luck", "seconds"')
        return super().handle(method, path, headers, body)


@pytest.mark.contract
def test_a_resumed_job_that_fails_after_a_deferral_is_bought_by_the_next_attempt(
    rungen_emulator: Emulator,
) -> None:
    """The function is called once an attempt, and the trigger does not know what it returned."""
    service = rungen_emulator.service = FailsOnce(workers=10)
    task = Attempts(*[saying("a fox", seconds=0.5)] * 3, deferrable=True)
    assert isinstance(task.attempt(dying_at="job_id").error, SystemExit)
    assert "no luck" in str(task.attempt().error)
    assert task.attempt().error is None
    assert (task.calls, [job["status"] for job in service.jobs()]) == (3, ["FAILED", "COMPLETED"])
