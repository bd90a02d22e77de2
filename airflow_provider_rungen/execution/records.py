"""Checks values from Airflow's task state store, where anybody may have written anything."""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.exceptions import RunGenInputError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The version of all records. A record without one is of the last release before it, and is read, too.
VERSION = 1
# Seconds since 1970 that any clock may show.
_LATEST = 1e11
_MOST = 10**9


class InvalidRecordError(ValueError):
    """A value is not what this version writes; the message names the field."""


def parse(key: str, value: Any, read: Callable[[Mapping[str, Any]], T], consequence: str) -> T | None:
    """
    Return a record, or ``None`` with a warning when the value is not one.

    :param key: the key of the value, for the warning.
    :param read: makes the record of the fields; it raises `InvalidRecordError`.
    :param consequence: what happens without the record, for the warning.
    """
    if value is None:
        return None
    try:
        return read(_fields(value))
    except InvalidRecordError as error:
        log.warning("Ignored %r in Airflow's task state store: %s; %s", key, error, consequence)
        return None


def _fields(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRecordError(f"it is a {type(value).__name__}, not an object")
    if value.get("version", VERSION) != VERSION:
        raise InvalidRecordError("it is of another version")
    return value


def text(fields: Mapping[str, Any], name: str, *, most: int = 256) -> str:
    """Return a text of a bounded length; it may be empty."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise InvalidRecordError(f"{name} is not a text of at most {most} characters")
    return value


def identifier(fields: Mapping[str, Any], name: str, *, or_empty: bool = False) -> str:
    """Return the id of an app or a job."""
    value = fields.get(name)
    if not is_identifier(value) and not (or_empty and value == ""):
        raise InvalidRecordError(f"{name} is not an id")
    return str(value)


def is_identifier(value: Any) -> bool:
    """Return whether a value can be the id of an app or a job."""
    try:
        codec.path_segment(value)
    except RunGenInputError:
        return False
    return True


def digest(fields: Mapping[str, Any]) -> str:
    """Return a SHA-256."""
    value = text(fields, "digest", most=64)
    if len(value) != 64 or not set(value) <= set(string.hexdigits):
        raise InvalidRecordError("digest is not a digest")
    return value


def moment(fields: Mapping[str, Any], name: str) -> float:
    """Return a time (seconds since 1970)."""
    value = fields.get(name)
    # a comparison with NaN is false, and an int may be too large to be a float
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        raise InvalidRecordError(f"{name} is not a time")
    return float(value)


def count(fields: Mapping[str, Any], name: str, *, least: int = 0, most: int = _MOST) -> int:
    """Return a whole number in bounds."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRecordError(f"{name} is not a whole number from {least} to {most}")
    return value


def optional_count(fields: Mapping[str, Any], name: str, *, least: int = 0) -> int | None:
    """Return a whole number in bounds, or ``None`` where there is none."""
    return None if fields.get(name) is None else count(fields, name, least=least)
