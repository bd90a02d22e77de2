"""Fail, kill, mark and clear runs that scale an app in a real Airflow, judged by the emulator's bill."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from rungen_emulator import Emulator, Fault

from system.stage import AirflowInstance, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]


class Paid:
    """An app for one test, and its bill."""

    def __init__(self, emulator: Emulator, init_seconds: float, app_id: str = "") -> None:
        self.id = app_id or f"app-{uuid.uuid4()}"
        self.service = emulator.service
        self.service.add_app(self.id, init_seconds=init_seconds)

    @property
    def active_workers(self) -> int:
        workers: int = self.service.stats()["active_workers"][self.id]
        return workers

    @property
    def bill(self) -> float:
        bill: float = self.service.stats()["worker_seconds"][self.id]
        return bill

    def numbers(self) -> list[bytes]:
        """Every requested number of workers."""
        path = f"/app/{self.id}"
        records = self.service.records()
        return [record.body for record in records if record.path == path and record.method == "PUT"]

    def assert_over(self) -> None:
        assert self.active_workers == 0
        bill = self.bill
        time.sleep(2)
        assert self.bill == bill

    def assert_agrees(self, run: Run) -> None:
        """Compare the bill of a run with what the emulator bills, within a poll and the second of a time."""
        bill = run.airflow.xcom(run.dag_id, run.id, "app_down", "usage")
        assert bill["seconds"] == pytest.approx(self.bill, abs=2 * (1 + 1))
        assert bill["down_at"]
        assert "Bill of app" in run.log(run.task("app_down")["try_number"], task_id="app_down")


UP = b'{"configuration":{"active_workers":2}}'
DOWN = b'{"configuration":{"active_workers":0}}'


@pytest.fixture
def paid(emulator: Emulator) -> Callable[..., Paid]:
    return lambda init_seconds=1.0: Paid(emulator, init_seconds)


@pytest.fixture(autouse=True)
def _no_faults_left(emulator: Emulator) -> Iterator[None]:
    yield
    emulator.service.clear_faults()


def states(run: Run) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in run.airflow.task_instances(run.dag_id, run.id)}


def mark_run(run: Run, state: str) -> None:
    run.airflow.request("PATCH", f"/dags/{run.dag_id}/dagRuns/{run.id}", {"state": state})


def test_an_app_is_paid_for_while_its_tasks_run(start: Callable[..., Run], paid: Callable[..., Paid]) -> None:
    app = paid()
    run = start("scaled", seconds=1, app_id=app.id)
    assert run.wait_for_end() == "success"
    app.assert_over()
    assert app.numbers() == [UP, DOWN]
    assert set(states(run).values()) == {"success"}
    assert f"Scaled to 0 workers (app {app.id})" in run.log(task_id="app_down")
    app.assert_agrees(run)
    assert run.jobs_by_status() == {"COMPLETED": 2}


@pytest.mark.parametrize("dag_id", ["scaled", "scaled_without_retries"])
def test_a_worker_killed_while_the_app_initializes(
    airflow: AirflowInstance, start: Callable[..., Run], paid: Callable[..., Paid], dag_id: str
) -> None:
    app = paid(init_seconds=25)
    run = start(dag_id, seconds=1, app_id=app.id)
    until(lambda: app.active_workers == 2, 60, lambda: str(states(run)))
    os.kill(task_processes(airflow, run, "app_up")["task"], signal.SIGKILL)
    state = run.wait_for_end()
    app.assert_over()
    app.assert_agrees(run)
    if dag_id == "scaled":
        assert state == "success"
        assert app.numbers() == [UP, UP, DOWN]
    else:
        assert state == "failed"
        assert states(run)["first"] == "upstream_failed"
        assert app.numbers()[-1] == DOWN


@pytest.mark.parametrize("dag_id", ["scaled", "scaled_deferred"])
def test_a_run_marked_failed_while_the_app_initializes(
    start: Callable[..., Run], paid: Callable[..., Paid], dag_id: str
) -> None:
    app = paid(init_seconds=200)
    run = start(dag_id, seconds=1, app_id=app.id)
    until(lambda: app.active_workers == 2, 60, lambda: str(states(run)))
    if dag_id == "scaled_deferred":
        run.wait_for_trigger("app_up")
    mark_run(run, "failed")
    until(lambda: app.active_workers == 0, 40, lambda: str(states(run)))
    state = run.wait_for_end()
    app.assert_over()
    app.assert_agrees(run)
    assert (state, states(run)["app_up"], states(run)["app_down"]) == ("failed", "failed", "success")


def test_a_task_in_the_middle_cleared_in_a_finished_run(
    airflow: AirflowInstance, start: Callable[..., Run], paid: Callable[..., Paid]
) -> None:
    app = paid()
    run = start("scaled", seconds=1, app_id=app.id, middle="fail")
    assert run.wait_for_end() == "failed"
    airflow.clear(run.dag_id, run.id, ["middle"])
    until(lambda: app.active_workers == 2, 60, lambda: str(states(run)))
    run.wait_for_end()
    app.assert_over()
    assert app.numbers() == [UP, DOWN, UP, DOWN]
    assert run.task("middle")["try_number"] == 2
    assert run.task("first")["try_number"] == 1


def test_the_first_of_two_runs_to_end_leaves_the_app_to_the_other(
    start: Callable[..., Run], paid: Callable[..., Paid]
) -> None:
    app = paid()
    long = start("scaled", seconds=15, app_id=app.id)
    until(lambda: app.active_workers == 2, 60, lambda: str(states(long)))
    short = start("scaled", seconds=1, app_id=app.id)
    assert short.wait_for_end() == "success"
    assert f"stays up for run {long.id}, whose teardown ends it" in short.log(task_id="app_down")
    assert app.active_workers == 2
    assert long.wait_for_end() == "success"
    app.assert_over()
    app.assert_agrees(long)
    assert long.airflow.xcom(short.dag_id, short.id, "app_down", "usage")["down_at"] is None
    assert app.numbers() == [UP, UP, DOWN]


def test_a_teardown_that_fails_fails_the_run(
    emulator: Emulator, start: Callable[..., Run], paid: Callable[..., Paid]
) -> None:
    app = paid()
    run = start("scaled", seconds=6, app_id=app.id)
    run.wait_for_jobs(1)
    emulator.service.inject(Fault(on="update_app", status=403, times=None))
    assert run.wait_for_end() == "failed"
    assert states(run) | {"app_down": "failed", "app_end": "upstream_failed"} == states(run)
    assert states(run)["after"] == states(run)["last"] == "success"
    assert f"STILL BILLED: app {app.id} may still have workers" in run.log(3, task_id="app_down")
    bill = run.airflow.xcom(run.dag_id, run.id, "app_down", "usage")
    assert bill["down_at"] is None
    assert bill["seconds"] > 2 * 6, "what it has cost until then"
    emulator.service.scale(app.id, 0)


def test_a_triggerer_killed_while_the_app_initializes(
    airflow: AirflowInstance, start: Callable[..., Run], paid: Callable[..., Paid]
) -> None:
    app = paid(init_seconds=40)
    run = start("scaled_deferred", seconds=1, app_id=app.id)
    run.wait_for_trigger("app_up")
    for pid in airflow.processes("airflow triggerer"):
        os.kill(pid, signal.SIGKILL)
    airflow.start_component("triggerer")
    assert run.wait_for_end(200) == "success"
    app.assert_over()
    app.assert_agrees(run)
    assert app.numbers() == [UP, DOWN]
    assert run.task("app_up")["try_number"] == 1


@pytest.fixture
def watched(airflow: AirflowInstance, emulator: Emulator) -> Iterator[Paid]:
    """Return an app that the triggerer watches."""

    def polls() -> int:
        return sum(record.path == "/app/watched-app" for record in emulator.service.records())

    before = polls()
    airflow.unpause("watch_idle_apps")
    # the first answers are 404
    until(lambda: polls() > before, 90, lambda: "the triggerer does not poll the app")
    yield Paid(emulator, 1.0, "watched-app")
    emulator.service.scale("watched-app", 0)


def scaled_down_by_the_watchdog(run: Run, app: Paid) -> None:
    until(lambda: app.active_workers == 0, 90, lambda: str((run.jobs(), app.bill)))
    app.assert_over()
    assert app.numbers()[-2:] == [UP, DOWN]
    # a job that runs when its app is scaled down is queued again
    assert run.jobs_by_status() in ({"COMPLETED": 1}, {"CANCELED": 1})


def test_an_idle_app_is_scaled_down_while_the_scheduler_is_dead(
    airflow: AirflowInstance, start: Callable[..., Run], watched: Paid
) -> None:
    run = start("scaled", seconds=20, app_id=watched.id)
    run.wait_for_jobs(1)
    for pid in airflow.processes("airflow scheduler"):
        os.kill(pid, signal.SIGKILL)
    try:
        until(lambda: run.jobs_by_status() == {"COMPLETED": 1}, 60, lambda: str(run.jobs()))
        assert watched.active_workers == 2, "while its job ran"
        scaled_down_by_the_watchdog(run, watched)
        assert states(run)["app_down"] is None, "nobody else has scaled it down"
        mark_run(run, "failed")  # or it would go on without workers
    finally:
        airflow.start_component("scheduler")
    watch = airflow.wait_for_new_run("watch_idle_apps", 90)
    assert airflow.wait_for_run("watch_idle_apps", watch, 90) == "success"
    log = airflow.log("watch_idle_apps", watch, "report")
    assert "Idle for 10." in log
    assert "watched-app had 2 workers, scaled down: True" in log
    run.wait_for_end()
    watched.assert_over()


def test_an_idle_app_is_scaled_down_although_its_dag_is_deleted(
    airflow: AirflowInstance, start: Callable[..., Run], watched: Paid
) -> None:
    run = start("scaled_and_forgotten", seconds=5, app_id=watched.id)
    run.wait_for_jobs(1)
    airflow.request("PATCH", f"/dags/{run.dag_id}", {"is_paused": True})
    run.wait_for_state("success", task_id="first")
    airflow.request("DELETE", f"/dags/{run.dag_id}")  # with its runs
    scaled_down_by_the_watchdog(run, watched)
