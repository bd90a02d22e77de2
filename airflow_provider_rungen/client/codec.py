"""What is sent and what comes back: JSON, ids in paths, and values that are read tolerantly. No I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import pendulum

from airflow_provider_rungen.client.answers import error_for, to_plain_text
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.texts import clean_text, error_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenResponseError

_MAX_DEPTH = 64
# An id names a folder, and many file systems allow no more.
_MAX_ID_BYTES = 255


# --- answers -----------------------------------------------------------------------------------------------


def decode(response: Response, request: Request, now: float) -> Any:
    """
    Return the JSON value of an answer; ``None`` for a deletion.

    :param response: the answer.
    :param request: what it answers.
    :param now: the time (seconds since 1970), for a ``Retry-After`` that is a date.
    :raises RunGenAPIError: the status is not 2xx.
    :raises RunGenResponseError: the body is not JSON.
    """
    if not 200 <= response.status < 300:
        raise error_for(response, request, now)
    if request.method == "DELETE" and not response.body.strip():
        return None
    if response.status == 204:
        return {}
    try:
        # NaN is not JSON, but some servers write it, and a result must not be lost for that
        return json.loads(response.body, parse_constant=lambda _: None, parse_int=_to_int)
    except RecursionError:
        message = request.failure("the answer is nested too deeply")
        raise RunGenResponseError(message, is_too_large=True, hint="", retryable=False) from None
    except ValueError:
        pass
    excerpt = to_plain_text(response.body)
    reason = f"the answer is not JSON: {excerpt}" if excerpt else "the answer is empty"
    raise RunGenResponseError(request.failure(reason))


def _to_int(digits: str) -> int | str:
    """Return an integer, or its digits if these are more than Python converts."""
    try:
        return int(digits)
    except ValueError:
        return digits


# --- requests ----------------------------------------------------------------------------------------------


def path_segment(value: Any, name: str = "app_id") -> str:
    """
    Return an id, quoted as one segment of a path.

    :param value: the id.
    :param name: the parameter it was passed as, for the error.
    :raises RunGenInputError: it is empty, not text, or could lead to another path.
    """
    if value is None or value == "":
        reason = "it is empty. Did the upstream task push nothing?"
    elif not isinstance(value, str):
        reason = f"it is a {type(value).__name__}, not text"
    elif len(value.encode("utf-8", "replace")) > _MAX_ID_BYTES:
        reason = f"it has more than {_MAX_ID_BYTES} bytes"
    elif value in (".", "..") or not value.isprintable() or re.search(r"[/\\?#%\s]", value):
        reason = "an id has no slash, '?', '#', '%', space or control character, and is not just dots"
    else:
        return quote(value, safe="")
    raise RunGenInputError(f"{name} {clean_text(repr(value), 80)} is invalid: {reason}")


def encode_input(input: Any) -> bytes:
    """
    Return the JSON text of a job's input.

    :param input: the input.
    :raises RunGenInputError: it is not a JSON object; the message has the path of what is wrong.
    """
    if not isinstance(input, Mapping):
        raise RunGenInputError(
            f"input must be a JSON object (a dict), but it is a {type(input).__name__}; nothing was sent"
        )
    return encode(input, "input")


_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict).encode


def encode(value: Mapping[str, Any], name: str) -> bytes:
    """
    Return an object as JSON text in canonical form: equal objects give equal bytes.

    :param value: the object.
    :param name: its name, for the error.
    :raises RunGenInputError: JSON cannot express it; the message has the path of what is wrong.
    """
    _check(value, name, 0)
    try:
        return _to_json(value).encode()
    except ValueError as error:
        raise RunGenInputError(f"{name} cannot be encoded: {error}; nothing was sent") from None


#: Half a surrogate pair, which no UTF-8 has.
HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def _check(value: Any, path: str, depth: int) -> None:
    reason = ""
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        if HALF_A_PAIR.search(value):
            reason = "holds half a surrogate pair, which cannot be encoded"
    elif isinstance(value, float):
        reason = "" if math.isfinite(value) else f"is {value}, which JSON cannot express"
    elif depth > _MAX_DEPTH:
        reason = f"is nested deeper than {_MAX_DEPTH} levels, or contains itself"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                where = clean_text(f"{path} has the key {key!r}", 200)
                raise RunGenInputError(f"{where}, which is not text; nothing was sent")
            _check(key, f"a key of {path}", depth + 1)
            _check(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
    else:
        reason = f"is of type {type(value).__name__}, which JSON cannot express"
    if reason:
        raise RunGenInputError(f"{clean_text(path, 200)} {reason}; nothing was sent")


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
