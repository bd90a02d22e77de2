"""Errors of requests: what an answer means that is no success, or why there is none. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from urllib.parse import urlsplit

from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.texts import clean_text, error_text, format_duration
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConflictError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenNotFoundError,
    RunGenRateLimitedError,
    RunGenServerError,
)

RETRY_AFTER_CAP = 3600.0


class Refused(Enum):
    """Whose answer proves that a POST was not performed, so that sending it again buys nothing twice."""

    BY_ANYBODY = "a proxy, too, before it passed the request on"
    BY_SERVICE = "the service: a proxy may have passed the request on"
    BY_NOBODY = "nobody"


# What a status means: the error, and whose answer refuses a POST. The first row that has the status counts.
#
# A verdict ends something only if it is the service's own: a 4xx (but 408 and 429) with a JSON object, or
# another status with its error text in one. A page or an empty body says something about whoever stands
# between, and for a moment.
_TABLE: tuple[tuple[Container[int], type[RunGenAPIError], Refused], ...] = (
    ((301, 307, 308), RunGenAPIError, Refused.BY_ANYBODY),
    (range(400), RunGenAPIError, Refused.BY_NOBODY),
    ((400, 413, 422), RunGenBadRequestError, Refused.BY_ANYBODY),
    ((401, 403), RunGenForbiddenError, Refused.BY_ANYBODY),
    ((404, 410), RunGenNotFoundError, Refused.BY_ANYBODY),
    ((408,), RunGenAPIError, Refused.BY_NOBODY),
    ((409,), RunGenConflictError, Refused.BY_ANYBODY),
    ((429,), RunGenRateLimitedError, Refused.BY_SERVICE),
    ((499,), RunGenAPIError, Refused.BY_SERVICE),
    (range(400, 500), RunGenAPIError, Refused.BY_ANYBODY),
    ((503,), RunGenServerError, Refused.BY_SERVICE),
    (range(500, 1000), RunGenServerError, Refused.BY_NOBODY),
)
_HINTS = {
    402: "Check that the account of the Airflow connection can pay",
    **dict.fromkeys(range(300, 400), "If the API moved there, change the Base URL of the Airflow connection"),
}

# What to do about another refusal.
_REFUSED = "Check the app, and what the Airflow connection may do"


def _row(status: int) -> tuple[type[RunGenAPIError], Refused]:
    return next((kind, refused) for statuses, kind, refused in _TABLE if status in statuses)


def error_for(response: Response, request: Request, now: float) -> RunGenAPIError:
    """
    Return the error for an answer whose status is not 2xx.

    :param response: the answer.
    :param request: what it answers.
    :param now: the time (seconds since 1970), for a ``Retry-After`` that is a date.
    """
    status, (kind, _) = response.status, _row(response.status)
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        body = None
    asked = retry_after(response, now)
    is_object = isinstance(body, Mapping)
    is_refusal = is_object and 400 <= status < 500 and status not in (408, 429)
    has_words = is_object and bool(error_text(body.get("error")))
    # a proxy may send a page with a Retry-After, too, and a 503 after it passed the request on
    is_own = is_refusal or has_words or (asked is not None and (status == 429 or is_object))
    is_redirect = 300 <= status < 400
    if request.method not in ("GET", "POST"):  # the state of a job or an app may change, and allow it then
        is_refusal &= not kind.default_retryable
    reason = error_text(body) or (to_plain_text(response.body) if body != {} else "")
    reason = reason or "the service gave no reason"
    return kind(
        request.failure(_redirection(response) if is_redirect else reason, status),
        status_code=status,
        retry_after=asked,
        is_from_service=is_own,
        retryable=not is_refusal,
        hint=_HINTS.get(status) or (_REFUSED if is_refusal and not kind.default_hint else None),
        app_id=request.app_id,
    )


def was_not_accepted(error: RunGenError) -> bool:
    """Return whether the service certainly did not perform the request."""
    if isinstance(error, RunGenAPIError):
        refused = _row(error.status_code)[1]
        return refused is Refused.BY_ANYBODY or (refused is Refused.BY_SERVICE and error.is_from_service)
    return isinstance(error, RunGenConnectionError) and not error.sent


def _redirection(response: Response) -> str:
    try:
        host = clean_text(urlsplit(response.headers.get("location", "")).hostname or "nowhere", 100)
    except ValueError:
        host = "nowhere"
    return f"RunGen redirects to {host}, and redirects are not followed, to keep the key safe"


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
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
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


# what OpenSSL calls an answer that is not TLS
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")


@dataclass
class ExchangeState:
    """
    How far an exchange has come.

    :param is_sent: whether any of the request may have been sent.
    :param is_interrupted: whether the caller has to end soon.
    """

    is_sent: bool = False
    is_interrupted: bool = False


def timed_out(
    request: Request, limit: float, exchange: ExchangeState, proxy: str | None
) -> RunGenConnectionError:
    """
    Return the error for an exchange that was given up.

    :param request: the request.
    :param limit: the seconds it had.
    :param exchange: how far it has come.
    :param proxy: the URL of the proxy in use.
    """
    what = "RunGen did not answer in full" if exchange.is_sent else _unreachable(proxy)
    when = "before the task had to end" if exchange.is_interrupted else f"within {format_duration(limit)}"
    return RunGenConnectionError(request.failure(f"{what} {when}"), sent=exchange.is_sent)


def connection_failed(
    request: Request, error: BaseException, *, sent: bool, proxy: str | None = None
) -> RunGenConnectionError:
    """
    Return the error for a connection that could not be made, or was lost.

    :param request: the request.
    :param error: the library's error.
    :param sent: whether the request may have been sent.
    :param proxy: the URL of the proxy in use.
    """
    sent = sent and not isinstance(_root(error), UnicodeError)  # the host's name could not be looked up
    what = "the connection to RunGen was lost before the whole answer came" if sent else _unreachable(proxy)
    failure = RunGenConnectionError(request.failure(f"{what}: {describe_cause(error)}"), sent=sent)
    if getattr(_root(error), "reason", None) in _NOT_TLS:
        failure.add_hint(
            "Is the server speaking plain http? Then the host of the connection has to begin with http://"
        )
    return failure


def proxy_failed(request: Request, error: BaseException, proxy: str | None) -> RunGenConnectionError:
    """
    Return the error for a proxy that could not be reached, or made no connection. Nothing was sent.

    :param request: the request.
    :param error: the library's error.
    :param proxy: the URL of the proxy.
    """
    if status := getattr(error, "status", None):
        what = f"refused to connect to RunGen ({status})"
    else:
        what = f"could not be reached ({describe_cause(error)})"
    return RunGenConnectionError(
        request.failure(f"{_name(proxy)} {what}"),
        sent=False,
        hint="Check Proxy of the Airflow connection, or the proxy of the environment",
    )


def _unreachable(proxy: str | None) -> str:
    return f"RunGen could not be reached{f' through {_name(proxy)}' if proxy else ''}"


def _name(proxy: str | None) -> str:
    """Return the name of a proxy, without its user and password."""
    return f"the proxy {urlsplit(proxy or '').netloc.rpartition('@')[2]}"


def describe_cause(error: BaseException) -> str:
    """Return a name for the root cause of a library's error."""
    root = _root(error)
    return root.strerror if isinstance(root, OSError) and root.strerror else type(root).__name__


def _root(error: BaseException) -> BaseException:
    for _ in range(8):
        if isinstance(error, TimeoutError):  # asyncio's comes from the cancellation by which it is made
            break
        first = error.args[0] if error.args else None
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__ or first
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
