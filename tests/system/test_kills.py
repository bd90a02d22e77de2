"""Kill, clear and mark tasks of a real Airflow, judged by what the emulator saw.

Every test gives its jobs a prompt of their own, and looks at those jobs alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rungen_emulator import Emulator

from airflow_provider_rungen._airflow import CLEAR_DISCARDS_STATE
from system.stage import AirflowInstance, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.contract
@pytest.mark.parametrize("dag_id", ["blocking", "no_wait"])
@pytest.mark.parametrize("victim", ["task", "supervisor"])
def test_a_killed_worker_loses_no_job_and_buys_none_twice(
    airflow: AirflowInstance, start: Callable[..., Run], dag_id: str, victim: str
) -> None:
    run = start(dag_id, seconds=40)
    run.wait_for_jobs(1)
    until(lambda: "Submitted job" in run.log(), 30, run.log)
    job_id = run.jobs()[0]["id"]
    processes = task_processes(airflow, run)
    if victim == "supervisor":  # an orphaned task would go on
        os.kill(processes["task"], signal.SIGSTOP)
    os.kill(processes[victim], signal.SIGKILL)
    try:
        assert run.wait_for_end() == "success"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes["task"], signal.SIGKILL)
    assert [job["id"] for job in run.jobs()] == [job_id]
    assert airflow.xcom(dag_id, run.id, "run") == airflow.xcom(dag_id, run.id, "run", "job_id") == job_id
    assert run.task()["try_number"] == 2
    assert f"Resuming a job that is not over (job {job_id}, " in run.log(2)


@pytest.mark.contract
def test_a_killed_triggerer_loses_none_of_its_jobs(
    airflow: AirflowInstance, start: Callable[..., Run]
) -> None:
    run = start("many", seconds=75, count=20)
    run.wait_for_jobs(20, timeout=120)
    run.wait_for_state("deferred", 60)
    for pid in airflow.processes("airflow triggerer"):
        os.kill(pid, signal.SIGKILL)
    airflow.start_component("triggerer")
    assert run.wait_for_end(200) == "success"
    assert run.jobs_by_status() == {"COMPLETED": 20}
    assert {task["try_number"] for task in run.tasks()} == {1}


@pytest.mark.contract
def test_a_task_that_raises_after_the_wait_uses_its_job_again(start: Callable[..., Run]) -> None:
    run = start("raising", seconds=10)
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"COMPLETED": 1}
    assert "Resuming a job that is COMPLETED" in run.log(2)


@pytest.mark.contract
def test_a_clear_after_success_runs_a_new_job(start: Callable[..., Run]) -> None:
    run = start("blocking", seconds=2)
    assert run.wait_for_end() == "success"
    run.clear()
    run.wait_for_jobs(2, "COMPLETED")
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"COMPLETED": 2}
    assert "Resuming" not in run.log(2)


def test_a_clear_while_deferred_cancels_the_job_and_runs_a_new_one(start: Callable[..., Run]) -> None:
    run = start("deferred", seconds=30)
    run.wait_for_jobs(1)
    run.wait_for_state("deferred")
    if CLEAR_DISCARDS_STATE:  # neither the next attempt nor, at first, a triggerer knows the job
        run.wait_for_trigger()
    run.clear()
    run.wait_for_jobs(1, "CANCELED")
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"CANCELED": 1, "COMPLETED": 1}


@pytest.mark.contract
@pytest.mark.parametrize("dag_id", ["deferred", "blocking"])
@pytest.mark.parametrize("state", ["failed", "success", "skipped"])
def test_a_task_marked_by_a_user_cancels_its_job(start: Callable[..., Run], dag_id: str, state: str) -> None:
    run = start(dag_id, seconds=100)
    run.wait_for_jobs(1)
    run.wait_for_trigger() if dag_id == "deferred" else run.wait_for_state("running")
    run.mark(state)
    run.wait_for_jobs(1, "CANCELED", timeout=45)
    run.wait_for_end()
    assert run.task()["state"] == state
    assert run.jobs_by_status() == {"CANCELED": 1}


@pytest.mark.contract
def test_a_terminated_worker_leaves_its_job_to_the_retry(
    airflow: AirflowInstance, start: Callable[..., Run]
) -> None:
    run = start("blocking", seconds=15)
    run.wait_for_jobs(1)
    os.kill(task_processes(airflow, run)["task"], signal.SIGTERM)
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"COMPLETED": 1}
    assert "The next attempt resumes job" in run.log(1)


@pytest.mark.contract
@pytest.mark.parametrize("dag_id", ["deferred_timeout", "blocking_execution_timeout"])
def test_a_job_that_takes_too_long_is_canceled(start: Callable[..., Run], dag_id: str) -> None:
    run = start(dag_id, seconds=100)
    assert run.wait_for_end() == "failed"
    assert run.jobs_by_status() == {"CANCELED": 1}
    if dag_id == "deferred_timeout":
        assert "RunGenJobTimeoutError" in run.log()
        assert "Raise timeout (now 12 s)" in run.log()


@pytest.mark.contract
def test_a_killed_table_goes_on_where_it_stopped(
    airflow: AirflowInstance, start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("table", seconds=1, count=400, home=str(tmp_path))
    until(lambda: len(run.jobs()) >= 100, 90, run.log)
    os.kill(task_processes(airflow, run)["task"], signal.SIGKILL)
    assert run.wait_for_end(200) == "success"
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ids = {row["job_id"] for row in rows}
    assert len(ids) == 400
    assert ids <= {job["id"] for job in run.jobs()}
    # the fate of those in flight at the kill is unknown
    assert len(run.jobs()) <= 400 + 16
    assert "Resuming " in run.log(2)


@pytest.mark.contract
def test_a_table_marked_by_a_user_cancels_all_its_jobs(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start("table", seconds=200, count=60, home=str(tmp_path))
    run.wait_for_trigger()
    run.mark("failed")
    run.wait_for_jobs(60, "CANCELED", timeout=45)
    run.wait_for_end()


@pytest.mark.contract
def test_a_key_that_is_replaced_ends_no_deferred_task(airflow: AirflowInstance) -> None:
    with Emulator(workers=10, api_key="the-first-key-that-appears-nowhere") as emulator:
        connection = {"connection_id": "rungen_rotating", "conn_type": "rungen", "host": emulator.url}
        connection |= {"password": emulator.service.api_key, "extra": '{"app_id": "flux-schnell"}'}
        airflow.request("POST", "/connections", connection)
        run = Run(airflow, emulator, "rotating", seconds=25)
        run.wait_for_trigger()
        emulator.service.api_key = "the-second-key-that-appears-nowhere"  # the first is revoked
        refused = emulator.service.count("get")
        until(lambda: emulator.service.count("get") > refused + 1, 30, run.log)
        connection["password"] = emulator.service.api_key
        airflow.request("PATCH", "/connections/rungen_rotating", connection)
        assert run.wait_for_end() == "success"
        assert run.jobs_by_status() == {"COMPLETED": 1}
        assert emulator.service.count("cancel") == 0
        assert "RunGen answers again" in run.log()
        assert "that-appears-nowhere" not in run.log()
        assert run.task()["try_number"] == 1
