"""
Polls the waiting jobs of one app, and lets no job that does not answer hold up another. No I/O.

A round polls the jobs that run, and the others, oldest first, until one is queued: those behind it have not
started where jobs start first come, first served. They may start in another order, and others may cancel
them. So a round also polls some that were not polled for the longest time, and one with few jobs polls all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.client.endpoints import get_job
from airflow_provider_rungen.client.flow import Flow, Gather, Pending, Sleep
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.poll_state import (
    POLL_TIMEOUT,
    Outages,
    PollState,
    concerns_one_job,
    in_flight,
    is_trouble,
    poll_timeout,
    polls_end_by,
)
from airflow_provider_rungen.client.progress import FEW_JOBS, LogCallback, log_line, status_line
from airflow_provider_rungen.client.queue_watch import QueueWatch
from airflow_provider_rungen.client.retry import NOT_FOUND, is_refusal
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenError, RunGenResponseError

MAX_CONCURRENT_POLLS = 256
# Silent jobs that are polled again in a round.
SILENT_JOBS_PER_ROUND = 8
# The most seconds that a round waits for a poll, which then goes on in the background.
MAX_WAIT_FOR_POLL = 5.0
# Seconds within which each job is polled, unless that takes more polls a second than this.
FULL_PASS, MAX_PER_SECOND = 60.0, 50


def identity(job: Job) -> Job:
    """Keep all of a job."""
    return job


def strip_payloads(job: Job) -> Job:
    """Keep of a job only how it ended: there may be many, and their results large."""
    return replace(job, input=None, result=None)


def failed_by(error: RunGenError, app_id: str, job_id: str) -> Job:
    """
    Return the job that an error makes useless: among others, it counts as failed.

    One whose answer is beyond a limit of this side counts as completed: its result was paid for, and can be
    fetched once the limit is raised.
    """
    is_too_large = isinstance(error, RunGenResponseError) and error.is_too_large
    status = JobStatus.COMPLETED if is_too_large else JobStatus.FAILED
    return Job(id=job_id, app_id=app_id, status=status, error=str(error), cause=error)


@dataclass(eq=False)
class JobPoller:
    """
    The jobs of one app that are waited for, and what polls have found.

    The result of each poll is recorded when it comes. A job that no waiting can help counts as failed if the
    error concerns it alone.

    :param app_id: the app.
    :param log: where to log what happens.
    :param on_finished: makes of a finished job what is kept of it; its error becomes the job's.
    :param is_lean: whether inputs and results may be left out of the answers.
    :param watches_queue: whether to warn about an app that has no workers for its queue.
    :param batch_size: how many polls to begin at once. More would hold up an event loop.
    :param takes_all: whether the first answer about a job ends the wait for it, however it is.
    :param have_ended: whether it is known that the jobs have ended, so that other answers are stale.
    """

    app_id: str
    log: LogCallback = log_line
    on_finished: Callable[[Job], Job] = identity
    is_lean: bool = False
    watches_queue: bool = True
    batch_size: int = MAX_CONCURRENT_POLLS
    takes_all: bool = False
    have_ended: bool = False
    #: The jobs that have not finished, in the order of the queue, as far as that is known.
    waiting: dict[str, PollState] = field(default_factory=dict, init=False)
    #: The finished jobs, until they are forgotten.
    finished: dict[str, Job] = field(default_factory=dict, init=False)
    #: The errors of jobs that no waiting can change, and that do not concern them alone.
    errors: dict[str, RunGenError] = field(default_factory=dict, init=False)
    #: When the last round began (seconds since 1970).
    polled_at: float | None = field(default=None, init=False)
    #: How many polls of jobs were answered.
    answers: int = field(default=0, init=False)
    # how many times jobs were added, and when a round last polled some of the longest unpolled
    _batches: int = field(default=0, init=False)
    _passed_at: float = field(default=0.0, init=False)
    # whether there are jobs that no round has seen: a pause may be that of others alone
    _has_new: bool = field(default=False, init=False)
    # whether no round follows; when its polls must have ended, and the seconds that it waits for one
    _is_last: bool = field(default=False, init=False)
    _end_by: float = field(default=math.inf, init=False)
    _wait_at_most: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.outages = Outages(self.log)
        self.queue = QueueWatch(self.app_id, self.waiting, self.log)

    @property
    def not_before(self) -> float:
        """The time (seconds since 1970) from which a job may be polled again."""
        soonest = min((state.not_before for state in self.waiting.values()), default=0.0)
        return max(self.outages.quiet_until, soonest)

    def add(
        self, job_ids: Collection[str], now: float, not_before: float = 0.0, *, are_known: bool = False
    ) -> None:
        """
        Wait for more jobs. Those added at once are in the order of their age, the oldest first.

        :param now: the time (seconds since 1970).
        :param not_before: the time (seconds since 1970) before which they must not be polled.
        :param are_known: whether the service has accepted their submission, or has answered for them before.
        :raises RunGenInputError: an id cannot be one; none is added.
        """
        for job_id in job_ids:
            path_segment(job_id, "job_id")
        self._batches += 1
        for job_id in job_ids:
            if job_id not in self.waiting and job_id not in self.finished:
                self.waiting[job_id] = PollState(now, are_known, not_before, self._batches)
                self._has_new, self.outages.quiet_until = True, 0.0

    def forget(self, job_ids: Iterable[str]) -> None:
        """Stop waiting for jobs, and drop their results."""
        for job_id in job_ids:
            if (state := self.waiting.pop(job_id, None)) is not None:
                self.outages.silent.discard(state)
            self.finished.pop(job_id, None)
            self.errors.pop(job_id, None)

    def poll_once(
        self, poll_interval: float | None, seconds_left: float = math.inf, only: Collection[str] | None = None
    ) -> Flow[None]:
        """
        Poll the jobs that are worth it, once; those that have finished go to ``finished``.

        :param poll_interval: seconds to the next round. A slow poll goes on until then. Without it, each
            answer is waited for.
        :param seconds_left: seconds to the deadline. After it, each job is polled.
        :param only: poll these jobs, and each of them.
        """
        now = yield Sleep(0)
        # the last poll does not wait for the end of a pause that nobody asked for
        self._is_last = seconds_left <= 0
        is_last = self._is_last and not getattr(self.outages.last_failure, "retry_after", None)
        if self.outages.is_quiet(now) and not is_last:
            return
        self.polled_at, self.outages.last_failure, self._has_new = now, None, False
        self._end_by, self._wait_at_most = polls_end_by(now, seconds_left), None
        if poll_interval is not None:
            # many polls take turns, and one that is given up holds its place until it ends
            self._wait_at_most = max(min(poll_interval, MAX_WAIT_FOR_POLL, self._end_by - now), 1.0)
        if only is None and seconds_left > 0:
            yield from self._poll_due(now)
        else:
            wanted = set(self.waiting if only is None else only)
            may_poll = self.pollable(self.waiting) if is_last else self._due(now)
            yield from self.poll([job_id for job_id in may_poll if job_id in wanted])
        self.outages.end_round(now := (yield Sleep(0)), has_new=self._has_new)
        if self.watches_queue:
            yield from self.queue.check(now)

    def _due(self, now: float) -> list[str]:
        """Return the jobs that may be polled, in the order of the queue."""
        return self.pollable(
            job_id for job_id in self.waiting if self.waiting[job_id].not_before <= now + 0.001
        )

    def pollable(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of the jobs that are still waited for, and have no poll in flight."""
        states = ((job_id, self.waiting.get(job_id)) for job_id in job_ids)
        return [job_id for job_id, state in states if state is not None and not state.is_in_flight]

    def _poll_due(self, now: float) -> Flow[None]:
        due = self._due(now)
        if failed_rounds := self.outages.failed_rounds:  # one poll tells whether the outage is over
            yield from self.poll([due[failed_rounds % len(due)]] if due else [])
            if self.outages.failed_rounds:
                return
            due = self._due((yield Sleep(0)))
        silent = {job_id for job_id in due if self.waiting[job_id].failures}
        if len(silent) == len(due):
            silent = set()
        yield from self._poll_many([job_id for job_id in due if job_id not in silent], now)
        longest = sorted(self.pollable(silent), key=lambda job_id: self.waiting[job_id].not_before)
        if polls := [self._poll_job(job_id) for job_id in longest[:SILENT_JOBS_PER_ROUND]]:
            yield Gather(polls, wait_at_most=None if self._wait_at_most is None else 0)

    def _poll_many(self, due: list[str], now: float) -> Flow[None]:
        """Poll those of the jobs that may have ended."""
        if self.takes_all or len(self.waiting) <= FEW_JOBS:
            yield from self.poll(due)
            return
        waiting, elapsed, self._passed_at = self.waiting, now - (self._passed_at or now), now
        queue = [job_id for job_id in due if not waiting[job_id].has_started]
        yield from self.poll([job_id for job_id in due if waiting[job_id].has_started])
        yield from self._poll_oldest(queue, now)
        if not self.outages.failed_rounds:
            rest = sorted(self._unpolled(due, now), key=lambda job_id: waiting[job_id].polled_at)
            pause = max(FULL_PASS, len(waiting) / MAX_PER_SECOND)
            yield from self.poll(rest[: math.ceil(len(due) * elapsed / pause)])

    def _poll_oldest(self, queue: Sequence[str], now: float) -> Flow[None]:
        """Poll jobs that were not seen to run, oldest first, until one is queued."""
        # one job alone may fail, which must not look like an outage
        waiting, polled, count = self.waiting, set[str](), 2
        # those that were added at once are in order, but how old the first is only an answer tells
        firsts = {waiting[job_id].batch: job_id for job_id in reversed(queue) if job_id in waiting}.values()
        some = [job_id for job_id in firsts if waiting[job_id].created_at is None]
        while not self.outages.failed_rounds:
            yield from self.poll(some)
            polled.update(some)
            ages = self._ages()
            queued = (each for each in polled & ages.keys() if waiting[each].status is JobStatus.QUEUED)
            until = min((ages[job_id] for job_id in queued), default=(math.inf, 0))
            rest = [each for each in self._unpolled(queue, now) if each not in polled and ages[each] <= until]
            if not rest:
                return
            some = sorted(rest, key=ages.__getitem__)[:count]
            count *= 2

    def _ages(self) -> dict[str, tuple[float, int]]:
        """Return when each job was created, and its place among those that were added with it."""
        ages, batch, latest, place = dict[str, tuple[float, int]](), 0, -math.inf, 0
        for job_id, state in self.waiting.items():
            if state.batch != batch:
                batch, latest, place = state.batch, -math.inf, 0
            latest = max(latest, state.created_at or -math.inf)
            ages[job_id] = (latest if state.created_at is None else state.created_at), place
            place += 1
        return ages

    def _unpolled(self, job_ids: Iterable[str], now: float) -> list[str]:
        """Return those of the jobs that were not answered since a time, and have no poll in flight."""
        return [job_id for job_id in self.pollable(job_ids) if self.waiting[job_id].polled_at < now]

    def poll(self, job_ids: Sequence[str]) -> Flow[None]:
        """Poll these jobs, as long as any answers."""
        for start in range(0, len(job_ids), self.batch_size):
            yield from self._poll_batch(self.pollable(job_ids[start : start + self.batch_size]))
            if self.outages.failed_rounds:
                break

    def _poll_batch(self, job_ids: Sequence[str]) -> Flow[None]:
        answers, polls = self.answers, [self._poll_job(job_id) for job_id in job_ids]
        if not polls:
            return
        outcomes: list[RunGenError | Pending | None] = yield Gather(polls, wait_at_most=self._wait_at_most)
        # whether the service has answered within the time that a poll may take
        is_answering = (yield Sleep(0)) - self.outages.answered_at < POLL_TIMEOUT
        is_pending = all(isinstance(outcome, Pending) for outcome in outcomes)
        if None in outcomes or self.answers > answers or (is_pending and is_answering):
            return  # the service is slow, or hangs for some jobs alone
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            state = self.waiting.get(job_id)
            if state is not None and not getattr(outcome, "retry_after", None):
                state.not_before = 0.0  # in an outage it is the whole app that is left alone
        self.outages.note_failed_round([error for error in outcomes if isinstance(error, RunGenError)])
        for state in self.waiting.values():  # one poll stands for all
            state.forget_doubt(self.outages.last_failure)

    def _poll_job(self, job_id: str) -> Flow[RunGenError | None]:
        """Poll one job; return the error if the poll was not answered."""
        state = self.waiting.get(job_id)
        if state is None or state.is_in_flight:  # while it waited for its turn
            return None
        now = yield Sleep(0)
        timeout = None if self.takes_all else poll_timeout(self._end_by, now, state.failures)
        outcome = yield from in_flight(state, self._get_job(state, job_id, timeout))
        now = yield Sleep(0)
        is_forgotten = self.waiting.get(job_id) is not state
        if is_trouble(outcome) and self.outages.outlasts(state, outcome, now):
            if is_forgotten:
                self.outages.silent.discard(state)
            return outcome
        self.answers += 1
        self.outages.note_answer(state, outcome, now)
        if is_forgotten:
            return None
        if isinstance(outcome, Job):
            self._note_job(state, outcome, now)
        elif concerns_one_job(outcome) and state.may_appear(outcome, now):
            since = "yet" if state.job is None else "any more"
            reason = f"Not visible {since}" if isinstance(outcome, NOT_FOUND) else outcome.message
            self.log(logging.INFO, f"{reason}; polling continues {format_ids(self.app_id, job_id)}", job_id)
        else:
            self._note_error(job_id, outcome)
        return None

    def _get_job(self, state: PollState, job_id: str, timeout: float | None) -> Flow[Job]:
        job = yield from get_job(self.app_id, job_id, attempts=1, timeout=timeout, is_lean=self.is_lean)
        now = yield Sleep(0)
        if not self.is_lean:
            state.note_staleness(job, now, has_ended=self.have_ended)
            state.is_stale &= not self._is_last
            if state.is_stale:
                return replace(job, status=JobStatus.RUNNING)
        return self.on_finished(job) if self._is_end(state, job) else job

    def _is_end(self, state: PollState, job: Job) -> bool:
        return job.is_terminal or (self.takes_all and not state.is_stale)

    def _note_error(self, job_id: str, error: RunGenError) -> None:
        """Note an error that no waiting can change."""
        if concerns_one_job(error):
            self.log(logging.WARNING, error.message, job_id)
            try:
                self._end(self.on_finished(failed_by(error, self.app_id, job_id)))
                return
            except RunGenError as another:
                error = another
        # a key that is refused for good is so for every job
        refused_at = self.waiting[job_id].doubt.since
        is_for_all = is_refusal(error) and refused_at is not None and self.outages.accepted_at < refused_at
        if is_for_all and len(self.waiting) > 1:  # others may be jobs of another task
            message = error.message.replace(format_ids(self.app_id, job_id), format_ids(self.app_id))
            error = error.revised(message, hint=error.hint, retryable=error.retryable)
        self.errors |= dict.fromkeys(self.waiting if is_for_all else [job_id], error)

    def _note_job(self, state: PollState, job: Job, now: float) -> None:
        before, state.job, state.polled_at = state.job, replace(job, input=None), now
        state.is_known = True
        state.created_at = state.added_at if job.created_at is None else job.created_at.timestamp()
        if before is None:
            state.status_since = state.added_at
        elif before.status is not job.status:
            state.status_since = now
        # of an unknown status, each change is logged
        if not before or job.status is not before.status or job.raw_status != before.raw_status:
            self.log(*status_line(job), job.id)
        if self._is_end(state, job):
            self._end(job)

    def _end(self, job: Job) -> None:
        self.finished[job.id] = job
        self.waiting.pop(job.id, None)
