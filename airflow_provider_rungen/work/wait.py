"""Waits for jobs on a worker, hands the wait over to the triggerer, cancels jobs, and fetches them again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.endpoints import get_job
from airflow_provider_rungen.client.flow import Flow, Gather, Sleep, T
from airflow_provider_rungen.client.job_poller import JobPoller, identity, strip_payloads
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import FIRST_INTERVAL, Wait, fetch_jobs, growing_pauses
from airflow_provider_rungen.client.progress import (
    FEW_JOBS,
    OtherInputs,
    Progress,
    QuietLog,
    WaitGoal,
    log_line,
)
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenConflictError, RunGenError
from airflow_provider_rungen.task.job_ids import format_jobs, log_jobs

if TYPE_CHECKING:
    from airflow_provider_rungen.task.options import JobOptions
    from airflow_provider_rungen.task.run import TaskRun

log = logging.getLogger(__name__)

# Of more jobs that could not be canceled, the reasons are not logged.
MAX_LOGGED_CANCELS = 10
# Seconds for the question how long canceled jobs ran.
LOOK_TIME = 10.0
Defer = Callable[[dict[str, Any], float], NoReturn]


class JobWait:
    """
    All waits of an attempt. They share one poller: many short waits poll no more often than a long one.

    :param run: the attempt. Its options are `JobOptions`.
    :param defer: defers the task with these arguments of `RunGenJobTrigger`, and seconds until the deadline.
    :param are_known: whether the service has accepted the jobs, or answered for them, in this task run.
    """

    def __init__(self, run: TaskRun[Any], defer: Defer, *, are_known: bool = False) -> None:
        self._run = run
        self.are_known = are_known
        self._options: JobOptions = run.options
        self._defer = defer
        #: The jobs that this attempt has canceled.
        self.canceled: set[str] = set()
        #: Returns what progress lines count beside the jobs that were waited for.
        self.others: Callable[[], OtherInputs] = OtherInputs
        self._poller: JobPoller | None = None
        self._on_finished: Callable[[Job], Job] = identity
        # the jobs whose ends a trigger has counted
        self._counted: set[str] = set()
        # the jobs that have ended, and whose result could not be taken
        self._not_taken: list[Job] = []
        self._pauses = growing_pauses(FIRST_INTERVAL, self._options.poll_interval)
        self._quiet_log = QuietLog()
        self._progress = Progress(0.0)
        #: Since when no worker was seen to take any of the jobs, in an attempt that goes on after a deferral.
        self.queued_since = 0.0
        self._wait: Wait | None = None

    # --- waiting ---

    @metrics.timing("wait.worker")
    def wait(
        self,
        app_id: str,
        job_ids: Collection[str],
        *,
        deadline: float,
        on_finished: Callable[[Job], Job] = identity,
        goal: WaitGoal | None = None,
        may_defer: bool = True,
        stop_at: float = math.inf,
        before_defer: Callable[[list[Job]], Mapping[str, Any]] = lambda ended: {},
        ended: Collection[str] = (),
    ) -> list[Job]:
        """
        Wait for jobs, here or in the triggerer if that takes long. Return those that have ended, once each.

        The jobs of earlier waits that are not among them are polled no more.

        :param deadline: the time (seconds since 1970) to stop waiting at.
        :param on_finished: takes each job that is over, with its result, and returns what to keep of it.
        :param goal: what to wait for, if not for all jobs. It is used for this wait only.
        :param may_defer: whether the task can go on after a deferral.
        :param stop_at: the time (seconds since 1970) to stop at, and to return what is over by then.
        :param before_defer: called before a deferral with the jobs that have ended. It returns more arguments
            of `RunGenJobTrigger`, which waits for the others.
        :param ended: the jobs that a trigger found to have ended. They are polled first, and each of them.
        :raises RunGenJobTimeoutError: the deadline passed.
        :raises RunGenError: an error that no waiting can change, and that is not one of a single job.
        """
        self._counted |= set(ended)
        wait = self.begin(app_id, job_ids, on_finished, goal)
        if not wait.goal.is_reached(len(wait.waiting)):
            # it looks once, at jobs that may be over already
            defer_at = time.time() if may_defer and self._options.deferrable else math.inf
            rounds = wait.run(self._pauses, deadline=deadline, stop_at=min(defer_at, stop_at), ended=ended)
            is_over = self.perform(rounds, job_ids)
            self.are_known = True
            if not is_over and defer_at <= stop_at:
                self._hand_over(wait, list(dict.fromkeys(job_ids)), deadline, before_defer)
        return self.count(self._take())

    def begin(
        self,
        app_id: str,
        job_ids: Collection[str],
        on_finished: Callable[[Job], Job] = identity,
        goal: WaitGoal | None = None,
    ) -> Wait:
        """Return a wait for these jobs. No others are polled any more."""
        now = time.time()
        if self._poller is None or self._poller.app_id != app_id:
            self._poller = JobPoller(app_id, self._log, on_finished=self._keep)
            self._progress = Progress(now, others=self.others)
        poller, self._on_finished = self._poller, on_finished
        poller.is_lean = on_finished is strip_payloads
        poller.forget({*poller.waiting, *poller.finished}.difference(job_ids))
        poller.errors.clear()
        self._progress.total += len(set(job_ids) - poller.waiting.keys())
        if self._wait is not None:
            self.queued_since = self._wait.queued_since
        poller.add(job_ids, now if self._wait else self.queued_since or now, are_known=self.are_known)
        interval, queued_timeout = self._options.poll_interval, self._options.queued_timeout
        self._wait = Wait(
            poller,
            job_ids,
            interval,
            now,
            queued_timeout,
            goal or WaitGoal(),
            self.queued_since,
            self._progress,
        )
        return self._wait

    def look_at_queue(self) -> tuple[int, str]:
        """Return how many of the jobs of the last wait are queued, and why. See `QueueWatch.look`."""
        return (0, "") if self._wait is None else self._wait.look_at_queue()

    def take_ended(self) -> list[Job]:
        """Return the jobs that have ended, and that no wait has returned: an error ended it before."""
        not_taken, self._not_taken = self._not_taken, []
        return self.count([*not_taken, *self._take()])

    def count(self, jobs: list[Job]) -> list[Job]:
        """Count jobs that have ended in Airflow's metrics, unless a trigger has, and return them."""
        for job in jobs:
            if job.cause is None and job.id not in self._counted:  # the service has reported how it ended
                metrics.count_end(job)
        return jobs

    def perform(self, flow: Flow[T], job_ids: Collection[str]) -> T:
        """Perform a flow that is about these jobs: with requests side by side if they are many."""
        hook = self._run.hook
        return (hook.perform_concurrently if len(job_ids) > FEW_JOBS else hook.perform)(flow)

    def _keep(self, job: Job) -> Job:
        try:
            with self._run.guard.allow_signals():  # a function of the user's may hang
                return self._on_finished(job)
        except RunGenError:
            self._not_taken.append(strip_payloads(job))
            raise

    def _take(self) -> list[Job]:
        if self._poller is None:
            return []
        jobs = list(self._poller.finished.values())
        self._poller.forget(job.id for job in jobs)
        return jobs

    def _log(self, level: int, line: str, job_id: str | None) -> None:
        (self._quiet_log if self._progress.total > FEW_JOBS else log_line)(level, line, job_id)

    def _hand_over(
        self,
        wait: Wait,
        job_ids: list[str],
        deadline: float,
        before_defer: Callable[[list[Job]], Mapping[str, Any]],
    ) -> NoReturn:
        more = before_defer(ended := self._take())
        poller, goal, now, options = wait.poller, wait.goal, time.time(), self._options
        # a trigger that is given all of a sensor's jobs counts these, too
        self.count([] if "job_id" in more else ended)
        job_ids = list(wait.waiting)
        is_one = len(job_ids) == 1
        what = format_ids(poller.app_id, job_ids[0] if is_one else "")
        log.info("Waiting in the triggerer %s%s", "" if is_one else f"for {len(job_ids)} jobs ", what)
        arguments = {
            "rungen_conn_id": options.rungen_conn_id,
            "app_id": poller.app_id,
            "job_id": job_ids,
            "poll_interval": options.poll_interval,
            "deadline": deadline,
            "queued_timeout": options.queued_timeout,
            "queued_since": wait.idle_since(now),
            "deferred_at": now,
            "not_before": max([poller.not_before, *(state.not_before for state in poller.waiting.values())]),
            # a half of what is handed over, if any part is enough
            "left": min(goal.left, len(job_ids) // 2),
            "failures": goal.failures,
            "has_success": goal.has_success,
            "cancel_on_kill": options.cancel_on_kill,
            "shared": [job_id for job_id in job_ids if job_id in goal.shared],
        }
        self._defer(arguments | dict(more), deadline - now)

    # --- canceling ---

    def cancel(
        self, app_id: str, job_ids: Sequence[str], *, within: float | None = None
    ) -> dict[str, RunGenError]:
        """
        Cancel jobs, and return those that may still run, each with the reason.

        :param within: the seconds that it may take; when left out, as many as the jobs need.
        """
        if not job_ids:
            return {}
        hook = self._run.hook
        if within is None:
            within = 60.0 + len(job_ids) / (hook.settings.max_requests_per_second or 20)
        outcomes = hook.cancel_jobs(app_id=app_id, job_ids=job_ids, within=within)
        failures = {
            job_id: error
            for job_id, error in outcomes.items()
            if error is not None and not isinstance(error, RunGenConflictError)  # that one is over
        }
        if canceled := [job_id for job_id, error in outcomes.items() if error is None]:
            self.canceled |= set(canceled)
            log.info("Canceled %s of app %s", format_jobs(canceled), app_id)
        for error in list(failures.values())[:MAX_LOGGED_CANCELS]:
            log.warning("%s", error.message)
        log_jobs(f"Could not cancel more jobs of app {app_id}", list(failures)[MAX_LOGGED_CANCELS:])
        return failures

    def cancel_on_kill(self) -> None:
        """Cancel what the last wait was for, as far as the time of a kill allows (``cancel_on_kill``)."""
        if self._options.cancel_on_kill and self._poller is not None:
            in_flight = [each for each in self._poller.waiting if each not in self.canceled]
            within = max(self._run.guard.time_left(), 1)
            self.cancel(self._poller.app_id, in_flight, within=within)

    # --- fetching again ---

    def seconds_of(self, app_id: str, job_ids: Sequence[str]) -> dict[str, float]:
        """Return how long canceled jobs ran, which is billed, as far as the service answers in time."""
        if not job_ids:
            return {}
        answers: list[Job] = []

        def ask(job_id: str) -> Flow[None]:
            # a cancel may take a moment
            while not (job := (yield from get_job(app_id, job_id, is_lean=True))).is_terminal:
                yield Sleep(1.0)
            # noted at once, since the time may be over before others answer
            answers.append(job)

        def ask_all() -> Flow[None]:
            yield Gather([ask(job_id) for job_id in job_ids])

        with suppress(RunGenError):
            self._run.hook.perform_with_deadline(ask_all(), within=LOOK_TIME, is_paced=True)
        if len(answers) < len(job_ids):
            log.warning("It is unknown how long %d of the canceled jobs ran", len(job_ids) - len(answers))
        return {job.id: job.execution_time for job in answers if job.execution_time is not None}

    def refetch(
        self,
        app_id: str,
        job_ids: Sequence[str],
        on_outcome: Callable[[str, Job | RunGenError], None],
        within: float | None = None,
        *,
        have_ended: bool = True,
    ) -> None:
        """
        Fetch known jobs, so many at a time. One that is not found is fetched again for half a minute.

        :param on_outcome: takes a job, or the error in its place, as it comes. What it raises ends it all.
        :param within: seconds without an answer after which to give up. Default: two minutes.
        """

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            with self._run.guard.allow_signals():
                on_outcome(job_id, outcome)

        fetch = fetch_jobs(app_id, job_ids, note, within, have_ended, are_known=self.are_known)
        self.perform(fetch, job_ids)
