"""A transport in place of RunGen: of one hook, and of all hooks of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from bad_answers import Fault
from conftest import APP, KEY
from wire import Connections

from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.emulator.testing import run_operator
from airflow_provider_rungen.exceptions import (
    RunGenConfigError,
    RunGenConnectionError,
    RunGenForbiddenError,
    RunGenResponseError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunBatchOperator

pytestmark = pytest.mark.contract

INPUT: dict[str, Any] = {"prompt": "a fox"}


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An emulator that was not started, so that nothing listens on its port."""
    emulator = Emulator(port=9, job_seconds=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", emulator.airflow_connection())
    return emulator


@dataclass
class Canned:
    """Answers each request in the same way, and records it."""

    status: int = 200
    body: bytes = b"{}"
    error: Exception | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    heard: list[Any] = field(default_factory=list)

    def handle_request(self, *request: Any) -> Any:
        self.heard.append(request)
        if self.error is not None:
            raise self.error
        return self


def test_a_transport_gets_the_whole_request(emulator: Emulator) -> None:
    transport = Canned(body=b'{"data": {"id": "j", "status": "QUEUED"}}')
    assert RunGenHook(transport=transport).run_job(input=INPUT).id == "j"
    [(method, url, headers, body)] = transport.heard
    assert (method, url) == ("POST", f"{emulator.url}/app/{APP}/run_async")
    assert (headers["x-api-key"], headers["Content-Type"]) == (KEY, "application/json")
    assert body == b'{"input":{"prompt":"a fox"}}'


def test_jobs_go_their_way_without_a_connection(emulator: Emulator, connections: Connections) -> None:
    with RunGenHook(transport=emulator) as hook:
        job = hook.run_job(input=INPUT)
        assert hook.wait_for_job(job_id=job.id, poll_interval=0.02, timeout=10).result["images"]
        for count in (1, 3):
            jobs = [hook.run_job(input={**INPUT, "emulator": {"seconds": 60}}).id for _ in range(count)]
            assert hook.cancel_jobs(job_ids=jobs) == dict.fromkeys(jobs)
    assert (emulator.service.stats()["jobs_cancelled"], connections.opened) == (4, 0)


def test_a_transport_serves_an_event_loop_too(emulator: Emulator) -> None:
    async def work() -> list[str]:
        async with RunGenHook(transport=emulator) as hook:
            jobs = await asyncio.gather(*(hook.arun_job(input=INPUT) for _ in range(3)))
            waits = (hook.await_for_job(job_id=job.id, poll_interval=0.02) for job in jobs)
            return [job.status for job in await asyncio.gather(*waits)]

    assert asyncio.run(work()) == ["COMPLETED"] * 3


@pytest.mark.parametrize(
    ("error", "kind", "requests"),
    [
        (ConnectionResetError(), RunGenSubmissionUnknownError, 1),
        (TimeoutError(), RunGenSubmissionUnknownError, 1),
        (ConnectionRefusedError(), RunGenConnectionError, 5),
    ],
)
@pytest.mark.usefixtures("emulator")
def test_a_submission_whose_answer_the_transport_loses_is_unknown(
    error: Exception, kind: type[Exception], requests: int
) -> None:
    transport = Canned(error=error)
    with pytest.raises(kind):
        RunGenHook(transport=transport).run_job(input=INPUT)
    assert len(transport.heard) == requests


def test_an_answer_of_a_transport_is_held_to_the_same_rules(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = Canned(403, f'{{"error": "wrong key {KEY}"}}'.encode())
    with pytest.raises(RunGenForbiddenError) as caught:
        RunGenHook(transport=echo).list_apps()
    assert KEY not in str(caught.value)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", emulator.airflow_connection(max_response_bytes=1000))
    with pytest.raises(RunGenResponseError, match="max_response_bytes"):
        RunGenHook(transport=Canned(body=b" " * 1001)).list_apps()
    with pytest.raises(RunGenConfigError, match="transport"):
        RunGenHook(transport=emulator).get_conn()


@pytest.mark.parametrize("deferrable", [False, True])
def test_operators_and_triggers_use_the_transport_of_the_class(
    emulator: Emulator, connections: Connections, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunGenHook, "transport", emulator)
    op = RunGenRunBatchOperator(task_id="t", inputs=[INPUT] * 3, deferrable=deferrable, poll_interval=0.05)
    outcome = run_operator(op, emulator=emulator)
    assert outcome.error is None
    assert outcome.value == [job["id"] for job in emulator.service.jobs()]
    assert bool(outcome.events) is deferrable
    assert connections.opened == 0


def test_the_emulator_answers_for_no_other_host(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    other = emulator.airflow_connection().replace(emulator.url, "http://127.0.0.1:8")
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", other)
    with pytest.raises(RunGenConnectionError) as caught:
        RunGenHook(transport=emulator).run_job(input=INPUT)
    assert not caught.value.sent
    assert emulator.service.records() == []


@pytest.mark.parametrize("kind", ["hang", "drip", "reset_before", "reset_after", "truncate"])
def test_a_fault_of_the_emulator_loses_the_answer(emulator: Emulator, kind: str) -> None:
    emulator.service.inject(Fault(on="run", kind=kind))
    with pytest.raises(RunGenSubmissionUnknownError):
        RunGenHook(transport=emulator).run_job(input=INPUT)
    assert emulator.service.stats()["jobs_created"] == (kind not in ("hang", "reset_before"))
