"""Lose workers and triggerers of an Airflow that has several, judged by what the emulator saw."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from bad_answers import Fault
from distributed_airflow import DistributedAirflow
from rungen_emulator import Emulator
from system.stage import Run, until

from airflow_provider_rungen.results import read_results

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600), pytest.mark.contract]

INPUTS = 300
# A table in parts: rows of each of them, and those that are in all.
PARTS, OWN, SHARED = 8, 80, 40
# So many submissions of a task are under way at most, from the POST to the id in the store.
MOST_IN_FLIGHT = 32
# Airflow logs it when a trigger ends because its task is no longer deferred.
TOLD_OF_A_KILL = "Trigger cancelled by user action"


def assert_in_order(airflow: DistributedAirflow, run: Run, count: int) -> None:
    """Check that a table has completed jobs, in the order of its inputs."""
    jobs = {job["id"]: job for job in run.jobs()}
    ids = [row["job_id"] for row in read_results(airflow.xcom(run.dag_id, run.id, "run")).rows()]
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


def test_a_worker_lost_while_a_table_waits(
    airflow: DistributedAirflow, emulator: Emulator, start: Callable[..., Run], scale: Callable[[int], None]
) -> None:
    scale(0)
    run = start("table_blocking", seconds=1, count=INPUTS)
    run.wait_for_jobs(INPUTS, "QUEUED", timeout=120)
    run.wait_for_log(f"Submitted {INPUTS} of {INPUTS} inputs")
    lost = worker_of(airflow, run)
    airflow.kill(lost)
    until(lambda: run.task()["try_number"] == 2 and run.task()["state"] == "running", 120, run.log)
    run.wait_for_log(f"{INPUTS} rows: 0 to buy, {INPUTS} running", try_number=2)
    scale(100)
    assert run.wait_for_end() == "success"
    assert run.task()["try_number"] == 2
    assert run.task()["unixname"] in airflow.parts("worker")
    assert len(run.jobs()) == INPUTS
    assert not cancels(emulator, run)
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
    run.wait_for_log(TOLD_OF_A_KILL)
    run.wait_for_log("Not canceled, since another attempt waits")
    assert not cancels(emulator, run)
    scale(100)
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"COMPLETED": 20}
    assert run.task()["try_number"] == 1
    assert not cancels(emulator, run)


def test_a_table_in_parts_is_bought_once_though_a_worker_is_lost(
    airflow: DistributedAirflow, emulator: Emulator, start: Callable[..., Run]
) -> None:
    """Eight parts on four workers share a store. A worker is lost while its parts buy."""
    # answers take seconds, so that submissions of the lost worker are in flight
    emulator.service.inject(Fault(on="run", kind="drip", drip_seconds=0.03, times=None))
    run = start("parts", seconds=0, count=PARTS, own=OWN, shared=SHARED)

    def bought_in(part: int) -> int:
        return sum(prompt.startswith(f"{run.prompt} {part}.") for prompt in run.bought())

    def in_the_middle() -> list[int]:
        return [part for part in range(PARTS) if 0 < bought_in(part) < OWN - MOST_IN_FLIGHT]

    until(lambda: len(run.bought()) >= SHARED + OWN and bool(in_the_middle()), 200, lambda: str(run.bought()))
    lost_part = in_the_middle()[0]
    [lost] = [task["unixname"] for task in run.tasks() if task["map_index"] == lost_part]
    airflow.kill(lost)
    emulator.service.clear_faults()
    # claims of the lost worker end after three minutes
    assert run.wait_for_end(400) == "success"

    killed = {task["map_index"] for task in run.tasks() if task["try_number"] == 2}
    assert lost_part in killed
    bought = run.bought()
    names = [f"shared.{n}" for n in range(SHARED)]
    tables = [[*names, *(f"{part}.{n}" for n in range(OWN))] for part in range(PARTS)]
    assert bought.keys() == {f"{run.prompt} {name}" for name in chain(*tables)}
    assert bought.total() - len(bought) <= MOST_IN_FLIGHT * len(killed)

    jobs = {job["id"]: job for job in run.jobs()}
    outputs: set[str] = set()
    for part, table in enumerate(tables):
        rows = [*read_results(airflow.xcom(run.dag_id, run.id, "run", map_index=part)).rows()]
        assert [row["input"]["prompt"] for row in rows] == [f"{run.prompt} {name}" for name in table]
        assert {row["status"] for row in rows} == {"completed"}
        assert [jobs[row["job_id"]]["input"] for row in rows] == [row["input"] for row in rows]
        outputs |= {row["output"] for row in rows}
    # one folder has all outputs, and parts share those of the rows that they share
    assert len(outputs) == len(bought)
    assert {Path(uri.removeprefix("file://")).parents[1] for uri in outputs} == {
        airflow.home / "store" / "parts" / "files"
    }
    assert all(Path(uri.removeprefix("file://")).stat().st_size for uri in outputs)
    # each job is on the bill of the part that bought it
    bills = [airflow.xcom(run.dag_id, run.id, "run", "usage", map_index=part) for part in range(PARTS)]
    billed = sum(bill["jobs"] for bill in bills)
    assert billed <= len(jobs) <= billed + sum(bill.get("lost", 0) for bill in bills)
