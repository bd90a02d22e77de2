"""The trigger: it survives the way into the triggerer, fires one small event, and never raises."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger
from asgiref.sync import async_to_sync
from bad_answers import Fault
from conftest import APP, KEY, SOON
from rungen_emulator import Emulator

from airflow_provider_rungen import _airflow
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.outcomes import parse_ranges
from airflow_provider_rungen.triggers import RunGenAppTrigger, RunGenJobTrigger, base, job
from airflow_provider_rungen.triggers.base import RunGenBaseTrigger

INPUT = {"prompt": "a red fox"}


def trigger(job_ids: Any, **options: Any) -> RunGenJobTrigger:
    now = time.time()
    times = {"poll_interval": 0.02, "deadline": now + 60, "deferred_at": now - 60}
    one = RunGenJobTrigger(**({"app_id": APP, "job_id": job_ids, "cancel_on_kill": True} | times | options))
    ti: Any = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1)
    one.task_instance = ti
    return one


def fire(*these: RunGenBaseTrigger) -> list[dict[str, Any]]:
    """The events of triggers that run side by side, as they do in the triggerer."""

    async def all_of(one: RunGenBaseTrigger) -> list[Any]:
        return [event.payload async for event in one.run()]

    async def work() -> list[list[Any]]:
        return await asyncio.gather(*map(all_of, these))

    payloads = asyncio.run(work())
    assert all(len(each) == 1 for each in payloads), "one event each, and no more"
    return [each[0] for each in payloads]


def submitted(*seconds: float, **steering: Any) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input={**INPUT, "emulator": {"seconds": s, **steering}}).id for s in seconds]


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def states(emulator: Emulator) -> list[str]:
    return [job["status"] for job in emulator.service.jobs()]


@pytest.mark.contract
def test_a_trigger_is_the_same_after_the_way_through_the_database() -> None:
    before = trigger(["a", "b"])
    path, kwargs = before.serialize()
    assert path == "airflow_provider_rungen.triggers.RunGenJobTrigger"
    after = RunGenJobTrigger(**json.loads(json.dumps(kwargs)))
    assert after.serialize() == (path, kwargs)
    assert "a" in json.dumps(kwargs)
    assert KEY not in json.dumps(kwargs)


def test_jobs_that_completed_are_a_short_event(rungen_emulator: Emulator) -> None:
    ids = submitted(0.1, 0)
    over = {"app_id": APP, "outcome": "go on", "ended": "0-1", "in_flight": 0}
    assert fire(trigger(ids)) == [over | {"failed": ""}]
    at = {"deadline": time.time() + 60, "queued_since": 0}
    assert fire(trigger(ids, plan="ab", **at)) == [over | {"plan": "ab"} | at]


def test_jobs_that_did_not_complete_are_named(rungen_emulator: Emulator) -> None:
    good, gone = submitted(0, 60)
    [bad] = submitted(0.1, fail="see https://x.example/y?X-Amz-Signature=SECRET")
    with RunGenHook() as hook:
        hook.cancel_job(job_id=gone)
    [event] = fire(trigger([gone, good, bad]))
    assert event["outcome"] == "go on"
    assert (event["ended"], event["failed"]) == ("0-2", "0,2")
    assert "SECRET" not in json.dumps(event)


def test_the_deadline_is_an_event(rungen_emulator: Emulator) -> None:
    ids = submitted(60)
    started = time.monotonic()
    [event] = fire(trigger(ids, deadline=time.time() + 0.2))
    assert event["error"]["kind"] == "RunGenJobTimeoutError"
    assert ids[0] in event["error"]["message"]
    assert time.monotonic() - started < SOON
    assert states(rungen_emulator) == ["RUNNING"]


def test_a_refusal_that_lasts_is_an_event(rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", 0.3)
    ids = submitted(60)
    rungen_emulator.service.inject(Fault(on="get", status=403, times=None))
    [event] = fire(trigger(ids))
    # it was right before, and may be corrected
    assert (event["outcome"], event["error"]["retryable"]) == ("error", True)
    assert "403" in event["error"]["message"]
    assert KEY not in json.dumps(event)


def test_a_connection_that_is_missing_during_a_wait_is_waited_for_and_named_at_the_deadline() -> None:
    [event] = fire(trigger(["j"], rungen_conn_id="no_such_connection", deadline=time.time() + 0.3))
    assert event["error"]["kind"] == "RunGenJobTimeoutError"
    assert "'no_such_connection' does not exist" in event["error"]["message"]


def test_a_trigger_does_not_fire_while_the_deferring_process_goes_down(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base.SETTLING_TIME >= 6
    monkeypatch.setattr(base, "SETTLING_TIME", 0.7)
    deferred_at = time.time()
    fire(trigger(submitted(0), deferred_at=deferred_at))
    assert time.time() - deferred_at >= 0.7
    monkeypatch.setattr(base, "SETTLING_TIME", 30.0)
    started = time.monotonic()
    fire(trigger(submitted(0), deferred_at=deferred_at - 40))
    assert time.monotonic() - started < SOON


def test_a_clock_behind_that_of_the_worker_delays_no_event(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SETTLING_TIME", 0.7)
    monkeypatch.setattr(job, "MIN_ROUND_TIME", 0.1)
    rungen_emulator.service.scale(APP, 20)
    ids, started = submitted(0, 60), time.time()
    now = started + 60
    [event] = fire(trigger(ids, left=1, deferred_at=now, not_before=now, deadline=now + 60))
    assert event["ended"] == "0"
    assert 0.7 <= time.time() - started < SOON, "the deferring process still has its time"


@pytest.mark.usefixtures("unsettled")
def test_a_clock_behind_that_of_the_worker_delays_no_deadline(rungen_emulator: Emulator) -> None:
    ids, started = submitted(60), time.time()
    times: dict[str, Any] = {"deferred_at": started + 60, "deadline": started + 60.3}
    events = fire(trigger(ids, **times), RunGenAppTrigger(app_id=APP, status="STOPPED", **times))
    kinds = [event["error"]["kind"] for event in events]
    assert kinds == ["RunGenJobTimeoutError", "RunGenAppTimeoutError"]
    assert time.time() - started < SOON


# --- a part of the jobs -------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize(
    ("seconds", "options"),
    [((0, 0, 60, 60), {"left": 2}), ((60, 0, 0), {"failures": 18, "left": 1})],
    ids=["a half", "all fail"],
)
def test_a_half_of_the_jobs_is_enough_at_once(rungen_emulator: Emulator, seconds: Any, options: Any) -> None:
    rungen_emulator.service.scale(APP, 20)
    ids, now = submitted(*seconds, **({"fail": "x"} if "failures" in options else {})), time.time()
    [event] = fire(trigger(ids, plan="a", deferred_at=now, **options))
    over = [number for number, each in enumerate(seconds) if not each]
    assert parse_ranges(event["ended"], len(ids)) == over
    assert (event["outcome"], event["in_flight"]) == ("go on", seconds.count(60))
    assert time.time() - now < job.MIN_ROUND_TIME / 2


@pytest.mark.contract
@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize(("waited", "after"), [(0, 60), (299, 60), (1000, 200)])
def test_any_job_is_enough_after_a_minute_or_a_fifth_of_the_time_waited(
    rungen_emulator: Emulator, waited: float, after: float
) -> None:
    rungen_emulator.service.scale(APP, 20)
    [none, *ids] = submitted(60, 0, 60, 60)
    for is_late in (False, True):
        deferred_at = time.time() - after + (0.0 if is_late else 30)
        options = {"left": 1, "waited": waited, "deferred_at": deferred_at, "plan": "a"}
        [event] = fire(trigger([none, *ids], deadline=time.time() + 1.5, **options))
        assert (event["outcome"], event.get("ended")) == (("go on", "1") if is_late else ("error", None))
    [event] = fire(trigger([none, *ids[1:]], deadline=time.time() + 0.5, **options))
    assert event["outcome"] == "error", "none has ended"


# --- killed -------------------------------------------------------------------------------------------------


def _start_and_end(one: RunGenJobTrigger, emulator: Emulator, *, kill: bool) -> None:
    """Run a trigger until it looks at its jobs, and end it as the triggerer does."""

    async def work() -> None:
        first: Any = anext(one.run())
        task: asyncio.Task[Any] = asyncio.create_task(first)
        async with asyncio.timeout(10):
            while not emulator.service.count("get") + emulator.service.count("get_app"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if kill and hasattr(BaseTrigger, "on_kill"):
            await one.on_kill()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("state", "cancel", "want"),
    [
        *((state, True, "CANCELED") for state in ("failed", "success", "skipped", None)),
        *((state, True, "RUNNING") for state in ("deferred", "up_for_retry")),
        ("failed", False, "RUNNING"),
    ],
)
def test_a_user_who_ends_the_task_cancels_its_jobs(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, state: str | None, cancel: bool, want: str
) -> None:
    monkeypatch.setattr(attempts, "task_state", lambda _: state)
    rungen_emulator.service.scale(APP, 20)
    ids = submitted(*[60] * 12)
    _start_and_end(trigger(ids, cancel_on_kill=cancel), rungen_emulator, kill=True)
    assert states(rungen_emulator) == [want] * 12


@pytest.mark.parametrize("limit", [0.5, 20.0], ids=["out of time", "in time"])
def test_a_trigger_names_the_jobs_that_it_could_not_cancel(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: float
) -> None:
    monkeypatch.setattr(attempts, "task_state", lambda _: "failed")
    monkeypatch.setattr(base, "CANCEL_TIME", limit)
    service = rungen_emulator.service
    service.scale(APP, 20)
    ids = submitted(60, 60, 0)
    while states(rungen_emulator)[2] != "COMPLETED":
        time.sleep(0.01)
    kind: Any = {"kind": "hang"} if limit < 1 else {"status": 403}
    service.inject(Fault(on="cancel", times=None, job_id=ids[0], **kind))
    asyncio.run(trigger(ids).on_kill())
    assert states(rungen_emulator) == ["RUNNING", "CANCELED", "COMPLETED"]
    assert f"May still run: jobs {ids[0]} of app {APP}" in caplog.text


def test_the_state_may_be_asked_for_on_the_triggerers_own_loop(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Airflow 3.1 does, whose connection to the supervisor belongs to that loop."""

    def ask(_: Any) -> str:
        async def answer() -> str:
            loops.append(asyncio.get_running_loop())
            return "failed"

        return async_to_sync(answer)()

    loops: list[Any] = []
    monkeypatch.setattr(attempts, "task_state", ask)
    one = trigger(submitted(60))

    async def work() -> None:
        await one.on_kill()
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(work())
    assert states(rungen_emulator) == ["CANCELED"]


def test_jobs_whose_tasks_state_is_unknown_are_left_running(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "task_state", raising(RuntimeError("no database")))
    _start_and_end(trigger(submitted(60)), rungen_emulator, kill=True)
    assert states(rungen_emulator) == ["RUNNING"]


@pytest.mark.contract
@pytest.mark.skipif(not hasattr(BaseTrigger, "on_kill"), reason="Airflow before 3.3 has no on_kill")
def test_a_triggerer_that_stops_leaves_the_jobs(rungen_emulator: Emulator) -> None:
    _start_and_end(trigger(submitted(60)), rungen_emulator, kill=False)
    assert states(rungen_emulator) == ["RUNNING"]


def test_a_kill_goes_on_though_it_is_canceled_itself(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(_: Any) -> str:
        asked.set()
        time.sleep(0.3)
        return "failed"

    asked = threading.Event()
    monkeypatch.setattr(attempts, "task_state", slowly)
    one = trigger(submitted(60))

    async def work() -> None:
        task = asyncio.create_task(one.on_kill())
        await asyncio.to_thread(asked.wait, 10)
        for _ in range(3):  # as Airflow does each second
            task.cancel()
            await asyncio.sleep(0.02)
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert states(rungen_emulator) == ["CANCELED"]


# --- whose jobs they are -----------------------------------------------------------------------------------


@pytest.fixture
def ids(rungen_emulator: Emulator) -> list[str]:
    """Two jobs that run."""
    rungen_emulator.service.scale(APP, 20)
    return submitted(60, 60)


def airflow_tells(monkeypatch: pytest.MonkeyPatch, *told: str, pushed: str | None) -> None:
    """Make Airflow report these states of the task, the last one on, and the job of its last attempt."""
    left = list(told)
    monkeypatch.setattr(attempts, "task_state", lambda _: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(attempts, "pushed_job_id", lambda _: pushed)


@pytest.mark.parametrize(
    ("state", "want"),
    [("deferred", "RUNNING"), ("running", "RUNNING"), ("scheduled", "RUNNING"), ("failed", "CANCELED")],
)
def test_the_jobs_of_a_table_are_left_to_the_next_attempt_unless_a_user_marked_it(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, *, ids: list[str], state: str, want: str
) -> None:
    airflow_tells(monkeypatch, state, pushed=None)
    _start_and_end(trigger(ids, plan="ab", survives_clear=True), rungen_emulator, kill=True)
    assert states(rungen_emulator) == [want, want]


@pytest.mark.parametrize(
    ("told", "pushed", "options", "left"),
    [
        # asking for the state took 7 s on Airflow 3.4.0b2
        ("deferred", "another-job", {}, 0),
        ("deferred", "the last", {}, 1),
        ("deferred", None, {}, 2),
        ("running", None, {}, 0),
        ("failed", None, {"shared": 1}, 1),
        # what was pushed is of before, and not wiped yet
        ("scheduled", "the last", {}, 0),
    ],
)
def test_jobs_are_left_to_the_attempt_that_waits_for_them(
    rungen_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ids: list[str],
    told: str,
    pushed: str | None,
    options: dict[str, Any],
    left: int,
) -> None:
    """Two jobs, of which the latest attempt has pushed the last one, or another."""
    airflow_tells(monkeypatch, told, pushed=ids[1] if pushed == "the last" else pushed)
    shared = {"shared": ids[1:]} if "shared" in options else {}
    _start_and_end(trigger(ids, **shared), rungen_emulator, kill=True)
    assert states(rungen_emulator) == ["CANCELED"] * (2 - left) + ["RUNNING"] * left


def test_an_attempt_that_another_has_replaced_cancels_its_jobs(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, ids: list[str]
) -> None:
    """As on Airflow 3.4.0b2, which answers an old attempt with 403."""

    refusal = (
        "API_SERVER_ERROR: {'status_code': 403, 'detail': {'detail': {'reason': 'access_denied', "
        "'message': 'Task instance is not a live attempt'}}}"
    )
    monkeypatch.setattr(attempts, "task_state", lambda _: "deferred")
    monkeypatch.setattr(_airflow.XCom, "get_one", raising(RuntimeError(refusal)))
    _start_and_end(trigger(ids), rungen_emulator, kill=True)
    assert states(rungen_emulator) == ["CANCELED", "CANCELED"]
