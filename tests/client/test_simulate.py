"""What waiting costs on an app that works first come, first served; see `bench.simulate`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.simulate import INTERVAL, LOADS, VARIANTS, Load, fewest, plain_poller, poll_each, simulate

SMALL = [replace(load, jobs=200) for load in LOADS]


@pytest.mark.parametrize(("load", "most"), list(zip(LOADS, (1.5, 1.45, 5.0, 6.5, 1.2), strict=True)), ids=str)
def test_waiting_costs_little_more_than_it_must(load: Load, most: float) -> None:
    figures = simulate(load)
    assert figures.requests <= most
    assert figures.requests <= 1.25 * simulate(load, fewest).requests
    assert figures.requests <= 0.75 * simulate(load, plain_poller).requests
    assert figures.late_95 <= INTERVAL


# Requests as a multiple of polling each job, and seconds from a job's end until it is found: the 95th
# percentile and the maximum.
BOUNDS = {
    "honest": (0.6, 5.0, 8.0),
    "frozen": (0.6, 32.0, 45.0),
    "lagging": (0.3, 32.0, 60.0),
    "absent": (1.1, 6.0, 7.0),
    "foreign": (1.1, 6.0, 7.0),
    "canceled": (0.6, 7.0, 40.0),
}


@pytest.mark.parametrize("load", SMALL, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_counters_that_mislead_cost_polls_and_time_but_no_job(load: Load, variant: str) -> None:
    requests, late_95, late_most = BOUNDS[variant]
    figures = simulate(load, variant=variant)
    assert figures.requests <= requests * poll_each(load)
    assert figures.late_95 <= late_95
    assert figures.late_most <= late_most


def test_a_run_is_repeatable() -> None:
    assert simulate(SMALL[0], variant="canceled") == simulate(SMALL[0], variant="canceled")
    assert simulate(SMALL[0], seed=1) != simulate(SMALL[0], seed=2)
