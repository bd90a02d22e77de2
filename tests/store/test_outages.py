"""S3 that fails from any request on: what is bought then, and what the next attempt buys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, run_task
from faulty_s3 import CUT, FaultyS3, S3Fault
from rungen_emulator import Emulator
from rungen_emulator.fakes import FakeTaskInstance

from airflow_provider_rungen.operators import RunGenRunTableOperator

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("unsettled")]

ROWS = 2
FAULTS = [
    S3Fault(403, "AccessDenied"),
    S3Fault(404, "NoSuchBucket"),
    S3Fault(503, "SlowDown"),
    S3Fault(400, "ExpiredToken"),
    S3Fault(403, "ExpiredToken"),
    CUT,
]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "outputs.outage.OUTAGE_TIME": 0.2,
        "task.store_writer.STORE_RETRY_BUDGET": 0.2,
        "work.submit._ID_TIME": 0.2,
        "store.records.CLAIM_TIME": 1.0,
        "work.submit._ID_PAUSE": 0.05,
        "work.table_run.WAIT_INTERVAL": 0.1,
    }.items():
        monkeypatch.setattr(f"airflow_provider_rungen.{name}", seconds)


class Stage:
    """A table on S3."""

    def __init__(self, emulator: Emulator, s3: FaultyS3, folder: str) -> None:
        emulator.service.job_seconds = 0
        emulator.service.scale("flux-schnell", 100)
        self.service, self.s3, self.folder = emulator.service, s3, folder

    def run(self, name: str) -> Outcome:
        """Run an attempt."""
        self.s3.requests.clear()
        ti = FakeTaskInstance()
        ti.run_id = name
        task = RunGenRunTableOperator(
            task_id="task",
            table=[{"prompt": f"a fox, no. {number}"} for number in range(ROWS)],
            destination=f"s3://faulty_s3@bucket/{self.folder}/{name.partition(' ')[0]}",
            poll_interval=0.02,
        )
        return run_task(task, {"ti": ti})

    def run_in_outage(self, name: str, request: int, fault: S3Fault) -> Outcome:
        """Run an attempt whose storage fails from a request on."""
        self.s3.find_fault = lambda _: fault if len(self.s3.requests) >= request else None
        try:
            return self.run(name)
        finally:
            self.s3.reset()

    @property
    def bought(self) -> int:
        """How many jobs there are, but for those that were canceled since nobody could keep their ids."""
        return sum(job["status"] != "CANCELED" for job in self.service.jobs())


@pytest.fixture
def stage(rungen_emulator: Emulator, faulty_s3: FaultyS3, tmp_path: Path) -> Stage:
    return Stage(rungen_emulator, faulty_s3, tmp_path.name)


def is_retried(outcome: Outcome) -> bool:
    return bool(getattr(outcome.error, "retryable", False))


@pytest.mark.parametrize("job_seconds", [0.0, 0.5], ids=["is over", "is canceled"])
def test_an_outage_from_any_request_on_buys_nothing_twice(stage: Stage, job_seconds: float) -> None:
    stage.service.job_seconds = job_seconds
    # a job that is over cannot be canceled, and nobody could keep its id
    unknown = 1 if job_seconds == 0 else 0
    assert stage.run("undisturbed night").error is None
    requests, wrong = len(stage.s3.requests), dict[Any, Any]()
    for request in range(1, requests + 1):
        before, fault = stage.bought, FAULTS[request % len(FAULTS)]
        outcome = stage.run_in_outage(f"{request} night", request, fault)
        retry = stage.run(f"{request} night")
        found = {
            "not retried": outcome.error is not None and not is_retried(outcome) and repr(outcome.error),
            "retry": retry.error,
            "bought": max(stage.bought - before - ROWS - unknown, 0),
        }
        wrong |= {(request, fault.code, name): str(each) for name, each in found.items() if each}
    assert wrong == {}


def test_in_an_outage_nothing_is_bought_that_is_there(stage: Stage) -> None:
    assert stage.run("store night 1").error is None
    assert stage.run("store night 2").value["reused"] == ROWS
    requests, wrong = len(stage.s3.requests), dict[Any, Any]()
    for request in range(1, requests + 1):
        outcome = stage.run_in_outage("store night 3", request, fault := FAULTS[request % len(FAULTS)])
        # one that is cut only harms what is read, and a contact sheet fails nobody
        if stage.bought != ROWS or not (is_retried(outcome) or outcome.error is None):
            wrong[request, fault.code] = stage.bought, repr(outcome.error)
    assert wrong == {}
    assert stage.run("store night 4").value["reused"] == ROWS
