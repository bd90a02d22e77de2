"""Triggers that wait for jobs: the package's, and one that polls each job, as other providers do."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
from airflow.triggers.base import BaseTrigger, TriggerEvent

from bench.processes import APP, KEY

OURS, POLLING = "ours", "polling"
_ENDED = ("COMPLETED", "FAILED", "CANCELED")
# The package's trigger does not fire within this time after the deferral.
_SETTLED = 60.0


class PollingTrigger(BaseTrigger):
    """
    Polls one job, with a session that all triggers share.

    :param delay: seconds before the first poll.
    """

    session: aiohttp.ClientSession | None = None

    def __init__(self, *, url: str, job_id: str, poll_interval: float, delay: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.url = f"{url}/app/{APP}/job/{job_id}"
        self.poll_interval = poll_interval
        self.delay = delay

    def serialize(self) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    async def run(self) -> AsyncIterator[TriggerEvent]:
        if PollingTrigger.session is None:
            PollingTrigger.session = aiohttp.ClientSession(headers={"x-api-key": KEY})
        await asyncio.sleep(self.delay)
        while True:
            async with PollingTrigger.session.get(self.url) as answer:
                answer.raise_for_status()
                status = (await answer.json())["data"]["status"]
            if status in _ENDED:
                break
            await asyncio.sleep(self.poll_interval)
        yield TriggerEvent({"outcome": "go on", "failed": "" if status == "COMPLETED" else "0"})

    @classmethod
    async def close(cls) -> None:
        if cls.session is not None:
            await cls.session.close()


def make_triggers(
    kind: str, job_ids: Sequence[str], *, url: str, poll_interval: float, is_settled: bool
) -> list[BaseTrigger]:
    """
    Make a trigger for each job.

    :param is_settled: whether the deferral counts as long past.
    """
    if kind == OURS:
        from airflow_provider_rungen.triggers import RunGenJobTrigger

        now = time.time()
        return [
            RunGenJobTrigger(
                rungen_conn_id="rungen_default",
                app_id=APP,
                job_id=[job_id],
                poll_interval=poll_interval,
                deadline=now + 3600,
                deferred_at=now - _SETTLED if is_settled else now,
                cancel_on_kill=True,
            )
            for job_id in job_ids
        ]
    chance = random.Random(0)
    # spreads the first polls over one interval
    delays = [chance.uniform(0, poll_interval) for _ in job_ids]
    return [
        PollingTrigger(url=url, job_id=job_id, poll_interval=poll_interval, delay=delay)
        for job_id, delay in zip(job_ids, delays, strict=True)
    ]
