"""Converts values of Python to what JSON has: those of Arrow, of queries, and of functions in DAG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.table.files import LARGE_ROW_HINT, MAX_ROW_BYTES, RowError


class UnfitError(ValueError):
    """JSON has no such values."""

    def reason(self, name: str) -> str:
        """Return what is wrong with a row that has one in this column."""
        return f"has {self} in {column_name(name)}, which JSON cannot express"


def column_name(name: str) -> str:
    """Return the name of a column, for an error."""
    return f"column {clean_text(repr(name), 100)}"


def to_json(value: Any) -> Any:
    """
    Return a value as JSON has it.

    :raises UnfitError: JSON cannot express it.
    """
    for kinds, convert in _CONVERTERS:
        if isinstance(value, kinds):
            return value if convert is None else convert(value)
    raise UnfitError("bytes" if isinstance(value, bytes | memoryview) else f"a {type(value).__name__}")


def row_to_json(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """
    Return a row as JSON has it.

    :raises RowError: JSON cannot express a value, or the row is too large.
    """
    values = {}
    for name, value in row.items():
        try:
            values[name] = to_json(value)
        except UnfitError as error:
            raise RowError(number, error.reason(name)) from None
    check_size(values, number)
    return values


def check_size(row: dict[str, Any], number: int) -> None:
    """
    Check the size of a row.

    :raises RowError: it is too large.
    """
    sizes = {name: size_of(value) for name, value in row.items()}
    if sum(sizes.values()) > MAX_ROW_BYTES:
        name = max(sizes, key=lambda name: sizes[name])
        reason = (
            f"has more than {MAX_ROW_BYTES >> 20} MiB, {sizes[name] >> 20} of them in {column_name(name)}"
        )
        raise RowError(number, reason, LARGE_ROW_HINT)


def size_of(value: Any) -> int:
    """Return about how many bytes a value has as JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | dict):
        return sum(map(size_of, value.values() if isinstance(value, dict) else value))
    return 1


def _finite(value: float) -> float | None:
    if math.isinf(value):
        raise UnfitError(str(value))
    return None if math.isnan(value) else value


def _digits(value: Decimal) -> str | float | None:
    return format(value, "f") if value.is_finite() else _finite(float(value))


def _duration(value: timedelta) -> str:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    seconds = f"{value.days * 86400 + value.seconds}.{value.microseconds:06}".rstrip("0").rstrip(".")
    return f"{sign}PT{seconds}S"


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(name, str) for name in value):
        raise UnfitError("a map whose keys are not text")
    return {name: to_json(each) for name, each in value.items()}


#: What converts values of some types; ``None`` if they are those of JSON.
_CONVERTERS: tuple[tuple[Any, Callable[[Any], Any] | None], ...] = (
    ((str, int, type(None)), None),
    (float, _finite),
    (Decimal, _digits),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, _duration),
    (UUID, str),
    ((list, tuple), lambda values: list(map(to_json, values))),
    (Mapping, _object),
)
