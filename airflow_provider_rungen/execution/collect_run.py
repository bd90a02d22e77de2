"""Waits for jobs and collects what they made."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution.jobs.job_wait import JobWait
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
from airflow_provider_rungen.execution.sinks.result_sink import ResultSink
from airflow_provider_rungen.execution.task.job_ids import format_jobs, is_single, parse_job_ids
from airflow_provider_rungen.execution.task.options import JobOptions
from airflow_provider_rungen.execution.task.outcomes import (
    JOB_IS_OVER,
    are_all_over,
    max_failures,
    raise_for_event,
)
from airflow_provider_rungen.execution.task.report import Usage
from airflow_provider_rungen.execution.task.run import TaskRun
from airflow_provider_rungen.execution.task.xcom_keys import MAX_PAGE_JOBS

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.client.models import Job

log = logging.getLogger(__name__)


class CollectRun(TaskRun[JobOptions]):
    """
    An attempt that collects the results of jobs.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param labels: the labels of the jobs, as far as they have any, by id.
    """

    def __init__(self, task: Any, context: Context, labels: Mapping[str, str]) -> None:
        super().__init__(task, context, JobOptions.of(task))
        self._labels = labels
        self.usage = Usage()
        self.used, self.times = self.usage.to_json, lambda: self.usage.times
        self.wait = JobWait(self, task.defer_for_jobs)
        self.is_single = False  #: Whether one job is named, and not a list.
        self._shown_ids: list[str | None] = []  # of a type that JSON keeps

    def execute(self) -> Any:
        """
        Collect the results, after the wait.

        :return: the result or small manifest, or the list of them; or what the results table has.
        """
        return self.complete(None)

    def complete(self, event: Mapping[str, Any] | None) -> Any:
        """
        Collect the results after a wait in the triggerer.

        :param event: what the trigger sent; ``None`` without such a wait.
        """
        job_id, self.wait.are_known = self.task.job_id, event is not None
        with self.attempt(*JOB_IS_OVER), self.opened():
            app_id, ids = (event or {}).get("app_id") or self.app_id, self._ids(job_id)
            job_ids = [each for each in dict.fromkeys(ids) if each is not None]
            self.usage.note_submitted(job_ids)
            self._shown_ids = ids[:MAX_PAGE_JOBS]
            if event is None:
                self.link_to(app_id, job_ids)
            else:
                self.note_app(app_id, job_ids)
            table, self.is_single = self.options.results, is_single(job_id)
            sink = ResultSink(self, table=table and str(table), usage=self.usage, labels=self._labels)
            with closing(sink):
                if event is None:
                    sink.prepare()
                return self._collect(sink, app_id, ids, event)

    def _collect(
        self, sink: ResultSink, app_id: str, ids: list[str | None], event: Mapping[str, Any] | None
    ) -> Any:
        no_job = RunGenError("it has no job", retryable=False)
        result = BatchResult(ids, {index: no_job for index, each in enumerate(ids) if each is None})
        plan = Plan.of_count("", len(ids))
        try:
            pending = self._find_stored(sink, app_id, result.job_ids)
            if event is not None:
                raise_for_event(event)
            have_ended = event is not None and are_all_over(event)
            result = replace(result, jobs=self._wait_for(sink, app_id, pending, have_ended=have_ended))
            return sink.finish(result, plan)
        except RunGenError as error:
            if isinstance(error, RunGenJobTimeoutError) and (sink.stores or self.options.results is not None):
                with suppress(RunGenError):  # those that have ended are paid for
                    self._take_ended(sink, app_id, pending, was_deferred=event is not None)
            sink.report(result, plan, error)
            raise

    def _take_ended(
        self, sink: ResultSink, app_id: str, job_ids: Sequence[str], *, was_deferred: bool
    ) -> None:
        """Take the jobs that are over when the time is up, and note how the others are."""
        found = [*self.wait.take_ended(), *self.wait.unfinished]

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            if not isinstance(outcome, RunGenError):
                found.append(sink.hold(outcome) if outcome.is_terminal else outcome)

        if was_deferred and not found:  # a trigger does not say which have ended
            self.wait.refetch(app_id, job_ids, note, have_ended=False)
        sink.gather(app_id, [job.id for job in found if job.is_terminal], found)

    def _find_stored(self, sink: ResultSink, app_id: str, job_ids: Sequence[str]) -> Sequence[str]:
        """Take the jobs that were stored before, and return the others."""
        if not sink.stores:
            return job_ids
        unstored = dict.fromkeys(sink.find_patiently(app_id, job_ids))
        if found := [job_id for job_id in job_ids if job_id not in unstored]:
            log.info("Found %s: stored in %s", format_jobs(found), redact(str(self.options.destination)))
        return list(unstored)

    def _wait_for(
        self, sink: ResultSink, app_id: str, job_ids: Sequence[str], *, have_ended: bool
    ) -> list[Job]:
        """
        Wait for jobs.

        :param have_ended: whether a trigger has seen their ends.
        """
        is_gathered = have_ended and sink.stores
        if is_gathered:  # collecting fetches each of them
            sink.gather(app_id, job_ids)
            # the trigger may have asked another replica
            job_ids = [each for each in job_ids if type(sink.errors.get(each)) is RunGenJobError]
        if not self.options.wait_for_completion or not job_ids:
            return []
        deadline = self.deadline(time.time() + self.options.timeout)
        ended = job_ids if have_ended and not is_gathered else ()
        jobs = self.wait.wait(app_id, job_ids, deadline=deadline, on_finished=sink.hold, ended=ended)
        if is_gathered:
            sink.gather(app_id, job_ids, jobs)
        return jobs

    def cleanup(self) -> str:
        self.wait.cancel_on_kill()
        for job_id in self.wait.canceled:
            self.usage.note_end(job_id, is_completed=False)
        return ""

    def page_details(self) -> dict[str, Any]:
        places = {"destination": self.options.destination, "results": self.options.results}
        details = {name: redact(str(place)) for name, place in places.items() if place is not None}
        # those without a job among them: failures are known by their index
        return {**details, "jobs": self._shown_ids}

    def _ids(self, job_id: Any) -> list[str | None]:
        """
        Return the ids, with ``None`` for an input without a job.

        :raises RunGenInputError: something in it cannot be an id, or more have no job than may fail.
        """
        ids = parse_job_ids(job_id)
        absent, allowed = ids.count(None), max_failures(self.options.max_failed, len(ids))
        if absent > allowed:
            hint = "Raise max_failed to collect the others, and clear the task" if absent < len(ids) else ""
            message = f"job_id: {absent} of {len(ids)} have no job, {allowed} may (max_failed)"
            raise RunGenInputError(message, hint=hint)
        return ids
