"""Waits for jobs on a worker, and hands the wait over to the triggerer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow_provider_rungen._airflow import AIRFLOW_V_3_3_PLUS, AirflowTaskTimeout, metrics
from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.counters import CounterTrust
from airflow_provider_rungen.client.flow import Flow, Gather
from airflow_provider_rungen.client.job_log import log_of
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import (
    COUNTER_THRESHOLD,
    FIRST_INTERVAL,
    INTERVAL_GROWTH,
    JobPoller,
    identity,
    poll_jobs_once,
    strip_payloads,
    wait_for_jobs,
)
from airflow_provider_rungen.client.progress import OtherInputs
from airflow_provider_rungen.client.queue_watch import QueueTimer
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.timeouts import explain_timeout, timeout_error
from airflow_provider_rungen.client.wait_goal import WaitGoal
from airflow_provider_rungen.exceptions import RunGenConflictError, RunGenError
from airflow_provider_rungen.execution import attempts
from airflow_provider_rungen.execution.job_ids import format_jobs
from airflow_provider_rungen.execution.run import TaskRun
from airflow_provider_rungen.execution.usage import USAGE_KEY, Usage

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.lineage import TaskOutcome
    from airflow_provider_rungen.execution.options import WaitOptions

log = logging.getLogger(__name__)

# Results that are fetched again, and held, at a time.
MAX_HELD = 64
Options = TypeVar("Options", bound="WaitOptions")
Defer = Callable[[dict[str, Any], float], NoReturn]


@dataclass
class OwnedJobs:
    """
    The jobs that an attempt answers for.

    :param finished: those that are known to be over.
    :param borrowed: those that another task run submitted. They are waited for, and never canceled.
    """

    app_id: str = ""
    job_ids: Sequence[str] = ()
    finished: Collection[str] = ()
    borrowed: Collection[str] = ()

    @property
    def running(self) -> list[str]:
        """The jobs to keep or cancel: those that may still run."""
        return [
            job_id for job_id in self.job_ids if job_id not in self.finished and job_id not in self.borrowed
        ]


class WaitingRun(TaskRun[Options]):
    """
    An attempt that waits for jobs, and cancels them when it is killed (``cancel_on_kill``).

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: the operator's parameters.
    :param defer: defers the task with these arguments of `RunGenJobTrigger`, and seconds until the deadline.
    """

    def __init__(self, task: BaseOperator, context: Context, options: Options, defer: Defer) -> None:
        super().__init__(task, context, options)
        self.jobs = OwnedJobs()
        self.usage = Usage()
        #: How far the app's counters are trusted, as far as the waits of this task know.
        self.trust = CounterTrust()
        #: The jobs that this attempt has canceled.
        self.canceled: set[str] = set()
        self._defer = defer
        # whether Airflow calls on_kill next, since execution_timeout has passed
        self._is_timing_out = False

    @property
    def job_ids(self) -> Sequence[str]:
        return list(dict.fromkeys([*super().job_ids, *self.usage.job_ids, *self.jobs.job_ids]))

    def known_outcome(self) -> TaskOutcome | None:
        outcome = super().known_outcome()
        return outcome and replace(outcome, usage=self._known_usage())

    def _known_usage(self) -> dict[str, Any] | None:
        return self.usage.to_json() if self.usage else None

    def own(self, app_id: str, job_ids: Sequence[str], borrowed: Collection[str] = ()) -> None:
        """Answer for these jobs from now on, and for no others."""
        self.known_app_id = app_id or self.known_app_id
        self.jobs = OwnedJobs(app_id, job_ids, borrowed=borrowed)

    @contextmanager
    def reporting_usage(self) -> Iterator[None]:
        """Push what the jobs used when the attempt ends, also if it fails. A deferral does not end it."""
        try:
            yield
        except AirflowTaskTimeout:
            self._is_timing_out = True  # what is canceled then is used, too
            raise
        except Exception:
            if not self.guard.is_killed:
                self.push_usage()
            raise
        self.push_usage()

    def push_usage(self) -> None:
        """Push what the jobs used, and log it."""
        if self.usage:
            log.info("Used %s", self.usage)
        self.usage.send_metrics()
        self.push_quietly(USAGE_KEY, self.usage.to_json(), "what the jobs used")

    def record_outcome(self, outcome: TaskOutcome) -> None:
        super().record_outcome(replace(outcome, usage=self._known_usage()))

    def _clean_up(self) -> str:
        last_words = super()._clean_up()
        if self._is_timing_out:
            attempts.call_briefly(self.push_usage, self.guard.time_left())
        return last_words

    def cleanup(self) -> str:
        if self.options.cancel_on_kill and self.jobs.job_ids:
            self.cancel(self.jobs.running, within=max(self.guard.time_left(), 1))
        return ""

    def cancel(self, job_ids: Sequence[str], *, within: float | None = None) -> list[str]:
        """
        Cancel jobs, and return those that may still run.

        :param within: the seconds that it may take; when left out, as many as the jobs need.
        """
        if not job_ids:
            return []
        app_id = self.jobs.app_id
        if within is None:
            within = 60.0 + len(job_ids) / (self.hook.settings.max_requests_per_second or 20)
        outcomes = self.hook.cancel_jobs(app_id=app_id, job_ids=job_ids, within=within)
        failures = {
            job_id: error
            for job_id, error in outcomes.items()
            if error is not None and not isinstance(error, RunGenConflictError)  # that one is over
        }
        if canceled := [job_id for job_id, error in outcomes.items() if error is None]:
            self.canceled |= set(canceled)
            self.usage.note_ends(dict.fromkeys(canceled, False), None)
            log.info("Canceled %s of app %s", format_jobs(canceled), app_id)
        for error in list(failures.values())[:10]:
            log.warning("%s", error.message)
        if len(failures) > 10:
            log.warning("Could not cancel %d more jobs of app %s", len(failures) - 10, app_id)
        return list(failures)

    @metrics.timing("wait.worker")
    def wait(
        self,
        *,
        deadline: float,
        visible_by: float = 0.0,
        on_finished: Callable[[Job], Job] = identity,
        can_end_from_trigger: bool = True,
        before_end_from_trigger: Callable[[], None] = lambda: None,
        goal: WaitGoal | None = None,
        others: OtherInputs | None = None,
        may_defer: bool = True,
    ) -> list[Job]:
        """
        Wait for the owned jobs here, or defer when they are not over soon. Return those that are over.

        :param deadline: the time (seconds since 1970) to stop waiting at.
        :param visible_by: the time (seconds since 1970) until which the service may not know the jobs yet.
        :param on_finished: what to keep of a job that is over.
        :param can_end_from_trigger: whether a success needs no worker, as far as the caller knows.
        :param before_end_from_trigger: called before a deferral whose trigger may end the task.
        :param goal: what to wait for, if not for all jobs.
        :param others: what the log counts, too.
        :param may_defer: whether the task can go on after a deferral.
        :raises RunGenJobTimeoutError: the deadline passed.
        """
        app_id, job_ids, interval = self.jobs.app_id, list(self.jobs.job_ids), self.options.poll_interval
        is_wide = len(job_ids) > COUNTER_THRESHOLD
        perform = self.hook.perform_concurrently if is_wide else self.hook.perform

        def noting(job: Job) -> Job:
            self.usage.note(job)
            return on_finished(job)

        poller = JobPoller(
            app_id,
            log_of(is_wide),
            on_finished=metrics.counting(noting),
            is_lean=on_finished is strip_payloads,
            trust=self.trust,
        )
        self.jobs.finished = poller.finished
        goal = goal or WaitGoal()
        # as it is now: a trigger polls all of these jobs again
        in_trigger = {"left": goal.left, "stop_after": goal.stop_after, "failures": goal.failures}
        in_trigger = {name: value for name, value in in_trigger.items() if value}
        if not self.options.deferrable or not may_defer:
            return perform(
                wait_for_jobs(
                    app_id,
                    job_ids,
                    poll_interval=interval,
                    deadline=deadline,
                    visible_by=visible_by,
                    poller=poller,
                    first_interval=FIRST_INTERVAL,
                    queued_timeout=self.options.queued_timeout,
                    goal=goal,
                    others=others,
                )
            )
        defer_at = min(time.time() + self.options.defer_after, deadline)
        pause, limit = FIRST_INTERVAL, self.options.queued_timeout
        timer = None if limit is None else QueueTimer(limit, time.time())
        poller.add(job_ids, time.time(), visible_by)
        while True:
            left = deadline - time.time()
            jobs = perform(poll_jobs_once(poller, job_ids, poll_interval=pause, left=left, goal=goal))
            if jobs is not None:
                return jobs
            if left <= 0:
                raise perform(explain_timeout(poller, job_ids))
            now = time.time()
            if timer is not None and timer.is_over(poller, job_ids, now):
                raise timeout_error(poller, job_ids, queued_for=now - timer.moved_at)
            if defer_at <= now < deadline:
                ends = can_end_from_trigger and self._can_end_from_trigger()
                if ends:
                    before_end_from_trigger()
                self.defer(
                    deadline,
                    known_by=0.0 if poller.has_seen_all else visible_by,
                    held_back=poller.held_back(now),
                    **({} if timer is None else {"queued_since": timer.moved_at}),
                    end_from_trigger=ends,
                    **({"counters": kept} if (kept := self.trust.to_json()) else {}),
                    **({"others": asdict(others)} if others else {}),
                    **in_trigger,
                )
            self.checkpoint()
            self.hook.sleep(min(max(pause, poller.not_before - now), max(defer_at - now, 0)))
            pause = min(pause * INTERVAL_GROWTH, interval)

    def defer(self, deadline: float, **arguments: Any) -> NoReturn:
        """Go on waiting for the owned jobs in the triggerer."""
        app_id, job_ids, now = self.jobs.app_id, list(self.jobs.job_ids), time.time()
        if len(job_ids) == 1:
            log.info("Waiting in the triggerer %s", format_ids(app_id, job_ids[0]))
        else:
            log.info("Waiting in the triggerer for %d jobs %s", len(job_ids), format_ids(app_id))
        self._defer(
            {
                "rungen_conn_id": self.options.rungen_conn_id,
                "app_id": app_id,
                "job_id": job_ids,
                "poll_interval": self.options.poll_interval,
                "deadline": deadline,
                "queued_timeout": self.options.queued_timeout,
                "deferred_at": now,
                "cancel_on_kill": self.options.cancel_on_kill,
                **({"borrowed": list(self.jobs.borrowed)} if self.jobs.borrowed else {}),
                **arguments,
            },
            deadline - now,
        )

    def _can_end_from_trigger(self) -> bool:
        """Return whether a success needs no worker: asset events and lengths to map over are made there."""
        if not self.options.end_from_trigger or not AIRFLOW_V_3_3_PLUS or self.task.outlets:
            return False
        return next(iter(self.task.iter_mapped_dependants()), None) is None

    def refetch(
        self,
        app_id: str,
        job_ids: Sequence[str],
        on_outcome: Callable[[str, Job | RunGenError], None],
        *,
        visible_by: float = 0.0,
    ) -> None:
        """
        Fetch jobs that are over, so many at a time.

        :param app_id: their app.
        :param job_ids: the jobs.
        :param on_outcome: takes a job, or the error in its place, as it comes. What it raises ends it all.
        :param visible_by: the time (seconds since 1970) until which the service may not know the jobs yet.
        """
        is_wide = len(job_ids) > COUNTER_THRESHOLD
        perform = self.hook.perform_concurrently if is_wide else self.hook.perform
        perform(_refetch(app_id, job_ids, on_outcome, visible_by))


def _refetch(
    app_id: str,
    job_ids: Sequence[str],
    on_outcome: Callable[[str, Job | RunGenError], None],
    visible_by: float,
) -> Flow[None]:
    def fetch(job_id: str) -> Flow[None]:
        try:
            job = yield from endpoints.get_job_when_visible(app_id, job_id, visible_by=visible_by)
        except RunGenError as error:
            on_outcome(job_id, error)
        else:
            on_outcome(job_id, job)

    for start in range(0, len(job_ids), MAX_HELD):
        for refused in (yield Gather([fetch(job_id) for job_id in job_ids[start : start + MAX_HELD]])):
            if refused is not None:
                raise refused
