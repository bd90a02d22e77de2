"""Write many numbers as a short text: ``0-499,502``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_RANGES = re.compile(r"(?:\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)?")


def format_ranges(numbers: Iterable[int]) -> str:
    """Return a text for different numbers, in ascending order."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_ranges(text: Any, end: int) -> list[int]:
    """
    Return the numbers of a text, in ascending order.

    :param end: what they are all below.
    :raises ValueError: it is not such a text.
    """
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        raise ValueError("no ranges of numbers")
    numbers: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        if int(last or first) >= end:
            raise ValueError(f"{part} is not below {end}")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
