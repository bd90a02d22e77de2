"""
Requests for each job on a simulated app.

The clock is virtual: `python -m bench.simulate` prints the same each time. 1,000 jobs are submitted at once
to an app that works first come, first served. Each runs for a time by chance. They are polled every 5 s.

- *The fewest possible* is what an oracle needs. It learns for free how many jobs have ended, knows when
  each one started and how durations are distributed, and polls the likeliest job first.
- *A plain poller* asks for no counters. It polls the oldest jobs, 8 at a time, until it meets a queued one.
  It finds a canceled job when that has become one of the oldest.
- *Each job polled* is computed: one request every 5 s.
- The last rows are counters that lie, jobs of others, and jobs that others cancel, each on the load on
  which it costs most.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

from airflow_provider_rungen.client.flow import Flow, Request, Response
from airflow_provider_rungen.client.job_poller import JobPoller
from airflow_provider_rungen.client.transport import drive
from bench.page import Row

APP = "app"
INTERVAL = 5.0
# Seconds that an answer takes, counting those that are under way at the same time.
ANSWER_TIME = 0.002
# What the variants change: shares of the queue, and seconds.
CANCELED_SHARE, FOREIGN_SHARE = 0.1, 0.2
FROZEN_AT, LAG = 30.0, 7.0
#: What the counters may do. The last two are honest, but others use the app, too.
VARIANTS = ("honest", "frozen", "lagging", "absent", "zero", "half", "jumping", "foreign", "canceled")
_GIVE_UP_AFTER = 6 * 3600.0


@dataclass(frozen=True)
class Load:
    """
    Jobs that are submitted at once to an app.

    :param workers: how many jobs run at a time.
    :param shortest: seconds that a job runs at least.
    :param longest: seconds that a job runs at most; all durations between are as likely.
    :param jobs: how many there are.
    :param requeued: the share of jobs that lose their worker once, and are queued again behind all others.
    """

    workers: int
    shortest: float
    longest: float
    jobs: int = 1000
    requeued: float = 0.0

    def __str__(self) -> str:
        again = f", {self.requeued:.0%} twice" if self.requeued else ""
        return f"{self.workers:,} workers × {self.shortest:g}–{self.longest:g} s{again}"

    def queue(self, seed: int, *, canceled: float = 0.0, foreign: float = 0.0) -> list[SimulatedJob]:
        """
        Simulate the app, and return the jobs in the order of their submission.

        :param canceled: the share of jobs that somebody cancels, queued or running.
        :param foreign: the share of the queue that is somebody else's.
        """
        chance = random.Random(seed)
        size = round(self.jobs / (1 - foreign))
        is_ours = [True] * self.jobs + [False] * (size - self.jobs)
        if foreign:
            chance.shuffle(is_ours)
        span = size * (self.shortest + self.longest) / 2 / self.workers
        free, queue = [0.0] * self.workers, deque(range(size))
        lost: dict[int, tuple[float, float]] = {}
        jobs: dict[int, SimulatedJob] = {}
        while queue:
            number = queue.popleft()
            free_at, runs = heapq.heappop(free), [lost[number]] if number in lost else []
            starts = max([free_at, *(until for _, until in runs)])
            ends, status = starts + chance.uniform(self.shortest, self.longest), "COMPLETED"
            if self.requeued and not runs and chance.random() < self.requeued:
                lost[number] = (starts, chance.uniform(starts, ends))
                heapq.heappush(free, lost[number][1])
                queue.append(number)
                continue
            if canceled and chance.random() < canceled and (at := chance.uniform(0, span)) < ends:
                ends, status = at, "CANCELED"
            heapq.heappush(free, max(free_at, ends))
            runs.append((starts, ends))
            jobs[number] = SimulatedJob(f"job-{number}", tuple(runs), ends, status, is_ours[number])
        return [jobs[number] for number in range(size)]


LOADS = (
    *(Load(4, 1, 6), Load(20, 1, 6), Load(20, 5, 60), Load(100, 10, 60), Load(8, 2, 3)),
    *(Load(20, 5, 60, requeued=0.05), Load(1000, 10, 60)),
)


@dataclass(frozen=True)
class SimulatedJob:
    """A job, with its times in seconds since the submission: when it runs, and when it ends."""

    id: str
    runs: tuple[tuple[float, float], ...]
    ends: float
    status: str
    is_ours: bool

    @property
    def starts(self) -> float:
        """When the last run begins."""
        return self.runs[-1][0]

    def status_at(self, now: float) -> str:
        if self.ends <= now:
            return self.status
        return "RUNNING" if any(begin <= now < end for begin, end in self.runs) else "QUEUED"


@dataclass
class SimulatedApp:
    """
    Answers polls of jobs and of the app.

    :param jobs: the queue of the app.
    :param counters: what they do, one of `VARIANTS`.
    """

    jobs: Sequence[SimulatedJob]
    counters: str = "honest"
    now: float = 0.0
    requests: int = 0
    _jobs: dict[str, SimulatedJob] = field(init=False)

    def __post_init__(self) -> None:
        self._jobs = {job.id: job for job in self.jobs}

    def perform(self, flow: Flow[Any]) -> Any:
        return drive(flow, self._send, self._sleep, lambda: self.now)

    def get(self, job_id: str) -> SimulatedJob:
        """Poll a job."""
        self.requests += 1
        self.now += ANSWER_TIME
        return self._jobs[job_id]

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _send(self, request: Request) -> Response:
        if "/job/" in request.path:
            job = self.get(request.path.rpartition("/")[2])
            return _response({"id": job.id, "status": job.status_at(self.now), "result": {}})
        self.requests += 1
        self.now += ANSWER_TIME
        counts = {} if self.counters == "absent" else {"jobs": self._count()}
        return _response({"id": APP, "status": "RUNNING", **counts})

    def _count(self) -> dict[str, int]:
        at = {"lagging": self.now - LAG, "frozen": min(self.now, FROZEN_AT)}.get(self.counters, self.now)
        statuses = [job.status_at(at) for job in self.jobs]
        counts = {
            "completed": statuses.count("COMPLETED"),
            "failed": 0,
            "in_progress": statuses.count("RUNNING"),
            "in_queue": statuses.count("QUEUED"),
        }
        match self.counters:
            case "zero":
                return dict.fromkeys(counts, 0)
            case "half":  # every other job seems to run forever
                uncounted = statuses[::2].count("COMPLETED")
                counts["completed"] -= uncounted
                counts["in_progress"] += uncounted
            case "jumping":
                chance = random.Random(self.requests)
                return {name: chance.randrange(2 * len(self.jobs)) for name in counts}
        return counts


def _response(body: dict[str, Any]) -> Response:
    return Response(200, {}, json.dumps(body).encode())


# --- pollers ------------------------------------------------------------------------------------------------

# Polls an app once each time it is resumed, and yields the jobs that it found to have ended.
Poller = Callable[[SimulatedApp, Load, Sequence[str]], Iterator[Sequence[str]]]


def package_poller(app: SimulatedApp, load: Load, job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Poll as the package does."""
    poller = JobPoller(APP, lambda *_: None)
    poller.add(job_ids, app.now)
    while True:
        app.perform(poller.poll_once(INTERVAL))
        finished = list(poller.finished)
        poller.forget(finished)
        yield finished


def plain_poller(app: SimulatedApp, load: Load, job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Poll the oldest jobs, some at a time, until one is queued."""
    waiting, step = list(job_ids), 8
    while True:
        ended: list[str] = []
        for start in range(0, len(waiting), step):
            polled = waiting[start : start + step]
            statuses = {job_id: app.get(job_id).status_at(app.now) for job_id in polled}
            ended += [job_id for job_id in polled if statuses[job_id] not in ("QUEUED", "RUNNING")]
            if "QUEUED" in statuses.values():
                break
        waiting = [job_id for job_id in waiting if job_id not in set(ended)]
        yield ended


def fewest(app: SimulatedApp, load: Load, job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Poll the jobs most likely to have ended, knowing how many have."""
    waiting = {job.id: job for job in app.jobs if job.is_ours}
    seen_running = dict.fromkeys(waiting, 0.0)

    def likelihood(job_id: str) -> float:
        starts = waiting[job_id].starts
        by_now, before = (_share(load, at - starts) for at in (now, seen_running[job_id]))
        return 1.0 if before == 1 else (by_now - before) / (1 - before)

    while True:
        now = app.now
        ended: list[str] = []
        missing = sum(job.ends <= now for job in waiting.values())
        started = [job_id for job_id, job in waiting.items() if job.starts <= now]
        for job_id in sorted(started, key=likelihood, reverse=True):
            if len(ended) == missing:
                break
            if app.get(job_id).ends <= now:
                ended.append(job_id)
            else:
                seen_running[job_id] = now
        for job_id in ended:
            del waiting[job_id]
        yield ended


def _share(load: Load, seconds: float) -> float:
    """Return the share of jobs that take as long at most."""
    return min(max((seconds - load.shortest) / (load.longest - load.shortest), 0.0), 1.0)


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What waiting cost per job, and seconds from a job's end until it was found."""

    requests: float
    late_95: float
    late_most: float


def simulate(
    load: Load, poller: Poller = package_poller, *, seed: int = 1, variant: str = "honest"
) -> Figures:
    """
    Wait for the jobs of a load.

    :param poller: what polls.
    :param seed: decides what chance decides.
    :param variant: one of `VARIANTS`.
    """
    canceled = CANCELED_SHARE if variant == "canceled" else 0.0
    foreign = FOREIGN_SHARE if variant == "foreign" else 0.0
    queue = load.queue(seed, canceled=canceled, foreign=foreign)
    app = SimulatedApp(queue, variant)
    waiting = {job.id: job for job in queue if job.is_ours}
    late: list[float] = []
    for round_number, ended in enumerate(poller(app, load, list(waiting))):
        late += [app.now - waiting.pop(job_id).ends for job_id in ended]
        if not waiting:
            break
        app.now = max((round_number + 1) * INTERVAL, app.now)
        if app.now > _GIVE_UP_AFTER:
            raise RuntimeError(f"{len(waiting)} jobs were never found")
    late.sort()
    return Figures(app.requests / load.jobs, late[int(0.95 * len(late))], late[-1])


def poll_each(load: Load, *, seed: int = 1) -> float:
    """Return the requests per job of polling each job."""
    return sum(math.ceil(job.ends / INTERVAL) + 1 for job in load.queue(seed)) / load.jobs


def over_seeds(
    load: Load, seeds: Sequence[int], poller: Poller = package_poller, variant: str = "honest"
) -> Figures:
    """Return the means of the requests and of the percentile over the seeds, and the longest time."""
    figures = [simulate(load, poller, seed=seed, variant=variant) for seed in seeds]
    late_95 = mean(each.late_95 for each in figures)
    return Figures(mean(each.requests for each in figures), late_95, max(each.late_most for each in figures))


def plain_requests(load: Load, seeds: Sequence[int], variant: str) -> float:
    """Return the requests of a plain poller; a job that is queued again would hide all others from it."""
    known = variant if variant in ("foreign", "canceled") else "absent"
    return over_seeds(replace(load, requeued=0.0), seeds, plain_poller, known).requests


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Simulate each load, and then the variants."""
    loads = [replace(load, jobs=round(load.jobs * scale)) for load in LOADS]
    seeds = range(rounds)
    for load in loads:
        ours, least = over_seeds(load, seeds).requests, over_seeds(load, seeds, fewest).requests
        plain = plain_requests(load, seeds, "honest")
        each = median(poll_each(load, seed=seed) for seed in seeds)
        yield Row(
            str(load),
            f"{ours:.2f}",
            f"the fewest: {least:.2f}; plain: {plain:.2f}; each polled: {each:.1f}",
            "≤ 1.35 × the fewest",
            ours <= 1.35 * least,
        )
    for variant in VARIANTS[1:]:
        found = [over_seeds(load, seeds, variant=variant) for load in loads]
        beside = [plain_requests(load, seeds, variant) for load in loads]
        shares = [ours.requests / plain for ours, plain in zip(found, beside, strict=True)]
        worst, late = shares.index(max(shares)), max(each.late_most for each in found)
        most, latest = (2.0, 60) if variant == "canceled" else (1.3, 3 * INTERVAL)
        yield Row(
            f"{variant}: {loads[worst]}",
            f"{found[worst].requests:.2f}, each end found within {late:.0f} s",
            f"plain: {beside[worst]:.2f}",
            f"≤ {most:g} × plain, {latest:g} s",
            shares[worst] <= most and late <= latest,
            "a search for canceled jobs polls the whole queue" if variant == "canceled" else "",
        )


if __name__ == "__main__":
    print(*measure(1, 1.0), sep="\n")
