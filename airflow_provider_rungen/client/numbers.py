"""Read numbers that a template may have made text."""

from __future__ import annotations

from typing import Any

from airflow_provider_rungen.exceptions import RunGenInputError


def whole_number(value: Any, name: str) -> int:
    """
    Return a number of workers.

    :raises RunGenInputError: it is not a whole number from 0.
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RunGenInputError(f"{name} must be a whole number from 0, not {value!r}; nothing was sent")
    return value


def is_wanted(value: Any) -> bool:
    """
    Return whether there is something to run: a number or a boolean.

    :raises RunGenInputError: it is neither.
    """
    if isinstance(value, str):
        words = {"": False, "none": False, "false": False, "true": True}
        value = words.get(value.strip().lower(), value)
    return value is not None and (value if isinstance(value, bool) else whole_number(value, "only_if") > 0)
