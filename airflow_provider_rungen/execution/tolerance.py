"""How many of many may fail (``max_failed``), and how those that did are told."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_TOLD = 10


def checked_max_failed(value: float) -> float:
    """
    Give back a ``max_failed``: a number, or a share below 1.

    :raises ValueError: it is neither.
    """
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_count and not (isinstance(value, float) and 0 <= value < 1):
        raise ValueError(f"max_failed must be a number, or a share below 1, not {value!r}")
    return value


def checked_count(value: int, name: str) -> int:
    """
    Give back a number.

    :raises ValueError: it is no positive one; the message names the parameter.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
    return value


def max_failures(max_failed: float, count: int) -> int:
    """Tell how many of ``count`` may fail."""
    if isinstance(max_failed, float):
        return math.floor(max_failed * count + 1e-9)  # 0.29 of 100 are 28.999999999999996
    return max_failed


def told(reasons: Mapping[int, str]) -> str:
    """Tell why inputs failed, by their index: the first ten."""
    failed = sorted(reasons)
    more = f"; and {len(failed) - MOST_TOLD} more" if len(failed) > MOST_TOLD else ""
    return "; ".join(f"input {index}: {reasons[index]}" for index in failed[:MOST_TOLD]) + more
