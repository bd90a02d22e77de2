"""When a request is sent again, and after how long. No I/O."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeGuard

from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.codec import decode
from airflow_provider_rungen.client.flow import Flow, Request, Sleep, T
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenNotFoundError,
    RunGenOutputError,
    RunGenResponseError,
)

log = logging.getLogger(__name__)

ATTEMPTS = 5
# Seconds after which a request is not sent again.
RETRY_BUDGET = 120.0
# Seconds before the first retry; they double with each.
BACKOFF = 0.5
BACKOFF_CAP = 30.0
# Seconds after which a refused key is no accident of a firewall, or of a key that is being replaced.
REFUSAL_GRACE = 30.0
# Seconds for which a job must not be found before it counts as gone: a replica may lag behind.
GONE_GRACE = 30.0
# The same if the answer may be that of a gateway which somebody sets up.
UNSURE_GRACE = 300.0
#: How the service answers for a job that it does not find: an id that cannot be one is a bad request.
NOT_FOUND = (RunGenNotFoundError, RunGenBadRequestError)


@dataclass(slots=True)
class Doubt:
    """
    The answers in a row that end something if they last: the key is refused, or something is not there.

    An answer that cannot be read, and could not be the next time, counts as one of these.

    :param since: when the first of them came (seconds); ``None`` without any.
    :param certain_since: the same of the last ones, as far as they are certainly the service's own.
    :param is_refusal: whether they refuse the key.
    """

    since: float | None = None
    certain_since: float | None = None
    is_refusal: bool = False

    def may_pass(self, error: RunGenError, now: float) -> bool:
        """Note another one; return whether the next may be better. An error that has lasted is final."""
        if self.since is None or self.is_refusal != is_refusal(error):
            self.since, self.certain_since, self.is_refusal = now, None, is_refusal(error)
        self.certain_since = (self.certain_since or now) if getattr(error, "is_from_service", True) else None
        if self.is_refusal:
            may_pass = now < self.since + REFUSAL_GRACE
        elif self.certain_since is None:
            may_pass = now < self.since + UNSURE_GRACE
        else:
            may_pass = now < self.certain_since + GONE_GRACE
        error.retryable &= may_pass
        return may_pass


def call(
    request: Request,
    read: Callable[[Any], T],
    *,
    attempts: int = ATTEMPTS,
    retry_budget: float = RETRY_BUDGET,
) -> Flow[T]:
    """
    Send a request, retry it where that is safe and may help, and return the answer.

    A GET, PUT or DELETE is retried on every transient error. A POST is retried only if the service certainly
    did not accept it.

    :param request: the request.
    :param read: turns the decoded answer into a model.
    :param attempts: how many times to send the request at most.
    :param retry_budget: seconds after which the request is not sent again.
    :raises RunGenError: the error of the last attempt.
    """

    def may_retry(error: RunGenError) -> bool:
        return is_transient(error) and (request.method != "POST" or was_not_accepted(error))

    return retry(lambda _: send(request, read), may_retry, attempts=attempts, retry_budget=retry_budget)


def send(request: Request, read: Callable[[Any], T]) -> Flow[T]:
    """Send a request once, and return the answer; see `call`."""
    now = yield Sleep(0)
    return read(decode((yield request), request, now))


def retry(
    attempt: Callable[[int], Flow[T]],
    may_retry: Callable[[RunGenError], bool],
    *,
    attempts: int = ATTEMPTS,
    retry_budget: float = RETRY_BUDGET,
) -> Flow[T]:
    """
    Attempt something until it succeeds.

    A refused key is outlasted for `REFUSAL_GRACE`, unless only one attempt is to be made.

    :param attempt: makes the flow of one attempt, given its number, from 1.
    :param may_retry: returns whether another attempt may succeed after an error, and is safe.
    :param attempts: how many attempts to make at most.
    :param retry_budget: seconds after which no other attempt begins.
    :raises RunGenError: the error of the last attempt.
    """
    give_up_at, failures, doubt = (yield Sleep(0)) + retry_budget, 0, Doubt()
    for number in count(1):
        try:
            return (yield from attempt(number))
        except RunGenError as error:
            failure = error
        now = yield Sleep(0)
        delay = min(retry_delay(failures, failure), give_up_at - now)
        if is_refusal(failure):
            line = "" if doubt.since else f"for up to {format_duration(REFUSAL_GRACE)}"
            is_over = attempts == 1 or not doubt.may_pass(failure, now)
        else:
            failures, doubt = failures + 1, Doubt()
            is_over = failures >= attempts or not may_retry(failure)
            line = f"in {format_duration(delay)} (attempt {failures} of {attempts})"
        if is_over or now >= give_up_at or asked_pause(failure) > give_up_at - now:
            break
        if line:
            log.warning("%s; retrying %s", failure.message, line)
        yield Sleep(delay)
    raise failure


def is_transient(error: RunGenError) -> bool:
    """Return whether the same request may succeed later."""
    return isinstance(error, (RunGenConnectionError, RunGenResponseError, RunGenAPIError)) and error.retryable


def is_outage(error: RunGenError) -> bool:
    """Return whether the service, a host of files or a storage was out, which says nothing about a job."""
    return error.is_outage if isinstance(error, RunGenOutputError) else is_transient(error)


def is_refusal(error: object) -> TypeGuard[RunGenForbiddenError]:
    """Return whether the service refused the key."""
    return isinstance(error, RunGenForbiddenError)


def retry_delay(failures: int, error: RunGenError) -> float:
    """
    Return the seconds to wait before a retry, never less than the service asked for.

    A refused key is tried again after a few seconds, whatever it asked for: that tells whether it lasts.

    :param failures: how many failures in a row came before this one.
    :param error: the error.
    """
    if is_refusal(error):
        return REFUSAL_GRACE / 6
    backoff = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    return max(backoff, asked_pause(error))


def asked_pause(error: RunGenError) -> float:
    """Return the seconds that the service asked to wait."""
    return 0.0 if is_refusal(error) else error.retry_after or 0.0
