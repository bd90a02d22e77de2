"""
Submitting 1,000 jobs.

Each answer takes 50 ms, and 16 are awaited at a time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from statistics import median
from typing import Any

import aiohttp
from aiohttp import web
from rungen_emulator import Emulator

from bench.page import Row
from bench.processes import APP, KEY, run_python

JOBS = 1000
AT_A_TIME = 16
LATENCY = 0.05


class FarAway(Emulator):
    """An emulator whose answers take time."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(LATENCY)
        return await super().answer(request)


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Submit jobs with the hook, in turn with a bare loop."""
    with FarAway(workers=0) as emulator, tempfile.TemporaryDirectory() as home:
        environment = {"AIRFLOW_HOME": home, "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection()}
        seconds = run_python("-m", "bench.submits", emulator.url, str(rounds), **environment)
        created = emulator.service.count("run")
    if created != rounds * 2 * JOBS:
        raise RuntimeError(f"{created} jobs were submitted, not {rounds * 2 * JOBS}")
    ours, bare = median(seconds["ours"]), median(seconds["bare"])
    yield Row(
        f"{JOBS:,} submissions",
        f"{ours:.2f} s ({ours / bare:.2f} ×)",
        f"a bare aiohttp loop, the limit: {bare:.2f} s",
        "≤ 1.15 × the limit",
        ours <= 1.15 * bare,
    )


# --- in a process of its own ---


def _inputs() -> Iterator[dict[str, Any]]:
    return ({"prompt": f"job {place}", "width": 1024, "height": 1024} for place in range(JOBS))


async def _ours(_: str) -> None:
    from airflow_provider_rungen.client import endpoints
    from airflow_provider_rungen.hooks import RunGenHook

    inputs = _inputs()

    async def work(hook: RunGenHook) -> None:
        for given in inputs:
            await hook.aperform(endpoints.run_job(APP, given))

    async with RunGenHook() as hook:
        await asyncio.gather(*(work(hook) for _ in range(AT_A_TIME)))


async def _bare(url: str) -> None:
    inputs, headers = _inputs(), {"x-api-key": KEY}

    async def work(session: aiohttp.ClientSession) -> None:
        for given in inputs:
            body = {"input": given}
            async with session.post(f"{url}/app/{APP}/run_async", json=body, headers=headers) as answer:
                answer.raise_for_status()
                await answer.json()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(work(session) for _ in range(AT_A_TIME)))


def main(url: str, rounds: int) -> None:
    import airflow_provider_rungen.hooks  # noqa: F401 - its import is not what is measured

    ways: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {"ours": _ours, "bare": _bare}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, submit in ways.items():
            began = time.perf_counter()
            asyncio.run(submit(url))
            seconds[name].append(time.perf_counter() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
