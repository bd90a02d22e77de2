"""Waits for the jobs of other tasks as a sensor does, by pokes or in the triggerer, and cancels them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.endpoints import cancel_jobs
from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import Wait, job_of
from airflow_provider_rungen.client.retry import RETRY_BUDGET
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenJobQueuedTimeoutError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.task.job_ids import begin_with_jobs, log_jobs, parse_known_job_ids
from airflow_provider_rungen.task.options import JobOptions, RunOptions
from airflow_provider_rungen.task.outcomes import (
    JOB_IS_OVER,
    are_all_over,
    combined_error,
    parse_ranges,
    raise_for_event,
    raise_for_jobs,
)
from airflow_provider_rungen.task.report import TaskOutcome
from airflow_provider_rungen.task.run import TaskRun
from airflow_provider_rungen.work.wait import JobWait

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

# Of more jobs that failed, an error names no reasons.
_MAX_FAILED = 100


class JobSensorRun(TaskRun[JobOptions]):
    """
    An attempt of a sensor that waits for jobs.

    :param task: the sensor.
    :param context: Airflow's context of the attempt.
    """

    def __init__(self, task: Any, context: Context) -> None:
        super().__init__(task, context, JobOptions.of(task))
        self._wait = JobWait(self, task.defer_for_jobs)
        self._job_id, self._output_type = task.job_id, task.output_type
        self._output: OutputType | None = None
        self._pokes: Wait | None = None
        #: What the last poke found not to have ended.
        self.late: RunGenJobTimeoutError | None = None

    def execute(self, timeout: float) -> None:
        """
        Wait for the jobs, in the triggerer when they are not going to end soon.

        :param timeout: seconds to wait at most.
        """
        with self.attempt(*JOB_IS_OVER), self.opened():
            self._wait_for(*self._begin(), timeout)

    def complete(self, event: Mapping[str, Any], timeout: float) -> None:
        """
        Go on after the wait in the triggerer.

        :param timeout: seconds to wait at most if the event does not say that all jobs have ended.
        """
        self._wait.are_known = True
        with self.attempt(*JOB_IS_OVER), self.opened():
            app_id, job_ids = event.get("app_id") or self.app_id, parse_known_job_ids(self._job_id)
            self.note_app(app_id, job_ids)
            raise_for_event(event)
            failed = [job_ids[place] for place in parse_ranges(event.get("failed"), len(job_ids))]
            raise_for_jobs(self._fetch(app_id, failed[:_MAX_FAILED]), len(failed))
            self._read_type()
            if not are_all_over(event):
                self._wait_for(app_id, job_ids, timeout)
                return
            self._finish(app_id, job_ids, [] if self._output is None else self._fetch(app_id, job_ids))

    def poke(self) -> bool:
        """Poll the jobs once, and return whether all have ended."""
        with self.attempt(*JOB_IS_OVER), self.opened():
            app_id, job_ids = self._begin()
            only: Sequence[str] | None = None
            if self._pokes is None:
                # a rescheduled sensor has looked at the jobs, and at the queue, at its first poke
                self._wait.are_known = bool(self.context.get("task_reschedule_count"))
                self._pokes, only = self._wait.begin(app_id, job_ids, self._check), job_ids
                self._pokes.poller.watches_queue = not self._wait.are_known
            wait = self._pokes
            try:
                is_over = self._wait.perform(wait.poll(None, only), job_ids)
            except RunGenJobQueuedTimeoutError as error:
                self.late = error
                raise
            if is_over:
                # not before: after each reschedule, the same jobs are found to have ended
                jobs = self._wait.count([wait.finished[job_id] for job_id in job_ids])
                self._finish(app_id, job_ids, jobs)
                return True
            # the error of a time-out that may come before the next poke
            self.late = wait.timeout_error()
            self.name_jobs(self.late)
            return False

    def cleanup(self) -> str:
        self._wait.cancel_on_kill()
        return ""

    @property
    def not_before(self) -> float:
        """The time (seconds since 1970) before which the service asked not to be polled."""
        return 0.0 if self._pokes is None else self._pokes.poller.not_before

    def _begin(self) -> tuple[str, list[str]]:
        app_id, job_ids = self.app_id, parse_known_job_ids(self._job_id)
        self.note_app(app_id, job_ids)
        if not self.links:
            self.link_to(app_id, job_ids)
        self._read_type()
        return app_id, job_ids

    def _wait_for(self, app_id: str, job_ids: list[str], timeout: float) -> None:
        jobs = self._wait.wait(
            app_id,
            job_ids,
            deadline=self.deadline(time.time() + timeout),
            on_finished=self._check,
            # all of them, since nothing else remembers those that failed before the deferral
            before_defer=lambda ended: {"job_id": job_ids},
        )
        self._finish(app_id, job_ids, jobs)

    def _finish(self, app_id: str, job_ids: Sequence[str], jobs: Sequence[Job]) -> None:
        raise_for_jobs(jobs)
        self.record_outcome(TaskOutcome(app_id, job_ids))

    def _fetch(self, app_id: str, job_ids: Sequence[str]) -> list[Job]:
        """Fetch jobs that have ended, and check their results."""
        found: list[Job] = []

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            found.append(self._check(job_of(outcome, app_id, job_id)))

        self._wait.refetch(app_id, job_ids, note)
        return found

    def _read_type(self) -> None:
        self._output = self._output or OutputType.of(self._output_type)

    def _check(self, job: Job) -> Job:
        """Check the result of a job against its type, and drop it."""
        if self._output is not None and job.is_usable:
            self._output.read(job)
        return strip_payloads(job)


class CancelRun(TaskRun[RunOptions]):
    """An attempt that cancels jobs."""

    #: The jobs, and the outcome of each that was asked to stop: an error, or ``None``.
    _job_ids: Sequence[str] = ()
    _outcomes: Mapping[str, RunGenError | None] = MappingProxyType({})

    def execute(self) -> list[str]:
        """
        Cancel all jobs that can be canceled.

        :return: the ids of those that were canceled.
        :raises RunGenConflictError: a job is over, and it may not be.
        :raises RunGenError: a job could not be canceled.
        """
        with self.attempt(), self.opened() as hook:
            app_id, job_ids = self.app_id, list(dict.fromkeys(parse_known_job_ids(self.task.job_id)))
            outcomes: dict[str, RunGenError | None] = {}
            self._job_ids, self._outcomes = job_ids, outcomes
            self.link_to(app_id, job_ids)
            flow = cancel_jobs(app_id, job_ids, outcomes, retry_budget=RETRY_BUDGET)
            hook.perform_concurrently(flow)
            failed: dict[str, RunGenError] = {}
            for each in job_ids:
                if (error := outcomes[each]) is None:
                    log.info("Canceled %s", format_ids(app_id, each))
                elif _is_over(error):
                    log.info("Already over %s", format_ids(app_id, each))
                else:
                    failed[each] = error
            if failed:
                log_jobs(f"Could not cancel jobs of app {app_id}", list(failed))
                combined = combined_error(failed.values(), len(failed), "could not be canceled")
                # a retry may still cancel some of them
                combined.retryable = any(error.retryable for error in failed.values())
                raise combined
        return [each for each in job_ids if outcomes[each] is None]

    def cleanup(self) -> str:
        over = {each for each, error in self._outcomes.items() if not error or _is_over(error)}
        if not (left := [each for each in self._job_ids if each not in over]):
            return ""
        log_jobs(f"May still run, jobs of app {self.known_app_id}", left)
        return f"{begin_with_jobs(left, self.known_app_id)} may still run."


def _is_over(error: RunGenError) -> bool:
    return isinstance(error, RunGenConflictError)
