"""Measures contenders that wait for the same load, each with its own service and process, concurrently."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.service import ROOT, Service, clean_environment

QUEUE, AT_ONCE = "queue", "at once"
_ROUNDS_OF_QUEUE = 20
# The package's trigger does not fire within this time, see its SETTLING_TIME.
_SETTLING = 7.0


@dataclass(frozen=True)
class Load:
    """
    Jobs that end between ``first`` and ``last`` seconds.

    :param order: ``queue``: workers take one job after the other, so that they end in the order of
        submission. ``at once``: all run at once, for random times.
    """

    jobs: int = 1000
    order: str = QUEUE
    first: float = 10.0
    last: float = 60.0

    @property
    def workers(self) -> int:
        return self.jobs if self.order == AT_ONCE else max(1, self.jobs // _ROUNDS_OF_QUEUE)

    def inputs(self, seed: int) -> list[dict[str, Any]]:
        chance = random.Random(seed)
        length = (self.last - self.first) / _ROUNDS_OF_QUEUE
        seconds = []
        for place in range(self.jobs):
            if self.order == AT_ONCE:
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

    :param counters: the job counters of the service: ``honest``, ``frozen``, ``zero`` or ``absent``.
    :param big: the bytes of the first job's answer; 0 for the usual few.
    :param is_big_of_numbers: whether this answer has numbers instead of one text.
    """

    kind: str
    load: Load = field(default_factory=Load)
    poll_interval: float = 5.0
    counters: str = "honest"
    with_heart: bool = False
    big: int = 0
    is_big_of_numbers: bool = False

    def name(self) -> str:
        return f"{self.kind}, {self.load.jobs} jobs, {self.load.order}, counters {self.counters}"


def run(plans: Sequence[Plan], seed: int = 0) -> list[dict[str, Any]]:
    """Carry out plans concurrently."""
    ready = threading.Barrier(len(plans))
    with ThreadPoolExecutor(len(plans)) as pool:
        return list(pool.map(lambda plan: _carry_out(plan, seed, ready), plans))


def _carry_out(plan: Plan, seed: int, ready: threading.Barrier) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Service() as service:
        output = Path(folder) / "output.json"
        settings = {
            "kind": plan.kind,
            "url": service.url,
            "poll_interval": plan.poll_interval,
            "is_settled": plan.load.first < _SETTLING,
            "with_heart": plan.with_heart,
            "output": str(output),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.waiter", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean_environment(AIRFLOW_HOME=folder, AIRFLOW_CONN_RUNGEN_DEFAULT=service.connection),
        )
        try:
            samples = _watch(plan, seed, service, process, ready)
        finally:
            process.kill()
            process.wait()
        return _summary(plan, json.loads(output.read_text()), service, samples)


def _watch(
    plan: Plan, seed: int, service: Service, process: subprocess.Popen[str], ready: threading.Barrier
) -> list[tuple[float, int]]:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - for the type checker
    while process.stdout.readline().strip() != "ready":
        if process.poll() is not None:
            raise RuntimeError(f"{plan.name()}: the waiting process ended early")
    ids = service.submit(_inputs(plan, seed))
    _lie(plan, service)
    ready.wait(300)  # all start at the same time
    process.stdin.write(json.dumps(ids) + "\n")
    process.stdin.flush()
    if plan.with_heart:
        time.sleep(2.0)  # the heartbeat first runs alone
    service.scale(plan.load.workers)
    began = time.monotonic()
    samples = []
    while process.poll() is None:
        samples.append((time.monotonic() - began, _asked(service.requests())))
        time.sleep(1.0)
    if process.returncode:
        raise RuntimeError(f"{plan.name()}: the waiting process ended with code {process.returncode}")
    return samples


def _inputs(plan: Plan, seed: int) -> list[dict[str, Any]]:
    inputs = plan.load.inputs(seed)
    if plan.is_big_of_numbers:
        # half of the bytes, since the answer repeats the input
        numbers = [place / 8 for place in range(1_000_000, 1_000_000 + plan.big // 2 // 11)]
        inputs[0]["emulator"]["result"] = numbers
    elif plan.big:
        inputs[0]["emulator"]["result_bytes"] = plan.big
    return inputs


def _lie(plan: Plan, service: Service) -> None:
    running = min(plan.load.workers, plan.load.jobs)
    counters = {
        "frozen": {
            "completed": 0,
            "failed": 0,
            "in_progress": running,
            "in_queue": plan.load.jobs - running,
            "retried": 0,
        },
        "zero": {"completed": 0, "failed": 0, "in_progress": 0, "in_queue": 0, "retried": 0},
        "absent": None,
    }
    if plan.counters != "honest":
        service.answer_counters(counters[plan.counters])


def _asked(requests: Mapping[str, int]) -> int:
    return sum(count for operation, count in requests.items() if operation != "run")


def _summary(
    plan: Plan, result: dict[str, Any], service: Service, samples: list[tuple[float, int]]
) -> dict[str, Any]:
    requests = service.requests()
    samples.append((result["seconds"], _asked(requests)))
    finished = {job["id"]: job["finished"] for job in service.jobs()}
    events = result.pop("events")
    late = [at - finished[job_id] for job_id, (at, _, _) in events.items()]
    outcomes = Counter(" ".join([outcome, *statuses]) for _, outcome, statuses in events.values())
    return {
        "kind": plan.kind,
        "jobs": plan.load.jobs,
        "order": plan.load.order,
        "ends_between_seconds": [plan.load.first, plan.load.last],
        "poll_interval": plan.poll_interval,
        "counters": plan.counters,
        "requests": {name: count for name, count in requests.items() if name != "run"},
        "requests_per_job": _asked(requests) / plan.load.jobs,
        "outcomes": dict(outcomes),
        "late": quantiles(late),
        "requests_over_time": [[round(at, 1), count] for at, count in samples],
        **result,
    }


def quantiles(values: Sequence[float]) -> list[float]:
    """Return the percentiles 0, 1, … 100."""
    inner = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return [round(value, 4) for value in (min(values), *inner, max(values))]
