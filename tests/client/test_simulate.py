"""What waiting costs on an app that works first come, first served; see `bench.simulate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from statistics import mean

import pytest

from bench.simulate import INTERVAL, LOADS, VARIANTS, Figures, Load, fewest, plain_poller, simulate

SEEDS = range(10)
LIES = [variant for variant in VARIANTS if variant not in ("honest", "canceled")]
# Seconds from a job's end until it is found.
LATE = 3 * INTERVAL


def runs(simulate: Callable[..., Figures]) -> tuple[float, float]:
    """Return the mean of the requests per job over the seeds, and the most seconds until an end was found."""
    figures = [simulate(seed=seed) for seed in SEEDS]
    return mean(each.requests for each in figures), max(each.late_most for each in figures)


@cache
def plain_requests(load: Load, variant: str) -> float:
    """Return the requests of a plain poller; a job that is queued again would hide all others from it."""
    return runs(partial(simulate, replace(load, requeued=0.0), plain_poller, variant=variant))[0]


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_waiting_costs_little_more_than_it_must(load: Load) -> None:
    load = replace(load, jobs=250)
    requests, late = runs(partial(simulate, load))
    assert requests <= 1.35 * runs(partial(simulate, load, fewest))[0]
    assert late <= LATE


@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize("variant", LIES)
def test_no_counters_cost_much_more_than_none(load: Load, variant: str) -> None:
    load = replace(load, jobs=100)
    requests, late = runs(partial(simulate, load, variant=variant))
    assert requests <= 1.3 * plain_requests(load, "foreign" if variant == "foreign" else "absent")
    assert late <= LATE


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_jobs_that_others_cancel_are_searched_for(load: Load) -> None:
    load = replace(load, jobs=250)
    requests, late = runs(partial(simulate, load, variant="canceled"))
    assert requests <= 2 * plain_requests(load, "canceled")
    assert late <= 60


def test_a_run_is_repeatable() -> None:
    small = replace(LOADS[0], jobs=100)
    assert simulate(small, variant="canceled") == simulate(small, variant="canceled")
    assert simulate(small, seed=1) != simulate(small, seed=2)
