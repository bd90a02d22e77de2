"""Waits for jobs: a single poll, or polls until a deadline. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime

from airflow_provider_rungen.client import poll_state, retry
from airflow_provider_rungen.client.flow import Flow, Sleep, T
from airflow_provider_rungen.client.job_poller import (
    JobPoller,
    failed_by,
    identity,
    strip_payloads,
)
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.poll_state import POLL_TIMEOUT, Outages, concerns_one_job
from airflow_provider_rungen.client.progress import (
    FEW_JOBS,
    LogCallback,
    Progress,
    WaitGoal,
    log_line,
    log_of,
)
from airflow_provider_rungen.client.texts import format_duration, format_ids
from airflow_provider_rungen.client.workers import describe_workers, workers_of
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobQueuedTimeoutError, RunGenJobTimeoutError

# Seconds to the second poll of a job that may be over soon, and by how much the pauses grow from there.
FIRST_INTERVAL = 0.3
INTERVAL_GROWTH = 1.5
# Jobs that are fetched again at a time.
MAX_FETCHES = 64
# Seconds until a job is fetched again that was not found, or had no result.
REFETCH_INTERVAL = 3.0
# Seconds without an answer after which fetching ends.
FETCH_BUDGET = retry.RETRY_BUDGET


def growing_pauses(first: float, longest: float) -> Iterator[float]:
    """Yield the seconds from the start of each poll to the next: at first a few, soon the longest."""
    pause = min(first, longest)
    while True:
        yield pause
        pause = min(pause * INTERVAL_GROWTH, longest)


def poll_until(
    poll: Callable[[float | None], Flow[T | None]],
    outages: Outages,
    *,
    pauses: Iterator[float],
    deadline: float,
    wake_at: float = math.inf,
    polled_at: float | None = None,
) -> Flow[T | None]:
    """
    Poll until there is a result; return ``None`` if there is none by the deadline.

    :param poll: polls once, with the seconds to the deadline, or ``None`` for a poll that stands alone.
    :param outages: what the polls have seen of outages.
    :param pauses: the seconds between the starts of two polls, see `growing_pauses`.
    :param deadline: the time (seconds since 1970) to stop at; one that has passed allows a single poll.
    :param wake_at: a time (seconds since 1970) at which a poll begins at the latest.
    :param polled_at: when a poll before these began (seconds since 1970).
    """
    now, begun_at = (yield Sleep(0)), polled_at
    if now >= deadline:
        return (yield from poll(None))
    while True:
        if begun_at is not None:
            due = max(begun_at + next(pauses), outages.quiet_until)
            due = min(due, wake_at) if wake_at > begun_at else due
            now = yield Sleep(max(min(due, deadline) - now, 0))
        begun_at = now
        if (result := (yield from poll(deadline - now))) is not None:
            return result
        now = yield Sleep(0)
        # no poll follows the last one, nor one that hung until the deadline
        if begun_at >= deadline or (now >= deadline and outages.answered_at < begun_at):
            return None


def poll_alone(
    poll: Callable[[], Flow[T | None]], outages: Outages, is_in_doubt: Callable[[], bool]
) -> Flow[T | None]:
    """Poll once, and again while the last answer is one that counts only if it lasts."""
    now = yield Sleep(0)
    known_at = now + 1.2 * max(retry.PATIENCE, poll_state.RESULT_GRACE)
    while (result := (yield from poll())) is None and is_in_doubt() and now < known_at:
        now = yield Sleep(max(outages.quiet_until - (yield Sleep(0)), 1.0))
    return result


@dataclass(eq=False)
class Wait:
    """
    A wait for jobs that a poller polls.

    :param poller: polls the jobs, and perhaps others.
    :param job_ids: the jobs.
    :param poll_interval: seconds between two polls.
    :param begun_at: the time (seconds since 1970).
    :param queued_timeout: seconds that the jobs may wait while the app has no worker.
    :param goal: what the wait is for. Default: the end of all jobs.
    :param queued_since: since when no worker was seen to take any of the jobs (seconds since 1970).
    :param progress: counts the jobs that have finished, if others are counted with them.
    """

    poller: JobPoller
    job_ids: InitVar[Collection[str]]
    poll_interval: float
    begun_at: InitVar[float]
    queued_timeout: float | None = None
    goal: WaitGoal = field(default_factory=WaitGoal)
    queued_since: float = 0.0
    progress: Progress | None = None
    #: The jobs that have not finished, in order, and those that have, in the order of their ends.
    waiting: dict[str, None] = field(init=False)
    finished: dict[str, Job] = field(default_factory=dict, init=False)

    def __post_init__(self, job_ids: Collection[str], begun_at: float) -> None:
        self.waiting = dict.fromkeys(job_ids)
        if self.queued_timeout is not None:
            self.poller.queue.ask_every = min(self.poller.queue.ask_every, self.queued_timeout)
        self._progress = self.progress or Progress(begun_at, len(self.waiting))

    def note(self, now: float) -> bool:
        """
        Note what polls have found; return whether the wait is over.

        :param now: the time (seconds since 1970).
        :raises RunGenJobQueuedTimeoutError: the app had no worker for too long.
        :raises RunGenError: an error that no waiting can change.
        """
        poller = self.poller
        for job_id, error in poller.errors.items():
            if job_id in self.waiting:
                raise error
        for job_id in [job_id for job_id in poller.finished if job_id in self.waiting]:
            self.finished[job_id] = job = poller.finished[job_id]
            del self.waiting[job_id]
            self.goal.note(job)
            self._progress.note(job)
            if job.cause is None and job.status is not JobStatus.CANCELED:
                self.queued_since = now
        if self.goal.is_reached(len(self.waiting)):
            return True
        states = [poller.waiting[job_id] for job_id in self.waiting if job_id in poller.waiting]
        if any(state.has_started for state in states):
            self.queued_since = now
        limit = math.inf if self.queued_timeout is None else self.queued_timeout
        since, is_queued = self.idle_since(now), any(state.status is JobStatus.QUEUED for state in states)
        if is_queued and poller.queue.down_at - since >= limit:
            raise self.timeout_error(no_worker_since=since)
        return False

    def idle_since(self, now: float) -> float:
        """
        Return since when, as far as is known, the jobs wait and no worker could take them.

        :param now: the time (seconds since 1970), as is what it returns.
        """
        states = (self.poller.waiting.get(job_id) for job_id in self.waiting)
        added_at = min((state.added_at for state in states if state is not None), default=now)
        return max(added_at, self.queued_since, min(self.poller.queue.down_since, now))

    def log_progress(self, log: LogCallback, now: float) -> None:
        """Log how far the wait has come, if it is time."""
        if (line := self._progress.line(now, *self.look_at_queue())) is not None:
            log(logging.INFO, line, None)

    def look_at_queue(self) -> tuple[int, str]:
        """Return how many of the jobs are queued, and why. See `QueueWatch.look`."""
        return self.poller.queue.look(self.waiting)

    def poll(self, seconds_left: float | None, only: Collection[str] | None = None) -> Flow[bool | None]:
        """
        Poll once; return whether the wait is over, or ``None``.

        :param seconds_left: seconds to the deadline. Without it, this poll stands alone: jobs that the
            service refuses or does not find are polled until that has lasted.
        :param only: poll these jobs, and each of them.
        """
        if seconds_left is not None:
            return (yield from self._poll_once(self.poll_interval, seconds_left, only))

        def is_in_doubt() -> bool:
            nonlocal only
            states = self.poller.waiting
            only = [job_id for job_id in self.waiting if states[job_id].is_in_doubt]
            return bool(only)

        def poll() -> Flow[bool | None]:
            return self._poll_once(None, POLL_TIMEOUT, only)

        return (yield from poll_alone(poll, self.poller.outages, is_in_doubt))

    def _poll_once(
        self, poll_interval: float | None, seconds_left: float, only: Collection[str] | None
    ) -> Flow[bool | None]:
        yield from self.poller.poll_once(poll_interval, seconds_left, only)
        now = yield Sleep(0)
        if self.note(now):
            return True
        self.log_progress(self.poller.log, now)
        return None

    def _is_in_doubt(self, now: float) -> bool:
        """Return whether a job or result that should be there was not found: nobody else finds out."""
        states = (self.poller.waiting[job_id] for job_id in self.waiting)
        return any(state.is_in_doubt and not state.doubt.is_refusal for state in states)

    def run(
        self,
        pauses: Iterator[float],
        *,
        deadline: float,
        stop_at: float = math.inf,
        ended: Collection[str] = (),
    ) -> Flow[bool]:
        """
        Poll until the wait is over; return ``False`` if it is time to stop before.

        :param pauses: see `poll_until`.
        :param deadline: the time (seconds since 1970) to stop at; one that has passed allows one full poll.
        :param stop_at: the time (seconds since 1970) to stop at without an error.
        :param ended: the jobs to poll in the first round, if not those that are worth it.
        :raises RunGenJobTimeoutError: the deadline passed; names the first job that has not finished.
        """
        only: Collection[str] | None = ended or None

        def poll(seconds_left: float | None) -> Flow[bool | None]:
            nonlocal only
            first, only = (list(self.waiting) if seconds_left is None else only), None
            if (yield from self.poll(seconds_left, first)):
                return True
            now = yield Sleep(0)
            return False if stop_at <= now < deadline and not self._is_in_doubt(now) else None

        is_over = yield from poll_until(
            poll,
            self.poller.outages,
            pauses=pauses,
            deadline=deadline,
            wake_at=stop_at,
            polled_at=self.poller.polled_at,
        )
        if is_over is None:
            raise (yield from self.explain_timeout())
        return is_over

    # --- the errors of waits that took too long ---

    def explain_timeout(self) -> Flow[RunGenJobTimeoutError]:
        """Return the error for the jobs that did not finish in time, after a look at the workers."""
        poller = self.poller
        if poller.queue.app is None and not poller.outages.failed_rounds:
            yield from poller.queue.ask((yield Sleep(0)))
        return self.timeout_error()

    def timeout_error(self, *, no_worker_since: float | None = None) -> RunGenJobTimeoutError:
        """
        Return the error for the jobs that did not finish in time; it names the first.

        :param no_worker_since: since when they wait while the app has no worker, if that is the reason.
        """
        poller = self.poller
        waiting = [job_id for job_id in self.waiting if job_id not in poller.finished]
        state, app, failure = poller.waiting.get(waiting[0]), poller.queue.app, poller.outages.last_failure
        status = None if state is None else state.status
        has_workers = app is None or workers_of(app) != 0
        kind: type[RunGenJobTimeoutError]
        kind, event, option = RunGenJobTimeoutError, "Not over in time", "timeout or execution_timeout"
        reasons = ["status unknown"]
        if no_worker_since is not None:
            kind, event, option = RunGenJobQueuedTimeoutError, "Queued for too long", "queued_timeout"
            reasons = [f"no worker since {datetime.fromtimestamp(no_worker_since, UTC):%Y-%m-%d %H:%M} UTC"]
        elif state is not None and status is not None:
            seen_for = max(state.polled_at - state.status_since, 0)
            ran_for = state.job.execution_time if state.job and status is JobStatus.RUNNING else None
            reasons = [f"{status} for {format_duration(seen_for if ran_for is None else ran_for)}"]
        if app is not None and no_worker_since is None:
            reasons.append(describe_workers(app) if has_workers else "no active workers")
        if failure is not None:
            reasons.append(f"the last poll failed: {failure.message}")
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        message = (
            f"{event}: {', '.join(filter(None, reasons))} {format_ids(poller.app_id, waiting[0] + more)}"
        )
        hint = None  # that of the error's class
        if no_worker_since is not None or not has_workers:
            hint = f"Scale the app up, with scaled_app or in its console. Raise {option} if it needs longer"
        elif status is JobStatus.QUEUED:
            hint = f"Give the app more workers. Raise {option} if it needs longer"
        return kind(message, app_id=poller.app_id, job_id=waiting[0], hint=hint)


def wait_for_jobs(
    app_id: str,
    job_ids: Iterable[str],
    *,
    poll_interval: float,
    deadline: float | None = None,
    are_known: bool = False,
    first_interval: float = math.inf,
    queued_timeout: float | None = None,
) -> Flow[list[Job]]:
    """
    Wait until all jobs have finished, however they ended; return them in the order given.

    A poll that fails and may succeed later does not end the wait. Each outage is logged once.

    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop at; one that has passed allows one full poll.
    :param are_known: see `JobPoller.add`.
    :param first_interval: a shorter pause after the first poll, which grows to ``poll_interval``.
    :param queued_timeout: seconds that the jobs may wait while the app has no worker.
    :raises RunGenJobTimeoutError: the deadline passed; names the first job that has not finished.
    :raises RunGenJobQueuedTimeoutError: the app had no worker for ``queued_timeout``.
    :raises RunGenError: an error that no waiting can change, or one of the only job.
    """
    job_ids, now = list(job_ids), (yield Sleep(0))
    poller = JobPoller(app_id, log_of(len(job_ids) > FEW_JOBS))
    poller.add(job_ids, now, are_known=are_known)
    wait = Wait(poller, job_ids, poll_interval, now, queued_timeout)
    pauses = growing_pauses(first_interval, poll_interval)
    yield from wait.run(pauses, deadline=math.inf if deadline is None else deadline)
    jobs = [wait.finished[job_id] for job_id in job_ids]
    if len(jobs) == 1 and jobs[0].cause is not None:
        raise jobs[0].cause
    return jobs


def get_job(app_id: str, job_id: str, *, are_known: bool) -> Flow[Job]:
    """
    Get a job that should have ended: a replica that lags behind may not have its result for a moment.

    :param are_known: see `JobPoller.add`.
    :raises RunGenNotFoundError: it is gone.
    """
    outcomes: list[Job | RunGenError] = []
    yield from fetch_jobs(app_id, [job_id], lambda _, outcome: outcomes.append(outcome), are_known=are_known)
    if isinstance(outcomes[0], RunGenError):
        raise outcomes[0]
    return outcomes[0]


def fetch_jobs(
    app_id: str,
    job_ids: Sequence[str],
    on_outcome: Callable[[str, Job | RunGenError], None],
    within: float | None = None,
    have_ended: bool = True,
    *,
    are_known: bool,
) -> Flow[None]:
    """
    Get jobs, some at a time: see `get_job`.

    :param on_outcome: takes a job, or the error in its place, as it comes. What it raises ends it all.
    :param within: seconds without an answer after which to give up. Default: `FETCH_BUDGET`.
    :param have_ended: whether they should have ended, so that an answer that says otherwise may be stale.
    :param are_known: see `JobPoller.add`.
    """
    within, refused = FETCH_BUDGET if within is None else within, list[RunGenError]()

    def take(job: Job) -> Job:
        try:
            on_outcome(job.id, job.cause or job)
        except RunGenError as error:
            refused.append(error)
            poller.forget(list(poller.waiting))
        return strip_payloads(job)

    def log_outages(level: int, line: str, job_id: str | None) -> None:
        if job_id is None:
            log_line(level, line, None)

    poller = JobPoller(app_id, log_outages, take, batch_size=MAX_FETCHES, takes_all=True)
    poller.watches_queue, poller.have_ended = False, have_ended
    poller.add(job_ids, now := (yield Sleep(0)), are_known=are_known)
    poller.outages.answered_at = now
    try:
        while poller.waiting:
            yield from poller.poll_once(None, (give_up_at := poller.outages.answered_at + within) - now)
            if refused:
                raise refused[0]
            is_last, give_up_at = now >= give_up_at, poller.outages.answered_at + within
            lost = {
                job_id: failure
                for job_id, state in poller.waiting.items()
                if (is_last or state.not_before >= give_up_at)
                and (failure := state.failure or poller.outages.last_failure) is not None
            }
            for job_id, error in (lost | poller.errors).items():
                on_outcome(job_id, error)
            poller.forget([*lost, *poller.errors, *poller.finished])
            if poller.waiting:
                is_in_doubt = any(state.is_in_doubt for state in poller.waiting.values())
                pause = min(REFETCH_INTERVAL, retry.PATIENCE) if is_in_doubt else 0.0
                due = min(max(poller.not_before, now + pause), give_up_at)
                now = yield Sleep(max(due - (yield Sleep(0)), 0))
    finally:
        poller.on_finished = identity  # it refers to the poller, and may hold jobs with their results


def job_of(outcome: Job | RunGenError, app_id: str, job_id: str) -> Job:
    """
    Return the job that a poll found, or a failed one for an error that concerns it alone.

    :raises RunGenError: the error concerns other jobs, too, or may pass.
    """
    if isinstance(outcome, Job):
        return outcome
    if retry.is_transient(outcome) or not concerns_one_job(outcome):
        raise outcome
    return failed_by(outcome, app_id, job_id)
