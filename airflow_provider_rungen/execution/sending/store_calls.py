"""Calls of a store that may fail or hang, so that it holds up no other store, and no kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.runs.place import SupersededError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two tries, at most. The last tries, at the end, begin with shorter pauses.
_MAX_PAUSE = 5.0
_SHORT_PAUSE = 0.1


class StoreCalls:
    """
    Calls one store: one call at a time, each in a daemon thread, since the store may hang.

    The owner polls. What it passes to `begin` is called in the owner's thread, by `take`.

    :param purpose: what the calls are for, as an infinitive for log and errors.
    :param budget: seconds in which the store may fail, or not answer.
    :param wake: called in another thread when a call has ended.
    :param is_retried: whether a failed call can be made again.
    """

    def __init__(
        self, purpose: str, budget: float, wake: Callable[[], None], *, is_retried: bool = True
    ) -> None:
        self._purpose, self._budget, self._wake = purpose, budget, wake
        self._is_retried = is_retried
        self._call: Future[Any] | None = None
        self._on_done: Callable[[Any], None] = lambda _: None
        self._on_failed: Callable[[], None] = lambda: None
        self._begun_at = self._not_before = self._give_up_at = 0.0
        self._pause = retry.BACKOFF
        self._error: BaseException | None = None
        self._is_fatal = False

    @property
    def is_busy(self) -> bool:
        """Whether a call has not ended."""
        return self._call is not None

    @property
    def is_ready(self) -> bool:
        """Whether the next call may begin: none has to end, no pause after a failure, no fatal error."""
        return self._call is None and time.monotonic() >= self._not_before and self.failure is None

    @property
    def is_failing(self) -> bool:
        """Whether the last call that ended failed."""
        return self._error is not None

    @property
    def busy_for(self) -> float:
        """The seconds since the call began; 0 if there is none."""
        return 0.0 if self._call is None else time.monotonic() - self._begun_at

    @property
    def failure(self) -> BaseException | None:
        """Why the store is given up; ``None`` while it works, or may do so soon."""
        if self._error is not None and (self._is_fatal or time.monotonic() >= self._give_up_at):
            return self._error
        if self.busy_for > self._budget + 1:
            return RunGenError(f"Could not {self._purpose}: it does not answer")
        return None

    def begin(
        self,
        work: Callable[[], T],
        on_done: Callable[[T], None],
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin a call."""
        self._begun_at, self._on_done, self._on_failed = time.monotonic(), on_done, on_failed
        self._call = begin(work)
        self._call.add_done_callback(lambda _: self._wake())

    def take(self) -> None:
        """Handle the end of a call, if it has ended."""
        call = self._call
        if call is None or not call.done():
            return
        self._call = None
        if (error := call.exception()) is not None:
            self._on_failed()
            self._note(error)
            return
        self._error, self._pause = None, retry.BACKOFF
        self._on_done(call.result())

    def check(self) -> None:
        """
        Raise what keeps the store from working.

        :raises Exception: it failed for too long.
        """
        if (failure := self.failure) is not None:
            raise failure

    def try_again(self, seconds: float) -> None:
        """Try a store that fails once more. It may take ids, though nothing may be sent any more."""
        self._is_fatal &= not isinstance(self._error, SupersededError)
        self._not_before, self._pause = 0.0, _SHORT_PAUSE
        self._give_up_at = max(self._give_up_at, time.monotonic() + seconds)

    def _note(self, error: BaseException) -> None:
        now = time.monotonic()
        self._is_fatal = (
            not self._is_retried or isinstance(error, SupersededError) or not isinstance(error, Exception)
        )
        if self._error is None:
            self._give_up_at = now + self._budget
            if not self._is_fatal:
                reason = clean_text(f"{type(error).__name__}: {error}", 300)
                log.warning("Could not %s: %s; retrying", self._purpose, reason)
        self._error = error
        self._not_before, self._pause = now + self._pause, min(2 * self._pause, _MAX_PAUSE)
