"""Cancels the jobs that a task names."""

from __future__ import annotations

import logging
from typing import Any

from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenAPIError, RunGenConflictError, RunGenError
from airflow_provider_rungen.execution.task.job_ids import parse_known_job_ids
from airflow_provider_rungen.execution.task.options import RunOptions
from airflow_provider_rungen.execution.task.outcomes import combined_error
from airflow_provider_rungen.execution.task.run import TaskRun, fail_without_retry

log = logging.getLogger(__name__)


class CancelRun(TaskRun[RunOptions]):
    """An attempt that cancels jobs."""

    def page_details(self) -> dict[str, Any]:
        return {"waits": False}

    def execute(self, job_id: Any, *, fail_if_over: bool) -> list[str]:
        """
        Cancel jobs one by one.

        :return: the ids of those that were canceled.
        :raises RunGenConflictError: a job is over, and it may not be.
        :raises RunGenAPIError: a job could not be canceled.
        """
        canceled: list[str] = []
        running: list[RunGenError] = []
        with fail_without_retry(), self.opened() as hook:
            app_id, job_ids = self.app_id, parse_known_job_ids(job_id)
            self.link_to(app_id, job_ids)
            for each in job_ids:
                try:
                    hook.cancel_job(app_id=app_id, job_id=each)
                except RunGenConflictError:
                    if fail_if_over:
                        raise
                    log.info("Already over %s", format_ids(app_id, each))
                except RunGenAPIError as error:
                    if error.status_code != 409:
                        raise
                    running.append(error)  # the others may be canceled
                else:
                    log.info("Canceled %s", format_ids(app_id, each))
                    canceled.append(each)
            if running:
                raise combined_error(running, len(running), "could not be canceled and may still run")
        return canceled
