"""Text for logs and errors: that of the service, made fit for them, ids, counts and durations. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

from airflow_provider_rungen.client.redaction import redact

MAX_TEXT = 500
# Characters of the error that ends a task, which is one line.
MAX_LINE = 299
_ERROR_FIELDS = (
    *("error", "error_message", "message", "msg", "detail", "details"),
    *("reason", "failure_reason", "errors", "error_code", "code"),
)


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """
    Return text without secrets of URLs, with control characters escaped, and cut to a length.

    :param text: any text.
    :param limit: how many characters of it to keep.
    """
    text = redact(text, most=limit * 20)
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in cut
    )


def format_ids(app_id: str, job_id: str = "") -> str:
    """Return the ids that end a line: ``(job 15df…, app flux)``."""
    return f"(job {job_id}, app {app_id})" if job_id else f"(app {app_id})"


def format_count(count: int | None, noun: str, separator: str = "") -> str:
    """
    Return a number of things: ``1 worker``, ``2 workers``.

    :param separator: what separates thousands.
    """
    number = "an unknown number of" if count is None else format(count, separator)
    return f"{number} {noun}{'' if count == 1 else 's'}"


def join_within(texts: Sequence[str], room: int, most: int = 20) -> str:
    """
    Return some of many texts as one: ``a, b, and 3 more``.

    :param room: how many characters it may have. The first text is always in it.
    :param most: how many texts it has at most.
    """
    joined = ""
    for count in range(min(most, len(texts)), 0, -1):
        more = [f"and {len(texts) - count} more"] if count < len(texts) else []
        joined = ", ".join([*texts[:count], *more])
        if len(joined) <= room:
            break
    return joined


def format_bytes(size: int) -> str:
    """Return a size in its largest unit: ``24 kB``, ``1.5 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            count = size / factor
            return f"{count:.1f} {unit}".replace(".0 ", " ") if count < 10 else f"{count:.0f} {unit}"
    return format_count(size, "byte")


def error_text(body: Any, depth: int = 5) -> str:
    """
    Return the service's own words about an error, or an empty text if there are none.

    :param body: the decoded answer, or a part of it.
    :param depth: how many levels of the answer to search.
    """
    if isinstance(body, str):
        return clean_text(body.strip())
    if isinstance(body, list) and depth:
        return clean_text("; ".join(filter(None, (error_text(item, depth - 1) for item in body[:10]))))
    if isinstance(body, Mapping) and depth:
        return next(filter(None, (error_text(body.get(name), depth - 1) for name in _ERROR_FIELDS)), "")
    return ""


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
