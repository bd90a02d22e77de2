"""Measures 1,000 submissions to a service 50 ms away, 16 at a time. As a program, it measures itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import requests

from bench.far_away import far_away
from bench.service import APP, KEY, ROOT, Service, clean_environment

JOBS = 1000
AT_A_TIME = 16
LATENCY = 0.05
_HEADERS = {"x-api-key": KEY}


def measure(rounds: int, one_by_one: int) -> dict[str, Any]:
    """
    Return the seconds of each round.

    :param one_by_one: how many jobs to submit one by one. Their time is extrapolated to all jobs.
    """
    with Service() as service, far_away(service.url, LATENCY) as url, tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-m", "bench.submits", url, str(rounds), str(one_by_one)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=ROOT,
            env=clean_environment(AIRFLOW_HOME=home, AIRFLOW_CONN_RUNGEN_DEFAULT=service.connection_by(url)),
        )
        created = service.requests()["run"]
    seconds = json.loads(done.stdout.splitlines()[-1])
    expected = rounds * 2 * JOBS + one_by_one
    if created != expected:
        raise RuntimeError(f"{created} jobs were submitted, not {expected}")
    return {"jobs": JOBS, "at_a_time": AT_A_TIME, "latency": LATENCY, "seconds": seconds}


def _inputs(jobs: int) -> Iterator[dict[str, Any]]:
    return ({"prompt": f"job {place}", "width": 1024, "height": 1024} for place in range(jobs))


async def _ours(_: str) -> None:
    from airflow_provider_rungen.client import endpoints
    from airflow_provider_rungen.hooks import RunGenHook

    left = _inputs(JOBS)

    async with RunGenHook() as hook:

        async def work() -> None:
            for given in left:
                await hook.aperform(endpoints.run_job(APP, given))

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))


async def _bare(url: str) -> None:
    left = _inputs(JOBS)

    async def work(session: aiohttp.ClientSession) -> None:
        for given in left:
            async with session.post(
                f"{url}/app/{APP}/run_async", json={"input": given}, headers=_HEADERS
            ) as answer:
                answer.raise_for_status()
                await answer.json()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(work(session) for _ in range(AT_A_TIME)))


def _one_by_one(url: str, jobs: int) -> None:
    with requests.Session() as session:
        for given in _inputs(jobs):
            answer = session.post(
                f"{url}/app/{APP}/run_async", json={"input": given}, headers=_HEADERS, timeout=60
            )
            answer.raise_for_status()
            answer.json()


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(url: str, rounds: int, one_by_one: int) -> None:
    import airflow_provider_rungen.hooks  # noqa: F401 - its import is not what is measured

    ours, bare = [], []
    for _ in range(rounds):
        ours.append(_seconds(lambda: asyncio.run(_ours(url))))
        bare.append(_seconds(lambda: asyncio.run(_bare(url))))
    sequential = _seconds(lambda: _one_by_one(url, one_by_one)) * JOBS / one_by_one
    print(json.dumps({"ours": ours, "bare": bare, "one by one": [sequential]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
