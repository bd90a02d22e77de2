"""Tracks whether the service answers polls, and how long to leave it alone when it does not. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.client.poll_state import PollState
from airflow_provider_rungen.client.retry import Refusals, is_transient, retry_delay
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenError

# Takes a log level, a line, and the id of the job it is about, or ``None``.
LogCallback = Callable[[int, str, str | None], None]

# Seconds between two polls while it is not known whether a refusal lasts.
REFUSAL_PAUSE = 5.0


def is_unanswered(error: RunGenError) -> bool:
    """Return whether an error says nothing about what was polled, so that it is polled again."""
    return is_transient(error) or isinstance(error, RunGenConfigError)


@dataclass
class Outages:
    """
    Tracks the polls of an app and its jobs that are not answered. Times are in seconds since 1970.

    :param log: where to log the begin and the end of an outage.
    :param silent: what did not answer when it was last polled.
    :param failed_rounds: rounds in a row in which no job was answered.
    :param last_failure: why the last round was not answered in whole, if it was not.
    :param pause: seconds to leave the service alone after the last round.
    :param quiet_until: when that pause ends.
    :param answered_at: when the service last answered.
    """

    log: LogCallback
    refusals: Refusals = field(default_factory=Refusals)
    silent: set[PollState] = field(default_factory=set)
    failed_rounds: int = 0
    last_failure: RunGenError | None = None
    pause: float = 0.0
    quiet_until: float = 0.0
    answered_at: float = -math.inf
    _is_logged: bool = False

    def is_quiet(self, now: float) -> bool:
        """Return whether the service is to be left alone."""
        return now < self.quiet_until - 0.001  # a sleep may end a fraction early

    def outlasts(self, state: PollState | None, error: RunGenError, now: float) -> bool:
        """Record a failed poll, unless no waiting can change the error; return whether it is recorded."""
        if not self.refusals.is_transient(error, now):
            return False
        if state is not None:
            self.note_failure(state, error, now)
        return True

    def note_failure(self, state: PollState, error: RunGenError, now: float) -> None:
        """Record a poll without an answer, and log the first of an outage."""
        state.not_before = now + retry_delay(state.failures, error)
        state.failures += 1
        self.silent.add(state)
        self.last_failure = error
        if not self._is_logged:
            self._is_logged = True
            self.log(logging.WARNING, f"{error.message}; polling continues", None)

    def note_failed_round(self, errors: Sequence[RunGenError]) -> None:
        """Record that nothing was answered in a round."""
        self.failed_rounds += 1
        if errors:  # one that asks for a long pause may ask for itself alone
            self.last_failure = min(errors, key=lambda error: getattr(error, "retry_after", None) or 0.0)

    def note_answer(self, state: PollState | None, now: float, *, ends_outage: bool = True) -> None:
        """Record that a poll was answered, and log the end of an outage."""
        self.answered_at = now
        answered = {state} if state is not None else set()
        if ends_outage:
            self.refusals.answered()
            if self.failed_rounds:  # what did not answer meanwhile is no worse than the rest
                answered |= self.silent
            self.failed_rounds = 0
        for each in answered:
            each.failures = 0
        self.silent -= answered
        if self._is_logged and not self.silent:
            self._is_logged = False
            self.log(logging.INFO, "RunGen answers again", None)

    def end_round(self, now: float) -> None:
        """Set how long the service is to be left alone."""
        self.pause = self.quiet_until = 0.0
        if self.failed_rounds and self.last_failure is not None:
            self.pause = retry_delay(self.failed_rounds - 1, self.last_failure)
            if self.refusals.is_pending:
                self.pause = min(self.pause, REFUSAL_PAUSE)
            self.quiet_until = now + self.pause
