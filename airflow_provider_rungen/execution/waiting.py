"""Waits for jobs on a worker, and hands the wait over to the triggerer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow_provider_rungen._airflow import AIRFLOW_V_3_3_PLUS, metrics
from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow, Gather
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import (
    COUNTER_THRESHOLD,
    JobPoller,
    identity,
    log_line,
    log_quietly,
    poll_jobs_once,
    strip_payloads,
    timeout_error,
    wait_for_jobs,
)
from airflow_provider_rungen.exceptions import RunGenConflictError, RunGenError
from airflow_provider_rungen.execution.job_ids import format_jobs
from airflow_provider_rungen.execution.run import TaskRun
from airflow_provider_rungen.execution.usage import USAGE_KEY, Usage

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.lineage import TaskOutcome
    from airflow_provider_rungen.execution.options import WaitOptions

log = logging.getLogger(__name__)

# Seconds to the second poll of a job that may be over before a deferral is worth it.
FIRST_INTERVAL = 0.3
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
        self._defer = defer

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
        except Exception:
            if not self.guard.is_killed:
                self.push_usage()
            raise
        self.push_usage()

    def push_usage(self) -> None:
        """Push what the jobs used, and log it."""
        log.info("Used %s", self.usage)
        self.usage.send_metrics()
        self.push_quietly(USAGE_KEY, self.usage.to_json(), "what the jobs used")

    def record_outcome(self, outcome: TaskOutcome) -> None:
        super().record_outcome(replace(outcome, usage=self._known_usage()))

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
            log.info("Canceled %s of app %s", format_jobs(canceled), app_id)
        for job_id, error in list(failures.items())[:10]:
            log.warning("Could not cancel job %s of app %s: %s", job_id, app_id, error)
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
    ) -> list[Job]:
        """
        Wait for the owned jobs here, or defer when they are not over soon.

        :param deadline: the time (seconds since 1970) to stop waiting at.
        :param visible_by: the time (seconds since 1970) until which the service may not know the jobs yet.
        :param on_finished: what to keep of a job that is over.
        :param can_end_from_trigger: whether a success needs no worker, as far as the caller knows.
        :param before_end_from_trigger: called before a deferral whose trigger may end the task.
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
            log_quietly if is_wide else log_line,
            on_finished=metrics.counting(noting),
            is_lean=on_finished is strip_payloads,
        )
        self.jobs.finished = poller.finished
        if not self.options.deferrable:
            return perform(
                wait_for_jobs(
                    app_id,
                    job_ids,
                    poll_interval=interval,
                    deadline=deadline,
                    visible_by=visible_by,
                    poller=poller,
                )
            )
        defer_at = min(time.time() + self.options.defer_after, deadline)
        pause = FIRST_INTERVAL
        poller.add(job_ids, time.time(), visible_by)
        while True:
            left = deadline - time.time()
            jobs = perform(poll_jobs_once(poller, job_ids, poll_interval=pause, left=left))
            if jobs is not None:
                return jobs
            if left <= 0:
                raise timeout_error(poller, job_ids)
            now = time.time()
            if defer_at <= now < deadline:
                ends = can_end_from_trigger and self._can_end_from_trigger()
                if ends:
                    before_end_from_trigger()
                self.defer(
                    deadline,
                    known_by=0.0 if poller.has_seen_all else visible_by,
                    held_back=poller.held_back(now),
                    end_from_trigger=ends,
                )
            self.checkpoint()
            self.hook.sleep(min(max(pause, poller.not_before - now), max(defer_at - now, 0)))
            pause = min(pause * 1.5, interval)

    def defer(self, deadline: float, **arguments: Any) -> NoReturn:
        """Go on waiting for the owned jobs in the triggerer."""
        app_id, job_ids, now = self.jobs.app_id, list(self.jobs.job_ids), time.time()
        log.info("Waiting for %s of app %s in the triggerer", format_jobs(job_ids), app_id)
        self._defer(
            {
                "rungen_conn_id": self.options.rungen_conn_id,
                "app_id": app_id,
                "job_id": job_ids,
                "poll_interval": self.options.poll_interval,
                "deadline": deadline,
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
