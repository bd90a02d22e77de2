"""Waits for jobs and collects what they made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.collector import Collector
from airflow_provider_rungen.execution.job_ids import is_single, parse_job_ids
from airflow_provider_rungen.execution.outcomes import JOB_IS_OVER, max_failures, read_job_event
from airflow_provider_rungen.execution.run import fail_without_retry
from airflow_provider_rungen.execution.waiting import Defer, WaitingRun

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.options import CollectOptions, WaitOptions


class CollectRun(WaitingRun["WaitOptions"]):
    """
    An attempt that collects the results of jobs.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: how to wait.
    :param defer: see `WaitingRun`.
    :param collect: what to do with the results.
    :param wait_timeout: seconds to wait at most; ``None`` to wait for nothing.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        options: WaitOptions,
        defer: Defer,
        *,
        collect: CollectOptions,
        wait_timeout: float | None,
    ) -> None:
        super().__init__(task, context, options, defer)
        self._collect_options = collect
        self._wait_timeout = wait_timeout

    def execute(self, job_id: Any) -> Any:
        """
        Collect the results, after the wait.

        :return: the result or small manifest, or the list of them; or what the results table has.
        """
        with fail_without_retry(*JOB_IS_OVER), self.opened(), self.reporting_usage():
            app_id, ids = self.app_id, self._ids(job_id)
            self.usage.note_submitted(filter(None, ids))
            job_ids = [each for each in dict.fromkeys(ids) if each is not None]
            self.link_to(app_id, job_ids)
            with closing(Collector(self, self._collect_options)) as collector:
                collector.prepare()
                jobs: list[Job] = []
                with collector.reporting_failure(app_id, ids):
                    pending = collector.find_stored(app_id, job_ids)
                    if self._wait_timeout is not None:
                        self.own(app_id, pending)
                        deadline = self.deadline(time.time() + self._wait_timeout)
                        jobs = self.wait(deadline=deadline, on_finished=collector.hold)
                return self._collect(collector, job_id, app_id, ids, jobs)

    def complete(self, job_id: Any, event: Mapping[str, Any]) -> Any:
        """
        Collect the results after the wait in the triggerer.

        :return: the result or small manifest, or the list of them; or what the results table has.
        """
        with fail_without_retry(*JOB_IS_OVER), self.opened(), self.reporting_usage():
            app_id, ids = event.get("app_id") or self.app_id, self._ids(job_id)
            self.usage.note_submitted(filter(None, ids))
            self.usage.note_event([each for each in ids if each is not None], event)
            self.is_about(app_id)
            with closing(Collector(self, self._collect_options)) as collector:
                with collector.reporting_failure(app_id, ids):
                    failed = read_job_event(event)
                return self._collect(collector, job_id, app_id, ids, failed)

    def _collect(
        self, collector: Collector, job_id: Any, app_id: str, ids: Sequence[str | None], jobs: list[Job]
    ) -> Any:
        max_failed = self._collect_options.max_failed
        return collector.collect(app_id, ids, jobs, max_failed=max_failed, single=is_single(job_id))

    def page_details(self) -> dict[str, Any]:
        places = {"destination": self._collect_options.destination, "results": self._collect_options.results}
        return {name: redact(str(place)) for name, place in places.items() if place is not None}

    def _ids(self, job_id: Any) -> list[str | None]:
        """
        Return the ids, with ``None`` for an input without a job.

        :raises RunGenInputError: something in it cannot be an id, or more have no job than may fail.
        """
        ids = parse_job_ids(job_id)
        absent, allowed = ids.count(None), max_failures(self._collect_options.max_failed, len(ids))
        if absent > allowed:
            raise RunGenInputError(f"job_id: {absent} of {len(ids)} have no job, {allowed} may (max_failed)")
        return ids
