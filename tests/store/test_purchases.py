"""No key is bought twice, each job is recorded, and each wait ends: in many worlds."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from store_world import Attempt, Trouble, World, digest, task_run

from airflow_provider_rungen.store.records import Status

KEYS = [digest(number) for number in range(3)]
TROUBLES = {
    "calm": Trouble(),
    "slow": Trouble(slow=5.0, skew=300.0),
    "killed": Trouble(kill=0.01, skew=300.0),
    "frozen": Trouble(freeze=0.01, skew=300.0),
    "lost": Trouble(lost=0.2, not_sent=0.2, skew=300.0),
    "outages": Trouble(outage=0.02, kill=0.005),
    "failing": Trouble(fails=0.5, kill=0.005),
    "all": Trouble(0.005, 0.003, 0.1, 0.1, 0.01, 0.3, 300.0, 2.0),
}
WORLDS = 100


async def three_runs(world: World, ended: list[Attempt]) -> None:
    runs = [task_run(world, KEYS, f"{number}" * 8, tries=6) for number in range(3)]
    for attempts in await asyncio.gather(*runs):
        ended += attempts


@pytest.mark.parametrize("trouble", TROUBLES)
def test_three_runs_buy_each_key_once(trouble: str) -> None:
    for seed in range(WORLDS):
        world, attempts = World(seed, TROUBLES[trouble]), list[Attempt]()
        world.run(three_runs(world, attempts))
        # one fact a purchase: a job that was polled by several is recorded by each of them
        records = {(each.key, each.n): each for each in sorted(world.records(), key=lambda each: each.status)}
        recorded = {each.job for each in records.values() if each.job}
        # nobody can know a job whose answer was lost, or whose process stopped before it wrote the id
        unheard = Counter(job.key for job_id, job in world.jobs.items() if job_id not in recorded)
        failed = Counter(each.key for each in records.values() if each.status is Status.FAILED)
        late = Counter(job.key for job_id, job in world.jobs.items() if job.is_late and job_id in recorded)
        for key, count in world.bought().items():
            assert count <= 1 + unheard[key] + late[key] + failed[key], (trouble, seed, key)
        if trouble in ("calm", "slow"):
            assert not unheard + late, (trouble, seed)
            assert all(each.verdicts.keys() == set(KEYS) for each in attempts)
        jobs = Counter(each.job for each in records.values() if each.job)
        assert max(jobs.values(), default=1) == 1, (trouble, seed)
        assert recorded <= {job_id for job_id, job in world.jobs.items() if job.is_known}
