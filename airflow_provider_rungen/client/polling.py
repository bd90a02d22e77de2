"""Waits for jobs: a single poll, or polls until a deadline. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.flow import Flow, Sleep, T
from airflow_provider_rungen.client.job_log import log_of
from airflow_provider_rungen.client.job_poller import JobPoller
from airflow_provider_rungen.client.job_search import COUNTER_THRESHOLD
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.poll_state import POLL_TIMEOUT, Outages
from airflow_provider_rungen.client.progress import OtherInputs, Progress, count_ends
from airflow_provider_rungen.client.queue_watch import QueueTimer, explain_timeout, timeout_error
from airflow_provider_rungen.client.wait_goal import WaitGoal
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenNotFoundError,
    RunGenResponseError,
)

# Seconds to the second poll of a job that may be over soon, and by how much the pauses grow from there.
FIRST_INTERVAL = 0.3
INTERVAL_GROWTH = 1.5
# Seconds within which the service must know a job that it has just created.
VISIBILITY_GRACE = 120.0


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
) -> Flow[T | None]:
    """
    Poll until there is a result; return ``None`` if there is none by the deadline.

    :param poll: polls once, with the seconds to the deadline, or ``None`` for a poll that stands alone.
    :param outages: what the polls have seen of outages.
    :param pauses: the seconds between the starts of two polls, see `growing_pauses`.
    :param deadline: the time (seconds since 1970) to stop at; one that has passed allows a single poll.
    :param wake_at: a time (seconds since 1970) to poll at, whatever the pauses are.
    """
    now = yield Sleep(0)
    if now >= deadline:
        return (yield from poll(None))
    while True:
        begun_at, seconds_left = now, deadline - now
        if (result := (yield from poll(seconds_left))) is not None:
            return result
        now = yield Sleep(0)
        # no poll follows the last one, nor one that hung until the deadline
        if seconds_left <= 0 or (now >= deadline and outages.answered_at < begun_at):
            return None
        pause = max(begun_at + next(pauses) - now, outages.pause)
        end = wake_at if now < wake_at < deadline else deadline
        now = yield Sleep(min(pause, max(end - now, 0)))


def outlast_refusal(poll: Callable[[], Flow[T | None]], outages: Outages) -> Flow[T | None]:
    """Poll once, and again while it is not known whether a refusal of the key lasts."""
    now = yield Sleep(0)
    known_at = now + retry.REFUSAL_GRACE
    while (result := (yield from poll())) is None and outages.refusals.is_pending and now < known_at:
        now = yield Sleep(max(outages.pause, 1.0))
    return result


def poll_jobs_once(
    poller: JobPoller,
    job_ids: Sequence[str],
    *,
    poll_interval: float = 1.0,
    seconds_left: float | None = None,
    goal: WaitGoal | None = None,
    only: Collection[str] | None = None,
    may_raise: bool = True,
) -> Flow[list[Job] | None]:
    """
    Poll jobs once; return the finished ones in the order given if the goal is reached, else ``None``.

    :param poller: what earlier polls of the same jobs found; new jobs are added to it.
    :param poll_interval: seconds to the next poll.
    :param seconds_left: seconds to the deadline of the caller's loop. If there are none, each job is polled,
        whatever the counters say. Without it, this is a single poll: the first polls each job, and each
        outlasts a stray refusal of the key.
    :param goal: what the wait is for. Default: the end of all jobs.
    :param only: those of the jobs to poll, unless each is.
    :param may_raise: whether an error of the only job is raised. Otherwise, it makes it a failed job.
    :raises RunGenError: an error that no waiting can change.
    """
    poller.add(job_ids, (yield Sleep(0)))
    is_single, time = seconds_left is None, POLL_TIMEOUT if seconds_left is None else seconds_left
    if time <= 0 or (is_single and poller.is_fresh):
        only = job_ids

    def poll() -> Flow[list[Job] | None]:
        yield from poller.poll_once(poll_interval, time) if only is None else poller.poll_each(only, time)
        for job_id, error in poller.take_errors().items():
            if (may_raise and len(job_ids) == 1) or not concerns_one_job(error):
                raise error
            poller.forget([job_id])
            poller.finished[job_id] = poller.on_finished(failed_by(error, poller.app_id, job_id))
        aim.note_new(poller.finished.values())
        finished = [poller.finished[job_id] for job_id in job_ids if job_id in poller.finished]
        return finished if aim.is_reached(len(job_ids) - len(finished)) else None

    aim = goal or WaitGoal()
    return (yield from outlast_refusal(poll, poller.outages) if is_single else poll())


def wait_for_jobs(
    app_id: str,
    job_ids: Iterable[str],
    *,
    poll_interval: float,
    deadline: float | None = None,
    visible_by: float = 0.0,
    poller: JobPoller | None = None,
    first_interval: float = math.inf,
    queued_timeout: float | None = None,
    goal: WaitGoal | None = None,
    others: OtherInputs | None = None,
) -> Flow[list[Job]]:
    """
    Wait until all jobs have finished, however they ended; return them in the order given.

    A poll that fails and may succeed later does not end the wait. Each outage is logged once.

    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop at; one that has passed allows a single poll, which
        may take as long as any.
    :param visible_by: the time (seconds since 1970) until which the service may not know the jobs.
    :param poller: what polls, if it is to keep less of the jobs, or to log otherwise.
    :param first_interval: a shorter pause after the first poll, which grows to ``poll_interval``.
    :param queued_timeout: seconds that the jobs may stay queued while none of them starts.
    :param goal: what to wait for, if not for all jobs. Only those that have finished are returned.
    :param others: what the log counts, too.
    :raises RunGenJobTimeoutError: the deadline passed; names the first job that has not finished.
    :raises RunGenJobQueuedTimeoutError: no job started for ``queued_timeout``.
    :raises RunGenError: an error that no waiting can change.
    """
    job_ids = list(job_ids)
    is_wide = len(job_ids) > COUNTER_THRESHOLD
    jobs_poller = poller or JobPoller(app_id, log_of(is_wide))
    now = yield Sleep(0)
    jobs_poller.add(job_ids, now, visible_by)
    progress = Progress(len(job_ids), now, others)
    timer = None if queued_timeout is None else QueueTimer(queued_timeout, now)
    goal = goal or WaitGoal()

    def poll(seconds_left: float | None) -> Flow[list[Job] | None]:
        jobs = yield from poll_jobs_once(
            jobs_poller, job_ids, poll_interval=poll_interval, seconds_left=seconds_left, goal=goal
        )
        now = yield Sleep(0)
        if jobs is None and timer is not None and timer.is_over(jobs_poller, job_ids, now):
            raise timeout_error(jobs_poller, job_ids, queued_for=now - timer.moved_at)
        if (
            jobs is None
            and is_wide
            and (line := progress.line(*count_ends(jobs_poller.finished.values()), now))
        ):
            jobs_poller.log(logging.INFO, line, None)
        return jobs

    deadline = math.inf if deadline is None else deadline
    jobs = yield from poll_until(
        poll,
        jobs_poller.outages,
        pauses=growing_pauses(first_interval, poll_interval),
        deadline=deadline,
    )
    if jobs is None:
        raise (yield from explain_timeout(jobs_poller, job_ids))
    return jobs


def concerns_one_job(error: RunGenError) -> bool:
    """Return whether an error says nothing about the other jobs of its app."""
    return isinstance(error, RunGenNotFoundError | RunGenBadRequestError | RunGenResponseError)


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


def failed_by(error: RunGenError, app_id: str, job_id: str) -> Job:
    """Return the job that an error makes useless: among others, it counts as failed."""
    return Job(id=job_id, app_id=app_id, status=JobStatus.FAILED, error=str(error), cause=error)
