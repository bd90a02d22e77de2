"""Which jobs are polled decides what waiting costs, never what comes of it: simulated apps."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import APP, FakeTime
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rungen.client import job_poller, poll_state, polling, retry
from airflow_provider_rungen.client.flow import Flow, Request, Response, T
from airflow_provider_rungen.client.job_poller import JobPoller
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.poll_state import RESULT_GRACE
from airflow_provider_rungen.client.polling import FETCH_BUDGET, Wait, fetch_jobs, wait_for_jobs
from airflow_provider_rungen.client.progress import FEW_JOBS
from airflow_provider_rungen.client.retry import PATIENCE
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenResponseError,
)

HOUR = 3600.0
AT_A_TIME = 32
EVERY = 5.0


@pytest.fixture(autouse=True)
def _simulated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as long as users do: the clock is simulated."""
    monkeypatch.setattr(retry, "PATIENCE", PATIENCE)
    monkeypatch.setattr(poll_state, "RESULT_GRACE", RESULT_GRACE)
    monkeypatch.setattr(polling, "FETCH_BUDGET", FETCH_BUDGET)


# What a refusal says: the service's own words, and those of a gateway.
OWN, PAGE = b'{"error": "not this one"}', b"default backend - 404"


@dataclass
class Run:
    """A job of the simulated app, its times in seconds since the start."""

    id: str
    ends: float
    status: str = "COMPLETED"
    hidden_until: float = 0.0
    starts: float = 0.0
    waited_from: float = 0.0
    result_from: float = 0.0


class World:
    """A service that answers from a list of jobs, the oldest first."""

    def __init__(self, runs: Iterable[Run], *, outage: tuple[float, float] = (0.0, 0.0)) -> None:
        self.runs = {run.id: run for run in runs}
        oldest = datetime(2026, 1, 1, tzinfo=UTC)
        self.created_at = {job_id: oldest + timedelta(seconds=n) for n, job_id in enumerate(self.runs)}
        self.outage = outage
        self.seconds_per_request = 0.05
        self.clock = FakeTime()
        self.start = self.clock.now
        self.looks: dict[str, int] = {}
        #: Which jobs are refused at a time, and how.
        self.refuse: Callable[[float], dict[str, int]] = lambda _: {}
        self.refusal = OWN
        self.on_request: Callable[[Request], None] = lambda _: None

    @property
    def now(self) -> float:
        return self.clock.now - self.start

    @property
    def requests(self) -> int:
        return sum(self.looks.values())

    def send(self, request: Request) -> Response:
        self.on_request(request)
        is_down = self.outage[0] <= self.now < self.outage[1]
        job_id = request.path.rpartition("/job/")[2] if "/job/" in request.path else None
        if job_id is None:
            answer = Response(200, {}, json.dumps({"data": {"id": APP, "status": "RUNNING"}}).encode())
        else:
            self.looks[job_id] = self.looks.get(job_id, 0) + 1
            answer = self._job(job_id)
        self.clock.now += self.seconds_per_request / AT_A_TIME  # they go side by side
        if is_down:
            raise RunGenConnectionError(f"Could not {request.purpose}: nobody is there", sent=False)
        return answer

    def _job(self, job_id: str) -> Response:
        if status := self.refuse(self.now).get(job_id):
            return Response(status, {}, self.refusal)
        run = self.runs[job_id]
        if self.now < run.hidden_until:
            return Response(404, {}, b'{"error": "no such job"}')
        started = "RUNNING" if run.starts <= self.now else "QUEUED"
        has_result = run.ends <= self.now and run.result_from <= self.now
        body: dict[str, Any] = {"id": job_id, "status": run.status if run.ends <= self.now else started}
        body |= {"created_at": self.created_at[job_id].isoformat(), "result": "a fox" if has_result else None}
        return Response(200, {}, json.dumps({"data": body}).encode())


def perform(world: World, flow: Flow[T], send: Callable[[Request], Response] | None = None) -> T:
    return drive(flow, send or world.send, world.clock.sleep, world.clock.time)


def poller_of(world: World) -> JobPoller:
    poller = JobPoller(APP)
    poller.add(world.runs, world.clock.now)
    return poller


@dataclass
class Outcome:
    """How long each job was over before it was found, and what it cost."""

    late: dict[str, float]
    requests_per_job: float
    logged: list[str]

    @property
    def latest(self) -> float:
        return max(self.late.values())


def follow(world: World, *, every: float = EVERY, until: float = 3 * HOUR) -> Outcome:
    """Wait for the jobs as the watcher does, and see that each is found, as what it is, after it ended."""
    logged: list[str] = []
    poller = JobPoller(APP, lambda _, line, job_id: None if job_id else logged.append(line))
    to_come = list(world.runs.values())
    # triggers begin in any order
    to_come.sort(key=lambda run: (run.waited_from, zlib.crc32(run.id.encode())))
    late: dict[str, float] = {}

    def admit() -> None:
        while to_come and to_come[0].waited_from <= world.now:
            poller.add([to_come.pop(0).id], world.clock.now)

    def send(request: Request) -> Response:
        try:
            return world.send(request)
        finally:
            admit()

    while len(late) < len(world.runs):
        assert world.now < until, f"{len(world.runs) - len(late)} jobs are never found"
        admit()
        begun, asked, waiting = world.clock.now, world.requests, len(poller.waiting)
        perform(world, poller.poll_once(every), send)
        is_outage = world.outage[0] <= world.now < world.outage[1] + 120
        assert is_outage or world.requests - asked <= waiting + 1, "never more than polling each, and one"
        for job_id, job in poller.finished.items():
            run = world.runs[job_id]
            assert run.ends <= world.now
            assert job.status.value == run.status
            assert job_id not in late
            late[job_id] = world.now - max(run.ends, run.waited_from)
        poller.finished.clear()
        world.clock.now = max(begun + every, world.clock.now, poller.outages.quiet_until)
    return Outcome(late, world.requests / len(world.runs), logged)


def poll_each(runs: Iterable[Run], every: float = EVERY) -> float:
    """The requests per job of polling each job."""
    costs = [max(run.ends - run.waited_from, 0) // every + 2 for run in runs]
    return sum(costs) / len(costs)


# --- loads --------------------------------------------------------------------------------------------------


def in_order(count: int = 1000, first: float = 10, last: float = 60) -> list[Run]:
    return [Run(f"job-{i}", first + (last - first) * i / count) for i in range(count)]


def with_every(nth: int, runs: list[Run], **changes: Any) -> list[Run]:
    for run in runs[::nth]:
        for name, value in changes.items():
            setattr(run, name, value)
    return runs


# --- the jobs of a round ------------------------------------------------------------------------------------


def test_a_few_jobs_are_simply_polled() -> None:
    world = World(in_order(FEW_JOBS))
    outcome = follow(world)
    assert outcome.requests_per_job <= poll_each(world.runs.values())
    assert outcome.latest <= EVERY + 1


_ends = st.sampled_from(["COMPLETED", "FAILED", "CANCELED"])
_times = st.integers(-100, 300)
_runs = st.lists(
    st.builds(Run, st.just(""), _times, _ends, starts=_times, waited_from=st.integers(0, 200)),
    min_size=5,
    max_size=24,
)


@settings(max_examples=100)
@given(runs=_runs, every=st.sampled_from([1.0, 5.0, 90.0]))
def test_each_end_is_found_within_a_pass_in_whatever_order_jobs_start_and_end(
    runs: list[Run], every: float
) -> None:
    world = World(replace(run, id=f"job-{number}") for number, run in enumerate(runs))
    assert follow(world, every=every).latest <= job_poller.FULL_PASS + 2 * every


@pytest.mark.contract
@pytest.mark.parametrize("count", [5, 100])
@pytest.mark.parametrize("is_in_order", [True, False])
def test_jobs_that_start_in_order_are_found_within_two_intervals_after_hours_in_the_queue(
    count: int, is_in_order: bool
) -> None:
    starts = [8 * HOUR + (number // 20 * 60 if is_in_order else 0) for number in range(count)]
    world = World([Run(f"job-{n}", start + 60, starts=start) for n, start in enumerate(starts)])
    found = follow(world, until=10 * HOUR)
    assert found.latest <= 2 * EVERY
    # in each round the oldest two, and the others once a minute
    assert world.requests <= 1.1 * (2 + math.ceil(count / 12)) * 8 * HOUR / EVERY


# --- trouble ------------------------------------------------------------------------------------------------


def test_an_outage_costs_one_poll_a_round_and_is_logged_once() -> None:
    world = World(in_order(1000, 10, 200), outage=(60, 120))
    asked_at: list[float] = []
    world.on_request = lambda _: asked_at.append(world.now)
    outcome = follow(world)
    # those that were under way at its begin, and one a round
    assert len([at for at in asked_at if 60 <= at < 120]) <= job_poller.MAX_CONCURRENT_POLLS + 15
    assert len(outcome.logged) == 2
    assert "polling continues" in outcome.logged[0]
    assert outcome.logged[1] == "RunGen answers again"


def test_an_outage_in_the_middle_of_a_round_ends_it() -> None:
    world = World(in_order(1000, 100, 200))
    poller = poller_of(world)

    def fail(_: Request) -> None:
        if sum(world.looks.values()) == 300:
            world.outage = (world.now, world.now + 60)

    world.on_request = fail
    perform(world, poller.poll_once(EVERY))
    assert sum(world.looks.values()) <= 300 + 2 * job_poller.MAX_CONCURRENT_POLLS
    assert poller.outages.is_quiet(world.clock.now)


@pytest.mark.parametrize("count", [3, 50])
@pytest.mark.parametrize("broken", [0, -1])
def test_a_job_that_never_answers_hides_no_other(count: int, broken: int) -> None:
    world = World(in_order(count))
    poison = list(world.runs)[broken]
    world.refuse = lambda now: {} if now > 300 else {poison: 500}
    del world.runs[poison]
    world.runs |= {poison: Run(poison, 300)}
    outcome = follow(world)
    assert max(late for job_id, late in outcome.late.items() if job_id != poison) <= 2 * EVERY + 2
    assert len(outcome.logged) == 2, "logged once at its begin, and once at its end"


def test_an_outage_that_began_before_the_first_look_is_outlasted() -> None:
    outcome = follow(World(in_order(100), outage=(0, 90)))
    assert outcome.requests_per_job <= 2.2
    assert len(outcome.logged) == 2


def test_a_retry_after_is_waited_for() -> None:
    world = World(in_order(50))
    poller = poller_of(world)
    sent: list[Request] = []

    def busy(request: Request) -> Response:
        sent.append(request)
        return Response(429, {"retry-after": "77"}, b"")

    for _ in range(3):  # after the first answer the service is left alone
        perform(world, poller.poll_once(EVERY), busy)
        world.clock.now += EVERY
    assert len(sent) == 1
    assert min(poller.outages.quiet_until, poller.not_before) >= world.clock.now + 77 - 3 * EVERY
    world.clock.now += 100
    perform(world, poller.poll_once(EVERY))
    assert not poller.outages.is_quiet(world.clock.now)


# --- coming and leaving -------------------------------------------------------------------------------------


def test_waiters_may_leave_in_the_middle_of_a_round() -> None:
    for leaves_at in range(25):
        world = World(in_order(20, -10, 10))
        poller = poller_of(world)
        left = iter(range(1000))

        def leave(_: Request, left: Any = left, at: int = leaves_at, poller: JobPoller = poller) -> None:
            if next(left) == at:
                poller.forget([f"job-{i}" for i in range(0, 20, 2)])

        world.on_request = leave
        for _ in range(2):
            perform(world, poller.poll_once(EVERY))
        assert set(poller.finished) <= set(world.runs)


def test_a_job_is_not_polled_while_another_poll_of_it_is_in_flight() -> None:
    world = World(in_order(20, -10, -5))
    poller = poller_of(world)

    def begin_polls(_: Request) -> None:
        for job_id in list(world.runs)[1:]:
            poller.waiting[job_id].is_in_flight = True

    world.on_request = begin_polls
    perform(world, poller.poll_once(EVERY))
    assert list(world.looks) == ["job-0"]


# --- wait_for_jobs ------------------------------------------------------------------------------------------


def wait(world: World, job_ids: Iterable[str] = (), **options: Any) -> list[Job]:
    flow = wait_for_jobs(APP, list(job_ids or world.runs), **{"poll_interval": EVERY, **options})
    return perform(world, flow)


def poll(world: World, poller: JobPoller) -> list[Job] | None:
    job_ids = list(world.runs)
    poller.add(job_ids, world.clock.now)
    wait = Wait(poller, job_ids, EVERY, world.clock.now)
    return [wait.finished[job_id] for job_id in job_ids] if perform(world, wait.poll(None)) else None


def all_complete(jobs: list[Job]) -> bool:
    return {job.status.value for job in jobs} == {"COMPLETED"}


def test_many_jobs_come_back_in_the_order_given_with_duplicates() -> None:
    world = World(with_every(7, in_order(300), status="FAILED"))
    ids = [*reversed(world.runs), "job-5", "job-5"]
    jobs = wait(world, ids)
    assert [job.id for job in jobs] == ids
    assert all(job.status.value == world.runs[job.id].status for job in jobs)
    assert world.requests <= 8.5 * 300, "the age is that of the list, which is the wrong way round"
    assert world.looks["job-5"] <= 14


@pytest.mark.parametrize(("seconds", "sleeps"), [(32.0, 2.0), (320.0, 0.0)])
def test_the_time_a_round_takes_is_part_of_the_interval(seconds: float, sleeps: float) -> None:
    world = World(in_order(3, 58, 60))
    world.seconds_per_request = seconds
    wait(world)
    assert max(world.clock.slept, default=0.0) == pytest.approx(sleeps, abs=0.01)


@pytest.mark.parametrize("is_past", [False, True])
def test_the_last_look_at_the_deadline_is_at_each_job(is_past: bool) -> None:
    runs = in_order(50, -20, -10) if is_past else in_order(50, 38, 39)
    world = World([Run("job-first", HOUR, starts=HOUR), *runs])
    deadline = 0 if is_past else world.clock.now + 40
    with pytest.raises(RunGenJobTimeoutError, match=r"job-first, "):
        wait(world, deadline=deadline)
    assert not is_past or world.clock.slept == []


def test_a_sensor_that_pokes_polls_as_a_wait_does() -> None:
    runs = in_order(500, 60, 160)
    for run in runs:
        run.starts = run.ends - 20
    world, poller, pokes = World(runs), JobPoller(APP), 0
    while not poll(world, poller):
        world.clock.now += 10
        pokes += 1
    assert pokes < 100
    assert world.requests <= 500 * poll_each(runs, every=10) / 2


def test_the_last_poll_at_the_deadline_waits_for_no_pause() -> None:
    """The service is well again, and nothing was polled since: the pauses of an outage grow."""
    for deadline in range(60, 90, 3):
        world = World([Run("job-0", 4)], outage=(2, 50))
        [job] = wait(world, ["job-0"], deadline=world.start + deadline)
        assert job.status == "COMPLETED"


@pytest.mark.parametrize("status", [402, 405, 409, 451])
def test_an_answer_that_says_nothing_of_the_job_ends_no_wait(status: int) -> None:
    world = World(in_order(6, 20, 40))
    world.refuse = lambda now: {} if now > 60 else dict.fromkeys(world.runs, status)
    assert all_complete(wait(world, are_known=True))


def test_a_job_that_the_key_may_not_see_ends_no_other_wait() -> None:
    runs = [Run(f"job-{number}", HOUR, starts=HOUR - 60) for number in range(20)]
    world = World([*runs, Run("foreign", HOUR)])
    world.refuse = lambda _: {"foreign": 403}
    poller = poller_of(world)
    wait = Wait(poller, list(world.runs)[:20], EVERY, world.clock.now)
    while not poller.errors and world.now < HOUR / 2:
        perform(world, wait.poll(HOUR))
        world.clock.now += EVERY
    assert poller.errors.keys() == {"foreign"}


def test_a_single_poll_ends_though_a_refusal_is_neither_confirmed_nor_disproved() -> None:
    """Nobody answers any more: a sensor goes on to its next poke."""
    world = World(in_order(6, HOUR, HOUR))

    def refuse(_: float) -> dict[str, int]:
        return dict.fromkeys(world.runs, 502 if sum(world.looks.values()) > 6 else 403)

    world.refuse = refuse
    poller = JobPoller(APP)
    poller.add(world.runs, world.clock.now, are_known=True)
    assert poll(world, poller) is None
    assert world.now <= 1.2 * PATIENCE + 1


def test_a_single_poll_outlasts_a_replica_that_lags_behind() -> None:
    world = World([Run("job-0", 2, hidden_until=9), *in_order(3, HOUR, HOUR)[1:]])
    assert poll(world, poller := JobPoller(APP)) is None
    assert list(poller.finished) == ["job-0"]
    assert world.now < 12


def test_a_job_that_is_gone_counts_as_failed_among_others_and_a_refused_key_ends_the_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(in_order(20))
    world.refuse = lambda _: {"job-0": 404}
    jobs = wait(world)
    assert "404" in caplog.text
    assert "(job job-0, app" in caplog.text
    assert [job.status for job in jobs] == ["FAILED", *["COMPLETED"] * 19]
    assert "404" in jobs[0].error
    with pytest.raises(RunGenNotFoundError):
        wait(world, ["job-0"])
    world = World(in_order(20))
    world.refuse = lambda _: {"job-0": 403}
    with pytest.raises(RunGenForbiddenError):
        wait(world)


def test_a_job_may_be_unknown_at_first() -> None:
    runs = with_every(1, in_order(20), hidden_until=45.0)
    for waited in ["job-3"], [run.id for run in runs]:
        assert all_complete(wait(World(runs), waited, are_known=True))
        with pytest.raises(RunGenNotFoundError):
            wait(world := World(runs), waited[:1])
        assert world.now < 1, "a job of somebody else has to be there at the first look"


@pytest.mark.parametrize("count", [1, 20])
def test_a_replica_that_lags_behind_ends_no_job_that_was_seen(count: int) -> None:
    world = World(in_order(count, 200, 210))
    world.refuse = lambda now: {"job-0": 404} if 12 < now < 30 else {}
    assert all_complete(wait(world))


def test_a_job_that_was_seen_is_gone_when_it_stays_unknown() -> None:
    world = World(in_order(1, 600))
    world.refuse = lambda now: {"job-0": 404} if now > 12 else {}
    with pytest.raises(RunGenNotFoundError):
        wait(world)
    assert 12 + PATIENCE <= world.now < 12 + PATIENCE + 2 * EVERY


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("doubt", [404, 403])
@pytest.mark.parametrize("between", ["page", "503", "outage"])
def test_only_answers_in_a_row_end_a_wait(
    monkeypatch: pytest.MonkeyPatch, count: int, doubt: int, between: str
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", 30.0)
    # each job is polled in each round
    world = World(in_order(count, 300, 310))

    def refuse(now: float) -> dict[str, int]:
        is_own = 12 < now < 17 or 100 < now < 125
        world.refusal = OWN if is_own or between == "503" else PAGE
        world.outage = (17, 100) if between == "outage" else (0, 0)
        status = doubt if is_own else (503 if between == "503" else 404)
        return dict.fromkeys(world.runs, status) if 12 < now < 125 else {}

    world.refuse = refuse
    assert all_complete(wait(world))


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("status", [400, 404])
def test_a_gateway_ends_a_wait_only_after_minutes(count: int, status: int) -> None:
    for lasts, ends in ((200, False), (400, True)):
        world = World(in_order(count, 600, 610))
        world.refusal = PAGE
        until: float = lasts
        world.refuse = lambda now: dict.fromkeys(world.runs, status) if now < until else {}  # noqa: B023 - called in this round only
        if ends and count == 1:
            with pytest.raises(RunGenAPIError) as caught:
                wait(world)
            assert not caught.value.retryable
        else:
            assert all_complete(wait(world)) != ends


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("lasts", [1.0, 25.0, 400.0])
def test_an_answer_that_cannot_be_read_ends_a_job_only_if_it_lasts(count: int, lasts: float) -> None:
    world = World(in_order(count, 300, 310))
    world.refusal = b"[" * 200_000 + b"]" * 200_000
    world.refuse = lambda now: {"job-0": 200} if 12 < now < 12 + lasts else {}
    if lasts < PATIENCE:
        assert all_complete(wait(world))
    elif count == 1:
        with pytest.raises(RunGenResponseError, match="nested too deeply"):
            wait(world)
        assert world.looks["job-0"] <= 10, "each may be a large answer"
    else:
        assert [(job.id, job.status) for job in wait(world) if job.cause] == [("job-0", "COMPLETED")]


# --- results that are late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20])
def test_the_result_of_a_completed_job_may_come_a_moment_later(count: int) -> None:
    runs = with_every(3, in_order(count, 20, 21), result_from=28)
    assert {job.result for job in wait(World(runs))} == {"a fox"}
    # jobs that are known to have completed, as when they are collected
    world = World(with_every(3, in_order(count, -9, -8), result_from=8))
    assert {outcome.result for outcome in fetch(world).values() if isinstance(outcome, Job)} == {"a fox"}
    assert world.requests <= 4 * count


@pytest.mark.parametrize("count", [1, 20])
def test_a_job_without_a_result_has_completed_in_the_end(count: int) -> None:
    runs = with_every(3, in_order(count, 20, 21), result_from=math.inf)
    world = World(runs)
    jobs = wait(world)
    assert all_complete(jobs)
    assert [job.result for job in jobs[:2]] == [None, "a fox"][:count]
    assert world.now <= 21 + RESULT_GRACE + 2 * EVERY
    # a deadline, or a poll that stands alone
    assert all_complete(wait(World(runs), deadline=World(runs).start + 23))
    for run in runs:
        run.ends = 0.0
    assert all_complete(poll(World(runs), JobPoller(APP)) or [])
    assert all_complete([job for job in fetch(World(runs)).values() if isinstance(job, Job)])


# --- jobs that are collected --------------------------------------------------------------------------------


def fetch(world: World) -> dict[str, Job | RunGenError]:
    found: dict[str, Job | RunGenError] = {}
    perform(world, fetch_jobs(APP, list(world.runs), found.__setitem__, are_known=True))
    return found


@pytest.mark.parametrize("count", [1, 200])
def test_collecting_outlasts_an_outage_of_two_minutes_and_no_more(count: int) -> None:
    world = World(in_order(count, -9, -8), outage=(0, 110))
    assert {type(outcome) for outcome in fetch(world).values()} == {Job}
    asked_at: list[float] = []
    world = World(in_order(count, -9, -8), outage=(0, HOUR))
    world.on_request = lambda _: asked_at.append(world.now)
    assert {type(outcome) for outcome in fetch(world).values()} == {RunGenConnectionError}
    assert FETCH_BUDGET <= world.now < FETCH_BUDGET + 10
    assert len([at for at in asked_at if at < FETCH_BUDGET]) <= 64 + 15, "one tells whether it is over"


def test_a_job_that_never_answers_keeps_no_other_from_being_collected() -> None:
    world = World(in_order(200, -9, -8))
    world.refuse = lambda _: {"job-0": 500}
    got_at: dict[str, float] = {}

    def note(job_id: str, _: Job | RunGenError) -> None:
        got_at[job_id] = world.now

    perform(world, fetch_jobs(APP, list(world.runs), note, are_known=True))
    assert got_at.keys() == world.runs.keys()
    assert max(at for job_id, at in got_at.items() if job_id != "job-0") < 2


@pytest.mark.parametrize("ends", [3, HOUR])
def test_an_answer_from_before_the_end_of_a_job_is_asked_for_again_for_a_moment(ends: float) -> None:
    world = World(in_order(3, -9, -8))
    world.runs["job-1"].ends = ends  # the others have ended, and so had this one when it was seen before
    found = fetch(world)
    statuses = {job_id: getattr(outcome, "status", None) for job_id, outcome in found.items()}
    assert statuses == {
        "job-0": "COMPLETED",
        "job-1": "RUNNING" if ends == HOUR else "COMPLETED",
        "job-2": "COMPLETED",
    }
    assert world.now < RESULT_GRACE + 5


def test_what_takes_a_job_ends_the_collecting_by_an_error() -> None:
    world, taken = World(in_order(200, -9, -8)), list[str]()

    def refuse(job_id: str, _: Job | RunGenError) -> None:
        taken.append(job_id)
        raise RunGenInputError(f"not {job_id}")

    with pytest.raises(RunGenInputError, match="not job-0"):
        perform(world, fetch_jobs(APP, list(world.runs), refuse, are_known=True))
    assert world.requests == len(taken) <= polling.MAX_FETCHES


@pytest.mark.parametrize("asked", [20, 3600])
def test_collecting_does_not_come_back_before_the_service_asked(asked: int) -> None:
    world = World(in_order(1, -9, -8))
    sent: list[float] = []

    def busy(request: Request) -> Response:
        sent.append(world.now)
        is_busy = len(sent) < 3
        return Response(429, {"retry-after": str(asked)}, OWN) if is_busy else world.send(request)

    found: dict[str, Job | RunGenError] = {}
    perform(world, fetch_jobs(APP, list(world.runs), found.__setitem__, are_known=True), busy)
    assert isinstance(found["job-0"], Job) == (asked == 20)
    assert all(later - earlier >= asked for earlier, later in itertools.pairwise(sent))


def test_a_key_that_is_refused_for_a_moment_keeps_nothing_from_being_collected() -> None:
    world = World(in_order(100, -9, -8))
    world.refuse = lambda now: dict.fromkeys(world.runs, 403) if now < 20 else {}
    assert {type(outcome) for outcome in fetch(world).values()} == {Job}
    world.refuse = lambda _: dict.fromkeys(world.runs, 403)
    begun_at = world.now
    assert {type(outcome) for outcome in fetch(world).values()} == {RunGenForbiddenError}
    assert world.now - begun_at < 2 * PATIENCE


def test_a_look_at_many_jobs_gives_each_the_time_to_be_found() -> None:
    world = World(in_order(640, 600, 610))
    world.seconds_per_request = 1.7  # the first look takes longer than a job may be unknown
    world.refuse = lambda now: dict.fromkeys(world.runs, 404) if 31 < now < 37 else {}
    found: dict[str, Job | RunGenError] = {}
    perform(world, fetch_jobs(APP, list(world.runs), found.__setitem__, have_ended=False, are_known=True))
    assert [job_id for job_id, outcome in found.items() if not isinstance(outcome, Job)] == []
    assert found.keys() == world.runs.keys()


def test_nothing_is_asked_for_an_id_that_cannot_be_one() -> None:
    world = World([])
    with pytest.raises(RunGenInputError):
        wait(world, ["good", "bad/id"])
    assert wait(world, []) == []
    assert world.requests == 0


def test_many_jobs_are_logged_by_their_number(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        wait(World(in_order(200, 10, 100)))
    assert 2 <= len(caplog.messages) <= 4
    for line in caplog.messages:
        counts = re.fullmatch(r"(\d+) of 200 done, (\d+) queued or running, 0 failed; .* left", line)
        assert counts, line
        assert int(counts[1]) + int(counts[2]) == 200


def test_a_few_jobs_are_logged_by_their_ids(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        wait(World(in_order(2, 10, 12)))
    assert caplog.messages == [
        *(f"Running (job job-0, app {APP})", f"Running (job job-1, app {APP})"),
        *(f"Completed (job job-0, app {APP})", f"Completed (job job-1, app {APP})"),
    ]


# --- a service that is slow, or hangs -----------------------------------------------------------------------


class Slow(World):
    """A service that needs some seconds for each answer about a job, or more than anybody waits for."""

    def __init__(self, seconds: float, ends: float) -> None:
        super().__init__(Run(job_id, ends) for job_id in "abcd")
        self.seconds = seconds

    def send(self, request: Request) -> Response:
        assert request.timeout is not None
        self.clock.now += min(self.seconds, request.timeout)
        if self.seconds > request.timeout:
            raise RunGenConnectionError("RunGen did not answer in time")
        return self._job(request.path.rpartition("/")[2])


def test_each_poke_of_a_sensor_gives_a_slow_service_time() -> None:
    slow, poller = Slow(12.0, ends=20.0), JobPoller(APP)
    poller.add(["a"], slow.clock.now)
    wait = Wait(poller, ["a"], EVERY, slow.clock.now)
    assert [perform(slow, wait.poll(None)) for _ in range(2)] == [None, True]
    assert wait.finished["a"].status.value == "COMPLETED"


def test_jobs_that_hang_one_after_the_other_do_not_outlast_the_deadline() -> None:
    slow = Slow(math.inf, ends=HOUR)
    with pytest.raises(RunGenJobTimeoutError):
        wait(slow, deadline=slow.start + 10)
    assert slow.now < 12
