"""
Gaps of the event loop.

The largest gap of a heartbeat of 5 ms beside triggers of jobs that end in any order. Time is ten times as
fast (jobs of 1 to 6 s, polled at 0.5 s), so the loop has ten times as much to do. Answers of 20 MB are
fetched beside 19 usual ones. Each run has the machine to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from bench.contenders import OURS, POLLING
from bench.page import Row
from bench.watching import Load, Plan, run

_BIG = 20_000_000
# half of the bytes, since the answer repeats the input
_NUMBERS = [place / 8 for place in range(1_000_000, 1_000_000 + _BIG // 2 // 11)]


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Measure a heartbeat beside the triggers."""
    few = Load(20, in_order=False, first=1, last=2)
    many = Load(round(1000 * scale), in_order=False, first=1, last=6)
    loads: dict[str, tuple[Load, dict[str, Any], str]] = {
        f"{many.jobs:,} triggers": (many, {}, ""),
        "a result is one text of 20 MB": (few, {"result_bytes": _BIG}, "The answer is decoded in one go."),
        "an answer is 20 MB of numbers": (few, {"result": _NUMBERS}, "Most of it is Python's JSON decoder."),
    }
    for what, (load, first_job, why) in loads.items():
        plans = [Plan(kind, load, 0.5, with_heartbeat=True, first_job=first_job) for kind in (OURS, POLLING)]
        runs = {plan.kind: [run([plan], seed)[0] for seed in range(rounds)] for plan in plans}
        ours, polling = (median(each["gap"] for each in runs[kind]) * 1000 for kind in (OURS, POLLING))
        idle = median(each["idle_gap"] for each in runs[OURS]) * 1000
        beside = f"each job polled: {polling:.0f} ms; nothing else: {idle:.0f} ms"
        yield Row(what, f"{ours:.0f} ms", beside, "≤ 50 ms", ours <= 50, why)
