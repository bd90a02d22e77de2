"""Polls the waiting jobs of one app, and lets no job that does not answer hold up another. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.client.endpoints import get_app, get_job
from airflow_provider_rungen.client.flow import CUT, Flow, Gather, Pending, Sleep
from airflow_provider_rungen.client.job_log import LogCallback, log_line, status_line
from airflow_provider_rungen.client.job_search import COUNTER_THRESHOLD, JobSearch, read_counters
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.poll_state import (
    MIN_POLL_TIMEOUT,
    POLL_TIMEOUT,
    Outages,
    PollBudget,
    PollState,
    in_flight,
    is_unanswered,
)
from airflow_provider_rungen.client.queue_watch import QueueWatch
from airflow_provider_rungen.client.retry import is_refusal
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenError, RunGenNotFoundError

# More polls begun at once would hold up an event loop.
MAX_CONCURRENT_POLLS = 256
# Silent jobs that are polled again in a round.
SILENT_JOBS_PER_ROUND = 8


def identity(job: Job) -> Job:
    """Keep all of a job."""
    return job


def strip_payloads(job: Job) -> Job:
    """Keep of a job only how it ended: there may be many, and their results large."""
    return replace(job, input=None, result=None)


@dataclass(eq=False)
class JobPoller:
    """
    The jobs of one app that are waited for, and what polls have found.

    The result of each poll is recorded when it comes, and a slow poll goes on by itself.

    :param app_id: the app.
    :param log: where to log what happens.
    :param on_finished: makes of a finished job what is kept of it; its error becomes the job's.
    :param on_news: called when a job has finished, or has an error that no waiting can change.
    :param is_lean: whether inputs and results may be left out of the answers.
    :param watches_queue: whether to warn about an app that has no workers for its queue.
    :param is_shared: whether several wait for the jobs, so that no slow poll may hold up a round.
    """

    app_id: str
    log: LogCallback = log_line
    on_finished: Callable[[Job], Job] = identity
    on_news: Callable[[], None] = lambda: None
    is_lean: bool = False
    is_shared: bool = False
    watches_queue: bool = True
    #: The finished jobs, until they are forgotten.
    finished: dict[str, Job] = field(default_factory=dict, init=False)
    waiting: dict[str, PollState] = field(default_factory=dict, init=False)
    #: Whether nothing was polled yet.
    is_fresh: bool = field(default=True, init=False)
    #: The answer about the app in the last round, if it was polled.
    app: App | RunGenError | None = field(default=None, init=False)
    #: How many jobs were found to have finished, and how many polls of jobs were answered.
    found: int = field(default=0, init=False)
    answers: int = field(default=0, init=False)
    _app_state: PollState = field(default_factory=lambda: PollState(0.0), init=False)
    _errors: dict[str, RunGenError] = field(default_factory=dict, init=False)
    _budget: PollBudget = field(default=PollBudget(), init=False)
    # seconds that a shared round waits for a poll
    _poll_time: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.outages = Outages(self.log)
        self._search = JobSearch(self)
        self.queue = QueueWatch(self)

    @property
    def not_before(self) -> float:
        """The time (seconds since 1970) from which a job may be polled again."""
        soonest = min((state.not_before for state in self.waiting.values()), default=0.0)
        return max(self.outages.quiet_until, soonest)

    @property
    def all_not_before(self) -> float:
        """The time (seconds since 1970) from which all jobs may be polled again."""
        return max([self.outages.quiet_until, *(state.not_before for state in self.waiting.values())])

    @property
    def is_app_in_flight(self) -> bool:
        """Whether a poll of the app is under way."""
        return self._app_state.is_in_flight

    def is_in_flight(self, job_ids: Iterable[str]) -> bool:
        """Return whether a poll of one of these jobs is under way."""
        states = (self.waiting.get(job_id) for job_id in job_ids)
        return any(state is not None and state.is_in_flight for state in states)

    def add(
        self,
        job_ids: Collection[str],
        now: float,
        visible_by: float = 0.0,
        not_before: float = 0.0,
    ) -> None:
        """
        Wait for more jobs, the oldest first.

        :param now: the time (seconds since 1970).
        :param visible_by: the time (seconds since 1970) until which the service may not know them.
        :param not_before: the time (seconds since 1970) before which they must not be polled.
        :raises RunGenInputError: an id cannot be one; none is added.
        """
        for job_id in job_ids:
            path_segment(job_id, "job_id")
        for job_id in job_ids:
            if job_id not in self.waiting and job_id not in self.finished:
                self.waiting[job_id] = PollState(now, visible_by, not_before)

    def forget(self, job_ids: Iterable[str]) -> None:
        """Stop waiting for jobs, and drop their results."""
        for job_id in job_ids:
            if (state := self.waiting.pop(job_id, None)) is not None:
                self.outages.silent.discard(state)
            self.finished.pop(job_id, None)
            self._errors.pop(job_id, None)

    def take_errors(self) -> dict[str, RunGenError]:
        """Return the errors that no waiting can change, by job, once each."""
        errors, self._errors = self._errors, {}
        return errors

    def poll_once(self, poll_interval: float, seconds_left: float = math.inf) -> Flow[None]:
        """
        Poll the jobs that are worth it, once; those that have finished go to ``finished``.

        :param poll_interval: seconds to the next round.
        :param seconds_left: seconds to the deadline.
        """
        now = yield Sleep(0)
        if self.outages.is_quiet(now):
            return
        self._budget = PollBudget.until(now, seconds_left)
        if self.is_shared:
            self._poll_time = min(max(poll_interval, 1.0), 10.0)
        self.is_fresh, self.app, self.outages.last_failure = False, None, None
        yield from self._poll_due(poll_interval, now)
        self.outages.end_round(now := (yield Sleep(0)))
        if self.watches_queue:
            yield from self.queue.look(now)

    def poll_each(self, job_ids: Iterable[str], seconds_left: float = 0.0) -> Flow[None]:
        """
        Poll these jobs, whatever the counters say; a shared poller may do so in the middle of a round.

        After the deadline, those are left out that did not answer until then.

        :param seconds_left: seconds to the deadline.
        """
        now = yield Sleep(0)
        if self.outages.is_quiet(now):
            return
        wanted, self.is_fresh = set(job_ids), False
        if not self.is_shared:
            self.outages.last_failure = None
        due = [job_id for job_id in self._due(now) if job_id in wanted]
        if seconds_left <= 0:
            states = {job_id: self.waiting[job_id] for job_id in due}
            due = [job_id for job_id in due if not (states[job_id].is_cut_off or states[job_id].failures)]
        yield from self.poll(due, PollBudget.until(now, seconds_left))
        self.outages.end_round(now := (yield Sleep(0)))
        if self.watches_queue:
            yield from self.queue.look(now)

    def _due(self, now: float) -> list[str]:
        """Return the jobs that may be polled, oldest first, but before them those that were cut off."""
        cut_off: list[str] = []
        others: list[str] = []
        for job_id, state in self.waiting.items():
            if not state.is_in_flight and state.not_before <= now + 0.001:
                (cut_off if state.is_cut_off else others).append(job_id)
        return cut_off + others

    def pollable(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of the jobs that are still waited for, and have no poll in flight."""
        states = ((job_id, self.waiting.get(job_id)) for job_id in job_ids)
        return [job_id for job_id, state in states if state is not None and not state.is_in_flight]

    def _poll_due(self, poll_interval: float, now: float) -> Flow[None]:
        due = self._due(now)
        if failed_rounds := self.outages.failed_rounds:  # one poll tells whether the outage is over
            yield from self.poll([due[failed_rounds % len(due)]] if due else [])
            if self.outages.failed_rounds:
                return
            due = self._due((yield Sleep(0)))
        silent = {job_id for job_id in due if self.waiting[job_id] in self.outages.silent}
        if len(silent) == len(due):
            silent = set()
        yield from self._poll_many([job_id for job_id in due if job_id not in silent], poll_interval, now)
        again = self.pollable(job_id for job_id in due if job_id in silent)
        if polls := [self._poll_job(job_id, self._budget) for job_id in again[:SILENT_JOBS_PER_ROUND]]:
            yield Gather(polls, wait_at_most=0 if self.is_shared else None)

    def _poll_many(self, due: list[str], poll_interval: float, now: float) -> Flow[None]:
        if len(self.waiting) <= COUNTER_THRESHOLD:
            yield from self.poll(due)
            return
        was_silent = self._app_state in self.outages.silent
        app = yield from self.poll_app()
        counters = read_counters(app) if isinstance(app, App) else None
        is_slow = self._app_state.is_in_flight and self._is_answering((yield Sleep(0)))
        if app is None and not is_slow:
            yield from self.poll(due[:1])  # the counters alone may be silent, or all of the service
            is_silent, due = self._app_state in self.outages.silent, due[1:]
            if self.outages.failed_rounds or (is_silent and not was_silent):
                return
        due = self.pollable(due)
        yield from self._search.search(due, counters, poll_interval=poll_interval, asked_at=now)

    def _is_answering(self, now: float) -> bool:
        """Return whether the service has answered within the time that a poll may take."""
        return now - self.outages.answered_at < POLL_TIMEOUT

    def poll_app(self) -> Flow[App | RunGenError | None]:
        """
        Poll the app, and keep the answer in ``app``.

        :return: the app, or the error it is answered with; ``None`` without an answer in time, or if it is
            too early to ask again.
        """
        now = yield Sleep(0)
        self.app, state = None, self._app_state
        if state.is_in_flight or now < state.not_before - 0.001:
            return None
        poll = self._poll_app(self._budget.timeout(now))
        [outcome] = yield Gather([poll], wait_at_most=self._wait_at_most(self._budget, now))
        if isinstance(outcome, Pending):
            self.outages.silent.add(state)
            return None
        answer: App | RunGenError | None = outcome
        return answer  # not self.app, which a round that began meanwhile has reset

    def _poll_app(self, timeout: float) -> Flow[App | RunGenError | None]:
        state = self._app_state
        answer = yield from in_flight(state, get_app(self.app_id, attempts=1, timeout=timeout, is_lean=True))
        now = yield Sleep(0)
        if isinstance(answer, RunGenError) and is_unanswered(answer):
            self.outages.note_failure(state, answer, now)
            return None
        self.app = answer
        self.outages.note_answer(state, now, ends_outage=False)
        return answer

    def poll(self, job_ids: Sequence[str], budget: PollBudget | None = None) -> Flow[None]:
        """Poll these jobs, as long as any answers, in the time of the round or another."""
        for start in range(0, len(job_ids), MAX_CONCURRENT_POLLS):
            yield from self._poll_batch(job_ids[start : start + MAX_CONCURRENT_POLLS], budget or self._budget)
            if self.outages.failed_rounds:
                break

    def _poll_batch(self, job_ids: Sequence[str], budget: PollBudget) -> Flow[None]:
        job_ids = self.pollable(job_ids)
        if not job_ids:
            return
        answers, wait_at_most = self.answers, self._wait_at_most(budget, (yield Sleep(0)))
        polls = [self._poll_job(job_id, budget) for job_id in job_ids]
        outcomes: list[RunGenError | Pending | None] = yield Gather(polls, wait_at_most=wait_at_most)
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if outcome is CUT and (state := self.waiting.get(job_id)) is not None:
                state.is_cut_off = True
                self.outages.silent.add(state)
        if None in outcomes or self.answers > answers:
            return
        is_pending = all(isinstance(outcome, Pending) for outcome in outcomes)
        if is_pending and self._is_answering((yield Sleep(0))):
            return  # the service is slow, or hangs for these jobs alone
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if (state := self.waiting.get(job_id)) and not getattr(outcome, "retry_after", None):
                state.not_before = 0.0  # in an outage it is the whole app that is left alone
        self.outages.note_failed_round([error for error in outcomes if isinstance(error, RunGenError)])

    def _poll_job(self, job_id: str, budget: PollBudget) -> Flow[RunGenError | None]:
        """Poll one job; return the error if the poll was not answered."""
        state = self.waiting.get(job_id)
        if state is None or state.is_in_flight:  # while it waited for its turn
            return None
        now = yield Sleep(0)
        timeout = budget.timeout(now, failures=state.failures, is_first=state.job is None)
        outcome = yield from in_flight(state, self._get_job(job_id, timeout))
        return self._note_outcome(job_id, outcome, (yield Sleep(0)))

    def _get_job(self, job_id: str, timeout: float) -> Flow[Job]:
        job = yield from get_job(self.app_id, job_id, attempts=1, timeout=timeout, is_lean=self.is_lean)
        return self.on_finished(job) if job.is_terminal else job

    def _wait_at_most(self, budget: PollBudget, now: float) -> float | None:
        """Return the seconds to wait for a poll: many, which take turns, must not outlast the deadline."""
        if self.is_shared or math.isinf(budget.end_by):
            return self._poll_time
        # longer than the shortest poll, since one that is given up holds its place until it ends
        return max(budget.remaining(now), 2 * MIN_POLL_TIMEOUT)

    def _note_outcome(self, job_id: str, outcome: Job | RunGenError, now: float) -> RunGenError | None:
        state = self.waiting.get(job_id)  # None if its last waiter left in the meantime
        if state is not None:
            state.is_cut_off = False
        if isinstance(outcome, RunGenError) and self.outages.outlasts(state, outcome, now):
            return outcome
        self.answers += 1
        self.outages.note_answer(state, now)
        if state is None:
            return None
        if isinstance(outcome, Job):
            self._note_job(state, outcome, now)
        elif isinstance(outcome, RunGenNotFoundError) and state.may_appear(now):
            since = "yet" if state.job is None else "any more"
            line = f"Not visible {since}; polling continues {format_ids(self.app_id, job_id)}"
            self.log(logging.INFO, line, job_id)
        else:
            # a key that is refused for good is so for every job
            self._errors |= dict.fromkeys(self.waiting if is_refusal(outcome) else [job_id], outcome)
            self.on_news()
        return None

    def _note_job(self, state: PollState, job: Job, now: float) -> None:
        before, state.job, state.polled_at = state.job, replace(job, input=None), now
        state.visible_by = 0.0
        if before is None:
            state.status_since = state.added_at
        elif before.status is not job.status:
            state.status_since = now
        self._search.note_job(job)
        if job.is_terminal:
            self.finished[job.id] = job
            del self.waiting[job.id]
        self._log_status(before, job)
        if job.is_terminal:
            self.on_news()

    def _log_status(self, before: Job | None, job: Job) -> None:
        if before and before.raw_status == job.raw_status:
            return
        if not job.is_known_status or not before or before.status is not job.status:
            self.log(*status_line(job), job.id)
