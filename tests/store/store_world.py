"""A world in which attempts buy keys: a store, a service and clocks that are slow, wrong, frozen and killed.

Time is virtual. What attempts do interleaves at each call to the store and to the service, at random.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from collections import Counter
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.store.records import (
    CLAIM_TIME,
    Adopt,
    Buy,
    GivenUp,
    Policy,
    Record,
    Reuse,
    Status,
    Wait,
)
from airflow_provider_rungen.store.store import Store
from airflow_provider_rungen.work.service import Lost, NotSent, Submission, Submitted
from airflow_provider_rungen.work.submit import START_TIME, Buyer

EPOCH = 1_700_000_000.0
APP = "flux"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing else is to be done."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]  # asyncio's own
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@dataclass
class MadeJob:
    key: str
    ends_at: float
    fails: bool
    made_at: float
    #: Whether its buyer got its id.
    is_known: bool = False
    #: When its id reached the store.
    stored_at: float = math.inf

    @property
    def is_late(self) -> bool:
        """Whether its buyer froze before it stored the id, so that others took the claim for lost."""
        return self.stored_at - self.made_at > CLAIM_TIME - START_TIME


@dataclass
class Trouble:
    """How likely what is, at each call."""

    kill: float = 0.0
    freeze: float = 0.0
    lost: float = 0.0
    not_sent: float = 0.0
    outage: float = 0.0
    fails: float = 0.0
    skew: float = 0.0
    slow: float = 0.5


@dataclass
class World:
    seed: int
    trouble: Trouble
    loop: VirtualLoop = field(default_factory=VirtualLoop)
    files: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    jobs: dict[str, MadeJob] = field(default_factory=dict)
    #: With which of two pages a listing has each file.
    pages: dict[str, int] = field(default_factory=dict)
    processes: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311 - the same in each run

    def now(self) -> float:
        return EPOCH + self.loop.time()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def run(self, work: Coroutine[Any, Any, Any], hours: float = 24) -> None:
        """Run to the end. What never ends is an error, as virtual time costs nothing."""

        async def bounded() -> None:
            async with asyncio.timeout(hours * 3600):
                await work

        try:
            self.loop.run_until_complete(bounded())
        finally:
            while dead := asyncio.all_tasks(self.loop):  # their cleanup hangs, too
                for task in dead:
                    task.cancel()
                self.loop.run_until_complete(asyncio.wait(dead, timeout=1))
            self.loop.close()

    # --- what is checked ---

    def records(self) -> list[Record]:
        """Return all ended records."""
        return [
            Record.of_line(line, path)
            for path, (content, _) in self.files.items()
            if path.startswith(".rungen/done/")
            for line in gzip.decompress(content).splitlines()
        ]

    def open_jobs(self) -> set[str]:
        names = (path for path in self.files if path.startswith(".rungen/open/"))
        return {name.split(".")[3] for name in names if name.count(".") == 3}

    def bought(self) -> Counter[str]:
        return Counter(job.key for job in self.jobs.values())


class Killed(BaseException):
    """Ends an attempt as SIGKILL does. Nothing that it would do reaches the world any more."""


class Process:
    """A process: it may be slow, freeze, die, and have a wrong clock."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.skew = world.random.uniform(-world.trouble.skew, world.trouble.skew)
        self.is_dead = False
        self.died: asyncio.Future[None] = world.loop.create_future()

    def now(self) -> float:
        return self.world.now() + self.skew

    async def step(self) -> None:
        """Pass to what comes next, in time or not, or never."""
        world = self.world
        if not self.is_dead and world.chance(world.trouble.kill):
            self.is_dead = True
            if not self.died.done():
                self.died.set_result(None)
        if self.is_dead:
            await world.loop.create_future()
        await asyncio.sleep(world.random.expovariate(1 / world.trouble.slow))
        if world.chance(world.trouble.freeze):
            await asyncio.sleep(world.random.uniform(60, 600))


class WorldFiles:
    """The files of the world, as one process sees them."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world

    async def _step(self) -> None:
        await self._process.step()
        if self._world.chance(self._world.trouble.outage):
            raise RunGenOutputError("the store does not answer")

    async def list(self, folder: str) -> dict[str, float]:
        await self._step()
        found = self._names(folder, 0)
        await self._process.step()  # a long listing has one page after the other
        return found | self._names(folder, 1)

    def _names(self, folder: str, half: int) -> dict[str, float]:
        of_folder = {path: at for path, (_, at) in self._world.files.items() if path.startswith(f"{folder}/")}
        pages, draw = self._world.pages, self._world.random.randrange
        return {path: at for path, at in of_folder.items() if pages.setdefault(path, draw(2)) == half}

    async def find(self, folder: str) -> set[str]:
        raise NotImplementedError

    async def exist(self, paths: Collection[str]) -> set[str]:
        raise NotImplementedError

    async def read(self, paths: Collection[str]) -> dict[str, bytes]:
        contents = {}
        for path in paths:
            await self._step()
            if path in self._world.files:
                contents[path] = self._world.files[path][0]
        return contents

    async def create(self, files: Mapping[str, bytes]) -> set[str]:
        created = set()
        for path, content in files.items():
            await self._step()
            if path not in self._world.files:
                self._world.files[path] = content, self._world.now()
                if (job := self._world.jobs.get(path.rpartition(".")[2])) is not None:
                    job.stored_at = self._world.loop.time()
                if not self._world.chance(self._world.trouble.outage):  # or its answer is lost
                    created.add(path)
            await self._process.step()
        return created

    async def write(self, path: str, content: bytes) -> None:
        await self._step()
        self._world.files[path] = content, self._world.now()
        await self._step()

    async def remove(self, paths: Collection[str]) -> None:
        for path in paths:
            await self._step()
            self._world.files.pop(path, None)


class WorldService:
    """The service, as one process reaches it."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world

    async def submit(self, job_input: Mapping[str, Any], start_within: float) -> Submission:
        world, trouble = self._world, self._world.trouble
        key = str(job_input["key"])
        sent_at = world.loop.time() + start_within
        await self._process.step()
        if world.loop.time() > sent_at or world.chance(trouble.not_sent):
            return NotSent("busy", retry_after=world.random.choice([0.0, 5.0, 90.0]))
        job_id = f"job-{len(world.jobs)}"
        ends_at = world.now() + world.random.uniform(1, 400)
        fails = world.chance(trouble.fails)
        world.jobs[job_id] = job = MadeJob(key, ends_at, fails, made_at=world.loop.time())
        if world.chance(trouble.lost):
            return Lost("reset")
        await self._process.step()
        if world.loop.time() - sent_at > 60:
            return Lost("cut after 60 s")
        job.is_known = True
        return Submitted(job_id)

    async def get(self, job: str) -> Job:
        await self._process.step()
        made = self._world.jobs[job]
        has_ended = self._world.now() >= made.ends_at
        end = JobStatus.FAILED if made.fails else JobStatus.COMPLETED
        status = end if has_ended else JobStatus.RUNNING
        return Job(id=job, app_id=APP, status=status)

    async def cancel(self, job: str) -> None:
        await self._process.step()
        self._world.jobs[job].ends_at = self._world.now()


class Attempt:
    """One attempt of a task with some keys, made of the store and the buyer."""

    def __init__(self, world: World, keys: Collection[str], run: str, by: str, **policy: Any) -> None:
        self.process = Process(world)
        self.policy = Policy(run, by, APP, run_start=world.now(), **policy)
        self.keys, self.world = keys, world
        self.store = Store(WorldFiles(self.process), self.policy, set(keys).__contains__, self.process.now)
        self.service = WorldService(self.process)
        self.buyer = Buyer(
            store=self.store, service=self.service, policy=self.policy, monotonic=world.loop.time
        )
        self.verdicts: dict[str, Any] = {}

    async def perform(self) -> None:
        try:
            await self.store.open()
            await self._work()
            await self.store.merge()
        finally:
            self.store.close()

    async def _work(self) -> None:
        left = set(self.keys)
        while left:
            await self.store.look()
            to_buy = {}
            for key in sorted(left):
                match found := self.buyer.verdict(key):
                    case Reuse() | GivenUp():
                        self.verdicts[key] = found
                        left.discard(key)
                    case Adopt(fact):
                        await self._poll(fact)
                    case Buy():
                        to_buy[key] = {"key": key}
                    case Wait():
                        pass
            if to_buy:
                bought = await self.buyer.send(await self.buyer.claim(to_buy))
                await asyncio.sleep(bought.pause)
            if self.store.is_flush_due:
                await self.store.flush()
            await asyncio.sleep(self.world.random.uniform(1, 20))
        await self.store.flush()

    async def _poll(self, fact: Record) -> None:
        job = await self.service.get(fact.job)
        if job.is_terminal:
            status = Status.COMPLETED if job.status is JobStatus.COMPLETED else Status.FAILED
            self.store.end(fact.model_copy(update={"status": status}))


async def task_run(world: World, keys: Collection[str], run: str, tries: int, **policy: Any) -> list[Attempt]:
    """Attempt a task until it ends, as Airflow does. A frozen process may wake beside the next attempt."""
    attempts = []
    patience = 1 if world.trouble.freeze else 10  # Airflow gives up a frozen process
    await asyncio.sleep(world.random.uniform(0, 100))
    for number in range(tries):
        attempt = Attempt(world, keys, run, f"{run}-{number}", **policy)
        attempts.append(attempt)
        performing = asyncio.create_task(attempt.perform())
        world.processes.append(performing)  # a dead one stays
        limit = asyncio.create_task(asyncio.sleep(world.random.uniform(600, 6000) * patience))
        await asyncio.wait([performing, attempt.process.died, limit], return_when=asyncio.FIRST_COMPLETED)
        if performing.done():
            error = performing.exception()
            if error is None:
                break
            if not isinstance(error, RunGenOutputError):
                raise error
        await asyncio.sleep(world.random.uniform(5, 300))
    return attempts


def digest(number: int) -> str:
    return f"{number:064x}"


def view_of(world: World) -> str:
    """Return the files of the world, for a failure."""
    return json.dumps({path: content.decode(errors="replace") for path, (content, _) in world.files.items()})
