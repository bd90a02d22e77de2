"""Kill, clear and mark tasks of a real Airflow, judged by what the emulator saw.

Every test gives its jobs a prompt of their own, and looks at those jobs alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import pytest
from rungen_emulator import Emulator

from airflow_provider_rungen._airflow import CLEAR_DISCARDS_STATE
from system.stage import AirflowInstance, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]

PROCESSES = ("task", "supervisor")


def test_a_killed_worker_loses_no_job_and_buys_none_twice(
    airflow: AirflowInstance, start: Callable[..., Run]
) -> None:
    victims = [(start(dag_id, seconds=40), who) for dag_id in ("blocking", "no_wait") for who in PROCESSES]
    orphans: list[int] = []
    for run, who in victims:
        run.wait_for_jobs(1)
        run.wait_for_log("Submitted job", timeout=30)
        processes = task_processes(airflow, run)
        if who == "supervisor":  # an orphaned task would go on
            orphans.append(processes["task"])
            os.kill(processes["task"], signal.SIGSTOP)
        os.kill(processes[who], signal.SIGKILL)
    try:
        for run, _ in victims:
            assert run.wait_for_end() == "success"
            [job] = run.jobs()
            values = [airflow.xcom(run.dag_id, run.id, "run", key) for key in ("return_value", "job_id")]
            assert values == [job["id"]] * 2
            assert run.task()["try_number"] == 2
            assert f"Resuming a job that is not over (job {job['id']}, " in run.log(2)
    finally:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_permanent_error_is_not_retried(start: Callable[..., Run]) -> None:
    run = start("hopeless", seconds=0.1)
    assert run.wait_for_end() == "failed"
    assert (run.task()["try_number"], run.task()["max_tries"]) == (1, 2)
    assert run.jobs() == []


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


@pytest.mark.parametrize("dag_id", ["deferred", "blocking"])
def test_a_task_marked_by_a_user_cancels_its_job(start: Callable[..., Run], dag_id: str) -> None:
    marked = {state: start(dag_id, seconds=100) for state in ("failed", "success", "skipped")}
    for run in marked.values():
        run.wait_for_jobs(1)
        run.wait_for_trigger() if dag_id == "deferred" else run.wait_for_state("running")
    for state, run in marked.items():
        run.mark(state)
    for state, run in marked.items():
        run.wait_for_jobs(1, "CANCELED", timeout=45)
        run.wait_for_end()
        assert run.task()["state"] == state
        assert run.jobs_by_status() == {"CANCELED": 1}


def test_a_terminated_worker_leaves_its_job_to_the_retry(start: Callable[..., Run]) -> None:
    run = start("blocking", seconds=15)
    run.wait_for_jobs(1)
    run.kill(number=signal.SIGTERM)
    assert run.wait_for_end() == "success"
    assert run.jobs_by_status() == {"COMPLETED": 1}
    assert "The next attempt resumes job" in run.log(1)


def test_a_job_that_takes_too_long_is_canceled(start: Callable[..., Run]) -> None:
    runs = [start(dag_id, seconds=100) for dag_id in ("deferred_timeout", "blocking_execution_timeout")]
    for run in runs:
        assert run.wait_for_end() == "failed"
        assert run.jobs_by_status() == {"CANCELED": 1}
    assert "RunGenJobTimeoutError" in runs[0].log()
    assert "Raise timeout (now 12 s)" in runs[0].log()


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
