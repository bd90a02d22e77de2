"""``python -m bench.waiter``: a process that waits for jobs like the triggerer, and measures itself.

It prints ``ready`` after its imports, reads the ids of the jobs from its input, and writes the measurements
to a file.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

BEAT = 0.005
_SAMPLE_EVERY = 0.5
_IDLE_SECONDS = 2.0


def memory() -> int:
    """Return the bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def beat(gaps: list[float]) -> None:
    """Record the seconds between two beats, which should be `BEAT`."""
    before = time.perf_counter()
    while True:
        await asyncio.sleep(BEAT)
        now = time.perf_counter()
        gaps.append(now - before)
        before = now


async def sample(samples: list[tuple[float, int]]) -> None:
    while True:
        samples.append((time.time(), memory()))
        await asyncio.sleep(_SAMPLE_EVERY)


async def first_event(trigger: BaseTrigger) -> tuple[float, Any]:
    async for event in trigger.run():
        return time.time(), event.payload
    raise RuntimeError("a trigger ended without an event")


async def wait(
    triggers: Sequence[BaseTrigger], result: dict[str, Any], *, with_heart: bool
) -> list[tuple[float, Any]]:
    """Run triggers as the triggerer does, and measure their cost."""
    samples: list[tuple[float, int]] = []
    aside = [asyncio.create_task(sample(samples))]
    gaps: list[float] = []
    if with_heart:
        heart = asyncio.create_task(beat(gaps))
        await asyncio.sleep(_IDLE_SECONDS)
        result["idle_gap"] = max(gaps)
        gaps.clear()
        aside.append(heart)
    cpu, began = time.process_time(), time.time()
    tasks = []
    for trigger in triggers:
        await asyncio.sleep(0)  # as Airflow's triggerer does
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(first_event(trigger)))
    events = await asyncio.gather(*tasks)
    result["cpu"] = time.process_time() - cpu
    result["seconds"] = time.time() - began
    for task in aside:
        task.cancel()
    first = min(at for at, _ in events)
    result["memory_waiting"] = max((held for at, held in samples if began < at < first), default=memory())
    result["memory_most"] = max(held for _, held in samples)
    if gaps:
        result["gap"] = max(gaps)
        result["gaps_over_50_ms"] = sum(gap > 0.05 for gap in gaps)
    return events


async def main(settings: dict[str, Any]) -> dict[str, Any]:
    importlib.import_module(
        "airflow.jobs.triggerer_job_runner"
    )  # everything that the triggerer imports itself
    result: dict[str, Any] = {"memory_before": memory()}
    from bench.contenders import OURS, PooledTrigger, make_triggers

    kind = settings["kind"]
    if kind == OURS:
        import airflow_provider_rungen.triggers  # noqa: F401 - its import is not what is measured
        from airflow_provider_rungen.client.senders import AsyncSender
        from airflow_provider_rungen.client.settings import Settings

        # its imports at the first use
        await AsyncSender(Settings(settings["url"], "")).close()
    # garbage collection skips the imported objects, for all contenders alike
    gc.collect()
    gc.freeze()
    result["memory_ready"] = memory()
    logging.disable(logging.WARNING)
    print("ready", flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parent reads no further
    job_ids = json.loads(sys.stdin.readline())
    triggers = make_triggers(
        kind,
        job_ids,
        url=settings["url"],
        poll_interval=settings["poll_interval"],
        is_settled=settings["is_settled"],
    )
    events = await wait(triggers, result, with_heart=settings["with_heart"])
    await PooledTrigger.close()
    result["events"] = {
        job_id: [at, payload["outcome"], [job["status"] for job in payload.get("unsuccessful", ())]]
        for job_id, (at, payload) in zip(job_ids, events, strict=True)
    }
    return result


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    measured = asyncio.run(main(given))
    Path(given["output"]).write_text(json.dumps(measured))
