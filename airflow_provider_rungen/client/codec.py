"""What a request body and an answer look like: JSON, ids in paths, errors. No I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.models import clean_text, error_text
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConflictError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenNotFoundError,
    RunGenRateLimitedError,
    RunGenResponseError,
    RunGenServerError,
)

RETRY_AFTER_CAP = 3600.0
_MAX_DEPTH = 64


# --- answers -----------------------------------------------------------------------------------------------


def decode(response: Response, request: Request, now: float) -> Any:
    """
    Give the JSON value of an answer; ``None`` for a deletion.

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
        # NaN is no JSON, but some servers write it, and a paid result must not be lost for it
        return json.loads(response.body, parse_constant=lambda _: None)
    except RecursionError:
        message = f"Could not {request.purpose}: RunGen's answer is nested too deeply"
        raise RunGenResponseError(message, hint="", retryable=False) from None
    except ValueError:
        pass
    shown = _plain(response.body) or "nothing"
    raise RunGenResponseError(f"Could not {request.purpose}: RunGen's answer is not JSON, but: {shown}")


def error_for(response: Response, request: Request, now: float) -> RunGenAPIError:
    """Give the error that a refusing answer means, with the service's own words and what to do next."""
    code = response.status
    if 300 <= code < 400:
        try:
            host = clean_text(urlsplit(response.headers.get("location", "")).hostname or "nowhere", 100)
        except ValueError:
            host = "nowhere"
        return RunGenAPIError(
            f"Could not {request.purpose} ({code}): RunGen redirects to {host}, which is not followed, so "
            "that the key goes nowhere else",
            status_code=code,
            hint="If the API lives there, put that address into the host of the Airflow connection",
        )
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        body = None
    reason = error_text(body) or _plain(response.body) or "the service gave no reason"
    asked = retry_after(response, now)
    return _kind(code)(
        f"Could not {request.purpose} ({code}): {reason}",
        status_code=code,
        retry_after=asked,
        is_from_service=asked is not None or _is_service_error(body),
    )


def _is_service_error(body: Any) -> bool:
    """Return whether an error body has the API's own shape: an object with a text under ``error``."""
    return isinstance(body, Mapping) and bool(error_text(body.get("error")))


def _kind(code: int) -> type[RunGenAPIError]:
    if code >= 500:
        return RunGenServerError
    return {
        400: RunGenBadRequestError,
        413: RunGenBadRequestError,
        422: RunGenBadRequestError,
        401: RunGenForbiddenError,
        403: RunGenForbiddenError,
        404: RunGenNotFoundError,
        409: RunGenConflictError,
        429: RunGenRateLimitedError,
    }.get(code, RunGenAPIError)


def _plain(body: bytes) -> str:
    """Give the readable words of a body that may be HTML, cut short."""
    text = body[:4000].decode("utf-8", "replace")
    text = re.sub(r"(?is)<(script|style|head)\b.*?(</\1>|$)|<[^>]*>", " ", text)
    return clean_text(" ".join(text.split()), 200)


def retry_after(response: Response, now: float) -> float | None:
    """Give the seconds that an answer asks to wait, if it does."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return min(float(value), RETRY_AFTER_CAP)
    until = _timestamp(value)
    if until is None:
        return None
    # against the service's own clock, where it tells it, since ours may be wrong; times are cut to the second
    seconds = until - (_timestamp(response.headers.get("date", "")) or now) + 1
    return min(max(seconds, 0.0), RETRY_AFTER_CAP)


def _timestamp(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


# --- what is sent ------------------------------------------------------------------------------------------


def path_segment(value: Any, name: str = "app_id") -> str:
    """
    Quote an id for use as one segment of a path.

    :raises RunGenInputError: it is empty, no text, or could reach another address than the one meant.
    """
    if value is None or value == "":
        reason = "it is empty; did the task before push nothing?"
    elif not isinstance(value, str):
        reason = f"it is a {type(value).__name__}, not text"
    elif len(value) > 256:
        reason = f"it has {len(value)} characters"
    elif value in (".", "..") or not value.isprintable() or re.search(r"[/\\?#%\s]", value):
        reason = "an id is no path: it has no slash, dots alone, '?', '#', '%', space or control character"
    else:
        return quote(value, safe="")
    raise RunGenInputError(f"{name} {clean_text(repr(value), 80)} cannot be used: {reason}")


def encode_input(input: Any) -> bytes:
    """
    Give the JSON text of a job's input.

    :raises RunGenInputError: it is not a JSON object; the message names the path inside it.
    """
    if not isinstance(input, dict):
        raise RunGenInputError(
            f"input must be a JSON object (a dict), but it is a {type(input).__name__}; nothing was sent"
        )
    return encode(input, "input")


def encode(value: Mapping[str, Any], name: str) -> bytes:
    """Give JSON text in its one canonical form, so that equal values give equal bytes."""
    _check(value, name, 0)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
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
        reason = "" if math.isfinite(value) else f"is {value}, which JSON cannot say"
    elif depth > _MAX_DEPTH:
        reason = f"is nested deeper than {_MAX_DEPTH} levels, or holds itself"
    elif isinstance(value, dict):
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
        reason = f"is a {type(value).__name__}, which JSON cannot say"
    if reason:
        raise RunGenInputError(f"{clean_text(path, 200)} {reason}; nothing was sent")
