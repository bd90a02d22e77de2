"""What is sent and what comes back: JSON, and ids in paths. No I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airflow_provider_rungen.client.answers import error_for, to_plain_text
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.texts import clean_text
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
        raise RunGenResponseError(message, hint="", retryable=False) from None
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


def encode(value: Mapping[str, Any], name: str) -> bytes:
    """
    Return an object as JSON text in canonical form: equal objects give equal bytes.

    :param value: the object.
    :param name: its name, for the error.
    :raises RunGenInputError: JSON cannot express it; the message has the path of what is wrong.
    """
    _check(value, name, 0)
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict
        ).encode()
    except ValueError as error:
        raise RunGenInputError(f"{name} cannot be encoded: {error}; nothing was sent") from None


def _check(value: Any, path: str, depth: int) -> None:
    reason = ""
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
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
        reason = f"is a {type(value).__name__}, which JSON cannot express"
    if reason:
        raise RunGenInputError(f"{clean_text(path, 200)} {reason}; nothing was sent")
