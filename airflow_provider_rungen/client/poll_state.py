"""What is known of each job that is waited for, how long a poll may take, and what an outage is. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from airflow_provider_rungen.client.flow import Flow, T
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import LogCallback
from airflow_provider_rungen.client.retry import NOT_FOUND, Doubt, is_refusal, is_transient, retry_delay
from airflow_provider_rungen.exceptions import (
    RunGenConfigError,
    RunGenError,
    RunGenResponseError,
)

# Seconds that a poll may take. A job that did not answer gets twice as long the next time, and twice again.
POLL_TIMEOUT = 15.0
# Seconds after the deadline within which all last polls must end.
LAST_POLLS_TIME = 10.0
# Seconds that each poll gets even if there is no time left.
MIN_POLL_TIMEOUT = 0.5
# Seconds after which the result of a completed job counts as missing: it may appear a moment later.
RESULT_GRACE = 10.0


@dataclass(slots=True, eq=False)
class PollState:
    """
    What is known of a job that is waited for. Times are in seconds since 1970.

    :param added_at: when the wait for it began.
    :param is_known: whether the service has accepted its submission, or has answered for it.
    :param not_before: before when it must not be polled, for example because of a ``Retry-After``.
    :param batch: the number of the jobs that were added at once.
    :param created_at: when the service created it, as far as an answer tells.
    :param polled_at: when a poll of it was last answered, 0 if none was.
    :param job: the last answer.
    :param status_since: since when it has the status of that answer, as far as it was seen.
    :param failures: polls in a row that failed.
    :param failure: why the last one failed.
    :param is_in_flight: whether a poll of it is under way.
    :param doubt: the last answers, as far as they refused the key, did not find it, or cannot be read.
    :param stale_since: since when answers lack its result, or its end, though it has one.
    :param is_stale: whether the last answer did so, and a later one may not.
    """

    added_at: float
    is_known: bool = False
    not_before: float = 0.0
    batch: int = 0
    created_at: float | None = None
    polled_at: float = 0.0
    job: Job | None = None
    status_since: float = 0.0
    failures: int = 0
    failure: RunGenError | None = None
    is_in_flight: bool = False
    doubt: Doubt = field(default_factory=Doubt)
    stale_since: float | None = None
    is_stale: bool = False

    @property
    def status(self) -> JobStatus | None:
        """The last known status."""
        return None if self.job is None else self.job.status

    @property
    def has_started(self) -> bool:
        """Whether the job was last seen to run."""
        return self.status not in (None, JobStatus.QUEUED)

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last answer was one that ends the wait if it lasts, or was stale."""
        return self.doubt.since is not None or self.is_stale

    def forget_doubt(self, error: RunGenError | None) -> None:
        """Count answers in a row from the start again, after an error of another kind."""
        if not (is_refusal(error) and self.doubt.is_refusal):
            self.doubt = Doubt()

    def note_staleness(self, job: Job, now: float, *, has_ended: bool) -> None:
        """Note whether an answer may be older than the job's end, or than its result."""
        is_whole = job.is_terminal and (job.status is not JobStatus.COMPLETED or job.result is not None)
        if is_whole or not (job.is_terminal or has_ended):
            self.is_stale = False
            return
        self.stale_since = self.stale_since or now
        self.is_stale = now < self.stale_since + RESULT_GRACE

    def may_appear(self, error: RunGenError, now: float) -> bool:
        """Note that the job is not found, or its answer not readable; return whether it may be later."""
        if isinstance(error, RunGenResponseError):  # which may be large
            self.not_before = now + RESULT_GRACE
        return self.doubt.may_pass(error, now, has_worked=self.is_known)


def concerns_one_job(error: object) -> bool:
    """Return whether an error says nothing about the other jobs of its app."""
    return isinstance(error, (*NOT_FOUND, RunGenResponseError))


def is_unanswered(error: RunGenError) -> bool:
    """Return whether an error says nothing about what was polled, so that it is polled again."""
    # somebody may be editing the Airflow connection
    return is_transient(error) or isinstance(error, RunGenConfigError)


def is_trouble(outcome: Job | RunGenError) -> TypeGuard[RunGenError]:
    """Return whether the service did not answer for a job, neither how it is nor that it is not there."""
    return not isinstance(outcome, (Job, *NOT_FOUND))


def in_flight(state: PollState, request: Flow[T]) -> Flow[T | RunGenError]:
    """Perform a request, and record that it is under way; return the answer, or the error in its place."""
    state.is_in_flight = True
    try:
        return (yield from request)
    except RunGenError as error:
        return error
    except GeneratorExit:  # it was ended early, because too many others are slow
        state.failures += 1
        raise
    finally:
        state.is_in_flight = False


def polls_end_by(now: float, seconds_left: float) -> float:
    """Return when polls that begin now must have ended, with so many seconds to the deadline."""
    return now + (seconds_left if seconds_left >= 1 else LAST_POLLS_TIME)


def poll_timeout(end_by: float, now: float, failures: int = 0) -> float:
    """Return the seconds that a poll may take that failed so often in a row before."""
    return max(min(POLL_TIMEOUT * 2.0 ** min(failures, 2), end_by - now), MIN_POLL_TIMEOUT)


@dataclass
class Outages:
    """
    Tracks the polls of an app and its jobs that are not answered. Times are in seconds since 1970.

    :param log: where to log the begin and the end of an outage.
    :param silent: what did not answer when it was last polled.
    :param failed_rounds: rounds in a row in which no job was answered.
    :param last_failure: why the last round was not answered in whole, if it was not.
    :param quiet_until: until when the service is to be left alone.
    :param answered_at: when the service last answered.
    :param accepted_at: when it last accepted the key.
    :param doubt: the last answers about jobs, as far as they refused the key.
    """

    log: LogCallback
    silent: set[PollState] = field(default_factory=set)
    failed_rounds: int = 0
    last_failure: RunGenError | None = None
    quiet_until: float = 0.0
    answered_at: float = -math.inf
    accepted_at: float = -math.inf
    doubt: Doubt = field(default_factory=Doubt)
    _is_logged: bool = False

    def is_quiet(self, now: float) -> bool:
        """Return whether the service is to be left alone."""
        return now < self.quiet_until - 0.001  # a sleep may end a fraction early

    def outlasts(self, state: PollState, error: RunGenError, now: float) -> bool:
        """Record a failed poll, unless no waiting can change the error; return whether it is recorded."""
        may_pass = is_unanswered(error)
        if is_refusal(error):  # for this job, and for all that were polled
            has_worked = state.is_known or self.accepted_at > -math.inf
            may_pass = self.doubt.may_pass(error, now, has_worked=has_worked)
            may_pass &= state.doubt.may_pass(error, now, has_worked=has_worked)
        if may_pass:
            self.note_failure(state, error, now)
        return may_pass

    def note_failure(self, state: PollState, error: RunGenError, now: float) -> None:
        """Record a poll without an answer, and log the first of an outage."""
        state.not_before = now + retry_delay(state.failures, error)
        state.failures += 1
        state.failure = error
        state.forget_doubt(error)
        self.silent.add(state)
        self.last_failure = error
        if not self._is_logged:
            self._is_logged = True
            self.log(logging.WARNING, f"{error.message}; polling continues", None)

    def note_failed_round(self, errors: Sequence[RunGenError]) -> None:
        """Record that nothing was answered in a round."""
        self.failed_rounds += 1
        if not any(map(is_refusal, errors)):
            self.doubt = Doubt()
        if errors:  # one that asks for a long pause may ask for itself alone
            self.last_failure = min(errors, key=lambda error: error.retry_after or 0.0)

    def note_answer(self, state: PollState, answer: object, now: float) -> None:
        """
        Record that a poll was answered, and log the end of an outage.

        :param answer: the answer, or an error that no waiting can change, or that of a job that is not found.
        """
        self.answered_at = now
        answered, is_accepted = {state}, not is_refusal(answer)
        if is_accepted:
            self.accepted_at = now
            if not concerns_one_job(answer):
                state.doubt = Doubt()
            self.doubt = Doubt()
        if self.failed_rounds:  # what did not answer meanwhile is no worse than the rest
            answered |= self.silent
        self.failed_rounds = 0
        for each in answered:
            each.failures = 0
        self.silent -= answered
        if self._is_logged and is_accepted and not self.silent:
            self._is_logged = False
            self.log(logging.INFO, "RunGen answers again", None)

    def end_round(self, now: float, *, has_new: bool = False) -> None:
        """Set how long the service is to be left alone: not at all for jobs that no round has seen."""
        self.quiet_until = 0.0
        if self.failed_rounds and self.last_failure is not None and not has_new:
            self.quiet_until = now + retry_delay(self.failed_rounds - 1, self.last_failure)
