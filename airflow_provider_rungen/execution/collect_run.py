"""Waits for jobs and collects what they made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from airflow_provider_rungen.execution.task.job_ids import format_jobs, is_single, parse_job_ids
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

log = logging.getLogger(__name__)


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
        self.usage_report.used = self._used
        self._sink: Results | TableResults | None = None
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
            with closing(self._make_sink(is_single=is_single(job_id))) as self._sink:
                if event is None:
                    self._sink.prepare()
                return self._collect(self._sink, app_id, ids, event)

    def _make_sink(self, *, is_single: bool) -> Results | TableResults:
        if self._collect_options.results is not None:
            return TableResults(self, self._collect_options, refetch=self._refetch)
        return Results(self, self._collect_options, refetch=self._refetch, is_single=is_single)

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
            result = self._with_reused(sink, app_id, result)
            pending = [job_id for job_id in result.job_ids if job_id not in result.shared]
            are_over = event is not None and are_all_over(event)
            jobs = self._wait_for(sink, app_id, pending, are_over=are_over)
            return sink.finish(replace(result, jobs=jobs), plan)
        except RunGenError as error:
            if isinstance(error, RunGenJobTimeoutError) and self._collect_options.results is not None:
                # those that are over are paid for
                with suppress(RunGenError):
                    result = self._with_reused(sink, app_id, result)
                    sink.gather(app_id, ids)
            sink.report(result, plan, error)
            raise

    def _with_reused(self, sink: Results | TableResults, app_id: str, result: BatchResult) -> BatchResult:
        """Find the jobs that were stored before, and return the result with them."""
        if not sink.stores:
            return result
        unstored = set(sink.find_stored(app_id, result.job_ids))
        reused = [job_id for job_id in result.job_ids if job_id not in unstored]
        for job_id in reused:
            self.usage.note_reused(job_id)
        if reused:
            shown = redact(str(self._collect_options.destination))
            log.info("Reused %s: stored in %s", format_jobs(reused), shown)
        return replace(result, shared=frozenset(reused))

    def _wait_for(
        self, sink: Results | TableResults, app_id: str, job_ids: Sequence[str], *, are_over: bool
    ) -> list[Job]:
        """
        Wait for jobs.

        :param are_over: whether a trigger has seen their ends.
        """
        if self._wait_timeout is None or (are_over and sink.stores):
            return []  # collecting fetches each of them

        def hold(job: Job) -> Job:
            self.usage.note(job)
            return sink.hold(job)

        return self._wait.wait(
            app_id,
            job_ids,
            deadline=self.deadline(time.time() + self._wait_timeout),
            on_finished=hold,
            ended=job_ids if are_over else (),
        )

    def _refetch(
        self, app_id: str, job_ids: Sequence[str], on_outcome: Callable[[str, Job | RunGenError], None]
    ) -> None:
        def note(job_id: str, outcome: Job | RunGenError) -> None:
            if isinstance(outcome, Job) and outcome.is_terminal:
                self.usage.note(outcome)
            on_outcome(job_id, outcome)

        self._wait.refetch(app_id, job_ids, note)

    def _used(self) -> dict[str, Any]:
        """Return the XCom ``usage``. Storing outputs tells how jobs ended, too."""
        if self._sink is not None:
            for stored in self._sink.stored:
                self.usage.note_end(stored.job_id, is_completed=True, seconds=stored.execution_seconds)
            for job_id, error in self._sink.errors.items():
                if isinstance(error, JOB_IS_OVER):
                    self.usage.note_end(job_id, is_completed=False, seconds=error.execution_time)
        return self.usage.to_json()

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
