"""Runs one job: submits it or resumes that of an earlier attempt, and waits for it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import VISIBILITY_GRACE
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution import submission
from airflow_provider_rungen.execution.durable import DurableRun
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import raise_for_jobs, read_job_event
from airflow_provider_rungen.execution.submission import DurableSubmission, Submission
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.attempts import End
    from airflow_provider_rungen.execution.options import SubmitOptions
    from airflow_provider_rungen.execution.waiting import Defer

log = logging.getLogger(__name__)


class JobRun(DurableRun["SubmitOptions"]):
    """An attempt that runs one job."""

    record_key = submission.KEY

    def __init__(self, task: BaseOperator, context: Context, options: SubmitOptions, defer: Defer) -> None:
        super().__init__(task, context, options, defer)
        self._submission = DurableSubmission(self)
        self.own(self._submission.app_id, self._submission.job_ids)

    def execute(self, job_input: Any) -> str:
        """
        Submit the job, or resume that of an earlier attempt, and wait for it when asked to.

        :return: the job's id.
        """
        self.warn_if_not_durable()
        with self.owning():
            job, deadline = self._submit(job_input)
            jobs: list[Job] = []
            if self.options.wait_for_completion:
                jobs = self.wait(
                    deadline=self.deadline(deadline),
                    visible_by=time.time() + VISIBILITY_GRACE,
                    before_end_from_trigger=lambda: self.push_return_value(job.id),
                )
            return self._finish(job.id, jobs)

    def complete(self, event: Mapping[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the job's id.
        """
        # another version of the package may have left something out
        job_ids = event.get("job_ids") or self.pushed_job_ids()
        self.own(event.get("app_id") or self.options.app_id or "", job_ids)
        with self.owning():
            app_id = event.get("app_id") or self.app_id
            self.own(app_id, job_ids)
            for job_id in job_ids:
                self._submission.confirm(app_id, job_id)
                self.usage.note_submitted(job_ids)
                self.usage.note_event(job_ids, event)
                return self._finish(job_id, read_job_event(event))
            raise RunGenError("The trigger's event names no job, and none was pushed before the deferral")

    def note_end(self, end: End) -> None:
        self._submission.note_end(end)

    def pushed_job_ids(self) -> list[str]:
        job_id = self.xcom_pull("job_id")
        return [job_id] if job_id else []

    def _submit(self, job_input: Any) -> Submission:
        app_id = self.app_id
        self.link_to(app_id)
        self.push_origin(app_id)
        found = self._submission.find(app_id, job_input)
        if found is None:
            self.own("", [])  # what an earlier attempt left is over, canceled or not to be canceled
            if schema := Schema.of(self.options.input_schema, "input_schema"):
                schema.check_input(json.loads(codec.encode_input(job_input)))
        with self.guard.defer_signals():
            if found is None:
                found = self._submission.submit(app_id, job_input)
                log.info("Submitted job %s to app %s", found.job.id, app_id)
            self.own(app_id, [found.job.id])
            self.usage.note_submitted([found.job.id])
            self.ti.xcom_push(key="job_id", value=found.job.id)
            self.link_to_job(app_id, found.job.id)
        return found

    def _finish(self, job_id: str, jobs: list[Job]) -> str:
        raise_for_jobs(jobs)
        self.record_outcome(TaskOutcome(self.jobs.app_id, [job_id]))
        return job_id
