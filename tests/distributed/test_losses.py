"""Lose workers and triggerers of an Airflow that has several, judged by what the emulator saw."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from client_mistakes import early_retries, keys_leaked
from distributed_airflow import DistributedAirflow
from rungen_emulator import Emulator
from system.stage import Run, until

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400), pytest.mark.contract]

INPUTS = 300
# Airflow logs it when a trigger ends because its task is no longer deferred.
TOLD_OF_A_KILL = "Trigger cancelled by user action"


def bought(run: Run) -> Counter[str]:
    """Return the number of jobs of each input."""
    return Counter(job["input"]["prompt"] for job in run.jobs())


def assert_in_order(airflow: DistributedAirflow, run: Run, count: int) -> None:
    """Check that a table has completed jobs, in the order of its inputs."""
    jobs = {job["id"]: job for job in run.jobs()}
    path = Path(airflow.xcom(run.dag_id, run.id, "run")["results"].removeprefix("file://"))
    ids = [json.loads(line)["job_id"] for line in path.read_text().splitlines()]
    assert [jobs[job_id]["input"]["prompt"] for job_id in ids] == [f"{run.prompt} {n}" for n in range(count)]
    assert {jobs[job_id]["status"] for job_id in ids} == {"COMPLETED"}


def cancels(emulator: Emulator, run: Run) -> Counter[str]:
    """Return the number of cancel requests for each of the run's jobs."""
    ids = {job["id"] for job in run.jobs()}
    asked = [
        record.path.rpartition("/")[2]
        for record in emulator.service.records()
        if record.operation == "cancel"
    ]
    return Counter(job_id for job_id in asked if job_id in ids)


def worker_of(airflow: DistributedAirflow, run: Run) -> str:
    """Return the name of the worker that runs the task."""
    task_id = run.task()["id"]
    [name] = [
        name
        for name in airflow.parts("worker")
        if any(task_id in title for title in airflow.part(name).values())
    ]
    return name


def busiest_triggerer(airflow: DistributedAirflow) -> str:
    return max(airflow.parts("triggerer"), key=lambda name: len(airflow.triggers_of(name)))


@pytest.mark.parametrize("dag_id", ["table_blocking", "table_deferred"])
def test_a_worker_lost_while_a_batch_submits(
    airflow: DistributedAirflow, start: Callable[..., Run], dag_id: str
) -> None:
    run = start(dag_id, seconds=2, count=INPUTS)
    until(lambda: len(run.jobs()) >= INPUTS // 4, 120, lambda: str(run.tasks()))
    lost = worker_of(airflow, run)
    airflow.kill(lost)
    assert len(run.jobs()) < INPUTS
    assert run.wait_for_end(250) == "success"
    assert (run.task()["try_number"], run.task()["unixname"]) == (2, *airflow.parts("worker"))
    assert "Resuming " in run.log(2)
    assert_in_order(airflow, run, INPUTS)
    # only the fate of those in flight is unknown
    assert len(bought(run)) == INPUTS
    assert len(run.jobs()) <= INPUTS + 16


def test_a_worker_lost_while_a_batch_waits(
    airflow: DistributedAirflow, start: Callable[..., Run], scale: Callable[[int], None]
) -> None:
    scale(0)
    run = start("table_blocking", seconds=1, count=INPUTS)
    run.wait_for_jobs(INPUTS, "QUEUED", timeout=120)
    until(lambda: f"Submitted {INPUTS} of {INPUTS} inputs" in run.log(), 30, run.log)
    lost = worker_of(airflow, run)
    airflow.kill(lost)
    until(lambda: run.task()["try_number"] == 2 and run.task()["state"] == "running", 120, run.log)
    until(lambda: f"{INPUTS} are resumed" in run.log(2), 60, lambda: run.log(2))
    scale(100)
    assert run.wait_for_end() == "success"
    assert (run.task()["try_number"], run.task()["unixname"]) == (2, *airflow.parts("worker"))
    assert len(run.jobs()) == INPUTS
    assert_in_order(airflow, run, INPUTS)


def test_a_lost_triggerer_is_replaced_by_the_other(
    airflow: DistributedAirflow, emulator: Emulator, start: Callable[..., Run], scale: Callable[[int], None]
) -> None:
    scale(0)
    run = start("many", seconds=1, count=24)
    until(
        lambda: Counter(task["state"] for task in run.tasks())["deferred"] == 24,
        250,
        lambda: str(run.tasks()),
    )
    triggerers = airflow.parts("triggerer")
    until(
        lambda: sum(len(airflow.triggers_of(name)) for name in triggerers) == 24, 30, lambda: str(run.tasks())
    )
    lost = busiest_triggerer(airflow)
    airflow.kill(lost)
    until(lambda: not airflow.triggers_of(lost), 60, lambda: str(airflow.triggers_of(lost)))
    scale(100)
    assert run.wait_for_end(300) == "success"
    assert run.jobs_by_status() == {"COMPLETED": 24}
    assert {task["try_number"] for task in run.tasks()} == {1}
    assert not cancels(emulator, run)


def test_a_trigger_that_moved_is_not_taken_for_a_kill(
    airflow: DistributedAirflow, emulator: Emulator, start: Callable[..., Run], scale: Callable[[int], None]
) -> None:
    """A triggerer hangs, and comes back when the other has its triggers (apache/airflow #73454)."""
    scale(0)
    run = start("table_deferred", seconds=1, count=20)
    run.wait_for_trigger()
    late = busiest_triggerer(airflow)
    moving = airflow.triggers_of(late)
    assert len(moving) == 1
    airflow.signal(late, signal.SIGSTOP)
    try:
        [other] = [name for name in airflow.parts("triggerer") if name != late]
        until(lambda: moving <= airflow.triggers_of(other), 60, lambda: str(airflow.triggers_of(other)))
    finally:
        airflow.signal(late, signal.SIGCONT)
    until(lambda: TOLD_OF_A_KILL in run.log(), 60, run.log)
    until(lambda: "Not canceled, since another attempt waits" in run.log(), 60, run.log)
    assert not cancels(emulator, run)
    scale(100)
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"COMPLETED": 20}
    assert run.task()["try_number"] == 1
    assert not cancels(emulator, run)


def test_the_key_is_nowhere(distributed: DistributedAirflow, emulator: Emulator) -> None:
    """Search the logs (at DEBUG) and the database of all other tests. Runs last."""
    key = emulator.service.api_key.encode()
    files = [path for path in Path(distributed.home).rglob("*") if path.is_file()]
    assert any("attempt=2.log" in path.name for path in files)
    assert [path for path in files if key in path.read_bytes()] == []
    everything = distributed.database.dump()
    assert b"rungen_log" in everything
    assert key not in everything
    assert keys_leaked(emulator.service) == 0
    assert early_retries(emulator.service) == 0
