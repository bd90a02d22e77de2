"""When a request is sent again, and how long it waits before that. No I/O."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from airflow_provider_rungen.client.codec import decode
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.flow import Flow, Request, Sleep, T
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConfigError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenNotFoundError,
    RunGenResponseError,
)

log = logging.getLogger(__name__)

ATTEMPTS = 5
RETRY_BUDGET = 120.0
BACKOFF = 0.5
BACKOFF_CAP = 30.0


def call(
    request: Request, read: Callable[[Any], T], *, attempts: int = ATTEMPTS, patience: float = RETRY_BUDGET
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
        repeatable = was_not_accepted(failure) if request.method == "POST" else is_transient(failure)
        if not repeatable or attempt == attempts:
            break
        pause = retry_delay(attempt - 1, failure)
        now = yield Sleep(0)
        if now + pause > give_up_at:
            break
        log.warning(
            "%s; trying again in %s (attempt %d of %d)",
            failure.message,
            format_duration(pause),
            attempt,
            attempts,
        )
        now = yield Sleep(pause)
    raise failure


def is_transient(error: RunGenError) -> bool:
    """Tell whether the same request may be answered the next time."""
    return isinstance(error, (RunGenConnectionError, RunGenResponseError, RunGenAPIError)) and error.retryable


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

    def is_transient(self, error: RunGenError, now: float) -> bool:
        """
        Return whether the same request may be answered the next time.

        :param now: the time (seconds since 1970).
        """
        if isinstance(error, RunGenConfigError):
            return True  # somebody is at work on the Airflow connection
        if not is_refusal(error):
            return is_transient(error)
        self._since = now if self._since is None else self._since
        if now - self._since < REFUSAL_GRACE:
            return True
        self._since = None
        return False

    def answered(self) -> None:
        """Note that the service answered."""
        self._since = None


def was_not_accepted(error: RunGenError) -> bool:
    """
    Return whether the service certainly did not do what it was asked to, and may do it the next time.

    A 429 or 503 counts only when it is the service's own answer. A proxy may answer so after it passed the
    request on.
    """
    if isinstance(error, RunGenConnectionError):
        return not error.sent
    return isinstance(error, RunGenAPIError) and error.status_code in (429, 503) and error.is_from_service


def retry_delay(failures: int, error: RunGenError) -> float:
    """Give the seconds to wait after so many failures in a row: never less than the service asked for."""
    backoff = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    asked: float | None = getattr(error, "retry_after", None)
    return max(backoff, asked or 0.0)
