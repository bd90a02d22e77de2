"""All waits of an attempt: they share one poller, and a deferral is what happens when its time has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from conftest import APP, Clock, FakeTaskInstance
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen._airflow import BaseOperator
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.job_poller import JobPoller, strip_payloads
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import WaitGoal
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.exceptions import (
    RunGenJobQueuedTimeoutError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.sensors import RunGenJobSensor
from airflow_provider_rungen.task.options import JobOptions
from airflow_provider_rungen.task.run import TaskRun
from airflow_provider_rungen.triggers import RunGenJobTrigger
from airflow_provider_rungen.work.wait import JobWait

DAY = 86_400.0


class DeferralError(Exception):
    """Stands for Airflow's, with the arguments of the trigger."""

    def __init__(self, arguments: Mapping[str, Any], seconds: float) -> None:
        super().__init__()
        self.arguments, self.seconds = arguments, seconds


def defer(arguments: dict[str, Any], seconds: float) -> NoReturn:
    raise DeferralError(arguments, seconds)


class Scene:
    """The waits of an attempt, and the service. A clock moves when the task sleeps."""

    def __init__(self, emulator: Emulator, ti: FakeTaskInstance) -> None:
        self.service, self._context = emulator.service, {"ti": ti}
        self.service.scale(APP, 1000)

    def wait(self, **options: Any) -> JobWait:
        given = {"poll_interval": 5.0, "deferrable": False, "cancel_on_kill": True}
        task: dict[str, Any] = {"rungen_conn_id": "rungen_default", "app_id": APP, "timeout": 60}
        wait_options = JobOptions(**{**task, **given, **options})
        context: Any = self._context
        return JobWait(TaskRun(BaseOperator(task_id="wait"), context, wait_options), defer)

    @property
    def deadline(self) -> float:
        return self.service.now() + DAY


@pytest.fixture
def scene(rungen_emulator: Emulator, ti: FakeTaskInstance, monkeypatch: pytest.MonkeyPatch) -> Scene:
    clock = Clock(rungen_emulator, monkeypatch)
    monkeypatch.setattr(RunGenHook, "sleep", lambda _, seconds: clock.advance(seconds))
    return Scene(rungen_emulator, ti)


def submitted(*seconds: float, **steering: Any) -> list[str]:
    with RunGenHook() as hook:
        inputs: list[Any] = [{"prompt": "x", "emulator": {"seconds": each, **steering}} for each in seconds]
        return [hook.run_job(input=each).id for each in inputs]


def by_ones(wait: JobWait, job_ids: list[str], deadline: float, **options: Any) -> list[str]:
    """Wait again and again until at least one more job is over."""
    over: list[str] = []
    while left := [job_id for job_id in job_ids if job_id not in over]:
        goal = WaitGoal(left=len(left) - 1)
        over += [job.id for job in wait.wait(APP, left, deadline=deadline, goal=goal, **options)]
    return over


def test_many_short_waits_poll_no_more_than_a_long_one(scene: Scene) -> None:
    counts = []
    for is_long in (True, False):
        ids, before = submitted(12, 31, 50, 90), scene.service.count("get")
        waits, begun_at = scene.wait(), scene.service.now()
        if is_long:
            waits.wait(APP, ids, deadline=scene.deadline)
        else:
            assert by_ones(waits, ids, scene.deadline) == ids
        counts.append(scene.service.count("get") - before)
        assert 90 <= scene.service.now() - begun_at <= 96
    assert counts[1] <= counts[0] < 90


def test_waits_that_stop_early_keep_the_time_of_queued_timeout(scene: Scene) -> None:
    scene.service.scale(APP, 0)
    waits, ids, begun_at = scene.wait(queued_timeout=100.0), submitted(1), scene.service.now()

    def wait_briefly() -> None:
        while scene.service.now() < begun_at + 300:
            stop_at = scene.service.now() + 30
            assert waits.wait(APP, ids, deadline=scene.deadline, stop_at=stop_at) == []

    with pytest.raises(RunGenJobQueuedTimeoutError):
        wait_briefly()
    assert 100 <= scene.service.now() - begun_at <= 150


def test_jobs_that_are_added_are_waited_for_and_each_is_returned_once_with_the_result_of_its_poll(
    scene: Scene,
) -> None:
    waits, results, returned = scene.wait(), [], []

    def keep(job: Job) -> Job:
        results.append((job.id, job.result))
        return strip_payloads(job)

    running = submitted(10, 20)
    for _ in range(4):
        goal = WaitGoal(left=len(running) - 1)
        jobs = waits.wait(APP, running, deadline=scene.deadline, goal=goal, on_finished=keep)
        returned += jobs
        running = [job_id for job_id in running if job_id not in {job.id for job in jobs}] + submitted(10)
    assert all(result for _, result in results)
    assert [job_id for job_id, _ in results] == [job.id for job in returned]
    assert {job.result for job in returned} == {None}
    assert not set(running) & {job.id for job in returned}


def test_an_error_of_a_job_makes_it_a_failed_one_though_no_other_is_left(scene: Scene) -> None:
    told: list[Job] = []

    def keep(job: Job) -> Job:
        told.append(job)
        return job

    [job] = scene.wait().wait(APP, ["gone"], deadline=scene.deadline, on_finished=keep)
    assert job.status is JobStatus.FAILED
    assert isinstance(job.cause, RunGenNotFoundError)
    assert told == [job]


@pytest.mark.parametrize("limit", [None, 30.0])
def test_the_time_is_over(scene: Scene, limit: float | None) -> None:
    kind = RunGenJobQueuedTimeoutError if limit else RunGenJobTimeoutError
    ids = submitted(5, DAY)
    scene.service.scale(APP, 0 if limit else 1000)
    waits = scene.wait(queued_timeout=limit)
    with pytest.raises(kind, match="no worker since" if limit else "RUNNING for 1 min"):
        waits.wait(APP, ids, deadline=scene.service.now() + 60)
    waits.cancel_on_kill()
    assert waits.canceled == set(ids if limit else ids[1:])


def deferral(waits: JobWait, ids: list[str], deadline: float, **options: Any) -> Mapping[str, Any]:
    """Return the arguments of the trigger that goes on with a wait."""
    with pytest.raises(DeferralError) as caught:
        waits.wait(APP, ids, deadline=deadline, **options)
    return caught.value.arguments


def test_a_deferral_hands_over_what_is_in_flight(scene: Scene) -> None:
    saved = []

    def save(over: list[Job]) -> dict[str, Any]:
        saved.append((scene.service.now(), [job.id for job in over]))
        return {"plan": "ab", "survives_clear": True}

    failing = submitted(0, fail="x")
    ids, deadline = [*failing, *submitted(60, 60, 60)], scene.deadline
    goal = WaitGoal(left=1, failures=1, shared={ids[2]})
    waits = scene.wait(deferrable=True)
    arguments = deferral(waits, ids, deadline, goal=goal, before_defer=save)
    [(saved_at, over)] = saved
    assert saved_at - (deadline - DAY) == pytest.approx(0, abs=1)
    assert over == failing
    wanted = {"job_id": ids[1:], "left": 1, "failures": 2, "shared": [ids[2]], "deadline": deadline}
    wanted |= {"plan": "ab", "survives_clear": True, "cancel_on_kill": True}
    _, kwargs = RunGenJobTrigger(**arguments).serialize()
    assert {name: kwargs[name] for name in wanted} == wanted
    assert kwargs["deferred_at"] == pytest.approx(scene.service.now(), abs=1)


def test_a_task_that_cannot_go_on_after_a_deferral_waits_here(scene: Scene) -> None:
    waits = scene.wait(deferrable=True)
    assert waits.wait(APP, submitted(60), deadline=scene.deadline, may_defer=False)


def test_what_a_trigger_found_over_is_polled_first_and_nothing_else(scene: Scene) -> None:
    ids, over = submitted(*[60] * 10), submitted(*[0] * 10)
    jobs = scene.wait().wait(APP, ids + over, deadline=scene.deadline, goal=WaitGoal(left=10), ended=over)
    assert sorted(job.id for job in jobs) == sorted(over)
    assert (scene.service.count("get"), scene.service.count("get_app")) == (10, 0)


def test_jobs_that_could_not_be_canceled_are_returned(scene: Scene) -> None:
    waits, [running, stubborn, over] = scene.wait(), submitted(60, 60, 0)
    scene.service.inject(Fault(on="cancel", job_id=stubborn, status=500, times=None))
    assert waits.cancel(APP, [running, stubborn, over], within=2).keys() == {stubborn}
    assert waits.canceled == {running}


@pytest.mark.parametrize("newcomers", [[], ["late"]])
def test_whoever_comes_in_a_round_that_fails_does_not_wait_for_the_end_of_the_outage(
    newcomers: list[str],
) -> None:
    poller = JobPoller(APP)
    poller.add(["early"], DAY)

    def refuse(_: Request) -> Response:
        poller.add(newcomers, DAY)
        return Response(503, {}, b"")

    drive(poller.poll_once(None), refuse, lambda _: None, lambda: DAY)
    assert poller.outages.is_quiet(DAY) == (not newcomers)


# --- an event is a hint -------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize(
    "event",
    [{"ended": "", "in_flight": 1}, {"ended": "0-99", "in_flight": 7}, {}],
    ids=["none", "wrong", "bare"],
)
def test_an_event_that_comes_too_early_costs_only_time(
    rungen_emulator: Emulator, context: Any, event: dict[str, Any]
) -> None:
    event = {"outcome": "go on", "app_id": APP, **event}
    [job_id] = submitted(60)
    sensor = RunGenJobSensor(task_id="wait", job_id=job_id, deferrable=True, poke_interval=0.05)
    with pytest.raises(TaskDeferred):
        sensor.execute_complete(context, event)
