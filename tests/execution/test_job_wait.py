"""All waits of an attempt: they share one poller, and a deferral is what happens when its time has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import pytest
from conftest import APP, Clock, FakeTaskInstance, run_task

from airflow_provider_rungen._airflow import BaseOperator
from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import WaitGoal
from airflow_provider_rungen.emulator import Emulator, Fault
from airflow_provider_rungen.exceptions import (
    RunGenJobQueuedTimeoutError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution.jobs.job_wait import JobWait
from airflow_provider_rungen.execution.task.options import JobOptions
from airflow_provider_rungen.execution.task.run import TaskRun
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
from airflow_provider_rungen.sensors import RunGenJobSensor
from airflow_provider_rungen.triggers import RunGenJobTrigger

DAY = 86_400.0


class DeferralError(Exception):
    """Stands for Airflow's, with the arguments of the trigger."""

    def __init__(self, arguments: Mapping[str, Any], seconds: float) -> None:
        super().__init__()
        self.arguments, self.seconds = arguments, seconds


def defer(arguments: dict[str, Any], seconds: float) -> NoReturn:
    raise DeferralError(arguments, seconds)


@pytest.fixture
def clock(rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves when a task sleeps."""
    rungen_emulator.service.scale(APP, 1000)
    clock = Clock(rungen_emulator, monkeypatch)
    monkeypatch.setattr(RunGenHook, "sleep", lambda _, seconds: clock.advance(seconds))
    return clock


@pytest.fixture
def wait(clock: Clock, ti: FakeTaskInstance) -> Callable[..., JobWait]:
    """Make the waits of an attempt."""

    def wait(**options: Any) -> JobWait:
        given = {"poll_interval": 5.0, "deferrable": False, "defer_after": 20.0, "cancel_on_kill": True}
        task: dict[str, Any] = {"rungen_conn_id": "rungen_default", "app_id": APP, "timeout": 60}
        wait_options = JobOptions(**{**task, **given, **options})
        context: Any = {"ti": ti}
        return JobWait(TaskRun(BaseOperator(task_id="wait"), context, wait_options), defer)

    return wait


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


def test_many_short_waits_poll_no_more_than_a_long_one(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    service, counts = rungen_emulator.service, []
    for is_long in (True, False):
        ids, before = submitted(12, 31, 50, 90), service.count("get")
        begun_at = service.now()
        if is_long:
            wait().wait(APP, ids, deadline=begun_at + DAY)
        else:
            assert by_ones(wait(), ids, begun_at + DAY) == ids
        counts.append(service.count("get") - before)
        assert 90 <= service.now() - begun_at <= 96
    assert counts[1] <= counts[0] < 90


def test_jobs_that_are_added_are_waited_for_and_each_is_returned_once_with_the_result_of_its_poll(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    waits, service, results, returned = wait(), rungen_emulator.service, [], []

    def keep(job: Job) -> Job:
        results.append((job.id, job.result))
        return strip_payloads(job)

    running = submitted(10, 20)
    for _ in range(4):
        goal = WaitGoal(left=len(running) - 1)
        jobs = waits.wait(APP, running, deadline=service.now() + DAY, goal=goal, on_finished=keep)
        returned += jobs
        running = [job_id for job_id in running if job_id not in {job.id for job in jobs}] + submitted(10)
    assert all(result for _, result in results)
    assert [job_id for job_id, _ in results] == [job.id for job in returned]
    assert {job.result for job in returned} == {None}
    assert not set(running) & {job.id for job in returned}


def test_an_error_of_a_job_makes_it_a_failed_one_though_no_other_is_left(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    told: list[Job] = []

    def keep(job: Job) -> Job:
        told.append(job)
        return job

    [job] = wait().wait(APP, ["gone"], deadline=rungen_emulator.service.now() + DAY, on_finished=keep)
    assert job.status is JobStatus.FAILED
    assert isinstance(job.cause, RunGenNotFoundError)
    assert told == [job]


@pytest.mark.parametrize("limit", [None, 30.0])
@pytest.mark.parametrize("deferrable", [False, True])
def test_the_time_is_over(
    rungen_emulator: Emulator,
    clock: Clock,
    *,
    wait: Callable[..., JobWait],
    limit: float | None,
    deferrable: bool,
) -> None:
    kind = RunGenJobQueuedTimeoutError if limit else RunGenJobTimeoutError
    ids, service = submitted(5, DAY), rungen_emulator.service
    service.scale(APP, 0 if limit else 1000)
    waits = wait(queued_timeout=limit, deferrable=deferrable, defer_after=DAY)
    with pytest.raises(kind, match="no active workers" if limit else "RUNNING for 1 min"):
        waits.wait(APP, ids, deadline=service.now() + 60)
    assert waits.in_flight == (ids if limit else ids[1:])


def test_a_deferral_hands_over_what_is_in_flight(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    service, saved = rungen_emulator.service, []

    def save(over: list[Job]) -> dict[str, Any]:
        saved.append((service.now(), [job.id for job in over]))
        return {"attempt": "0001-0001-ab", "on_clear": "keep"}

    failing = submitted(1, fail="x")
    ids = [*failing, *submitted(60, 60, 60)]
    deadline = service.now() + DAY
    with pytest.raises(DeferralError) as caught:
        wait(deferrable=True).wait(
            APP,
            ids,
            deadline=deadline,
            goal=WaitGoal(left=1, stop_after=5, failures=1),
            before_defer=save,
            shared={ids[2]: 0.0},
        )
    [(saved_at, over)] = saved
    assert saved_at - (deadline - DAY) == pytest.approx(20, abs=1)
    assert over == failing
    arguments = caught.value.arguments
    wanted = {"job_id": ids[1:], "left": 1, "stop_after": 3, "shared": [ids[2]], "deadline": deadline}
    wanted |= {"attempt": "0001-0001-ab", "on_clear": "keep", "cancel_on_kill": True}
    _, kwargs = RunGenJobTrigger(**arguments).serialize()
    assert {name: kwargs[name] for name in wanted} == wanted
    assert kwargs["deferred_at"] == pytest.approx(service.now(), abs=1)


def test_a_trigger_that_may_end_the_task_sees_all_jobs(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    ids = [*submitted(1, fail="x"), *submitted(60)]
    with pytest.raises(DeferralError) as caught:
        wait(deferrable=True).wait(
            APP,
            ids,
            deadline=rungen_emulator.service.now() + DAY,
            before_defer=lambda over: {"end_from_trigger": True},
        )
    assert caught.value.arguments["job_id"] == ids


def test_the_time_to_a_deferral_counts_from_the_first_wait(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    waits, begun_at = wait(deferrable=True), rungen_emulator.service.now()
    ids = submitted(8, 16, 24, 32)
    with pytest.raises(DeferralError) as caught:
        by_ones(waits, ids, begun_at + DAY)
    assert caught.value.arguments["job_id"] == ids[2:]
    assert rungen_emulator.service.now() - begun_at < 22


def test_a_task_that_cannot_go_on_after_a_deferral_waits_here(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    ids, deadline = submitted(60), rungen_emulator.service.now() + DAY
    assert wait(deferrable=True).wait(APP, ids, deadline=deadline, may_defer=False)


def test_what_a_trigger_found_over_is_polled_first_and_nothing_else(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    service = rungen_emulator.service
    ids, over = submitted(*[60] * 10), submitted(*[0] * 10)
    jobs = wait().wait(APP, ids + over, deadline=service.now() + DAY, goal=WaitGoal(left=10), ended=over)
    assert [job.id for job in jobs] == over
    assert (service.count("get"), service.count("get_app")) == (10, 0)


def test_jobs_that_could_not_be_canceled_are_returned(
    rungen_emulator: Emulator, clock: Clock, wait: Callable[..., JobWait]
) -> None:
    waits, [running, stubborn, over] = wait(), submitted(60, 60, 0)
    rungen_emulator.service.inject(Fault(on="cancel", job_id=stubborn, status=500, times=None))
    assert waits.cancel(APP, [running, stubborn, over], within=2) == [stubborn]
    assert waits.canceled == {running}


# --- an event is a hint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [{"ended": "", "in_flight": 1}, {"ended": "0-99", "in_flight": 7}, {}],
    ids=["none", "wrong", "bare"],
)
@pytest.mark.parametrize("has_destination", [False, True])
def test_an_event_that_comes_too_early_costs_only_time(
    rungen_emulator: Emulator, context: Any, tmp_path: Any, event: dict[str, Any], has_destination: bool
) -> None:
    event = {"outcome": "go on", "app_id": APP, **event}
    [job_id] = submitted(0.3)
    place: dict[str, Any] = {"destination": str(tmp_path)} if has_destination else {}
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=job_id, poll_interval=0.05, **place)
    assert collect.execute_complete(context, event)
    [job_id] = submitted(0.3)
    sensor = RunGenJobSensor(task_id="wait", job_id=job_id, deferrable=True, poke_interval=0.05)
    sensor.execute_complete(context, event)
    assert {job["status"] for job in rungen_emulator.service.jobs()} == {"COMPLETED"}


@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize("has_destination", [False, True])
def test_a_deferral_costs_a_second_request_for_each_job(
    rungen_emulator: Emulator, context: Any, tmp_path: Any, has_destination: bool
) -> None:
    rungen_emulator.service.scale(APP, 1000)
    ids = submitted(*[1.5] * 20)
    place: dict[str, Any] = {"destination": str(tmp_path)} if has_destination else {}
    collect = RunGenCollectResultsOperator(
        task_id="collect", job_id=ids, poll_interval=0.5, deferrable=True, defer_after=0, **place
    )
    outcome = run_task(collect, context)
    assert (outcome.error, len(outcome.events), len(outcome.value)) == (None, 1, 20)
    assert rungen_emulator.service.count("get") <= 2.2 * 20
