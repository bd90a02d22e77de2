"""Values of an answer, read tolerantly: what has an unexpected type counts as absent. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pendulum

from airflow_provider_rungen.client.texts import clean_text, error_text
from airflow_provider_rungen.exceptions import RunGenResponseError

#: What is more is no count, and no time: neither is kept, since no record may have it.
MAX_COUNT = 10**9
MAX_SECONDS = 1e11
_WHOLE = re.compile(r"[0-9]{1,9}(\.0+)?")


def unwrap(body: Any) -> Mapping[str, Any]:
    """
    Return the object of an answer, which may be wrapped in ``data``.

    :raises RunGenResponseError: the answer is not an object.
    """
    if isinstance(body, Mapping):
        data = body.get("data")
        return data if isinstance(data, Mapping) else body
    raise RunGenResponseError("The answer is not a JSON object")


def check_identity(item: Mapping[str, Any], names: Sequence[str], wanted: str, ids: str) -> None:
    """
    Check that an answer is about what was asked for. An answer without an id is.

    :param item: the object of the answer.
    :param names: the fields that may hold its id.
    :param wanted: the id that was asked for.
    :param ids: the ids that end the error.
    :raises RunGenResponseError: the answer is about something else.
    """
    given = [found for name in names if (found := to_id(item.get(name)))]
    if given and all(each.casefold() != wanted.casefold() for each in given):
        raise RunGenResponseError(f"The answer is about {clean_text(given[0], 80)} instead {ids}")


def check_fields(item: Mapping[str, Any], names: Sequence[str], kind: str, ids: str) -> None:
    """
    Check that an answer has any of the fields of a job or an app.

    :raises RunGenResponseError: it has none, so that it may be that of a gateway.
    """
    if item.keys().isdisjoint(names):
        raise missing(f"field of a{'n' * (kind[0] in 'aeiou')} {kind}", ids, item)


def missing(field: str, ids: str, body: Any) -> RunGenResponseError:
    """Return the error for an answer that lacks a field, with the service's own error text."""
    reason = error_text(body).rstrip(".")
    return RunGenResponseError(f"The answer has no {field}{': ' if reason else ''}{reason} {ids}".rstrip())


def to_id(value: Any) -> str:
    """Return an id; empty if there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def to_text(value: Any) -> str:
    """Return text that may be logged; empty if there is none."""
    return clean_text(value) if isinstance(value, str) else ""


def to_mapping(value: Any) -> Mapping[str, Any]:
    """Return an object; empty if there is none."""
    return value if isinstance(value, Mapping) else {}


def to_counts(value: Any) -> Mapping[str, int]:
    """
    Return the entries of an object that are counts: ``2``, ``2.0``, or the text of either.

    Their names may be logged.
    """
    counts = {clean_text(name, 50): _to_count(count) for name, count in to_mapping(value).items()}
    return {name: count for name, count in counts.items() if count is not None}


def _to_count(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value.partition(".")[0]) if _WHOLE.fullmatch(value) else None
    is_whole = value.is_integer() if isinstance(value, float) else type(value) is int
    return int(value) if is_whole and 0 <= value <= MAX_COUNT else None


def to_seconds(value: Any) -> float | None:
    """Return a duration; ``None`` for a number that is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds <= MAX_SECONDS else None


def to_time(value: Any) -> pendulum.DateTime | None:
    """Return a time in UTC. A time without a zone is one in UTC."""
    if not isinstance(value, str):
        return None
    try:
        return pendulum.instance(datetime.fromisoformat(value.strip()), tz="UTC").in_timezone("UTC")
    except (ValueError, OverflowError):
        return None
