"""Kill a task with 10,000 inputs in a real Airflow: no job is left at the service."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rungen_emulator import Emulator

from system.stage import AirflowInstance, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(400), pytest.mark.contract]
COUNT = 10_000
# Of the first 1000 jobs, these end within 50 s, so that a second wave follows. The others run on.
SHORT = 600
Statuses = Callable[[], Counter[str]]


@pytest.fixture
def statuses(emulator: Emulator, tmp_path: Path, request: pytest.FixtureRequest) -> Statuses:
    """Write 10,000 inputs, and return what counts their jobs by status."""
    name = f"{request.node.name} "
    with (tmp_path / "inputs.jsonl").open("w") as file:
        for n in range(COUNT):
            options = {"seconds": 8 if n < SHORT else 600}
            file.write(json.dumps({"prompt": f"{name}{n}", "emulator": options}) + "\n")

    def count() -> Counter[str]:
        jobs = emulator.service.jobs()
        return Counter(job["status"] for job in jobs if job["input"]["prompt"].startswith(name))

    return count


def wait_for_the_second_wave(statuses: Statuses) -> None:
    """Wait until it is submitted: what a busy machine has not answered when a task ends may go on."""
    counts: list[int] = []

    def is_there() -> bool:
        counts.append(statuses().total())
        return statuses()["COMPLETED"] == SHORT and counts[-1] >= 1500 and len(set(counts[-10:])) == 1

    until(is_there, 200, lambda: str(statuses()))


def has_second_trigger(log: str) -> bool:
    """Return whether a trigger has started after the second deferral. A mark reaches nobody before."""
    before, _, after = log.rpartition("Waiting in the triggerer")
    return "Waiting in the triggerer" in before and " starting" in after


def check_that_none_is_left(statuses: Statuses, run: Run) -> None:
    counts = statuses()
    assert counts == {"COMPLETED": SHORT, "CANCELED": counts["CANCELED"]}, run.log()
    assert 900 <= counts["CANCELED"] <= 1000


def test_a_terminated_batch_of_ten_thousand_leaves_no_job(
    airflow: AirflowInstance, start: Callable[..., Run], statuses: Statuses, tmp_path: Path
) -> None:
    run = start("waves_blocking", seconds=0, inputs=str(tmp_path / "inputs.jsonl"))
    wait_for_the_second_wave(statuses)
    os.kill(task_processes(airflow, run)["task"], signal.SIGTERM)
    assert run.wait_for_end() == "failed"
    check_that_none_is_left(statuses, run)


def test_a_deferred_batch_of_ten_thousand_that_is_marked_leaves_no_job(
    start: Callable[..., Run], statuses: Statuses, tmp_path: Path
) -> None:
    run = start("waves_deferred", seconds=0, inputs=str(tmp_path / "inputs.jsonl"))
    wait_for_the_second_wave(statuses)
    run.wait_for_state("deferred")
    until(lambda: has_second_trigger(run.log()), 60, run.log)
    run.mark("failed")
    until(lambda: not statuses().keys() & {"QUEUED", "RUNNING"}, 45, lambda: str(statuses()))
    assert run.wait_for_end() == "failed"
    check_that_none_is_left(statuses, run)
