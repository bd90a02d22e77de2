"""
Requests for each job on a simulated app.

The clock is virtual: `python -m bench.simulate` prints the same each time. 1,000 jobs are submitted at once
to an app that works first come, first served. Each runs for a time by chance. They are polled every 5 s.

- *The fewest possible* is what an oracle needs. It learns for free how many jobs have ended, knows when
  each one started and how durations are distributed, and polls the likeliest job first.
- *Each job polled* is computed: one request every 5 s.
- The last row is jobs that others cancel, in the queue or while they run.
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
# The share of the queue that others cancel in the last row, and the seconds within which that is found.
CANCELED_SHARE, LATEST = 0.1, 70.0
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

    def queue(self, seed: int, *, canceled: float = 0.0) -> list[SimulatedJob]:
        """
        Simulate the app, and return the jobs in the order of their submission.

        :param canceled: the share of jobs that somebody cancels, queued or running.
        """
        chance = random.Random(seed)
        span = self.jobs * (self.shortest + self.longest) / 2 / self.workers
        free, queue = [0.0] * self.workers, deque(range(self.jobs))
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
            jobs[number] = SimulatedJob(f"job-{number}", tuple(runs), ends, status)
        return [jobs[number] for number in range(self.jobs)]


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
    """

    jobs: Sequence[SimulatedJob]
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
        return _response({"id": APP, "status": "RUNNING"})


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


def fewest(app: SimulatedApp, load: Load, job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Poll the jobs most likely to have ended, knowing how many have."""
    waiting = {job.id: job for job in app.jobs}
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


def simulate(load: Load, poller: Poller = package_poller, *, seed: int = 1, canceled: float = 0.0) -> Figures:
    """
    Wait for the jobs of a load.

    :param poller: what polls.
    :param seed: decides what chance decides.
    :param canceled: the share of the jobs that others cancel.
    """
    queue = load.queue(seed, canceled=canceled)
    app = SimulatedApp(queue)
    waiting = {job.id: job for job in queue}
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
    load: Load, seeds: Sequence[int], poller: Poller = package_poller, canceled: float = 0.0
) -> Figures:
    """Return the means of the requests and of the percentile over the seeds, and the longest time."""
    figures = [simulate(load, poller, seed=seed, canceled=canceled) for seed in seeds]
    late_95 = mean(each.late_95 for each in figures)
    return Figures(mean(each.requests for each in figures), late_95, max(each.late_most for each in figures))


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Simulate each load, and then one of which others cancel some."""
    loads = [replace(load, jobs=round(load.jobs * scale)) for load in LOADS]
    seeds = range(rounds)
    for load, canceled in [*((load, 0.0) for load in loads), (loads[0], CANCELED_SHARE)]:
        ours, least = (over_seeds(load, seeds, poller, canceled) for poller in (package_poller, fewest))
        each = median(poll_each(load, seed=seed) for seed in seeds)
        yield Row(
            f"{load}, {canceled:.0%} canceled" if canceled else str(load),
            f"{ours.requests:.2f}; 95% found within {ours.late_95:.0f} s, each within {ours.late_most:.0f} s",
            f"the fewest: {least.requests:.2f}; each polled: {each:.1f}",
            f"fewer than each polled, {LATEST:g} s",
            ours.requests < each and ours.late_most <= LATEST,
        )


if __name__ == "__main__":
    print(*measure(1, 1.0), sep="\n")
