"""One loop for all who wait for jobs of an app, over real HTTP; the service's clock is turned by hand."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import json
import logging
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from bad_answers import Fault
from client_mistakes import early_retries
from conftest import APP, KEY, SOON, FakeTime
from rungen_emulator import Emulator, Service
from wire import Connections

from airflow_provider_rungen import _airflow as compat
from airflow_provider_rungen.client.job_poller import MAX_WAIT_FOR_POLL, JobPoller
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import FEW_JOBS
from airflow_provider_rungen.client.senders import MAX_IN_FLIGHT
from airflow_provider_rungen.client.transport import MAX_BACKGROUND
from airflow_provider_rungen.exceptions import (
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.triggers import RunGenJobTrigger
from airflow_provider_rungen.triggers import watcher as watcher_module
from airflow_provider_rungen.triggers.watcher import SharedPoller, shared_poller

BRISKLY = 0.01
NEVER = 3600.0
LIMIT = 60.0


@dataclass
class Stage:
    """An emulator whose time stands still until it is moved, and what was asked of Airflow."""

    emulator: Emulator
    clock: FakeTime
    connections: Connections
    lookups: list[str] = field(default_factory=list)

    @property
    def service(self) -> Service:
        return self.emulator.service

    def submit(self, count: int, seconds: float = 10.0) -> list[str]:
        """Submit jobs, of which each ends a hundredth of a second after the one before."""
        headers = {"x-api-key": KEY, "Content-Type": "application/json"}
        for number in range(count):
            given = {"prompt": "x", "emulator": {"seconds": seconds + number / 100}}
            body = json.dumps({"input": given}).encode()
            assert self.service.handle("POST", f"/app/{APP}/run_async", headers, body).status == 201
        return [job["id"] for job in self.service.jobs()[-count:]]

    def pass_by(self, seconds: float) -> None:
        self.clock.now += seconds

    def looks(self) -> int:
        return self.service.count("get") + self.service.count("get_app")


@pytest.fixture
def stage(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    clock = FakeTime()
    with Emulator(Service(clock=clock.time, workers=1000)) as emulator:
        stage = Stage(emulator, clock, connections)
        monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", emulator.airflow_connection())
        look_up = compat.get_async_connection

        async def counted(conn_id: str, *args: Any) -> Any:
            stage.lookups.append(conn_id)
            return await look_up(conn_id, *args)

        monkeypatch.setattr(compat, "get_async_connection", counted)
        yield stage


def in_loop(scene: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own, and see that it ends."""

    async def bounded(*given: Any, **fixtures: Any) -> None:
        async with asyncio.timeout(LIMIT):
            await scene(*given, **fixtures)

    @functools.wraps(scene)
    def run(*given: Any, **fixtures: Any) -> None:
        asyncio.run(bounded(*given, **fixtures))

    return run


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the service is in another thread
        await asyncio.sleep(0.002)


def wait(
    job_ids: list[str], *, every: float = BRISKLY, within: float = 600.0, conn_id: str = "rungen_default"
) -> asyncio.Task[list[Job]]:
    async def waiting() -> list[Job]:
        watcher = shared_poller(conn_id, APP)
        return await watcher.wait(job_ids, poll_interval=every, deadline=time.time() + within)

    return asyncio.create_task(waiting())


def watchers() -> list[SharedPoller]:
    return list(watcher_module._pollers.get(asyncio.get_running_loop(), {}).values())


# --- together -----------------------------------------------------------------------------------------------


@in_loop
async def test_hundreds_of_triggers_share_one_loop_one_lookup_and_a_few_connections(
    stage: Stage, unsettled: None
) -> None:
    now = time.time()
    times: dict[str, Any] = {"poll_interval": 0.05, "deadline": now + 600, "deferred_at": now - 60}

    async def first_event(job_id: str) -> Any:
        async for event in RunGenJobTrigger(app_id=APP, job_id=[job_id], cancel_on_kill=True, **times).run():
            return event.payload
        return None

    tasks = [asyncio.create_task(first_event(job_id)) for job_id in stage.submit(300)]
    await until(lambda: stage.service.count("get") >= 300)
    assert len(watchers()) == 1
    while not all(task.done() for task in tasks):
        stage.pass_by(0.5)
        await asyncio.sleep(0.05)
    assert {task.result()["in_flight"] for task in tasks} == {0}
    await until(lambda: stage.connections.open == 0)
    assert stage.lookups == ["rungen_default"]
    assert stage.connections.most <= MAX_IN_FLIGHT


@pytest.mark.contract
@in_loop
async def test_a_single_job_among_many_is_told_of_its_end_within_two_intervals(stage: Stage) -> None:
    """One worker, first come, first served. Triggers begin in any order when the triggerer restarts."""
    stage.service.scale(app_id=APP, workers=1)
    ids = list[str]()
    for _ in range(40):
        ids += stage.submit(1, 100.0)
        stage.pass_by(1)
    tasks = {job_id: wait([job_id]) for job_id in sorted(ids)}
    await until(lambda: stage.service.count("get") >= 100)
    for job_id in ids[:10]:
        before = stage.service.count("get")
        stage.pass_by(100)
        await tasks[job_id]
        # in a round what runs, the oldest two, and one of the others; a look at each would cost 39
        assert stage.service.count("get") - before <= 3 * 4
    for task in tasks.values():
        task.cancel()


@in_loop
async def test_waiters_for_one_job_cost_no_more_than_one(stage: Stage) -> None:
    ids = stage.submit(2)
    orders = [ids, ids[::-1], [ids[0], ids[0]]]
    tasks = [wait(order) for order in orders]
    await until(lambda: stage.service.count("get") >= 2)
    before = stage.service.count("get")
    stage.pass_by(20)
    found = await asyncio.gather(*tasks)
    assert [[job.id for job in jobs] for jobs in found] == orders
    assert {job.status for jobs in found for job in jobs} == {JobStatus.COMPLETED}
    assert stage.service.count("get") - before <= 2 + 2, "one look each, and one that was under way"


@in_loop
async def test_connections_have_watchers_of_their_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", stage.emulator.airflow_connection())
    ids = stage.submit(2)
    tasks = [wait(ids[:1]), wait(ids[1:], conn_id="other")]
    await until(lambda: stage.service.count("get") >= 2)
    assert len(watchers()) == 2
    stage.pass_by(20)
    await asyncio.gather(*tasks)
    assert sorted(stage.lookups) == ["other", "rungen_default"]


@in_loop
async def test_waiting_for_nothing_asks_nothing(stage: Stage) -> None:
    assert await wait([]) == []
    with pytest.raises(RunGenInputError):
        await wait(["good", "bad/id"])
    assert (stage.looks(), stage.lookups) == (0, [])


@in_loop
async def test_the_shortest_interval_counts_and_a_newcomer_need_not_wait_for_a_longer_one(
    stage: Stage,
) -> None:
    ids = stage.submit(2)
    slow = wait(ids[:1], every=NEVER)
    await until(lambda: stage.service.count("get") >= 1)
    stage.pass_by(20)
    await asyncio.gather(slow, wait(ids[1:]))


# --- leaving ------------------------------------------------------------------------------------------------


@in_loop
async def test_it_closes_with_the_last_waiter_and_a_new_one_begins_anew(stage: Stage) -> None:
    ids = stage.submit(6)
    for part in (ids[:3], ids[3:]):
        tasks = [wait([job_id]) for job_id in part]
        await until(lambda: len(watchers()) == 1)
        stage.pass_by(20)
        await asyncio.gather(*tasks)
        assert watchers() == []
        await until(lambda: stage.connections.open == 0)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert stage.lookups == ["rungen_default"] * 2


@in_loop
async def test_a_waiter_may_come_while_the_old_watcher_closes(stage: Stage) -> None:
    ids = stage.submit(2)
    first = wait(ids[:1])
    await until(lambda: stage.service.count("get") > 0)
    [old] = watchers()
    first.cancel()
    await asyncio.wait([first])
    assert watchers() == []
    second = wait(ids[1:])
    await asyncio.sleep(0)
    assert watchers() != [old]
    stage.pass_by(20)
    assert [job.id for job in await second] == ids[1:]


@in_loop
async def test_a_waiter_that_is_canceled_leaves_the_others_alone(stage: Stage) -> None:
    ids = stage.submit(20)
    tasks = [wait([job_id]) for job_id in ids]
    other = wait(ids[:1])  # for a job that another one waits for, too
    await until(lambda: stage.service.count("get") > 0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks[::2])
    assert all(task.cancelled() for task in tasks[::2])
    stage.pass_by(20)
    found = await asyncio.gather(other, *tasks[1::2])
    assert [jobs[0].id for jobs in found] == [ids[0], *ids[1::2]]
    await until(lambda: watchers() == [])


@in_loop
async def test_the_last_waiter_need_not_wait_for_an_answer_that_never_comes(stage: Stage) -> None:
    stage.service.inject(Fault(on="get", kind="hang", times=None))
    task = wait(stage.submit(1))
    await until(lambda: stage.service.count("get") > 0)
    [watcher] = watchers()
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: watchers() == [])
    assert watcher._hook._async_senders == [], "its session is closed"


# --- deadlines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3 * FEW_JOBS])
@in_loop
async def test_the_deadline_allows_a_last_look(stage: Stage, count: int) -> None:
    ids = stage.submit(count)
    task = wait(ids, every=NEVER, within=0.3)
    await until(lambda: stage.looks() > 0)
    stage.pass_by(20)
    assert [job.id for job in await task] == ids
    assert stage.lookups == ["rungen_default"]


@in_loop
async def test_many_deadlines_that_passed_while_the_triggerer_was_down_cost_one_lookup(stage: Stage) -> None:
    ids = stage.submit(100)
    stage.pass_by(10.5)  # about half are over
    tasks = [wait([job_id], every=5.0, within=-3600) for job_id in ids]
    await asyncio.wait(tasks)
    assert {task.result()[0].status for task in tasks[:50]} == {JobStatus.COMPLETED}
    assert {type(task.exception()) for task in tasks[52:]} == {RunGenJobTimeoutError}
    assert stage.lookups == ["rungen_default"]
    assert stage.service.count("get") <= 200
    # no poll was canceled because another one of the same job was faster: that closes its connection
    assert stage.connections.opened <= MAX_IN_FLIGHT


@in_loop
async def test_the_deadline_of_one_is_not_that_of_another(stage: Stage) -> None:
    ids = stage.submit(2)
    short, long = wait(ids, within=0.1), wait(ids)
    with pytest.raises(RunGenJobTimeoutError):
        await short
    stage.pass_by(20)
    assert len(await long) == 2


@in_loop
async def test_the_deadline_holds_though_the_service_hangs(stage: Stage) -> None:
    [job_id] = stage.submit(1)
    stage.service.inject(Fault(on="get", kind="hang", times=None))
    with pytest.raises(RunGenJobTimeoutError, match=job_id):
        await wait([job_id], within=0.1)


@in_loop
async def test_the_deadline_holds_in_an_outage_and_the_service_is_left_alone(stage: Stage) -> None:
    for operation in ("get", "get_app"):
        stage.service.inject(Fault(on=operation, status=503, times=None, headers={"Retry-After": "600"}))
    tasks = [wait([job_id], within=1 + 0.02 * number) for number, job_id in enumerate(stage.submit(10))]
    await asyncio.wait(tasks)
    assert {type(task.exception()) for task in tasks} == {RunGenJobTimeoutError}
    # the first look at each, the last look of the first whose time was over, and one that tells of the end
    assert stage.looks() <= 10 + 2
    assert early_retries(stage.service) == 0


# --- one task does not hurt another -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stuck", "count"),
    [(1, 3), (1, 40), (MAX_IN_FLIGHT + 8, 5), (0, 20)],
    # the jobs that hang are older, and so the others get their turn after them
    ids=["a look among a few", "a look among many", "more looks than go at a time", "the app"],
)
@in_loop
async def test_what_hangs_holds_up_nobody(stage: Stage, stuck: int, count: int) -> None:
    hanging, ids = stage.submit(stuck), stage.submit(count)
    for job_id in hanging:
        stage.service.inject(Fault(on="get", kind="hang", job_id=job_id, times=None))
    if not hanging:
        stage.service.inject(Fault(on="get_app", kind="hang", times=None))
    held, tasks = ([wait([job_id], every=1.0) for job_id in each] for each in (hanging, ids))
    await until(lambda: stage.looks() >= min(count, FEW_JOBS))
    stage.pass_by(20)
    begun_at = time.monotonic()
    await asyncio.gather(*tasks)
    assert time.monotonic() - begun_at < SOON  # a look may take 15 s
    assert not any(task.done() for task in held)
    stage.service.clear_faults()


@in_loop
async def test_a_round_does_not_wait_long_for_a_job_that_hangs(stage: Stage) -> None:
    stuck, *ids = stage.submit(4, seconds=0)
    stage.pass_by(20)
    stage.service.inject(Fault(on="get", kind="hang", job_id=stuck, times=None))
    held, *tasks = [wait([job_id], every=30.0) for job_id in (stuck, *ids)]
    begun_at = time.monotonic()
    await asyncio.gather(*tasks)
    assert time.monotonic() - begun_at < MAX_WAIT_FOR_POLL + SOON / 2
    held.cancel()


@in_loop
async def test_a_job_that_answers_late_is_not_asked_again_meanwhile_and_is_delivered(stage: Stage) -> None:
    slow, *ids = stage.submit(3, seconds=0)
    stage.pass_by(20)
    stage.service.inject(Fault(on="get", kind="drip", drip_seconds=0.005, job_id=slow))
    late, *tasks = [wait([job_id], every=0.2) for job_id in (slow, *ids)]
    await asyncio.gather(*tasks)
    assert (await late)[0].id == slow
    assert stage.service.count("get") == 3


@in_loop
async def test_a_retry_after_of_one_job_silences_that_job_alone(stage: Stage) -> None:
    late, *ids = stage.submit(4)
    stage.service.inject(Fault(on="get", status=503, job_id=late, headers={"Retry-After": "600"}, times=None))
    left, *tasks = [wait([job_id]) for job_id in (late, *ids)]
    await until(lambda: stage.service.count("get") >= 12)
    stage.pass_by(20)
    await asyncio.gather(*tasks)
    assert not left.done()
    left.cancel()
    assert sum(record.path.endswith(late) for record in stage.service.records()) == 1


@in_loop
async def test_a_retry_after_of_the_only_job_holds_up_no_newcomer(stage: Stage) -> None:
    first, second = stage.submit(2)
    stage.service.inject(Fault(on="get", status=429, headers={"Retry-After": "3600"}, job_id=first))
    waiting = wait([first])
    await until(lambda: stage.service.count("get") == 1)
    newcomer = wait([second])
    stage.pass_by(20)
    assert [job.status for job in await newcomer] == [JobStatus.COMPLETED]
    assert early_retries(stage.service) == 0
    waiting.cancel()


@in_loop
async def test_a_service_that_is_slower_than_the_polls_answers_for_every_job(stage: Stage) -> None:
    running, ids = stage.submit(2 * MAX_BACKGROUND, seconds=NEVER), stage.submit(8, seconds=0)
    stage.pass_by(20)
    stage.service.inject(Fault(on="get", kind="drip", drip_seconds=0.006, times=None))
    held = [wait([job_id], every=0.1) for job_id in running]
    await asyncio.gather(*[wait([job_id], every=0.1) for job_id in ids])
    assert not any(task.done() for task in held)
    stage.service.clear_faults()


# --- a key that is replaced ---------------------------------------------------------------------------------


@in_loop
async def test_a_rotated_key_is_read_from_the_connection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stage.submit(10)
    tasks = [wait([job_id]) for job_id in ids]
    await until(lambda: stage.looks() >= 2)
    stage.service.api_key = "another-emulator-key"
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", stage.emulator.airflow_connection())
    stage.pass_by(20)
    late = wait(ids)  # one that joins after the rotation
    found = [job for [job] in await asyncio.gather(*tasks)]
    assert [(job.id, job.status) for job in found] == [(job_id, "COMPLETED") for job_id in ids]
    assert len(await late) == 10
    assert len(stage.lookups) <= 3


@in_loop
async def test_a_refusal_that_lasts_ends_the_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", 1.5)
    ids = stage.submit(30)
    tasks = [wait([job_id]) for job_id in ids]  # all of them, and not one after the other
    await until(lambda: stage.looks() >= 3)
    stage.service.api_key = "another-emulator-key"
    await asyncio.wait(tasks)
    assert {type(task.exception()) for task in tasks} == {RunGenForbiddenError}
    told = {str(task.exception()) for task in tasks}
    assert not [job_id for job_id in ids if any(job_id in each for each in told)], "no job of another task"
    assert all(f"(app {APP})" in each for each in told)


@in_loop
async def test_a_stray_refusal_passes(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    ids = stage.submit(2)
    stage.service.inject(Fault(on="get", status=403, skip=2, times=2))
    tasks = [wait([job_id]) for job_id in ids]
    await until(lambda: stage.service.count("get") >= 6)
    stage.pass_by(20)
    assert [job.id for [job] in await asyncio.gather(*tasks)] == ids
    assert caplog.text.count("polling continues") == 2  # each of the two tasks has a log of its own


# --- errors -------------------------------------------------------------------------------------------------


@in_loop
async def test_an_error_that_no_waiting_can_change_reaches_only_the_waiters_of_its_job(stage: Stage) -> None:
    ids = stage.submit(3)
    stage.service.inject(Fault(on="get", status=404, job_id=ids[1], times=None))
    tasks = [wait([job_id]) for job_id in ids]
    both = wait(ids[1:])
    [gone] = await tasks[1]
    assert isinstance(gone.cause, RunGenNotFoundError)
    stage.pass_by(20)
    for number in (0, 2):
        assert (await tasks[number])[0].id == ids[number]
    gone, good = await both
    assert (gone.status, good.status) == ("FAILED", "COMPLETED")
    assert "404" in gone.error


@in_loop
async def test_what_nobody_expected_reaches_all_and_the_next_begins_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a bug")

    ids = stage.submit(10, seconds=0)
    stage.pass_by(20)
    with monkeypatch.context() as patched:
        patched.setattr(JobPoller, "_note_job", fail)
        tasks = [wait([job_id]) for job_id in ids]
        await asyncio.wait(tasks)
        assert {type(task.exception()) for task in tasks} == {RuntimeError}
    assert len(await wait(ids)) == 10
    await until(lambda: stage.connections.open == 0)


@in_loop
async def test_a_connection_that_cannot_be_used_is_read_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.05)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", '{"conn_type": "rungen", "extra": {"team": "x"}}')
    ids = stage.submit(5)
    tasks = [wait([job_id]) for job_id in ids]
    await until(lambda: len(stage.lookups) >= 3)
    assert not any(task.done() for task in tasks)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", stage.emulator.airflow_connection())
    stage.pass_by(20)
    assert [job.id for [job] in await asyncio.gather(*tasks)] == ids
    assert caplog.text.count("'team' is unknown") == 5  # each of the five tasks has a log of its own


# --- what it says -------------------------------------------------------------------------------------------

_who: contextvars.ContextVar[str] = contextvars.ContextVar("_who", default="nobody")


@contextlib.contextmanager
def hearing() -> Iterator[dict[str, list[str]]]:
    """Note who logs what: Airflow sends a trigger's lines to its task by the context they are logged in."""
    heard: dict[str, list[str]] = {}

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.setdefault(_who.get(), []).append(record.getMessage())

    log, ear = logging.getLogger("airflow_provider_rungen"), Ear()
    level = log.level
    log.addHandler(ear)
    log.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        log.removeHandler(ear)
        log.setLevel(level)


@in_loop
async def test_each_waiter_hears_of_its_job_and_once_of_an_outage(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)
    ids = stage.submit(2)
    stage.service.inject(Fault(on="get", status=503, times=5))
    jobs = {"ann": ids[0], "bob": ids[1], "cy": ids[1]}
    with hearing() as heard:
        tasks = []
        for name, job_id in jobs.items():
            token = _who.set(name)
            tasks.append(wait([job_id]))
            _who.reset(token)
        await until(lambda: stage.service.count("get") >= 10)
        stage.pass_by(20)
        await asyncio.gather(*tasks)
    assert heard.keys() == jobs.keys()
    for name, job_id in jobs.items():
        about = f"(job {job_id}, app {APP})"
        outage, *lines = heard[name]
        assert "polling continues" in outage
        assert sorted(lines) == [f"Completed after 10 s {about}", "RunGen answers again", f"Running {about}"]


# --- event loops --------------------------------------------------------------------------------------------


def test_two_event_loops_have_watchers_of_their_own(stage: Stage) -> None:
    @in_loop
    async def scene(job_id: str) -> None:
        task = wait([job_id])
        await until(lambda: stage.service.count("get") >= 2 and len(watchers()) == 1)
        stage.pass_by(20)
        assert (await task)[0].id == job_id

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(scene, stage.submit(2))) == [None, None]
    assert len(stage.lookups) == 2


def test_an_event_loop_that_ended_leaves_no_watcher_behind(stage: Stage) -> None:
    seen: list[weakref.ref[SharedPoller]] = []

    @in_loop
    async def scene() -> None:
        wait(stage.submit(1))  # still waits at the end
        await until(lambda: stage.service.count("get") > 0)
        seen.extend(map(weakref.ref, watchers()))

    scene()
    gc.collect()
    assert [each() for each in seen] == [None]
    assert not any(watcher_module._pollers.values())
