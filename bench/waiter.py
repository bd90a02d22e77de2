"""``python -m bench.waiter``: a process that waits for jobs like the triggerer, and measures itself.

It prints ``ready`` after its imports, reads the ids of the jobs from its input, and prints the measurements.
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

_BEAT = 0.005
_SAMPLE_EVERY = 0.5
_IDLE_SECONDS = 2.0


def memory() -> int:
    """Return the bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def beat(gaps: list[float]) -> None:
    """Record the seconds between two beats."""
    before = time.perf_counter()
    while True:
        await asyncio.sleep(_BEAT)
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
    triggers: Sequence[BaseTrigger], result: dict[str, Any], *, with_heartbeat: bool
) -> list[tuple[float, Any]]:
    """Run triggers as the triggerer does, and measure their cost."""
    samples: list[tuple[float, int]] = []
    gaps: list[float] = []
    aside = [asyncio.create_task(sample(samples))]
    if with_heartbeat:
        aside.append(asyncio.create_task(beat(gaps)))
        await asyncio.sleep(_IDLE_SECONDS)
        result["idle_gap"] = max(gaps)
        gaps.clear()
    cpu, began = time.process_time(), time.time()
    tasks = []
    for trigger in triggers:
        await asyncio.sleep(0)  # as Airflow's triggerer does
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(first_event(trigger)))
    events = await asyncio.gather(*tasks)
    result["cpu"] = time.process_time() - cpu
    for task in aside:
        task.cancel()
    first = min(at for at, _ in events)
    result["waiting"] = max((held for at, held in samples if began < at < first), default=memory())
    result["gap"] = max(gaps, default=0.0)
    return events


async def main(settings: dict[str, Any]) -> dict[str, Any]:
    # everything that the triggerer imports itself
    importlib.import_module("airflow.jobs.triggerer_job_runner")
    result: dict[str, Any] = {"before": memory()}
    from bench.contenders import OURS, PollingTrigger, make_triggers

    if settings["kind"] == OURS:
        import airflow_provider_rungen.triggers  # noqa: F401 - its import is not what is measured
        from airflow_provider_rungen.client.senders import AsyncSender
        from airflow_provider_rungen.client.settings import Settings

        # its imports at the first use
        await AsyncSender(Settings(settings["url"], "")).close()
    # garbage collection skips the imported objects, for all contenders alike
    gc.collect()
    gc.freeze()
    result["ready"] = memory()
    logging.disable(logging.WARNING)
    print("ready", flush=True)
    job_ids = json.loads(sys.stdin.readline())
    with_heartbeat = settings.pop("with_heartbeat")
    events = await wait(make_triggers(job_ids=job_ids, **settings), result, with_heartbeat=with_heartbeat)
    await PollingTrigger.close()
    for _, payload in events:
        if payload["outcome"] != "go on" or payload["failed"]:
            raise RuntimeError(f"a job did not complete: {payload}")
    result["events"] = {job_id: at for job_id, (at, _) in zip(job_ids, events, strict=True)}
    return result


if __name__ == "__main__":
    print("\n" + json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
