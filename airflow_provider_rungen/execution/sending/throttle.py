"""How many submissions may be in flight, and from when on, depending on how the service answers."""

from __future__ import annotations

import logging
import time

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.exceptions import RunGenError, RunGenRateLimitedError

log = logging.getLogger(__name__)


class Throttle:
    """
    How fast the service takes submissions. One throttle serves all senders of an attempt.

    :param max_concurrency: how many submissions are in flight at most.
    """

    def __init__(self, max_concurrency: int) -> None:
        self._max_limit = max_concurrency
        #: How many submissions may be in flight now.
        self.limit = max_concurrency
        #: The time (of the monotonic clock) before which nothing is sent.
        self.not_before = 0.0
        self._since: float | None = None
        self._failures = self._successes = 0

    def note_success(self) -> None:
        """Raise the limit again after as many successes as it allows at a time."""
        self._failures, self._since = 0, None
        self._successes += 1
        if self._successes % self.limit == 0:
            self.limit = min(self.limit + 1, self._max_limit)

    def note_failure(self, error: RunGenError) -> bool:
        """Back off, and return whether it has been too long without success."""
        now = time.monotonic()
        if now >= self.not_before:  # once for all that were in flight together
            self._failures += 1
            self.limit = max(1, self.limit // 2)
            log.warning("%s; continuing with %d in flight", error.message, self.limit)
        self.not_before = max(self.not_before, now + retry.retry_delay(self._failures - 1, error))
        self._since = self._since or now
        # it may be full until some of our jobs have ended
        is_full = isinstance(error, RunGenRateLimitedError)
        return now - self._since > retry.RETRY_BUDGET and not is_full
