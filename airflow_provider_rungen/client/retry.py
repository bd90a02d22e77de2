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
# Seconds for which the service must refuse, or not find, what worked before: a key may be about to be
# replaced, and a replica may lag behind.
PATIENCE = 60.0
# The same of anything, if the answer may be that of a gateway which somebody sets up.
UNSURE_GRACE = 300.0
#: How the service answers for a job that it does not find: an id that cannot be one is a bad request.
NOT_FOUND = (RunGenNotFoundError, RunGenBadRequestError)


@dataclass(slots=True)
class Doubt:
    """
    The answers in a row that end a wait if they last: it is refused, or something is not there.

    An answer that cannot be read, and could not be the next time, counts as one of these.

    :param since: when the first of them came (seconds); ``None`` without any.
    :param certain_since: the same of the last ones, as far as they are certainly the service's own.
    :param is_refusal: whether they refuse all requests, and not one for a job.
    """

    since: float | None = None
    certain_since: float | None = None
    is_refusal: bool = False

    def may_pass(self, error: RunGenError, now: float, *, has_worked: bool) -> bool:
        """
        Note another one; return whether the next may be better. An error that has lasted ends the wait.

        A refusal of what has worked leaves it to a retry of the task whether the key is replaced by then.

        :param has_worked: whether the same has worked before. Otherwise the service's first word counts.
        """
        if self.since is None or self.is_refusal != is_refusal(error):
            self.since, self.certain_since, self.is_refusal = now, None, is_refusal(error)
        self.certain_since = (self.certain_since or now) if getattr(error, "is_from_service", True) else None
        if self.certain_since is None:
            may_pass = now < self.since + UNSURE_GRACE
        else:
            is_patient = has_worked or not isinstance(error, RunGenAPIError)
            may_pass = is_patient and now < self.certain_since + PATIENCE
        error.retryable = (error.retryable and may_pass) or (self.is_refusal and has_worked)
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
    did not accept it. What the service itself refuses is not retried.

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

    :param attempt: makes the flow of one attempt, given its number, from 1.
    :param may_retry: returns whether another attempt may succeed after an error, and is safe.
    :param attempts: how many attempts to make at most.
    :param retry_budget: seconds after which no other attempt begins.
    :raises RunGenError: the error of the last attempt.
    """
    give_up_at = (yield Sleep(0)) + retry_budget
    for number in count(1):
        try:
            return (yield from attempt(number))
        except RunGenError as error:
            failure = error
        now = yield Sleep(0)
        time_left = give_up_at - now
        is_late = time_left <= 0 or (failure.retry_after or 0.0) > time_left
        if number >= attempts or not may_retry(failure) or is_late:
            break
        delay = min(retry_delay(number - 1, failure), time_left)
        attempted = f"attempt {number} of {attempts}"
        log.warning("%s; retrying in %s (%s)", failure.message, format_duration(delay), attempted)
        yield Sleep(delay)
    raise failure


def is_transient(error: RunGenError) -> bool:
    """Return whether the same request may succeed later."""
    return isinstance(error, (RunGenConnectionError, RunGenResponseError, RunGenAPIError)) and error.retryable


def is_outage(error: RunGenError) -> bool:
    """Return whether the service, a host of files or a storage was out, which says nothing about a job."""
    return error.is_outage if isinstance(error, RunGenOutputError) else is_transient(error)


def is_refusal(error: object) -> TypeGuard[RunGenAPIError]:
    """Return whether the key or the account is refused, whatever is asked for."""
    if not isinstance(error, RunGenAPIError) or isinstance(error, NOT_FOUND):
        return False
    is_final = 400 <= error.status_code < 500 and error.status_code not in (408, 429)
    return isinstance(error, RunGenForbiddenError) or (error.is_from_service and is_final)


def retry_delay(failures: int, error: RunGenError) -> float:
    """
    Return the seconds to wait before a retry, never less than the service asked for.

    :param failures: how many failures in a row came before this one.
    :param error: the error.
    """
    backoff = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    return max(backoff, error.retry_after or 0.0)
