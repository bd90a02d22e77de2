"""Each fault for each operation over real HTTP, judged by what the server saw."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bad_answers import Fault
from client_mistakes import early_retries, keys_leaked
from conftest import APP, Via
from rungen_emulator import Emulator

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.polling import wait_for_jobs
from airflow_provider_rungen.exceptions import RunGenError

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->\n", "<!-- faults: end -->\n"
INPUT = {"prompt": "a lighthouse", "emulator": {"seconds": 600}}


def in_20_seconds() -> str:
    return email.utils.formatdate(time.time() + 20, usegmt=True)


def answers(status: int) -> Callable[[Any], Fault]:
    return lambda on: Fault(on=on, status=status)


STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504)
FAULTS: dict[str, Callable[[Any], Fault]] = {
    **{str(status): answers(status) for status in STATUSES},
    "429, Retry-After: 20": lambda on: Fault(on=on, status=429, headers={"Retry-After": "20"}),
    "429, Retry-After: a date": lambda on: Fault(on=on, status=429, headers={"Retry-After": in_20_seconds()}),
    "503, Retry-After: 20": lambda on: Fault(on=on, status=503, headers={"Retry-After": "20"}),
    "HTML page, 200": lambda on: Fault(on=on, kind="html", taken=True),
    "HTML page, 400": lambda on: Fault(on=on, kind="html", status=400),
    "HTML page, 502": lambda on: Fault(on=on, kind="html", status=502),
    "HTML page, 404": lambda on: Fault(on=on, kind="html", status=404),
    "HTML page, 429": lambda on: Fault(on=on, kind="html", status=429),
    "HTML page, 503": lambda on: Fault(on=on, kind="html", status=503),
    "HTML page, 502, taken behind the proxy": lambda on: Fault(on=on, kind="html", status=502, taken=True),
    "HTML page, 503, taken behind the proxy": lambda on: Fault(on=on, kind="html", status=503, taken=True),
    "HTML page, 503, Retry-After, taken behind the proxy": lambda on: Fault(
        on=on, kind="html", status=503, taken=True, headers={"Retry-After": "1"}
    ),
    "HTML page, 504, taken behind the proxy": lambda on: Fault(on=on, kind="html", status=504, taken=True),
    "empty body, 503": lambda on: Fault(on=on, status=503, body=""),
    "empty body, 404": lambda on: Fault(on=on, status=404, body=""),
    "JSON that is no object, 402": lambda on: Fault(on=on, status=402, body=["no"]),
    "JSON without an error, 503": lambda on: Fault(on=on, status=503, body={"message": "busy"}),
    "empty body": lambda on: Fault(on=on, kind="empty"),
    "body cut short": lambda on: Fault(on=on, kind="truncate"),
    "no JSON, but bytes": lambda on: Fault(on=on, kind="garbage"),
    "wrong types": lambda on: Fault(on=on, kind="wrong_types"),
    "no id": lambda on: Fault(on=on, kind="no_id"),
    "names another job": lambda on: Fault(on=on, kind="other_id"),
    "nested too deeply": lambda on: Fault(on=on, kind="deep"),
    "over the size limit": lambda on: Fault(on=on, kind="oversize", size=300_000),
    "redirect": lambda on: Fault(on=on, kind="redirect", headers={"Location": "https://elsewhere.invalid/x"}),
    "reset before it was taken": lambda on: Fault(on=on, kind="reset_before"),
    "reset after it was taken": lambda on: Fault(on=on, kind="reset_after"),
    "headers that drip, not taken": lambda on: Fault(on=on, kind="drip_headers"),
    "headers that drip, but taken": lambda on: Fault(on=on, kind="drip_headers", taken=True),
    "no answer, not taken": lambda on: Fault(on=on, kind="hang"),
    "no answer, but taken": lambda on: Fault(on=on, kind="hang", taken=True),
}


@dataclass(frozen=True)
class Seen:
    """What the server saw, and what the caller got."""

    requests: int
    jobs: int
    got: str

    def __str__(self) -> str:
        return f"{self.requests} sent, {self.jobs} job{'' if self.jobs == 1 else 's'}: {self.got}"


def perform(via: Via, on: str, fault: Fault) -> Seen:
    made = None if on == "run" else via(endpoints.run_job(APP, INPUT)).id
    via.service.inject(fault)
    flows: dict[str, Callable[[], Flow[Any]]] = {
        "run": lambda: endpoints.run_job(APP, INPUT),
        "get": lambda: endpoints.get_job(APP, str(made)),
        "cancel": lambda: endpoints.cancel_job(APP, str(made)),
    }
    try:
        got = type(via(flows[on]())).__name__
    except RunGenError as error:
        got = type(error).__name__.removeprefix("RunGen").removesuffix("Error")
    stats = via.service.stats()
    assert early_retries(via.service) == 0
    assert keys_leaked(via.service) == 0
    if on == "cancel" and got == "Job":
        assert stats["jobs_cancelled"] == 1
    return Seen(via.service.count(on), stats["jobs_created"] - (made is not None), got)


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[tuple[str, str], Seen]]:
    """Collect the outcomes, and compare them with the page when every fault was tried."""
    seen: dict[tuple[str, str], Seen] = {}
    yield seen
    if len(seen) < 3 * len(FAULTS):
        return
    faults: dict[str, list[str]] = {}
    for name in FAULTS:
        run, get, cancel = (seen[name, on] for on in ("run", "get", "cancel"))
        outcome = f"{run} | {get.requests} sent: {get.got} | {cancel.requests} sent: {cancel.got}"
        faults.setdefault(outcome, []).append(name)
    lines = ["| fault | run | get | cancel |", "| --- | --- | --- | --- |"]
    lines += [f"| {'; '.join(names)} | {outcome} |" for outcome, names in faults.items()]
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    written = head + BEGIN + "\n".join(lines) + "\n" + END + tail
    if written != page:
        PAGE.write_text(written)
        pytest.fail(f"the outcomes have changed: {PAGE.name} has the new ones")


@pytest.mark.parametrize("on", ["run", "get", "cancel"])
@pytest.mark.parametrize("name", FAULTS)
def test_both_clients_handle_a_fault_in_the_same_way(
    _emulator: Emulator,  # noqa: PT019 - its value is needed
    rows: dict[tuple[str, str], Seen],
    name: str,
    on: str,
) -> None:
    # a busy machine takes its time for an answer
    is_silent = name.startswith(("no answer", "headers that drip"))
    limits = {"read_timeout": 0.5 if is_silent else 10.0, "max_response_bytes": 200_000}
    blocking, in_loop = (
        perform(Via(kind, _emulator, overrides=limits), on, FAULTS[name](on)) for kind in ("blocking", "loop")
    )
    assert blocking == in_loop
    rows[name, on] = blocking
    if on == "run":
        assert blocking.jobs <= 1
        # no second POST if the first may have been taken, and no silence about it
        assert blocking.requests == 1 or blocking.got == "Job"
        if blocking.got != "Job" and blocking.jobs:
            assert blocking.got == "SubmissionUnknown"


def test_a_wait_outlasts_every_passing_fault_and_logs_it_once(
    _emulator: Emulator,  # noqa: PT019 - its value is needed
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("500", "HTML page, 200", "empty body", "body cut short", "reset after it was taken", "429"):
        via = Via("loop", _emulator)
        job = via(endpoints.run_job(APP, {"prompt": "a lighthouse"}))
        for _ in range(3):
            via.service.inject(FAULTS[name]("get"))
        caplog.clear()
        [done] = via(wait_for_jobs(APP, [job.id], poll_interval=1, deadline=via.clock.now + 600))
        done.raise_for_status()
        assert len([line for line in caplog.messages if "polling continues" in line]) == 1
        assert caplog.messages.count("RunGen answers again") == 1
