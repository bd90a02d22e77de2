"""The polls of one wait on a worker: until the goal is reached, or it is time to defer. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from airflow_provider_rungen.client.flow import Flow, Sleep
from airflow_provider_rungen.client.job_poller import JobPoller
from airflow_provider_rungen.client.polling import poll_jobs_once, poll_until
from airflow_provider_rungen.client.queue_watch import QueueTimer, timeout_error
from airflow_provider_rungen.client.wait_goal import WaitGoal


@dataclass(eq=False)
class PollRounds:
    """
    The polls of one wait.

    :param stop_at: the time (seconds since 1970) to stop at without an error, for a deferral.
    :param ended: the jobs to poll in the first round.
    :param log_progress: called after each round, with the poller and the time.
    """

    poller: JobPoller
    job_ids: Sequence[str]
    goal: WaitGoal
    poll_interval: float
    deadline: float
    stop_at: float
    ended: Collection[str]
    timer: QueueTimer | None
    log_progress: Callable[[JobPoller, float], None]
    #: Whether the wait is over, and whether it stopped without being so.
    is_reached: bool = False
    is_stopped: bool = False
    #: When the last round began (seconds since 1970).
    polled_at: float | None = None

    def run(self, pauses: Iterator[float], polled_at: float | None) -> Flow[None]:
        """
        Poll until the goal is reached, or it is time to stop.

        :param pauses: see `poll_until`.
        :param polled_at: when the last round of the wait before began (seconds since 1970).
        """
        self.polled_at, outages = polled_at, self.poller.outages
        if polled_at is not None:
            now = yield Sleep(0)
            pause = max(polled_at + next(pauses) - now, outages.pause)
            yield Sleep(max(min(pause, self.deadline - now, max(self.stop_at - now, 0.0)), 0.0))
        yield from poll_until(
            self._poll, outages, pauses=pauses, deadline=self.deadline, wake_at=self.stop_at
        )

    def _poll(self, left: float | None) -> Flow[bool | None]:
        """Poll once, and return whether that ends the rounds; else ``None``."""
        self.polled_at = yield Sleep(0)
        only, self.ended = self.ended, ()
        jobs = yield from poll_jobs_once(
            self.poller,
            self.job_ids,
            poll_interval=self.poll_interval,
            seconds_left=left if left is not None or self.poller.is_fresh else 0.0,
            goal=self.goal,
            only=only or None,
            may_raise=False,
        )
        self.is_reached = jobs is not None
        now = yield Sleep(0)
        if not self.is_reached:
            if self.timer is not None and self.timer.is_over(self.poller, self.job_ids, now):
                queued_for = now - self.timer.moved_at
                raise timeout_error(self.poller, self.job_ids, queued_for=queued_for)
            self.log_progress(self.poller, now)
            self.is_stopped = self.stop_at <= now < self.deadline
        return self.is_reached or self.is_stopped or None
