"""Waits for jobs and collects what they made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.jobs.job_wait import Defer, JobWait
from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
from airflow_provider_rungen.execution.sinks.returned import Results
from airflow_provider_rungen.execution.sinks.table_results import TableResults
from airflow_provider_rungen.execution.task.job_ids import is_single, parse_job_ids
from airflow_provider_rungen.execution.task.outcomes import (
    JOB_IS_OVER,
    are_all_over,
    max_failures,
    raise_for_event,
)
from airflow_provider_rungen.execution.task.page_record import MAX_PAGE_JOBS
from airflow_provider_rungen.execution.task.run import TaskRun, fail_without_retry
from airflow_provider_rungen.execution.task.usage import Usage
from airflow_provider_rungen.runs.plan import Manifest, PlannedRow

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.task.options import CollectOptions, JobOptions


class CollectedPlan:
    """
    The plan of a task that collects: a row for each id, without columns.

    :param app_id: the app of the jobs.
    :param count: how many ids there are.
    """

    def __init__(self, app_id: str, count: int) -> None:
        self.manifest = Manifest(app_id, ())
        self._count = count

    def rows(self) -> Iterable[PlannedRow]:
        return repeat(PlannedRow(), self._count)


class CollectRun(TaskRun["JobOptions"]):
    """
    An attempt that collects the results of jobs.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: how to wait.
    :param defer: see `JobWait`.
    :param collect: what to do with the results.
    :param wait_timeout: seconds to wait at most; ``None`` to wait for nothing.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        options: JobOptions,
        defer: Defer,
        *,
        collect: CollectOptions,
        wait_timeout: float | None,
    ) -> None:
        super().__init__(task, context, options)
        self.usage = Usage()
        self.usage_report.used = self.usage.to_json
        self._wait = JobWait(self, defer)
        self._collect_options = collect
        self._wait_timeout = wait_timeout
        self._shown_ids: Sequence[str | None] = ()

    def execute(self, job_id: Any) -> Any:
        """
        Collect the results, after the wait.

        :return: the result or small manifest, or the list of them; or what the results table has.
        """
        return self._run(job_id, None)

    def complete(self, job_id: Any, event: Mapping[str, Any]) -> Any:
        """
        Collect the results after the wait in the triggerer.

        :return: the result or small manifest, or the list of them; or what the results table has.
        """
        return self._run(job_id, event)

    def _run(self, job_id: Any, event: Mapping[str, Any] | None) -> Any:
        with fail_without_retry(*JOB_IS_OVER), self.opened(), self.usage_report.at_end():
            app_id, ids = (event or {}).get("app_id") or self.app_id, self._ids(job_id)
            job_ids = [each for each in dict.fromkeys(ids) if each is not None]
            self.usage.note_submitted(job_ids)
            self._shown_ids = ids[:MAX_PAGE_JOBS]
            if event is None:
                self.link_to(app_id, job_ids)
            else:
                self.note_app(app_id, job_ids)
            with closing(self._sink(is_single=is_single(job_id))) as sink:
                if event is None:
                    sink.prepare()
                return self._collect(sink, app_id, ids, event)

    def _sink(self, *, is_single: bool) -> Results | TableResults:
        options, refetch = self._collect_options, self._wait.refetch
        if options.results is not None:
            return TableResults(self, options, refetch=refetch, usage=self.usage)
        return Results(self, options, refetch=refetch, is_single=is_single, usage=self.usage)

    def _collect(
        self,
        sink: Results | TableResults,
        app_id: str,
        ids: list[str | None],
        event: Mapping[str, Any] | None,
    ) -> Any:
        no_job = RunGenError("it has no job", retryable=False)
        result = BatchResult(ids, {index: no_job for index, each in enumerate(ids) if each is None})
        plan = CollectedPlan(app_id, len(ids))
        try:
            if event is not None:
                raise_for_event(event)
            are_over = event is not None and are_all_over(event)
            jobs = self._wait_for(sink, app_id, result.job_ids, are_over=are_over)
            return sink.finish(replace(result, jobs=jobs), plan)
        except RunGenError as error:
            if isinstance(error, RunGenJobTimeoutError) and self._collect_options.results is not None:
                # those that are over are paid for
                with suppress(RunGenError):
                    sink.gather(app_id, ids)
            sink.report(result, plan, error)
            raise

    def _wait_for(
        self, sink: Results | TableResults, app_id: str, job_ids: Sequence[str], *, are_over: bool
    ) -> list[Job]:
        """
        Wait for the jobs that are not stored.

        :param are_over: whether a trigger has seen their ends.
        """
        if self._wait_timeout is None or (are_over and self._collect_options.destination is not None):
            return []  # collecting fetches each of them

        def hold(job: Job) -> Job:
            self.usage.note(job)
            return sink.hold(job)

        pending = sink.find_stored(app_id, job_ids)
        return self._wait.wait(
            app_id,
            pending,
            deadline=self.deadline(time.time() + self._wait_timeout),
            on_finished=hold,
            ended=pending if are_over else (),
        )

    def cleanup(self) -> str:
        self._wait.cancel_on_kill()
        for job_id in self._wait.canceled:
            self.usage.note_end(job_id, is_completed=False)
        return ""

    def page_details(self) -> dict[str, Any]:
        places = {"destination": self._collect_options.destination, "results": self._collect_options.results}
        details = {name: redact(str(place)) for name, place in places.items() if place is not None}
        # those without a job among them: failures are known by their index
        return {**details, "jobs": self._shown_ids}

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
