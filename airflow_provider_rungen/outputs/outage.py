"""Whether storing fails as a whole, and not for single files. No I/O."""

from __future__ import annotations

import time

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.exceptions import RunGenError, RunGenOutputError

#: Fewer failures are single broken files, and so many may be an outage.
OUTAGE_FAILURES = 32
#: Seconds for which an outage is outlasted.
OUTAGE_TIME = retry.RETRY_BUDGET


class Outage:
    """What failed since something was stored."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._count = 0
        self._last: RunGenError | None = None

    def note_failure(self, error: RunGenError) -> None:
        """Note that a file could not be stored, or a job for another reason."""
        if error.retryable:
            self._since = self._since or time.monotonic()
        if retry.is_outage(error):
            self._count, self._last = self._count + 1, error

    def note_file(self) -> None:
        """Note that a file was stored, though not all of its job yet."""
        self._count = 0

    def note_job(self) -> None:
        """Note that all of a job was stored."""
        self._since, self._count = None, 0

    def time_left(self) -> float:
        """Return the seconds for which something that may pass is tried again."""
        now = time.monotonic()
        return (self._since or now) + OUTAGE_TIME - now

    def skip_error(self, round_began_at: float) -> RunGenOutputError | None:
        """
        Return the error of what is not worth a try, since the outage has lasted too long.

        :param round_began_at: when these tries began (monotonic clock): each round tries some.
        """
        if self._count < OUTAGE_FAILURES or self._since is None or self._last is None:
            return None
        if time.monotonic() <= max(self._since, round_began_at) + OUTAGE_TIME:
            return None
        message = f"skipped, for others could not be stored; the last: {self._last.message}"
        error = RunGenOutputError(message, hint=self._last.hint)
        error.is_outage = True
        return error
