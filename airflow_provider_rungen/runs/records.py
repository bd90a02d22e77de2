"""Validate all records from storage and from Airflow's database, where anybody may have written anything."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar, cast

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.codec import MAX_COUNT, MAX_SECONDS
from airflow_provider_rungen.exceptions import RunGenInputError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The version of all records.
VERSION = 1
_MAX_TEXT = 1000
_HEX = re.compile(r"[0-9a-f]{8,64}")
_KINDS: Mapping[str, set[type[Any]]] = {
    "int": {int},
    "float": {float, int},
    "str": {str},
    "int | None": {int, NoneType},
}
#: The errors of code that reads a value of another shape.
ERRORS = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class InvalidRecordError(ValueError):
    """Some bytes are not what this version writes; the message names the field."""


def to_json(value: Any) -> str:
    """Return a value as compact JSON, the same text each time."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def to_lines(values: Iterable[Any]) -> bytes:
    """Return values as JSON Lines."""
    return "".join(f"{to_json(value)}\n" for value in values).encode("utf-8", "surrogatepass")


def decode(content: bytes, read: Callable[[list[Any]], T], encode: Callable[[T], bytes]) -> T:
    """
    Return the record in some JSON Lines.

    They are valid only if they are, byte for byte, what this version writes. So a file that was cut short,
    extended or edited is not read in part.

    :param read: makes the record of the lines.
    :param encode: makes the bytes of the record.
    :raises InvalidRecordError: the bytes are something else.
    """
    try:
        lines = [json.loads(line) for line in content.decode("utf-8", "surrogatepass").split("\n")[:-1]]
        value = read(lines)
        is_exact = encode(value) == content
    except ERRORS as error:
        raise InvalidRecordError(f"it is not a record: {_reason(error)}") from None
    if not is_exact:
        raise InvalidRecordError("it is not complete, or was changed")
    return value


def parse(key: str, value: Any, read: Callable[[Any], T], consequence: str) -> T | None:
    """
    Return the record in a value of Airflow's database, or ``None`` with a warning if it is none.

    :param key: the key of the value, for the warning.
    :param read: makes the record of the fields.
    :param consequence: what happens without the record, for the warning.
    """
    if value is None:
        return None
    try:
        check_version(value)
        return read(value)
    except ERRORS as error:
        log.warning("Ignored %r in Airflow's database: %s; %s", key, _reason(error), consequence)
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidRecordError):
        return str(error)
    if isinstance(error, KeyError):
        return f"{str(error)[:100]} is missing"
    return type(error).__name__


def checked(record: T) -> T:
    """
    Return a dataclass, if its fields have the types of their annotations, as far as these are types of JSON.

    :raises InvalidRecordError: one has another type.
    """
    for field in fields(cast("Any", record)):
        value = getattr(record, field.name)
        # a bool is no int here
        if type(value) not in _KINDS.get(str(field.type), {type(value)}):
            raise InvalidRecordError(f"{field.name} is not {field.type}")
    return record


def check_version(fields: Mapping[str, Any]) -> None:
    """Raise `InvalidRecordError` for a record of another version. One without a version is of the first."""
    if fields.get("version", 1) != VERSION:
        raise InvalidRecordError("it is of another version")


def text(value: Any, name: str, *, most: int = _MAX_TEXT) -> str:
    """Return a text of a bounded length; it may be empty."""
    if not isinstance(value, str) or len(value) > most:
        raise InvalidRecordError(f"{name} is not a text of at most {most} characters")
    return value


def hexadecimal(value: Any, name: str) -> str:
    """Return a nonce or a digest."""
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise InvalidRecordError(f"{name} has other characters than lower-case hexadecimal digits")
    return value


def identifier(value: Any, name: str) -> str:
    """Return the id of an app or a job."""
    try:
        codec.path_segment(value)
    except RunGenInputError:
        raise InvalidRecordError(f"{name} is not an id") from None
    return str(value)


def count(value: Any, name: str, *, least: int = 0, most: int = MAX_COUNT) -> int:
    """Return a whole number in bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRecordError(f"{name} is not a whole number from {least} to {most}")
    return value


def seconds(value: Any, name: str) -> float:
    """Return a duration, or a time (seconds since 1970)."""
    # a comparison with NaN is false
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
        raise InvalidRecordError(f"{name} is not a number of seconds")
    return float(value)
