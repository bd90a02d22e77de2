"""Durations: checked as parameters, and formatted for people."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def to_seconds(value: float | timedelta, name: str, *, allow_zero: bool = False) -> float:
    """
    Return a duration in seconds.

    :param value: seconds, or a timedelta.
    :param name: the parameter it was passed as, for the error.
    :param allow_zero: whether 0 is valid.
    :raises ValueError: the value is not a positive, finite number.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not 0 <= number < float("inf") or (number == 0 and not allow_zero):
        raise ValueError(f"{name} must be a positive number of seconds or a timedelta, not {value!r}")
    return float(number)


def to_optional_seconds(value: float | timedelta | None, name: str) -> float | None:
    """Return a duration in seconds, if there is one; see `to_seconds`."""
    return None if value is None else to_seconds(value, name)


def format_duration(seconds: float) -> str:
    """Format a duration in its largest unit and the next one: ``0.5 s``, ``45 s``, ``2 min 5 s``, ``1 d``."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    rest = round(seconds)
    for (unit, size), (next_unit, next_size) in pairwise(_UNITS):
        if count := rest // size:
            more = rest % size // next_size
            return f"{count} {unit}" + (f" {more} {next_unit}" if more else "")
    return f"{rest} s"
