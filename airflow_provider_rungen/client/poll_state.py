"""What is known of each job that is waited for, and how long a poll may take. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_provider_rungen.client.flow import Flow, T
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.exceptions import RunGenError

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
    :param place: where it stands in the queue: a job that is queued again has a new place behind all others.
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
    place: int = 0
    failures: int = 0
    is_cut_off: bool = False
    is_in_flight: bool = False

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

    :param left: seconds to the deadline, when they began.
    :param end_by: when all of them must have ended (seconds since 1970).
    """

    left: float = math.inf
    end_by: float = math.inf

    @classmethod
    def until(cls, now: float, left: float) -> PollBudget:
        """Return the budget of polls that begin now, with so many seconds to the deadline."""
        return cls(left, now + (left if left >= 1 else LAST_POLLS_TIME))

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
        left = self.left if self.left >= 1 else after_deadline
        return min(POLL_TIMEOUT * 2.0 ** min(failures, 8), left, self.remaining(now))
