"""Waits for jobs as a sensor does: by pokes, or in the triggerer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import (
    COUNTER_THRESHOLD,
    JobPoller,
    poll_jobs_once,
    strip_payloads,
    timeout_error,
)
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.job_ids import parse_known_job_ids
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import JOB_IS_OVER, raise_for_jobs, read_job_event
from airflow_provider_rungen.execution.run import fail_without_retry
from airflow_provider_rungen.execution.waiting import Defer, WaitingRun
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.options import WaitOptions


class JobSensorRun(WaitingRun["WaitOptions"]):
    """
    An attempt of a sensor that waits for jobs.

    :param task: the sensor.
    :param context: Airflow's context of the attempt.
    :param options: how to wait.
    :param defer: see `WaitingRun`.
    :param result_schema: what every result has to fit.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        options: WaitOptions,
        defer: Defer,
        *,
        result_schema: Any,
    ) -> None:
        super().__init__(task, context, options, defer)
        self._result_schema = result_schema
        self._schema: Schema | None = None
        self._poller: JobPoller | None = None
        #: What the last poke found not to be over.
        self.late: RunGenJobTimeoutError | None = None

    def execute(self, job_id: Any, timeout: float) -> None:
        """
        Wait for the jobs, in the triggerer when they are not over soon.

        :param timeout: seconds to wait at most.
        """
        with fail_without_retry(*JOB_IS_OVER), self.opened():
            self._begin(job_id)
            deadline = self.deadline(time.time() + timeout)
            can_end = self._result_schema is None
            jobs = self.wait(deadline=deadline, on_finished=self._check, can_end_from_trigger=can_end)
            self._finish(jobs)

    def poke(self, job_id: Any) -> bool:
        """Poll the jobs once, and return whether all are over."""
        with fail_without_retry(*JOB_IS_OVER), self.opened():
            self._begin(job_id)
            app_id, job_ids = self.jobs.app_id, list(self.jobs.job_ids)
            if self._poller is None:
                self._poller = JobPoller(app_id, on_finished=metrics.counting(self._check))
            is_wide = len(job_ids) > COUNTER_THRESHOLD
            perform = self.hook.perform_concurrently if is_wide else self.hook.perform
            jobs = perform(poll_jobs_once(self._poller, job_ids))
            if jobs is None:
                self.late = timeout_error(self._poller, job_ids)
                self.name_jobs(self.late)
                return False
            self._finish(jobs)
            return True

    @property
    def not_before(self) -> float:
        """The time (seconds since 1970) before which the service asked not to be polled."""
        return 0.0 if self._poller is None else self._poller.not_before

    def complete(self, job_id: Any, event: Mapping[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        with fail_without_retry(*JOB_IS_OVER), self.opened():
            app_id = event.get("app_id") or self.app_id
            job_ids = event.get("job_ids") or parse_known_job_ids(job_id)
            self.is_about(app_id, job_ids)
            raise_for_jobs(read_job_event(event), event.get("count", 0))
            self.own(app_id, job_ids)
            self._read_schema()
            if self._schema is not None:
                self.refetch(app_id, job_ids, self._check_refetched)
            self._finish([])

    def _begin(self, job_id: Any) -> None:
        app_id, job_ids = self.app_id, parse_known_job_ids(job_id)
        self.own(app_id, job_ids)
        if not self.links:
            self.link_to(app_id, job_ids)
        self._read_schema()

    def _finish(self, jobs: list[Job]) -> None:
        raise_for_jobs(jobs)
        self.record_outcome(TaskOutcome(self.jobs.app_id, self.jobs.job_ids))

    def _read_schema(self) -> None:
        self._schema = self._schema or Schema.of(self._result_schema, "result_schema")

    def _check(self, job: Job) -> Job:
        """Check the result of a job against the schema, and drop it."""
        if self._schema is not None and job.status is JobStatus.COMPLETED:
            self._schema.check_result(job)
        return strip_payloads(job)

    def _check_refetched(self, _: str, job: Job | RunGenError) -> None:
        if isinstance(job, RunGenError):
            raise job
        job.raise_for_status()
        self._check(job)
