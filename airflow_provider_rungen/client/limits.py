"""Limits of what a task reads, as a DAG names them or a template renders them. No I/O."""

from __future__ import annotations

import re
from typing import Any

from airflow_provider_rungen.exceptions import RunGenInputError

# What a template makes of a parameter that is not set.
_NO_LIMIT = (None, "None")


def to_limit(value: Any, name: str) -> int | None:
    """
    Return a limit as a number; ``None`` if there is none.

    :param value: a number, its text, or ``None``, which a template renders as text, too.
    :param name: the parameter it was passed as, for the error.
    :raises RunGenInputError: it is no whole number, or less than 1.
    """
    if value in _NO_LIMIT:
        return None
    is_number = re.fullmatch(r" *\d{1,18} *", value) if isinstance(value, str) else type(value) is int
    if not is_number or int(value) < 1:
        raise RunGenInputError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)
