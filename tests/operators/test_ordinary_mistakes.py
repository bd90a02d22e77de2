"""Ordinary mistakes are answered at once: one request, one line that says what to do, and no retry."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from conftest import APP, KEY, Outcome, rows_in, run_task
from rungen_emulator import Emulator, Fault
from rungen_emulator.fakes import FakeTaskInstance

from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenForbiddenError,
    RunGenJobQueuedTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
)
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]

# Seconds that a mistake may cost. Each of the waits below is longer.
AT_ONCE = 5.0
WAITS = {"PATIENCE": 60.0, "BACKOFF": 5.0}
INPUT = {"prompt": "a red fox"}
NO_JOB = "e9257302-0000-4000-8000-000000000000"
REFUSED = {
    401: "no key",
    402: "no money",
    403: "invalid API key",
    404: "no such app",
    405: "method not allowed",
    409: "the app is being deleted",
    410: "the app is gone",
    418: "a teapot",
    451: "not in your country",
}
DEFERRABLE = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferrable"])


@pytest.fixture(autouse=True)
def _waits_of_users(_short_waits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in WAITS.items():
        monkeypatch.setattr(f"airflow_provider_rungen.client.retry.{name}", seconds)


@dataclass
class Stage:
    """Runs tasks against an emulator on the wire, and tells what they cost."""

    emulator: Emulator
    folder: Path
    ti: FakeTaskInstance = field(default_factory=FakeTaskInstance)
    seconds: float = 0.0

    def run(self, op: Any) -> Outcome:
        begun = time.monotonic()
        outcome = run_task(op, {"ti": self.ti, "task_instance": self.ti})
        self.seconds = time.monotonic() - begun
        return outcome

    def refuse(self, on: str, status: int, **options: Any) -> None:
        """Answer requests with an error, in the service's own words."""
        words = {"error": REFUSED.get(status, "prompt must be text")}
        self.emulator.service.inject(Fault(on=on, status=status, body=words, times=None, **options))

    def mistake(self, op: Any) -> str:
        """Run a task that makes an ordinary mistake, and return the line that ends its log."""
        outcome = self.run(op)
        error = outcome.error
        assert type(error) is AirflowFailException, "Airflow must not retry it"
        assert self.seconds < AT_ONCE
        line = str(error)
        assert len(line) < 300
        assert line.isprintable()
        assert KEY not in line
        # what Airflow logs of it: one error without a cause, and a few frames of this package
        logged = traceback.TracebackException.from_exception(error)
        assert logged.__cause__ is None
        assert logged.__suppress_context__
        ours = [frame for frame in logged.stack if "airflow_provider_rungen" in frame.filename]
        assert len(ours) <= 2
        # what to do begins a line, the end of which Airflow's UI cuts off
        hint = getattr(error, "hint", "")
        assert (f".\n{hint}." if hint else line) in outcome.log
        return line

    @property
    def sent(self) -> list[str]:
        return [record.operation for record in self.emulator.service.records()]

    def job(self, **options: Any) -> RunGenRunJobOperator:
        given: dict[str, Any] = {"input": INPUT, "wait_for_completion": True, "poll_interval": 0.05}
        return RunGenRunJobOperator(task_id="run", **given | options)

    def table(self, rows: list[dict[str, Any]] | None = None, **options: Any) -> RunGenRunTableOperator:
        given: dict[str, Any] = {"destination": str(self.folder / "out"), "poll_interval": 0.05}
        return RunGenRunTableOperator(task_id="table", table=rows or pictures(20), **given | options)


def pictures(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {number}"} for number in range(count)]


@pytest.fixture
def stage(rungen_emulator: Emulator, tmp_path: Path) -> Stage:
    return Stage(rungen_emulator, tmp_path)


@pytest.fixture
def wrong_key(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a connection with a key that the service does not know."""
    connection = json.loads(stage.emulator.airflow_connection()) | {"password": "rk-wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(connection))
    return "wrong"


def test_where_an_error_comes_from_is_for_debug(
    stage: Stage, wrong_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    stage.refuse("run", 403)
    stage.mistake(stage.job(rungen_conn_id=wrong_key))
    shown = [each.getMessage() for each in caplog.records if each.levelname != "DEBUG"]
    assert not any(".py" in text for text in shown)
    [frames] = [each.getMessage() for each in caplog.records if each.getMessage().startswith("Raised at")]
    assert "client/codec.py" in frames
    assert "RunGenForbiddenError" in frames


# --- submissions --------------------------------------------------------------------------------------------


@DEFERRABLE
def test_a_wrong_key(stage: Stage, wrong_key: str, deferrable: bool) -> None:
    stage.refuse("run", 403)
    line = stage.mistake(stage.job(rungen_conn_id=wrong_key, deferrable=deferrable))
    assert line == (
        f"Could not run a job of app {APP} (403): invalid API key. Check the password of connection 'wrong'."
    )
    assert stage.sent == ["run"]


def test_a_wrong_key_of_a_team(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = stage.emulator.airflow_connection(team_id="art")
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)
    stage.refuse("run", 403)
    line = stage.mistake(stage.job())
    assert line.endswith("Check the password and Team ID of connection 'rungen_default'.")


@pytest.mark.parametrize("status", REFUSED)
def test_a_job_that_is_refused(stage: Stage, status: int) -> None:
    stage.refuse("run", status)
    line = stage.mistake(stage.job())
    assert line.startswith(f"Could not run a job of app {APP} ({status}): {REFUSED[status]}. ")
    assert "connection 'rungen_default'" in line
    assert stage.sent.count("run") == 1


SPELLINGS: dict[str, tuple[dict[str, Any], str]] = {
    "message": ({"message": "no money"}, "no money"),
    "detail": ({"detail": "no money"}, "no money"),
    "detail in a list": ({"detail": [{"loc": ["body"], "msg": "no money"}]}, "no money"),
    "errors": ({"errors": [{"message": "no money"}, {"message": "no card"}]}, "no money; no card"),
    "nested": ({"error": {"message": "no money"}}, "no money"),
    "another field": ({"explanation": "no money"}, "no money"),
    "empty": ({}, "the service gave no reason"),
}


@pytest.mark.parametrize("status", [400, 402, 403, 404, 409, 422])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_refusal_in_any_spelling_is_final(stage: Stage, spelling: str, status: int) -> None:
    body, words = SPELLINGS[spelling]
    stage.emulator.service.inject(Fault(on="run", status=status, body=body, times=None))
    line = stage.mistake(stage.job())
    assert line.startswith(f"Could not run a job of app {APP} ({status}): ")
    assert words in line
    assert stage.sent.count("run") == 1


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_table_and_a_hook_believe_it_too(stage: Stage, spelling: str) -> None:
    body, words = SPELLINGS[spelling]
    stage.emulator.service.inject(Fault(on="run", status=402, body=body, times=None))
    assert words in stage.mistake(stage.table())
    assert stage.sent.count("run") == 1
    with RunGenHook() as hook, pytest.raises(RunGenAPIError) as raised:
        hook.run_job(input=INPUT)
    assert words in str(raised.value)
    assert not raised.value.retryable
    assert stage.sent.count("run") == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_input_that_is_refused(stage: Stage, status: int) -> None:
    stage.refuse("run", status)
    assert stage.mistake(stage.job()) == (
        f"Could not run a job of app {APP} ({status}): prompt must be text. Correct the input (connection "
        "'rungen_default')."
    )
    assert stage.sent == ["run"]


def test_many_words_of_the_service_are_cut_to_a_line(stage: Stage) -> None:
    words = {"error": f"invalid\nAPI key {KEY} " + "very " * 200}
    stage.emulator.service.inject(Fault(on="run", status=403, body=words, times=None))
    line = stage.mistake(stage.job())
    assert line.startswith(f"Could not run a job of app {APP} (403): invalid\\nAPI key")
    assert line.endswith("Check the password of connection 'rungen_default'.")


def test_a_hook_raises_its_own_error(stage: Stage) -> None:
    stage.refuse("run", 403)
    with RunGenHook() as hook, pytest.raises(RunGenForbiddenError, match="connection 'rungen_default'"):
        hook.run_job(input=INPUT)
    assert stage.sent == ["run"]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 408},
        {"status": 408, "body": {"message": "slow"}},
        {"status": 429, "body": {"message": "busy"}},
        {"status": 503},
        {"status": 403, "body": "<h1>WAF</h1>"},
        {"status": 403, "body": ""},
        {"status": 402, "body": ["no object"]},
    ],
)
def test_what_is_no_refusal_of_the_service_is_none(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.05)
    stage.emulator.service.inject(Fault(on="run", times=None, **fault))
    error = stage.run(stage.job()).error
    assert not isinstance(error, AirflowFailException), "a retry may help"


# --- an app that does not exist -----------------------------------------------------------------------------


def test_a_mistyped_app_names_the_apps_that_there_are(stage: Stage) -> None:
    line = stage.mistake(stage.job(app_id="fluks"))
    assert line == (
        "Could not run a job of app fluks (404): no such app. Correct app_id: connection 'rungen_default' "
        "has FLUX Schnell (flux-schnell), Llama (llama-text)."
    )
    assert stage.sent == ["run", "list_apps"]


def test_of_many_apps_some_are_named(stage: Stage) -> None:
    for number in range(40):
        stage.emulator.service.add_app(f"00000000-0000-4000-8000-0000000000{number}")
    line = stage.mistake(stage.job(app_id="fluks"))
    assert "FLUX Schnell (flux-schnell)" in line
    assert "more." in line[-10:]


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}, {"kind": "reset_before"}])
def test_without_the_apps_the_line_still_comes(stage: Stage, fault: dict[str, Any]) -> None:
    stage.emulator.service.inject(Fault(on="list_apps", times=None, **fault))
    line = stage.mistake(stage.job(app_id="fluks"))
    assert line.startswith("Could not run a job of app fluks (404): no such app. Check ")
    assert stage.sent == ["run", "list_apps"]


def test_a_table_asks_for_the_app_first(stage: Stage) -> None:
    line = stage.mistake(stage.table(app_id="fluks"))
    assert line.startswith("Could not get the app (404): no such app (app fluks). Correct app_id: connection")
    assert "Llama (llama-text)" in line
    assert stage.sent == ["get_app", "list_apps"]


def test_a_hook_names_the_apps_too(stage: Stage) -> None:
    with RunGenHook() as hook, pytest.raises(RunGenNotFoundError, match="Llama"):
        hook.get_app(app_id="fluks")


def test_so_does_the_test_of_a_connection(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", stage.emulator.airflow_connection(app_id="fluks"))
    is_well, message = RunGenHook().test_connection()
    assert not is_well
    assert "FLUX Schnell (flux-schnell), Llama (llama-text)" in message


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_stops_a_table_and_releases_what_was_claimed(stage: Stage, status: int) -> None:
    stage.refuse("run", status)
    line = stage.mistake(stage.table())
    assert f"({status}): {REFUSED[status]}" in line
    assert stage.sent.count("run") == 1, "the others wait for the first answer"
    stage.emulator.service.clear_faults()
    stage.ti = FakeTaskInstance()
    stage.ti.run_id = "another"
    outcome = stage.run(stage.table())
    assert outcome.error is None
    assert stage.seconds < 4 * AT_ONCE, "a claim of another run is waited for"
    assert stage.emulator.service.stats()["jobs_created"] == 20


def test_a_row_that_is_refused_is_a_verdict_of_that_row(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    words = {"error": "prompt is too rude"}
    stage.emulator.service.inject(Fault(on="run", status=422, body=words, skip=1))
    results = str(stage.folder / "out" / "results.jsonl")
    outcome = stage.run(stage.table(pictures(4), max_failed="any", results=results))
    assert outcome.error is None
    rows = rows_in(stage.folder / "out")
    assert sorted(row["status"] for row in rows) == ["completed"] * 3 + ["refused"]
    [refused] = [row for row in rows if row["status"] == "refused"]
    assert "prompt is too rude" in refused["error"]
    lines = [record.getMessage() for record in caplog.records if "too rude" in record.getMessage()]
    assert any(
        line.startswith(f"Could not run a job of app {APP} (422): prompt is too rude") for line in lines
    )
    assert stage.sent.count("run") == 4


def test_a_refusal_while_jobs_run_takes_what_they_bring_first(stage: Stage) -> None:
    """The first submissions were accepted: what they bought is stored, and a retry buys the rest."""
    stage.refuse("run", 402, skip=3)
    outcome = stage.run(stage.table())
    assert getattr(outcome.error, "retryable", False)
    assert "no money" in str(outcome.error)
    assert stage.seconds < AT_ONCE
    bought = [job["status"] for job in stage.emulator.service.jobs()]
    assert bought == ["COMPLETED"] * len(bought)
    assert len(bought) >= 3
    stage.emulator.service.clear_faults()
    assert stage.run(stage.table()).error is None
    assert stage.emulator.service.stats()["jobs_created"] == 20


# --- jobs of somebody else ----------------------------------------------------------------------------------


def others(job_id: str, deferrable: bool) -> dict[str, Callable[[], Any]]:
    """Return what waits for, collects and cancels a job."""
    return {
        "sensor": lambda: RunGenJobSensor(
            task_id="wait", job_id=job_id, poke_interval=0.05, deferrable=deferrable
        ),
        "collect": lambda: RunGenCollectResultsOperator(
            task_id="collect", job_id=job_id, poll_interval=0.05, deferrable=deferrable
        ),
        "collect at once": lambda: RunGenCollectResultsOperator(
            task_id="collect", job_id=job_id, wait_for_completion=False
        ),
        "cancel": lambda: RunGenCancelJobOperator(task_id="cancel", job_id=job_id),
    }


@DEFERRABLE
@pytest.mark.parametrize("name", others("", deferrable=False))
def test_a_mistyped_job(stage: Stage, name: str, deferrable: bool) -> None:
    line = stage.mistake(others(NO_JOB, deferrable)[name]())
    assert "(404)" in line
    assert f"(job {NO_JOB}, app {APP})" in line
    assert "connection 'rungen_default'" in line
    assert len(stage.sent) == 1


@DEFERRABLE
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("name", others("", deferrable=False))
def test_a_key_that_is_wrong_at_the_first_look(
    stage: Stage, name: str, status: int, deferrable: bool
) -> None:
    stage.refuse("any", status)
    line = stage.mistake(others(NO_JOB, deferrable)[name]())
    assert f"({status})" in line
    assert line.endswith("Check the password of connection 'rungen_default'.")
    assert len(stage.sent) == 1


@pytest.fixture
def somebodys_job(stage: Stage) -> str:
    with RunGenHook() as hook:
        return hook.run_job(input=INPUT | {"emulator": {"seconds": 1.0}}).id


@DEFERRABLE
@pytest.mark.parametrize("status", [403, 404])
def test_a_wait_that_worked_has_patience(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, somebodys_job: str, status: int, deferrable: bool
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.05)
    stage.emulator.service.inject(Fault(on="get", status=status, skip=1, times=3))
    assert stage.run(others(somebodys_job, deferrable)["sensor"]()).error is None


@DEFERRABLE
@pytest.mark.parametrize("status", [403, 404])
def test_an_accepted_submission_counts_as_that(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, status: int, deferrable: bool
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.05)
    stage.emulator.service.inject(Fault(on="get", status=status, times=3))
    assert stage.run(stage.job(deferrable=deferrable)).error is None


@DEFERRABLE
def test_a_refusal_that_lasts_ends_a_wait_after_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, somebodys_job: str, deferrable: bool
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.05)
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", 1.0)
    stage.refuse("get", 403, skip=1)
    error = stage.run(others(somebodys_job, deferrable)["sensor"]()).error
    assert type(error) is RunGenForbiddenError
    assert stage.seconds >= 1.0
    assert "connection 'rungen_default'" in str(error)


# --- before the first request -------------------------------------------------------------------------------


@pytest.fixture(params=["job", "table"])
def make(request: pytest.FixtureRequest, stage: Stage) -> Callable[..., Any]:
    makes: dict[str, Callable[..., Any]] = {"job": stage.job, "table": stage.table}
    return makes[request.param]


def test_a_connection_without_a_password(
    stage: Stage, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(stage.emulator.airflow_connection())
    del connection["password"]
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(connection))
    assert stage.mistake(make()).startswith(
        "Airflow connection 'rungen_default': API key (password) is empty"
    )
    assert stage.sent == []


@pytest.mark.parametrize("app_id", ["", " ", None])
def test_an_empty_app_id(
    stage: Stage, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, app_id: str | None
) -> None:
    if app_id is None:
        monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", stage.emulator.airflow_connection(app_id=""))
    line = stage.mistake(make(app_id=app_id))
    assert line == (
        f"{'There is no app_id' if app_id is None else 'app_id is empty'}. Set app_id in the task, or "
        "Default app ID (extra field 'app_id') in connection 'rungen_default'."
    )
    assert stage.sent == []


@pytest.mark.parametrize("folder", ["", "below/it"])
@pytest.mark.parametrize("name", ["destination", "results"])
def test_a_place_that_cannot_be_written(stage: Stage, name: str, folder: str) -> None:
    taken = stage.folder / "file"
    taken.write_text("in the place of a folder")
    place = str(taken / folder / ("results.jsonl" if name == "results" else ""))
    op = stage.table(None, **{name: place})
    error = stage.run(op).error
    assert error is not None
    assert f"the {name} cannot be used: " in str(error)
    assert len(str(error)) < 300
    assert stage.seconds < AT_ONCE
    assert stage.sent == []


@pytest.mark.parametrize(
    ("scheme", "package"), [("gs", "google"), ("abfs", "microsoft-azure"), ("wasb", "microsoft-azure")]
)
def test_a_store_whose_package_is_missing(stage: Stage, scheme: str, package: str) -> None:
    module = {"google": "gcsfs", "microsoft-azure": "adlfs"}[package]
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    line = stage.mistake(stage.table(destination=f"{scheme}://bucket/out"))
    assert line.endswith(f"Install apache-airflow-providers-{package}.")
    assert stage.sent == []


def test_rows_that_are_refused_are_to_be_corrected(stage: Stage) -> None:
    stage.refuse("run", 422)
    error = stage.run(stage.table(pictures(2))).error
    assert type(error) is AirflowFailException
    assert ". Correct the input of these rows. All reasons are in " in str(error)


def test_a_collecting_task_looks_at_its_destination_first(stage: Stage) -> None:
    taken = stage.folder / "file"
    taken.write_text("in the place of a folder")
    op = RunGenCollectResultsOperator(task_id="collect", job_id=NO_JOB, destination=str(taken))
    assert "the destination cannot be used" in str(stage.run(op).error)
    assert stage.sent == []


# --- an app without workers ---------------------------------------------------------------------------------


@DEFERRABLE
def test_an_app_without_workers(stage: Stage, deferrable: bool) -> None:
    stage.emulator.service.scale(APP, 0)
    error = stage.run(stage.job(queued_timeout=0.5, deferrable=deferrable)).error
    assert type(error) is RunGenJobQueuedTimeoutError
    line = str(error)
    assert line.startswith("Queued for too long: no worker since 20")
    assert line.endswith(
        f", app {APP}). Scale the app up, with scaled_app or in its console. Raise queued_timeout "
        "(now 0.5 s) if it needs longer."
    )
    assert len(line) < 300
    assert stage.seconds < AT_ONCE
    assert [job["status"] for job in stage.emulator.service.jobs()] == ["CANCELED"]


@DEFERRABLE
def test_a_queue_behind_a_busy_app_is_waited_for(stage: Stage, deferrable: bool) -> None:
    stage.emulator.service.scale(APP, 1)
    with RunGenHook() as hook:
        hook.run_job(input=INPUT | {"emulator": {"seconds": 1.5}})
    assert stage.run(stage.job(queued_timeout=0.3, deferrable=deferrable)).error is None


@pytest.mark.parametrize(
    "op",
    [
        RunGenRunJobOperator(task_id="run", input=INPUT),
        RunGenRunTableOperator(task_id="table", table=[INPUT], destination="/tmp/out"),  # noqa: S108 - not run
        RunGenCollectResultsOperator(task_id="collect", job_id=NO_JOB),
        RunGenJobSensor(task_id="wait", job_id=NO_JOB),
    ],
    ids=lambda op: op.task_id,
)
def test_fifteen_minutes_are_the_default(op: Any) -> None:
    assert op.queued_timeout == 900


# --- what is logged -----------------------------------------------------------------------------------------


def test_what_went_wrong_is_logged_once_before_airflow_does(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stage.refuse("run", 403)
    stage.mistake(stage.job())
    assert caplog.text.count("invalid API key") == 1
