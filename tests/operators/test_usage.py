"""Every task that runs or collects jobs says what they used, also when it fails."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Asset
from conftest import FakeTaskInstance, OutletEvents, run_task, stopped_when, table_of
from operator_kit import FAST, KILLED, MODES, kill_when, statuses, submitted
from rungen_emulator import Emulator, Fault, Service
from rungen_emulator.messages import Reply

from airflow_provider_rungen.exceptions import RejectRow, RunGenJobTimeoutError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
)

pytestmark = pytest.mark.usefixtures("unsettled")

SECONDS = 0.3
APPS = ("flux-schnell", "flux-again")


def job_input(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"picture {number}", "emulator": {"seconds": SECONDS, **more}}


INPUTS = [job_input(0), job_input(1), job_input(2, fail="no luck")]


def run_table(folder: Path, **options: Any) -> Any:
    return table_of(inputs=INPUTS, destination=folder.as_uri(), **options)


def collect(folder: Path, **options: Any) -> Any:
    return RunGenCollectResultsOperator(task_id="x", job_id=submitted(*INPUTS), **options)


MAKERS: list[Callable[..., Any]] = [run_table, collect]


def usage_of(op: Any, run_id: str = "run", try_number: int = 1) -> tuple[dict[str, Any], Any]:
    ti = FakeTaskInstance()
    ti.run_id, ti.try_number, ti.max_tries = run_id, try_number, 1
    outcome = run_task(op, {"ti": ti, "outlet_events": OutletEvents()})
    return ti.xcoms["usage"], outcome


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("end", ["failure", "success", "success without seconds"])
@pytest.mark.parametrize("make", MAKERS)
def test_the_jobs_are_counted(
    rungen_emulator: Emulator, tmp_path: Path, make: Callable[..., Any], deferrable: bool, end: str
) -> None:
    is_silent, max_failed = "without" in end, int(end != "failure")
    rungen_emulator.service = Silent(workers=10) if is_silent else Service(workers=10)
    usage, outcome = usage_of(make(tmp_path, **FAST, deferrable=deferrable, max_failed=max_failed))
    assert (outcome.error is None) == bool(max_failed)
    seconds = usage.pop("execution_seconds")
    assert usage == {
        "jobs": 3,
        "bought": 0 if make is collect else 3,
        "completed": 2,
        "failed": 1,
        "ran": 0 if is_silent else 3,
        "canceled_before_run": 0,
        "reused": 0,
    }
    # what failed ran, too; a number that the service does not report is unknown
    assert seconds == (None if is_silent else pytest.approx(3 * SECONDS))
    if make is collect:
        assert ("of execution" in outcome.log) != is_silent


@pytest.mark.contract
@MODES
def test_what_is_reused_is_no_job(rungen_emulator: Emulator, tmp_path: Path, deferrable: bool) -> None:
    options: dict[str, Any] = FAST | {"deferrable": deferrable, "max_failed": 1}
    usage_of(run_table(tmp_path, **options), "yesterday")
    usage, _ = usage_of(run_table(tmp_path, **options), "today")
    assert (usage["jobs"], usage["completed"], usage["failed"], usage["reused"]) == (1, 0, 1, 2)


@pytest.mark.contract
@MODES
def test_the_jobs_of_all_attempts_are_counted(
    rungen_emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    rungen_emulator.service.scale("flux-schnell", 200)
    inputs = [job_input(n, seconds=0.2, **({"fail": "no luck"} if n < 10 else {})) for n in range(100)]
    options = FAST | {"deferrable": deferrable, "destination": tmp_path.as_uri()}
    for try_number in (1, 2):
        op = table_of(task_id="x", inputs=inputs, **options)
        usage, _ = usage_of(op, try_number=try_number)
    assert rungen_emulator.service.stats()["jobs_created"] == 110
    seconds = usage.pop("execution_seconds")
    counts = {"jobs": 110, "bought": 10, "completed": 90, "failed": 20, "ran": 110}
    assert usage == {**counts, "canceled_before_run": 0, "reused": 0}
    assert seconds == pytest.approx(22)


@pytest.mark.contract
@pytest.mark.parametrize("fails", [False, True], ids=["clear", "retry"])
def test_what_an_earlier_attempt_bought_of_another_app_counts_once(
    rungen_emulator: Emulator, tmp_path: Path, *, fails: bool
) -> None:
    rungen_emulator.service.add_app("flux-again", workers=10)
    with RunGenHook() as hook:
        for app_id in APPS:
            hook.update_app(app_id=app_id, workflow={"model_url": "https://models.example/flux.safetensors"})
    options = FAST | {"destination": tmp_path.as_uri()}
    inputs = [job_input(0), job_input(1), job_input(2, **({"fail": "no luck"} if fails else {}))]
    for try_number, app_id in enumerate(APPS, 1):
        op = table_of(task_id="x", app_id=app_id, inputs=inputs, **options)
        usage, _ = usage_of(op, try_number=try_number)
    created = 3 + fails
    assert rungen_emulator.service.stats()["jobs_created"] == created
    assert usage.pop("execution_seconds") == pytest.approx(created * SECONDS)
    counts = {"jobs": created, "bought": int(fails), "completed": 3 - fails, "failed": 2 * fails}
    assert usage == {**counts, "ran": created, "canceled_before_run": 0, "reused": 0}


@pytest.mark.contract
def test_asset_events_and_the_log_have_it(
    rungen_emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    outlet, events, ti = Asset("s3://shop/pictures"), OutletEvents(), FakeTaskInstance()
    op = run_table(tmp_path, max_failed=1, outlets=[outlet], **FAST)
    run_task(op, {"ti": ti, "outlet_events": events})
    assert events[outlet].extra["usage"] == ti.xcoms["usage"]
    facets: Any = op.get_openlineage_facets_on_complete(None)
    assert facets.run_facets["rungen_usage"].jobs == 3
    assert re.search(r"3 rows: 2 completed, 1 failed\. This run bought 3 jobs", caplog.text)


# --- seconds that nobody knows ------------------------------------------------------------------------------


class Silent(Service):
    """A service that does not report how long jobs ran."""

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        reply = super().handle(method, path, headers, body)
        if "/job/" not in path or not reply.body.startswith(b"{"):
            return reply
        answer = json.loads(reply.body)
        answer.get("data", answer).pop("execution_time", None)
        return replace(reply, body=json.dumps(answer).encode())


# --- jobs that the task cancels -----------------------------------------------------------------------------

SLOW = [job_input(0, seconds=600), job_input(1, seconds=600)]


@pytest.mark.contract
@MODES
def test_jobs_that_are_canceled_at_the_deadline_failed(rungen_emulator: Emulator, deferrable: bool) -> None:
    op = table_of(task_id="x", inputs=SLOW, timeout=0.5, deferrable=deferrable, **FAST)
    usage, outcome = usage_of(op)
    assert outcome.error is not None
    assert statuses(rungen_emulator) == ["CANCELED", "CANCELED"]
    assert (usage["jobs"], usage["failed"]) == (2, 2)
    assert "This run bought 2 jobs" in outcome.log
    jobs = rungen_emulator.service.jobs()
    ran_for = sum(job["finished"] - job["started"] for job in jobs if job["started"])
    assert usage["execution_seconds"] == pytest.approx(ran_for, abs=0.01), "it is billed"


class LateCancel(Service):
    """A service whose jobs are over when the first cancel comes."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        if method != "GET" and "/job/" in path:
            self.ahead = 1000.0
        return super().handle(method, path, headers, body)


@pytest.mark.contract
@MODES
def test_jobs_that_end_before_they_can_be_canceled_are_what_they_are(
    rungen_emulator: Emulator, deferrable: bool
) -> None:
    rungen_emulator.service = LateCancel(workers=10)
    failing = [job_input(number, seconds=0, fail="no luck") for number in range(2, 22)]
    options = FAST | {"deferrable": deferrable}
    usage, outcome = usage_of(table_of(task_id="x", inputs=[*failing, *SLOW], **options))
    assert str(outcome.error).startswith("Stopped: ")
    assert sorted(statuses(rungen_emulator)) == ["COMPLETED"] * 2 + ["FAILED"] * 20
    assert (usage["jobs"], usage["completed"], usage["failed"]) == (22, 2, 20)
    assert usage["execution_seconds"] == pytest.approx(1200, abs=1)


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("count", [1, 2])
def test_jobs_that_end_just_when_the_time_is_up_make_a_success(
    rungen_emulator: Emulator, deferrable: bool, count: int
) -> None:
    rungen_emulator.service = LateCancel(workers=10)
    options = FAST | {"task_id": "x", "timeout": 0.5, "deferrable": deferrable}
    op: Any = RunGenRunJobOperator(input=SLOW[0], wait_for_completion=True, **options)
    usage, outcome = usage_of(op if count == 1 else table_of(inputs=SLOW, **options))
    assert outcome.error is None
    assert statuses(rungen_emulator) == ["COMPLETED"] * count
    assert (usage["completed"], usage["failed"]) == (count, 0)
    assert usage["execution_seconds"] == pytest.approx(600 * count, abs=1)


@pytest.mark.contract
@MODES
def test_a_job_that_ends_while_another_is_canceled_is_what_it_is(
    rungen_emulator: Emulator, deferrable: bool
) -> None:
    rungen_emulator.service = LateCancel(workers=10)
    inputs = [SLOW[0], job_input(1, seconds=6000)]
    options = FAST | {"timeout": 0.5, "deferrable": deferrable}
    usage, outcome = usage_of(table_of(task_id="x", inputs=inputs, **options))
    assert "Not over in time" in str(outcome.error)
    assert statuses(rungen_emulator) == ["COMPLETED", "CANCELED"]
    assert (usage["completed"], usage["failed"]) == (1, 1)


@pytest.mark.contract
def test_time_that_is_up_after_refusals_fails_the_task(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=400, skip=2, times=None))
    options = FAST | {"timeout": 1.5, "max_failed": "any"}
    op = table_of(task_id="x", inputs=[*SLOW, *[job_input(3)] * 200], deferrable=False, **options)
    usage, outcome = usage_of(op)
    assert "Not over in time" in str(outcome.error)
    assert usage["jobs"] == 2


class SilentAfterCancel(Service):
    """A service that answers no GET of a job after the first cancel."""

    asked = 0

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        if method != "GET" and "/job/" in path:
            self.inject(Fault(on="get", kind="hang", times=None))
        elif self.count("cancel"):
            self.asked += 1
        return super().handle(method, path, headers, body)


@MODES
def test_a_service_that_does_not_say_how_long_canceled_jobs_ran_is_not_waited_for(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.work.wait.LOOK_TIME", 1.0)
    rungen_emulator.service = SilentAfterCancel(workers=10)
    op = table_of(task_id="x", inputs=SLOW, timeout=0.5, deferrable=deferrable, **FAST)
    began = time.monotonic()
    usage, outcome = usage_of(op)
    assert time.monotonic() - began < 20, "one request may take a minute"
    assert statuses(rungen_emulator) == ["CANCELED", "CANCELED"]
    assert (usage["failed"], usage["execution_seconds"]) == (2, None)
    assert "It is unknown how long 2 of the canceled jobs ran" in outcome.log


@pytest.mark.contract
@KILLED
def test_a_kill_while_canceled_jobs_are_asked_for_cancels_none_again(rungen_emulator: Emulator) -> None:
    service = rungen_emulator.service = SilentAfterCancel(workers=10)
    op = table_of(task_id="x", inputs=SLOW, timeout=0.5, **FAST)
    outcome = kill_when(op, {"ti": FakeTaskInstance()}, lambda: service.asked >= 2)
    assert service.count("cancel") == 2
    assert "may still run" not in outcome.log


@pytest.mark.contract
@MODES
def test_jobs_that_a_check_rejects_are_billed(
    rungen_emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    def check(result: Any, files: Any) -> None:
        raise RejectRow("blank")

    op = run_table(tmp_path, check=check, max_failed="any", deferrable=deferrable, **FAST)
    usage, _ = usage_of(op)
    ran_for = sum(job["finished"] - job["started"] for job in rungen_emulator.service.jobs())
    assert usage["jobs"] == 3
    assert usage["execution_seconds"] == pytest.approx(ran_for, abs=0.01)


@pytest.mark.contract
@pytest.mark.parametrize("stores", [False, True])
def test_who_collects_reports_completed_jobs_that_cannot_be_used(
    rungen_emulator: Emulator, tmp_path: Path, *, stores: bool
) -> None:
    ids = submitted(job_input(0), job_input(1, result={"url": 1}))
    options = {"destination": tmp_path.as_uri()} if stores else {}
    schema = {"properties": {"url": {"type": "string"}}}
    op = RunGenCollectResultsOperator(
        task_id="x", job_id=ids, output_type=schema, max_failed=1, **FAST | options
    )
    usage, _ = usage_of(op)
    assert (usage["jobs"], usage["completed"], usage["failed"]) == ((2, 1, 1) if stores else (2, 2, 0))
    assert usage["execution_seconds"] == pytest.approx(2 * SECONDS, abs=0.01)


@pytest.mark.contract
@MODES
def test_who_collects_takes_what_is_over_when_the_time_is_up(
    rungen_emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    ids = submitted(job_input(0), job_input(1), job_input(2, seconds=60))
    options = FAST | {"destination": tmp_path.as_uri(), "timeout": 1.0, "deferrable": deferrable}
    usage, outcome = usage_of(RunGenCollectResultsOperator(task_id="x", job_id=ids, **options))
    assert isinstance(outcome.error, RunGenJobTimeoutError)
    assert (usage["jobs"], usage["completed"], usage["failed"]) == (3, 2, 0)
    assert usage["execution_seconds"] == pytest.approx(2 * SECONDS, abs=0.01)
    assert len(list(tmp_path.glob("files/*/*"))) == 2
    assert statuses(rungen_emulator)[2] == "RUNNING"


# --- execution_timeout --------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("collects", [False, True])
def test_a_time_limit_of_airflow_pushes_what_was_used(rungen_emulator: Emulator, collects: bool) -> None:
    service, ti, given = rungen_emulator.service, FakeTaskInstance(), [job_input(0), SLOW[1]]
    over_at: list[int] = []
    op: Any = table_of(task_id="x", inputs=given, **FAST)
    if collects:
        ids = submitted(*given)
        op = RunGenCollectResultsOperator(task_id="x", job_id=ids, cancel_on_kill=True, **FAST)

    def is_due() -> bool:
        """Return whether one job is over, and some more polls were sent."""
        if not over_at and "COMPLETED" in statuses(rungen_emulator):
            over_at.append(service.count("get"))
        return bool(over_at) and service.count("get") >= over_at[0] + 4

    with stopped_when(op, signal.SIGALRM, is_due):
        op.execute({"ti": ti})
    assert statuses(rungen_emulator) == ["COMPLETED", "CANCELED"]
    assert ti.xcoms["usage"]["jobs"] == 2
    assert [key for key, _ in ti.pushed].count("usage") == 1


@pytest.mark.contract
@KILLED
def test_a_task_that_is_marked_failed_counts_the_jobs_that_it_cancels(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    op, ti = table_of(task_id="x", inputs=SLOW, destination=tmp_path.as_uri(), **FAST), FakeTaskInstance()
    kill_when(op, {"ti": ti}, lambda: rungen_emulator.service.count("get") > 1)
    assert statuses(rungen_emulator) == ["CANCELED", "CANCELED"]
    usage = ti.xcoms["usage"]
    assert (usage["jobs"], usage["bought"], usage["failed"]) == (2, 2, 2)
    view = json.loads((tmp_path / ti.xcoms["rungen_page"]["view"]).read_text())
    assert (view["counts"]["failed"], view["counts"]["running"]) == (2, 0)


# --- what was canceled before it ran, and what this attempt bought ------------------------------------------


@pytest.mark.contract
@MODES
def test_jobs_that_were_canceled_before_they_ran_are_named_apart(
    rungen_emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    options = FAST | {"task_id": "x", "deferrable": deferrable, "destination": tmp_path.as_uri()}
    usage_of(table_of(inputs=INPUTS[:2], **options))
    rungen_emulator.service.scale("flux-schnell", 0)
    op = table_of(
        inputs=[*INPUTS[:2], *[job_input(number) for number in range(3, 7)]], timeout=0.5, **options
    )
    usage, outcome = usage_of(op, try_number=2)
    assert (usage["jobs"], usage["bought"], usage["ran"], usage["canceled_before_run"]) == (6, 4, 2, 4)
    assert (
        "This attempt bought 4, this run 6 jobs: 6 submitted, 2 ran, 4 canceled before they ran ("
        in outcome.log
    )


@pytest.mark.contract
@MODES
def test_a_job_that_was_canceled_before_it_ran(rungen_emulator: Emulator, deferrable: bool) -> None:
    rungen_emulator.service = Service(workers=0)
    options = FAST | {"timeout": 0.5, "deferrable": deferrable}
    op = RunGenRunJobOperator(task_id="x", input=SLOW[0], wait_for_completion=True, **options)
    usage, outcome = usage_of(op)
    assert (usage["jobs"], usage["bought"], usage["ran"], usage["canceled_before_run"]) == (1, 1, 0, 1)
    assert "Used 1 job (1 submitted, 0 ran, 1 canceled before they ran)" in outcome.log


@pytest.mark.contract
@MODES
def test_a_clear_does_not_say_that_it_bought_what_the_run_had(
    rungen_emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    options = FAST | {"max_failed": 1, "deferrable": deferrable}
    usage, outcome = usage_of(run_table(tmp_path, **options))
    assert (usage["bought"], usage["jobs"]) == (3, 3)
    usage, outcome = usage_of(run_table(tmp_path, **options), try_number=2)
    assert (usage["bought"], usage["jobs"]) == (1, 4)
    assert "This attempt bought 1, this run 4 jobs (" in outcome.log
