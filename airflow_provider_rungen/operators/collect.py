"""The operator that collects what jobs made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.connection import seconds
from airflow_provider_rungen.exceptions import RunGenJobCanceledError, RunGenJobFailedError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.lineage import Done
from airflow_provider_rungen.schemas import Schema, checked
from airflow_provider_rungen.task import deadline_of, failing_for_good
from airflow_provider_rungen.waiting import (
    JobWaiter,
    job_ids_of,
    names_of,
    raise_for_jobs,
    read_event,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_rungen.models import Job


class RunGenCollectResultsOperator(JobWaiter):
    """
    Return the results of jobs: one id gives one result, a list gives a list in the same order.

    The result of an image model holds signed URLs, which whoever can read the XCom can open for seven days.

    :param job_id: one id, a list, or the ``.output`` of a task (templated).
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until the jobs are over; without it a job that is not over is an error.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to look for the end on the worker first; a deferral takes longer than that.
    :param poll_interval: seconds between two looks at a job.
    :param timeout: seconds to wait at most.
    :param cancel_on_kill: cancel the jobs when the task is killed. Off by default, since a task that runs
        again would find them canceled.
    :param result_schema: the JSON Schema that every result has to fit: a dict, the path or URI of a file, or
        the name of a schema that comes with the package, such as ``flux-schnell``.
    """

    template_fields: Sequence[str] = ("app_id", "job_id", "rungen_conn_id")

    def __init__(
        self,
        *,
        job_id: Any,
        wait_for_completion: bool = True,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta = 86400,
        cancel_on_kill: bool = False,
        result_schema: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cancel_on_kill=cancel_on_kill, **kwargs)
        self.job_id = job_id
        self.wait_for_completion = wait_for_completion
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")
        self.result_schema = checked(result_schema, "result_schema")

    def execute(self, context: Context) -> Any:
        """
        Collect the results, waiting for them first unless told not to.

        :return: the result, or the list of results.
        """
        with self._failing(), self._working() as hook:
            app_id = hook.app_id_or_default(self.app_id)
            job_ids = job_ids_of(self.job_id)
            schema = Schema.of(self.result_schema, "result_schema")
            if self.wait_for_completion:
                deadline = deadline_of(self, time.time() + self.timeout)
                jobs = self._wait(hook, app_id, job_ids, poll_interval=self.poll_interval, deadline=deadline)
            else:
                jobs = self._get_all(hook, app_id, job_ids)
            return self._finish(context, app_id, jobs, schema)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """
        Collect the results after the wait in the triggerer.

        :return: the result, or the list of results.
        """
        with self._failing(), self._working() as hook:
            raise_for_jobs(read_event(event), event.get("count", 0))
            schema = Schema.of(self.result_schema, "result_schema")
            jobs = self._get_all(hook, event["app_id"], job_ids_of(self.job_id))
            return self._finish(context, event["app_id"], jobs, schema)

    @staticmethod
    def _get_all(hook: RunGenHook, app_id: str, job_ids: list[str]) -> list[Job]:
        return [hook.get_job(app_id=app_id, job_id=job_id) for job_id in job_ids]

    @staticmethod
    def _failing() -> AbstractContextManager[None]:
        # another try would find the same job as it is
        return failing_for_good(RunGenJobFailedError, RunGenJobCanceledError)

    def _finish(self, context: Context, app_id: str, jobs: list[Job], schema: Schema | None) -> Any:
        raise_for_jobs(jobs, schema=schema)
        destination = getattr(self, "destination", None)
        self._tell(context, Done(app_id, [job.id for job in jobs], destination=destination))
        results = [job.result for job in jobs]
        self.log.info("Collected the results of %s", names_of([job.id for job in jobs]))
        return results[0] if isinstance(self.job_id, str) else results
