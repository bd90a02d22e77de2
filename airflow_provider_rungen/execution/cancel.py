"""Cancels the jobs that a task names."""

from __future__ import annotations

import logging
from typing import Any

from airflow_provider_rungen.client.endpoints import cancel_jobs
from airflow_provider_rungen.client.retry import RETRY_BUDGET
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenConflictError, RunGenError
from airflow_provider_rungen.execution.task.job_ids import log_jobs, parse_known_job_ids
from airflow_provider_rungen.execution.task.options import RunOptions
from airflow_provider_rungen.execution.task.outcomes import combined_error
from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)


class CancelRun(TaskRun[RunOptions]):
    """An attempt that cancels jobs."""

    def page_details(self) -> dict[str, Any]:
        return {"waits": False}

    def execute(self) -> list[str]:
        """
        Cancel all jobs that can be canceled.

        :return: the ids of those that were canceled.
        :raises RunGenConflictError: a job is over, and it may not be.
        :raises RunGenError: a job could not be canceled.
        """
        with self.attempt(), self.opened() as hook:
            app_id, job_ids = self.app_id, list(dict.fromkeys(parse_known_job_ids(self.task.job_id)))
            self.link_to(app_id, job_ids)
            outcomes: dict[str, RunGenError | None] = {}
            flow = cancel_jobs(app_id, job_ids, outcomes, retry_budget=RETRY_BUDGET)
            hook.perform_concurrently(flow)
            failed: dict[str, RunGenError] = {}
            for each in job_ids:
                if (error := outcomes[each]) is None:
                    log.info("Canceled %s", format_ids(app_id, each))
                elif isinstance(error, RunGenConflictError) and not self.task.fail_if_over:
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
