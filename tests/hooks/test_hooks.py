"""The hook: every method a DAG author calls, blocking and in an event loop."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import time
from datetime import timedelta
from typing import Any

import pytest
from bad_answers import Fault
from conftest import APP, SOON
from rungen_emulator import Emulator
from wire import Connections

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.models import JobStatus
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.hooks import RunGenHook

INPUT: dict[str, Any] = {"prompt": "a fox"}
LONG = {**INPUT, "emulator": {"seconds": 60}}


def test_a_job_by_the_methods_of_the_hook(rungen_emulator: Emulator) -> None:
    with RunGenHook() as hook:
        job = hook.run_job(input=INPUT)
        assert hook.get_job(job_id=job.id).id == job.id
        done = hook.wait_for_job(job_id=job.id, poll_interval=0.02, timeout=10)
        assert done.status is JobStatus.COMPLETED
        assert done.result["images"]
        slow = hook.run_job(input=LONG, app_id=APP)
        assert hook.cancel_job(job_id=slow.id, app_id=APP).status is JobStatus.CANCELED
        with pytest.raises(RunGenConflictError):
            hook.cancel_job(job_id=job.id)
    for record in rungen_emulator.service.records():
        assert not {"x-team-id", "x-authenticated-user-id"} & set(record.headers)


@pytest.mark.contract
def test_an_app_by_the_methods_of_the_hook(rungen_emulator: Emulator) -> None:
    new: dict[str, Any] = {
        "name": "Mine",
        "configuration": {"gpu_tier": "BASIC"},
        "workflow": {"model_url": "https://m.example/flux"},
    }
    with RunGenHook() as hook:
        app = hook.create_app(**new, description="what for")
        assert (app.name, app.description, app.active_workers) == ("Mine", "what for", 0)
        assert hook.scale_app(app_id=app.id, active_workers=3).active_workers == 3
        assert hook.update_app(app_id=app.id, name="Yours", description="").name == "Yours"
        changed = hook.update_app(app_id=app.id, configuration={"active_workers": 0})
        assert (changed.name, changed.status) == ("Yours", "STOPPED")
        assert hook.get_app(app_id=app.id).name == "Yours"
        assert hook.get_app().id == APP
        assert [each.id for each in hook.list_apps()] == [APP, "llama-text", app.id]
        hook.delete_app(app_id=app.id)
        with pytest.raises(RunGenNotFoundError):
            hook.get_app(app_id=app.id)
    puts = [record for record in rungen_emulator.service.records() if record.method == "PUT"]
    bodies = [json.loads(record.body) for record in puts]
    # what a change does not name, it leaves
    assert bodies[1:] == [{"name": "Yours", "description": ""}, {"configuration": {"active_workers": 0}}]


@pytest.mark.contract
def test_the_methods_take_keywords_only_and_their_asynchronous_twins_take_the_same() -> None:
    of_jobs = ("run_job", "get_job", "cancel_job", "wait_for_job")
    of_apps = ("get_app", "create_app", "update_app", "scale_app", "delete_app")
    for name in (*of_jobs, *of_apps, "cancel_jobs"):
        method = getattr(RunGenHook, name)
        parameters = list(inspect.signature(method).parameters.values())[1:]
        assert all(each.kind is each.KEYWORD_ONLY for each in parameters)
        if name in of_jobs:
            twin = getattr(RunGenHook, f"a{name}")
            assert inspect.iscoroutinefunction(twin)
            assert inspect.signature(twin) == inspect.signature(method)


def test_a_job_by_the_asynchronous_methods(rungen_emulator: Emulator) -> None:
    async def work() -> None:
        async with RunGenHook() as hook:
            jobs = await asyncio.gather(*(hook.arun_job(input=INPUT) for _ in range(5)))
            assert (await hook.aget_job(job_id=jobs[0].id)).id == jobs[0].id
            done = await asyncio.gather(
                *(hook.await_for_job(job_id=job.id, poll_interval=0.02, timeout=10) for job in jobs)
            )
            assert [job.status for job in done] == [JobStatus.COMPLETED] * 5
            slow = await hook.arun_job(input=LONG, app_id=APP)
            with pytest.raises(RunGenJobTimeoutError, match=slow.id):
                await hook.await_for_job(job_id=slow.id, poll_interval=0.02, timeout=timedelta(seconds=0.1))
            assert (await hook.acancel_job(job_id=slow.id, app_id=APP)).status is JobStatus.CANCELED
            with pytest.raises(RunGenConflictError):
                await hook.acancel_job(job_id=jobs[0].id)

    asyncio.run(work())
    assert rungen_emulator.service.stats()["jobs_created"] == 6


@pytest.mark.contract
def test_waiting_takes_a_timedelta_and_ends_in_time(rungen_emulator: Emulator) -> None:
    limits: dict[str, Any] = {
        "poll_interval": timedelta(milliseconds=50),
        "timeout": timedelta(milliseconds=300),
    }
    with RunGenHook() as hook:
        job = hook.run_job(input=LONG)
        started = time.monotonic()
        with pytest.raises(RunGenJobTimeoutError, match=job.id):
            hook.wait_for_job(job_id=job.id, **limits)
        assert 0.25 < time.monotonic() - started < SOON
    assert rungen_emulator.service.count("cancel") == 0


@pytest.mark.contract
@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "5", True, timedelta(0), []])
def test_an_invalid_duration_is_named(rungen_emulator: Emulator, bad: Any) -> None:
    for name in ("poll_interval", "timeout", "queued_timeout"):
        with pytest.raises(ValueError, match=name):
            RunGenHook().wait_for_job(job_id="j", **{name: bad})
    assert rungen_emulator.service.records() == []


@pytest.mark.contract
def test_a_closed_hook_can_be_used_again(rungen_emulator: Emulator) -> None:
    hook = RunGenHook()

    async def work() -> int:
        async with hook:
            return len(await hook.aperform(endpoints.list_apps()))

    for _ in range(2):
        assert asyncio.run(work()) == len(hook.list_apps()) == 2
        hook.close()
        hook.close()


@pytest.mark.contract
@pytest.mark.usefixtures("rungen_emulator")
def test_closing_closes_the_connections(connections: Connections) -> None:
    with RunGenHook() as hook:
        hook.list_apps()
        assert connections.open == 1
    give_up_at = time.monotonic() + 5
    while connections.open and time.monotonic() < give_up_at:
        time.sleep(0.005)
    assert connections.open == 0


@pytest.mark.contract
def test_the_connection_is_looked_up_once_and_not_before_it_is_needed(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = RunGenHook("not_there_yet")
    monkeypatch.setenv("AIRFLOW_CONN_NOT_THERE_YET", rungen_emulator.airflow_connection())
    assert len(hook.list_apps()) == 2
    monkeypatch.delenv("AIRFLOW_CONN_NOT_THERE_YET")
    assert len(hook.list_apps()) == 2
    hook.close()


@pytest.mark.contract
@pytest.mark.parametrize("count", [1, 3])
def test_a_quick_cancel_reports_the_outcome_of_each_job(rungen_emulator: Emulator, count: int) -> None:
    with RunGenHook() as hook:
        ids = [hook.run_job(input=LONG).id for _ in range(count)]
        rungen_emulator.service.inject(Fault(on="cancel", job_id=ids[-1], status=403, times=None))
        outcomes = hook.cancel_jobs(app_id=APP, job_ids=ids, within=3.0)
    assert list(outcomes) == ids
    assert [error is None for error in outcomes.values()] == [True] * (count - 1) + [False]
    assert rungen_emulator.service.stats()["jobs_cancelled"] == count - 1


SLOW: dict[str, dict[str, dict[str, Any]]] = {
    **{kind: {"cancel": {"kind": kind}} for kind in ("hang", "drip", "reset_before")},
    "retry-after": {"cancel": {"status": 503, "headers": {"Retry-After": "30"}}},
    "409, 503": {"cancel": {"status": 409}, "get": {"status": 503}},
    "409, hang": {"cancel": {"status": 409}, "get": {"kind": "hang"}},
}


@pytest.mark.contract
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("name", SLOW)
def test_a_quick_cancel_is_quick_whatever_the_service_does(
    rungen_emulator: Emulator, name: str, count: int
) -> None:
    with RunGenHook() as hook:
        ids = [hook.run_job(input=LONG).id for _ in range(count)]
        for on, fault in SLOW[name].items():
            rungen_emulator.service.inject(Fault(on=on, times=None, **fault))
        started = time.monotonic()
        outcomes = hook.cancel_jobs(job_ids=ids, within=1.0)
        assert time.monotonic() - started < SOON
    assert list(outcomes) == ids
    for job_id, error in outcomes.items():
        assert isinstance(error, RunGenError)
        assert job_id in error.message


def test_what_is_performed_with_a_deadline_fails_in_words_once_it_has_passed(
    rungen_emulator: Emulator,
) -> None:
    """The flow gets the error, so it can name what it leaves behind."""
    rungen_emulator.service.inject(Fault(on="get_app", status=503, headers={"Retry-After": "1"}, times=None))
    caught: list[RunGenError] = []

    def flow() -> Flow[str]:
        yield Sleep(30)
        try:
            yield from endpoints.get_app(APP)
        except RunGenError as error:
            caught.append(error)
        return "still billed"

    started = time.monotonic()
    assert RunGenHook().perform_with_deadline(flow(), within=0.5) == "still billed"
    assert time.monotonic() - started < SOON
    assert "there was no time left (app flux-schnell)" in caught[0].message
    assert rungen_emulator.service.records() == []


@pytest.mark.contract
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("fault", [{"kind": "hang"}, {"status": 503, "times": 2}], ids=["hang", "503"])
def test_a_quick_cancel_is_repeated_as_long_as_there_is_time(
    rungen_emulator: Emulator, fault: dict[str, Any], count: int
) -> None:
    with RunGenHook() as hook:
        ids = [hook.run_job(input=LONG).id for _ in range(count)]
        for job_id in ids:
            rungen_emulator.service.inject(Fault(on="cancel", job_id=job_id, **fault))
        outcomes = hook.cancel_jobs(job_ids=ids, within=3.6)
    assert outcomes == dict.fromkeys(ids)
    assert rungen_emulator.service.stats()["jobs_cancelled"] == count


@pytest.mark.contract
def test_a_hook_can_be_pickled_and_copied() -> None:
    hook = RunGenHook("one")
    copies = [pickle.loads(pickle.dumps(hook)), copy.deepcopy(hook)]  # noqa: S301 - our own
    assert [each.rungen_conn_id for each in copies] == ["one", "one"]
