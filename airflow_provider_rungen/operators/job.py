"""Operators for single jobs: run one, cancel some."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_rungen import api
from airflow_provider_rungen.connection import seconds
from airflow_provider_rungen.exceptions import RunGenConflictError, RunGenJobTimeoutError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.waiting import (
    JobWaiter,
    deadline_in,
    failing_for_good,
    job_ids_of,
    raise_for_jobs,
    read_event,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_rungen.models import Job


class RunGenRunJobOperator(JobWaiter):
    """
    Run a RunGen job: submit it, push its id under the XCom key ``job_id`` at once, and return the id.

    :param input: a JSON object (a dict), as the app's model wants it (templated, nested values too).
    :param app_id: the app to run; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until the job is over, and fail when it failed or was canceled.
    :param deferrable: wait in the triggerer, without a worker slot. Only with ``wait_for_completion``.
    :param poll_interval: seconds between two looks at the job.
    :param timeout: seconds the job may take; after that it is canceled and the task fails.
    :param cancel_on_kill: cancel the job when the task is killed.
    """

    template_fields: Sequence[str] = ("app_id", "input", "rungen_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json"}
    ui_color = "#e8e4ff"

    def __init__(
        self,
        *,
        input: dict[str, Any],
        app_id: str | None = None,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta = 86400,
        cancel_on_kill: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.input = input
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")
        self.cancel_on_kill = cancel_on_kill

    def execute(self, context: Context) -> str:
        """
        Submit the job, and wait for it when asked to.

        :return: the job's id.
        """
        with failing_for_good(), self._working() as hook:
            app_id = hook.app_id_or_default(self.app_id)
            deadline = deadline_in(self, self.timeout)
            with self._unbreakable():
                job = hook.perform(api.run_job(app_id, self.input))
                self._jobs = (app_id, [job.id])
                self.log.info("Submitted RunGen job %s to app %s", job.id, app_id)
                context["ti"].xcom_push(key="job_id", value=job.id)
            if not self.wait_for_completion:
                return job.id
            try:
                jobs = self._wait(hook, app_id, [job.id], poll_interval=self.poll_interval, deadline=deadline)
            except RunGenJobTimeoutError as error:
                raise self._canceled(hook, error) from None
            return self._finish(job.id, jobs)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the job's id.
        """
        app_id, job_id = event["app_id"], event["job_id"]
        self._jobs = (app_id, [job_id])
        with failing_for_good(), self._working() as hook:
            try:
                jobs = read_event(event, app_id)
            except RunGenJobTimeoutError as error:
                raise self._canceled(hook, error) from None
            return self._finish(job_id, jobs)

    def _finish(self, job_id: str, jobs: list[Job]) -> str:
        raise_for_jobs(jobs)
        return job_id

    def _canceled(self, hook: RunGenHook, error: RunGenJobTimeoutError) -> RunGenJobTimeoutError:
        app_id, job_ids = self._jobs
        self._cancel_all(hook, app_id, job_ids)
        message = f"{error}: it had {self.timeout:g} s. Raise timeout if that was too short."
        return RunGenJobTimeoutError(message, app_id=app_id, job_id=job_ids[0])


class RunGenCancelJobOperator(BaseOperator):
    """
    Cancel RunGen jobs.

    :param job_id: one id, a list, or the ``.output`` of a task (templated).
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param fail_if_over: fail when a job is already over.
    """

    template_fields: Sequence[str] = ("app_id", "job_id", "rungen_conn_id")
    ui_color = "#e8e4ff"

    def __init__(
        self,
        *,
        job_id: Any,
        app_id: str | None = None,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        fail_if_over: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.fail_if_over = fail_if_over

    def execute(self, context: Context) -> list[str]:
        """
        Cancel the jobs.

        :return: the ids of those that were canceled; those already over are left out.
        """
        canceled = []
        with failing_for_good(), RunGenHook(self.rungen_conn_id) as hook:
            for job_id in job_ids_of(self.job_id):
                try:
                    hook.cancel_job(app_id=self.app_id, job_id=job_id)
                except RunGenConflictError:
                    if self.fail_if_over:
                        raise
                    self.log.info("RunGen job %s is already over", job_id)
                else:
                    self.log.info("Canceled RunGen job %s", job_id)
                    canceled.append(job_id)
        return canceled
