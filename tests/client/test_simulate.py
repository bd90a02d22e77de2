"""What waiting costs on an app that works first come, first served; see `bench.simulate`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from bench.simulate import INTERVAL, LOADS, VARIANTS, Load, fewest, over_seeds, plain_requests, simulate

SEEDS = range(10)
LIES = [variant for variant in VARIANTS if variant not in ("honest", "canceled")]
# Seconds from a job's end until it is found.
LATE = 3 * INTERVAL


@cache
def plain(load: Load, variant: str) -> float:
    return plain_requests(load, SEEDS, variant)


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_waiting_costs_little_more_than_it_must(load: Load) -> None:
    load = replace(load, jobs=250)
    found = over_seeds(load, SEEDS)
    assert found.requests <= 1.35 * over_seeds(load, SEEDS, fewest).requests
    assert found.late_most <= LATE


@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize("variant", LIES)
def test_no_counters_cost_much_more_than_none(load: Load, variant: str) -> None:
    load = replace(load, jobs=100)
    found = over_seeds(load, SEEDS, variant=variant)
    assert found.requests <= 1.3 * plain(load, "foreign" if variant == "foreign" else "absent")
    assert found.late_most <= LATE


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_jobs_that_others_cancel_are_searched_for(load: Load) -> None:
    load = replace(load, jobs=250)
    found = over_seeds(load, SEEDS, variant="canceled")
    assert found.requests <= 2 * plain(load, "canceled")
    assert found.late_most <= 60


def test_a_run_is_repeatable() -> None:
    small = replace(LOADS[0], jobs=100)
    assert simulate(small, variant="canceled") == simulate(small, variant="canceled")
    assert simulate(small, seed=1) != simulate(small, seed=2)
