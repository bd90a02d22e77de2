"""The REST API, described once and without I/O: every endpoint, and the retry rule.

An endpoint is a *flow*: a generator that yields a `Request`, a `Sleep` or `Together`, and returns a model. A
driver (`transport.drive` or `transport.adrive`) performs what it yields, and sends back the `Response`, the
time, or the outcomes.
"""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

from airflow_provider_rungen.durations import in_words
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConfigError,
    RunGenConflictError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenNotFoundError,
    RunGenRateLimitedError,
    RunGenResponseError,
    RunGenServerError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.models import App, Job, JobStatus, clean_text, error_text

log = logging.getLogger(__name__)

ATTEMPTS = 5
PATIENCE = 120.0
RETRY_AFTER_CAP = 3600.0
BACKOFF = 0.5
BACKOFF_CAP = 30.0
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Request:
    """
    What is to be sent.

    :param method: the HTTP method.
    :param path: the path below the base URL, its segments already quoted.
    :param purpose: what the request is for, as an infinitive for log and error.
    :param body: the JSON text to send, if any.
    :param as_user: whether to send the connection's ``user_id`` (the reference asks for it on cancel).
    :param timeout: seconds for the whole exchange at most; the connection's own limits when left out.
    :param is_lean: whether ids, status and errors of the answer are enough; a large rest may be dropped.
    """

    method: str
    path: str
    purpose: str
    body: bytes | None = field(default=None, repr=False)
    as_user: bool = False
    timeout: float | None = None
    is_lean: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds; the driver answers with the time (seconds since 1970) after it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the status, the headers (names in lower case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


T = TypeVar("T")


class Pending:
    """What stands for the outcome of a flow that is not done yet, and goes on by itself."""


PENDING = Pending()
#: The same for a flow that was ended because too many go on by themselves already.
CUT = Pending()


@dataclass(frozen=True, slots=True)
class Together(Generic[T]):
    """
    Perform flows side by side where the driver can; it answers with a result or a `RunGenError` each.

    :param patience: seconds that each flow has from its own start. One that is not done then goes on by
        itself, with `PENDING` as its outcome, or is ended, with `CUT`. A blocking driver performs one after
        the other and waits for all.
    """

    flows: Sequence[Flow[T]]
    patience: float | None = None


Flow: TypeAlias = Generator[Request | Sleep | Together[Any], Any, T]


# --- endpoints ---------------------------------------------------------------------------------------------


def run_job(app_id: str, input: Any, *, attempts: int = ATTEMPTS) -> Flow[Job]:
    """
    Submit a job.

    :raises RunGenInputError: the input is not a JSON object; nothing was sent.
    :raises RunGenSubmissionUnknownError: the answer does not tell whether a job was created.
    """
    body = b'{"input":' + encode_input(input) + b"}"
    request = Request("POST", f"app/{seg(app_id)}/run_async", f"run a job of app {app_id}", body)

    def read(answer: Any) -> Job:
        job = Job.from_json(answer, app_id=app_id, status=JobStatus.QUEUED)
        try:
            seg(job.id, "job_id")
        except RunGenInputError as error:  # it could never be asked for
            raise RunGenResponseError(f"RunGen's answer names a job that cannot be used: {error}") from None
        return job

    try:
        return (yield from call(request, read, attempts=attempts))
    except (RunGenConnectionError, RunGenResponseError, RunGenAPIError) as error:
        is_refused = isinstance(error, RunGenAPIError) and error.hopeless
        if is_refused or was_not_taken(error):
            raise
        reason = str(error).rstrip(".")
    raise RunGenSubmissionUnknownError(
        f"It is not known whether RunGen created the job of app {app_id}: {reason}. "
        "Sending it again may run and bill it twice; look at the app's jobs first."
    )


def get_job(
    app_id: str,
    job_id: str,
    *,
    attempts: int = ATTEMPTS,
    timeout: float | None = None,
    is_lean: bool = False,
) -> Flow[Job]:
    """
    Ask for one job.

    :param timeout: seconds that one request may take; the connection's own limit when left out.
    :param is_lean: whether its result and input may be left out where they are large.
    """
    path = f"app/{seg(app_id)}/job/{seg(job_id, 'job_id')}"
    purpose = f"get job {job_id} of app {app_id}"
    request = Request("GET", path, purpose, timeout=timeout, is_lean=is_lean)
    read = partial(Job.from_json, app_id=app_id, job_id=job_id)
    return (yield from call(request, read, attempts=attempts))


def get_new_job(app_id: str, job_id: str, *, known_by: float) -> Flow[Job]:
    """
    Ask for a job that the service may not know yet.

    :param known_by: the time (seconds since 1970) from which on an unknown job is one that is gone.
    """
    while True:
        try:
            return (yield from get_job(app_id, job_id))
        except RunGenNotFoundError:
            now = yield Sleep(0)
            if now >= known_by:
                raise
        yield Sleep(min(2.0, known_by - now))


def cancel_job(app_id: str, job_id: str, *, patience: float = PATIENCE) -> Flow[Job]:
    """
    Cancel a queued or running job.

    :param patience: the seconds after which no further attempt is made.
    :raises RunGenConflictError: the job is over, and it was not canceled.
    """
    path = f"app/{seg(app_id)}/job/{seg(job_id, 'job_id')}"
    request = Request("PUT", path, f"cancel job {job_id} of app {app_id}", as_user=True, is_lean=True)
    read = partial(Job.from_json, app_id=app_id, job_id=job_id, status=JobStatus.CANCELED)
    try:
        return (yield from call(request, read, patience=patience))
    except RunGenConflictError:
        try:
            job = yield from get_job(app_id, job_id, attempts=1, is_lean=True)
        except RunGenError:
            job = None
        if job and job.status is JobStatus.CANCELED:
            return job  # perhaps by an attempt whose answer was lost
        raise


def list_apps(*, attempts: int = ATTEMPTS) -> Flow[list[App]]:
    """Ask for all apps the key may see."""
    return (yield from call(Request("GET", "app", "list the apps"), App.list_from_json, attempts=attempts))


def get_app(
    app_id: str, *, attempts: int = ATTEMPTS, timeout: float | None = None, is_lean: bool = False
) -> Flow[App]:
    """
    Ask for one app.

    :param timeout: seconds that one request may take; the connection's own limit when left out.
    :param is_lean: whether its workflow may be left out where it is large.
    """
    path, purpose = f"app/{seg(app_id)}", f"get app {app_id}"
    request = Request("GET", path, purpose, timeout=timeout, is_lean=is_lean)
    return (yield from call(request, partial(App.from_json, app_id=app_id), attempts=attempts))


def create_app(body: Mapping[str, Any]) -> Flow[App]:
    """Create an app from the API's own create body."""
    request = Request("POST", "app", "create an app", encode(body, "app"))
    return (yield from call(request, App.from_json))


def update_app(app_id: str, body: Mapping[str, Any], *, patience: float = PATIENCE) -> Flow[App]:
    """
    Change the fields of an app that ``body`` names.

    :param patience: the seconds after which no further attempt is made.
    """
    request = Request("PUT", f"app/{seg(app_id)}", f"update app {app_id}", encode(body, "app"))
    return (yield from call(request, partial(App.from_json, app_id=app_id), patience=patience))


def scale_app(app_id: str, active_workers: int, *, patience: float = PATIENCE) -> Flow[App]:
    """
    Set the number of an app's workers.

    :param patience: the seconds after which no further attempt is made.
    """
    body = {"configuration": {"active_workers": active_workers}}
    return (yield from update_app(app_id, body, patience=patience))


def delete_app(app_id: str) -> Flow[None]:
    """Delete an app for good; it must have no workers."""
    yield from call(Request("DELETE", f"app/{seg(app_id)}", f"delete app {app_id}"), lambda _: None)


# --- one call, with the retry rule -------------------------------------------------------------------------


def call(
    request: Request, read: Callable[[Any], T], *, attempts: int = ATTEMPTS, patience: float = PATIENCE
) -> Flow[T]:
    """
    Send a request, again where that is safe and may help, and return what ``read`` makes of the answer.

    GET, PUT and DELETE are repeated on everything that may pass. A POST is repeated only when the service
    certainly did not take it: the connection was never made, or the service itself answered 429 or 503.

    :param attempts: how often to send it at most.
    :param patience: the seconds after which no further attempt is begun.
    """
    now = yield Sleep(0)
    give_up_at = now + patience
    for attempt in range(1, attempts + 1):
        failure: RunGenError
        try:
            return read(decode((yield request), request, now))
        except RunGenNotFoundError as error:
            if request.method == "DELETE" and attempt > 1:
                return read(None)  # the attempt before did it
            failure = error
        except RunGenError as error:
            failure = error
        repeatable = was_not_taken(failure) if request.method == "POST" else may_pass(failure)
        if not repeatable or attempt == attempts:
            break
        pause = pause_after(attempt - 1, failure)
        now = yield Sleep(0)
        if now + pause > give_up_at:
            break
        said = str(failure).rstrip(".")
        log.warning("%s; trying again in %s (attempt %d of %d)", said, in_words(pause), attempt, attempts)
        now = yield Sleep(pause)
    raise failure


def may_pass(error: RunGenError) -> bool:
    """Tell whether the same request may be answered the next time."""
    return (
        isinstance(error, (RunGenConnectionError, RunGenResponseError, RunGenAPIError)) and not error.hopeless
    )


def is_refusal(error: RunGenError) -> bool:
    """Return whether the key is refused: it may have been replaced, or a firewall may be in the way."""
    return isinstance(error, RunGenForbiddenError)


# Seconds after which a refusal is no longer a stray one, of a firewall or while a key is being replaced.
REFUSAL_GRACE = 30.0


class Refusals:
    """Tells a refusal that lasts from a stray one: only the first ends a wait for what was paid for."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def is_pending(self) -> bool:
        """Whether the last answer was a refusal, and it is too early to know whether it lasts."""
        return self._since is not None

    def may_pass(self, error: RunGenError, now: float) -> bool:
        """
        Return whether the same request may be answered the next time.

        :param now: the time (seconds since 1970).
        """
        if isinstance(error, RunGenConfigError):
            return True  # somebody is at work on the Airflow connection
        if not is_refusal(error):
            return may_pass(error)
        self._since = now if self._since is None else self._since
        if now - self._since < REFUSAL_GRACE:
            return True
        self._since = None
        return False

    def answered(self) -> None:
        """Note that the service answered."""
        self._since = None


def was_not_taken(error: RunGenError) -> bool:
    """
    Return whether the service certainly did not do what it was asked to, and may do it the next time.

    A 429 or 503 counts only when it is the service's own answer. A proxy may answer so after it passed the
    request on.
    """
    if isinstance(error, RunGenConnectionError):
        return not error.sent
    return isinstance(error, RunGenAPIError) and error.status_code in (429, 503) and error.is_from_service


def pause_after(failures: int, error: RunGenError) -> float:
    """Give the seconds to wait after so many failures in a row: never less than the service asked for."""
    backoff = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    asked: float | None = getattr(error, "retry_after", None)
    return max(backoff, asked or 0.0)


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
        failure = RunGenResponseError(f"Could not {request.purpose}: RunGen's answer is nested too deeply")
        failure.hopeless = True  # the next one will be, too
        raise failure from None
    except ValueError:
        pass
    shown = _plain(response.body) or "nothing"
    raise RunGenResponseError(f"Could not {request.purpose}: RunGen's answer is not JSON, but: {shown}")


_HINTS = {
    RunGenBadRequestError: "Correct the input; sending it again as it is cannot help",
    RunGenForbiddenError: "Check the API key (password) and team_id of the Airflow connection",
    RunGenNotFoundError: "Check app_id and job_id, and that the connection's team_id owns them",
    RunGenRateLimitedError: "Send fewer requests at a time",
    RunGenServerError: "Try again later",
}


def error_for(response: Response, request: Request, now: float) -> RunGenAPIError:
    """Give the error that a refusing answer means, with the service's own words and what to do next."""
    code = response.status
    if 300 <= code < 400:
        try:
            host = clean_text(urlsplit(response.headers.get("location", "")).hostname or "nowhere", 100)
        except ValueError:
            host = "nowhere"
        said = (
            f"it answered with a redirect to {host}, which is not followed, so that the key goes nowhere else"
        )
        hint = "If that is where the API lives, put its address into the connection's host"
        return RunGenAPIError(f"Could not {request.purpose} ({code}): {said}. {hint}.", status_code=code)
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        body = None
    kind = _kind(code)
    said = error_text(body) or _plain(response.body) or "the service gave no reason"
    hint = _HINTS.get(kind, "")
    message = f"Could not {request.purpose} ({code}): {said.rstrip('.')}." + (f" {hint}." if hint else "")
    asked = retry_after(response, now)
    return kind(
        message,
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


# --- what is sent ------------------------------------------------------------------------------------------


def seg(value: Any, name: str = "app_id") -> str:
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
