"""How many submissions may be in flight, and from when on, depending on how the service answers."""

from __future__ import annotations

import asyncio
import logging
import time

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.exceptions import RunGenError, RunGenRateLimitedError

log = logging.getLogger(__name__)

# Seconds between checks whether a submission may begin.
_POLL = 0.05


class Throttle:
    """
    How fast the service takes submissions. One throttle serves all senders of an attempt.

    A submission has a slot during an ``async with`` block. It begins when one is free and no pause is left.

    :param max_concurrency: how many submissions are in flight at most.
    :param attempts: how many failures in a row end the attempt. If left out, it ends after two minutes
        without success, but not while the service answers 429: it may be full until some jobs have ended.
    """

    def __init__(self, max_concurrency: int, attempts: int | None = None) -> None:
        self.max_concurrency = max_concurrency
        #: How many submissions may be in flight now.
        self.limit = max_concurrency
        #: How many slots are in use.
        self.in_use = 0
        self._attempts = attempts
        # nothing is sent before (monotonic clock)
        self._not_before = 0.0
        self._since: float | None = None
        self._failures = self._successes = 0

    async def __aenter__(self) -> None:
        # no condition: one throttle serves several event loops
        while self.in_use >= self.limit or time.monotonic() < self._not_before:  # noqa: ASYNC110
            await asyncio.sleep(max(self._not_before - time.monotonic(), _POLL))
        self.in_use += 1

    async def __aexit__(self, *_: object) -> None:
        self.in_use -= 1

    def note_success(self) -> None:
        """Raise the limit again after as many successes as it allows at a time."""
        self._failures, self._since = 0, None
        self._successes += 1
        if self._successes % self.limit == 0:
            self.limit = min(self.limit + 1, self.max_concurrency)

    def note_failure(self, error: RunGenError) -> None:
        """
        Back off.

        :raises RunGenError: the error, if there were too many, or it has been too long without success.
        """
        now = time.monotonic()
        is_first = now >= self._not_before  # of those that were in flight together
        if is_first:
            self._failures += 1
            self.limit = max(1, self.limit // 2)
        self._not_before = max(self._not_before, now + retry.retry_delay(self._failures - 1, error))
        self._since = self._since or now
        if self._is_over(now, error):
            raise error
        if is_first:
            log.warning("%s; continuing with %d in flight", error.message, self.limit)

    def _is_over(self, now: float, error: RunGenError) -> bool:
        give_up_at = (self._since or now) + retry.RETRY_BUDGET
        if self._attempts is not None:
            return self._failures >= self._attempts or self._not_before > give_up_at
        return now > give_up_at and not isinstance(error, RunGenRateLimitedError)
