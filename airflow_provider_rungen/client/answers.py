"""What an answer means that is no success. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.texts import clean_text, error_text
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConflictError,
    RunGenForbiddenError,
    RunGenNotFoundError,
    RunGenRateLimitedError,
    RunGenServerError,
)

RETRY_AFTER_CAP = 3600.0
_ERRORS: dict[int, type[RunGenAPIError]] = {
    400: RunGenBadRequestError,
    413: RunGenBadRequestError,
    422: RunGenBadRequestError,
    401: RunGenForbiddenError,
    403: RunGenForbiddenError,
    404: RunGenNotFoundError,
    410: RunGenNotFoundError,
    409: RunGenConflictError,
    429: RunGenRateLimitedError,
}


def error_for(response: Response, request: Request, now: float) -> RunGenAPIError:
    """
    Return the error for an answer whose status is not 2xx.

    :param response: the answer.
    :param request: what it answers.
    :param now: the time (seconds since 1970), for a ``Retry-After`` that is a date.
    """
    code = response.status
    if 300 <= code < 400:
        try:
            host = clean_text(urlsplit(response.headers.get("location", "")).hostname or "nowhere", 100)
        except ValueError:
            host = "nowhere"
        return RunGenAPIError(
            request.failure(
                f"RunGen redirects to {host}, and redirects are not followed, to keep the key safe", code
            ),
            status_code=code,
            retryable=True,
            hint="If the API moved there, change the Base URL of the Airflow connection",
        )
    is_json = True
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        body, is_json = None, not response.body
    reason = error_text(body) or to_plain_text(response.body) or "the service gave no reason"
    asked = retry_after(response, now)
    is_own_shape = isinstance(body, Mapping) and bool(error_text(body.get("error")))
    kind = RunGenServerError if code >= 500 else _ERRORS.get(code, RunGenAPIError)
    # certainly not accepted; what was not found by a GET may appear
    keeps_kind = kind is RunGenNotFoundError or (kind is RunGenBadRequestError and request.method == "POST")
    # RunGen answers in JSON: a page says something about whoever stands between, and for a moment
    is_page = not is_json and code not in (401, 403) and (code != 404 or request.method == "POST")
    # no verdict: an account without money, a gateway that somebody sets up, workers that are being started
    is_odd = kind in (RunGenAPIError, RunGenConflictError) and (
        request.method == "GET" or (request.method == "PUT" and code in (402, 409))
    )
    if is_page and code < 500 and not keeps_kind:
        kind = RunGenAPIError
    return kind(
        request.failure(reason, code),
        status_code=code,
        retry_after=asked,
        # a proxy may send a page with a Retry-After, too, and a 503 after it passed the request on
        is_from_service=is_own_shape or (asked is not None and (code == 429 or isinstance(body, Mapping))),
        retryable=True if is_page or is_odd else None,
    )


def to_plain_text(body: bytes) -> str:
    """Return the words of a body that may be HTML, cut short."""
    text = body[:4000].decode("utf-8", "replace")
    text = re.sub(r"(?is)<(script|style|head)\b.*?(</\1>|$)|<[^>]*>", " ", text)
    return clean_text(" ".join(text.split()), 200)


def retry_after(response: Response, now: float) -> float | None:
    """
    Return the seconds that an answer asks to wait, if it does.

    :param response: the answer.
    :param now: the time (seconds since 1970).
    """
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return min(float(value), RETRY_AFTER_CAP)
    until = _timestamp(value)
    if until is None:
        return None
    # by the service's own clock if the answer has its time, since ours may be wrong; dates lack fractions
    seconds = until - (_timestamp(response.headers.get("date", "")) or now) + 1
    return min(max(seconds, 0.0), RETRY_AFTER_CAP)


def _timestamp(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
