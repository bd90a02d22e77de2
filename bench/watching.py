"""
Waiting for 1,000 jobs of 10 to 60 s.

- **Each job polled** is a trigger written for this page, as many providers have it: poll the one job, sleep
  for the interval of 5 s, poll again, over one shared session. The first polls are spread over one interval,
  and no Airflow connection is looked up.
- **In order**: an app with a worker for every 20 jobs, first come, first served. The jobs end evenly
  between 10 and 60 s. **In any order**: all jobs run at once, each for a time between 10 and 60 s by
  chance.
- Both wait side by side, each in a process and with an emulator of its own. The emulator counts the
  requests, and knows when a job ended.
- Processor time is that of the waiting process, from the start of the first trigger to the last event,
  without imports and with logging turned off. Memory is what the process holds when all wait, more than
  after it imported what the triggerer imports.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rungen_emulator import Emulator

from bench.contenders import OURS, POLLING
from bench.page import Row
from bench.processes import APP, ROOT, clean_environment, submit

_ROUNDS_OF_QUEUE = 20
# The package's trigger does not fire within this time, see its SETTLING_TIME.
_SETTLING = 7.0
INTERVAL = 5.0


@dataclass(frozen=True)
class Load:
    """
    Jobs that end between ``first`` and ``last`` seconds.

    :param in_order: whether workers take one job after the other, so that they end in the order of
        submission. Otherwise all run at once, for random times.
    """

    jobs: int = 1000
    in_order: bool = True
    first: float = 10.0
    last: float = 60.0

    @property
    def workers(self) -> int:
        return max(1, self.jobs // _ROUNDS_OF_QUEUE) if self.in_order else self.jobs

    def inputs(self, seed: int) -> list[dict[str, Any]]:
        chance = random.Random(seed)
        length = (self.last - self.first) / _ROUNDS_OF_QUEUE
        seconds = []
        for place in range(self.jobs):
            if not self.in_order:
                seconds.append(chance.uniform(self.first, self.last))
            elif place < self.workers:
                seconds.append(self.first + length * place / self.workers)
            else:
                seconds.append(length)
        return [
            {"prompt": f"job {place}", "emulator": {"seconds": round(each, 3)}}
            for place, each in enumerate(seconds)
        ]


@dataclass(frozen=True)
class Plan:
    """
    One contender's wait for one load.

    :param kind: the contender.
    :param with_heartbeat: whether a heartbeat is measured beside the triggers.
    :param first_job: more instructions to the emulator for the first job.
    """

    kind: str
    load: Load
    poll_interval: float = INTERVAL
    with_heartbeat: bool = False
    first_job: Mapping[str, Any] = field(default_factory=dict)


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Wait for jobs that end in their order, and for others that do not."""
    for in_order, words in ((True, "in order"), (False, "in any order")):
        load = Load(round(1000 * scale), in_order)
        runs = [run([Plan(kind, load) for kind in (OURS, POLLING)], seed) for seed in range(rounds)]
        ours, polling = (
            {name: median(run[name] for run in found) for name in found[0]}
            for found in zip(*runs, strict=True)
        )
        yield Row(
            f"requests per job, {words}",
            f"{ours['requests']:.2f}",
            f"each job polled: {polling['requests']:.2f}",
            "less",
            ours["requests"] < polling["requests"],
        )
        yield Row(
            f"processor time, {words}",
            f"{ours['cpu']:.2f} s",
            f"each job polled: {polling['cpu']:.2f} s",
            "less",
            ours["cpu"] < polling["cpu"],
        )
        yield Row(
            f"from the end of a job to its event, 95th percentile, {words}",
            f"{ours['late']:.2f} s",
            f"each job polled: {polling['late']:.2f} s",
            f"≤ {INTERVAL + 1:g} s",
            ours["late"] <= INTERVAL + 1,
        )
    figures = [
        f"{(each['waiting'] - each['before']) / 1e6:.1f} MB "
        f"({(each['waiting'] - each['ready']) / load.jobs / 1e3:.1f} kB a task, the rest is imports)"
        for each in (ours, polling)
    ]
    yield Row(
        "memory that the triggerer grows by",
        figures[0],
        f"each job polled: {figures[1]}",
        "less",
        ours["waiting"] - ours["before"] < polling["waiting"] - polling["before"],
        "A waiting job is known to its trigger and to the poller, and the package is imported.",
    )


def run(plans: Sequence[Plan], seed: int) -> list[dict[str, float]]:
    """Carry out plans at the same time, and return the figures of each."""
    ready = threading.Barrier(len(plans))
    with ThreadPoolExecutor(len(plans)) as pool:
        return list(pool.map(lambda plan: _carry_out(plan, seed, ready), plans))


def _carry_out(plan: Plan, seed: int, ready: threading.Barrier) -> dict[str, float]:
    inputs = plan.load.inputs(seed)
    inputs[0]["emulator"].update(plan.first_job)
    with tempfile.TemporaryDirectory() as home, Emulator(workers=0) as emulator:
        settings = {
            "kind": plan.kind,
            "url": emulator.url,
            "poll_interval": plan.poll_interval,
            "is_settled": plan.load.first < _SETTLING,
            "with_heartbeat": plan.with_heartbeat,
        }
        connection = {"AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection()}
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.waiter", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean_environment(AIRFLOW_HOME=home, **connection),
        )
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            while (line := process.stdout.readline()) != "ready\n":
                if not line:
                    raise RuntimeError(f"{plan}: the waiting process ended early")
            ids = submit(emulator.service, inputs)
            ready.wait(300)  # all start at the same time
            alone = 2.0 * plan.with_heartbeat  # seconds of the heartbeat without triggers
            threading.Timer(alone, emulator.service.scale, (APP, plan.load.workers)).start()
            output, _ = process.communicate(json.dumps(ids) + "\n")
            if process.returncode:
                raise RuntimeError(f"{plan.kind}: the waiting process ended with code {process.returncode}")
        finally:
            process.kill()
            process.wait()
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        asked = sum(emulator.service.stats()["requests"].values()) - len(ids)
        finished = {job["id"]: job["finished"] for job in emulator.service.jobs()}
        late = [at - finished[job_id] for job_id, at in result.pop("events").items()]
        return {**result, "requests": asked / len(ids), "late": statistics.quantiles(late, n=20)[-1]}
