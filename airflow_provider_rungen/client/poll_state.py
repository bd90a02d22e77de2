"""What is known of each job that is waited for, how long a poll may take, and what an outage is. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.client.flow import Flow, T
from airflow_provider_rungen.client.job_log import LogCallback
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.retry import Refusals, is_transient, retry_delay
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenError

# Seconds that a poll may take. A job that did not answer gets twice as long the next time.
POLL_TIMEOUT = 15.0
# Seconds that a poll may take although the deadline has passed: the first poll of a job, and any other.
FIRST_POLL_TIMEOUT = 10.0
LAST_POLL_TIMEOUT = 2.0
# Seconds after the deadline within which all last polls must end, and that each gets even then.
LAST_POLLS_TIME = 30.0
MIN_POLL_TIMEOUT = 0.5
# Seconds for which a job that was seen must not be found before it counts as gone: a replica may lag behind.
GONE_GRACE = 30.0
# Seconds between two polls while it is not known whether a refusal of the key lasts.
REFUSAL_PAUSE = 5.0


@dataclass(slots=True, eq=False)
class PollState:
    """
    What is known of a job that is waited for. Times are in seconds since 1970.

    :param added_at: when the wait for it began.
    :param visible_by: until when the service may not know it: after its submission, or from a first 404 on.
    :param not_before: before when it must not be polled, for example because of a ``Retry-After``.
    :param polled_at: when a poll of it was last answered, 0 if none was.
    :param job: the last answer.
    :param status_since: since when it has the status of that answer, as far as it was seen.
    :param was_overtaken: whether younger jobs have started before it, so that it was moved to the end.
    :param failures: polls in a row that failed.
    :param is_cut_off: whether the last poll was ended early because too many others were slow.
    :param is_in_flight: whether a poll of it is under way.
    """

    added_at: float
    visible_by: float = 0.0
    not_before: float = 0.0
    polled_at: float = 0.0
    job: Job | None = None
    status_since: float = 0.0
    was_overtaken: bool = False
    failures: int = 0
    is_cut_off: bool = False
    is_in_flight: bool = False

    @property
    def is_silent(self) -> bool:
        """Whether the last poll was not answered, or not yet."""
        return self.failures > 0 or self.is_in_flight or self.is_cut_off

    def may_appear(self, now: float) -> bool:
        """Note that the service does not know the job; return whether it may know it later."""
        if self.job is not None and not self.visible_by:
            self.visible_by = now + GONE_GRACE
        return now < self.visible_by


def in_flight(state: PollState, request: Flow[T]) -> Flow[T | RunGenError]:
    """Perform a request, and record that it is under way; return the answer, or the error in its place."""
    state.is_in_flight = True
    try:
        return (yield from request)
    except RunGenError as error:
        return error
    finally:
        state.is_in_flight = False


@dataclass(frozen=True, slots=True)
class PollBudget:
    """
    The time that polls have.

    :param seconds_left: seconds to the deadline, when they began.
    :param end_by: when all of them must have ended (seconds since 1970).
    """

    seconds_left: float = math.inf
    end_by: float = math.inf

    @classmethod
    def until(cls, now: float, seconds_left: float) -> PollBudget:
        """Return the budget of polls that begin now, with so many seconds to the deadline."""
        return cls(seconds_left, now + (seconds_left if seconds_left >= 1 else LAST_POLLS_TIME))

    def remaining(self, now: float) -> float:
        """Return the seconds until all polls must have ended."""
        return max(self.end_by - now, MIN_POLL_TIMEOUT)

    def timeout(self, now: float, *, failures: int = 0, is_first: bool = True) -> float:
        """
        Return the seconds that one poll may take.

        :param failures: how often in a row it failed before.
        :param is_first: whether nothing is known yet of what is polled.
        """
        after_deadline = FIRST_POLL_TIMEOUT if is_first else LAST_POLL_TIMEOUT
        limit = self.seconds_left if self.seconds_left >= 1 else after_deadline
        return min(POLL_TIMEOUT * 2.0 ** min(failures, 8), limit, self.remaining(now))


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
