"""Waits for jobs that somebody else has submitted, and returns their results as XCom holds them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenJobFailedError
from airflow_provider_rungen.results.xcom import XComValues
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.table.known_jobs import NO_JOB
from airflow_provider_rungen.task.job_ids import is_single, parse_job_ids
from airflow_provider_rungen.task.options import JobOptions
from airflow_provider_rungen.task.outcomes import (
    JOB_IS_OVER,
    MAX_FAILED,
    MAX_REASONS,
    brief_reason,
    error_of,
    is_permanent,
    join_reasons,
    max_failures,
    raise_for_event,
)
from airflow_provider_rungen.task.report import TaskOutcome, Usage
from airflow_provider_rungen.task.run import TaskRun
from airflow_provider_rungen.task.xcom_keys import MAX_PAGE_JOBS
from airflow_provider_rungen.work.wait import JobWait

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context


class ValuesRun(TaskRun[JobOptions]):
    """
    An attempt that returns the results of jobs, and stores nothing.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    """

    def __init__(self, task: Any, context: Context) -> None:
        super().__init__(task, context, JobOptions.of(task))
        self.usage = Usage()
        self.used = self.usage.to_json
        self.wait = JobWait(self, task.defer_for_jobs)
        self._output = OutputType.of(task.output_type)
        self._values = XComValues(collects=True, pushes_keys=bool(task.multiple_outputs))
        self._errors: dict[str, RunGenError] = {}
        self._shown_ids: list[str | None] = []

    def execute(self) -> Any:
        """Return the result of the one job, or a list, in the order of the ids."""
        return self.complete(None)

    def complete(self, event: Mapping[str, Any] | None) -> Any:
        """Go on after a wait in the triggerer."""
        self.wait.are_known = event is not None
        with self.attempt(*JOB_IS_OVER), self.opened():
            app_id = (event or {}).get("app_id") or self.app_id
            ids = known_ids(self.task.job_id, self.options.max_failed)
            jobs = [each for each in dict.fromkeys(ids) if each is not None]
            self.usage.note_submitted(jobs)
            self._shown_ids = ids[:MAX_PAGE_JOBS]
            (self.link_to if event is None else self.note_app)(app_id, jobs)
            if event is not None:
                raise_for_event(event)
            if self.options.wait_for_completion:
                deadline = self.deadline(time.time() + self.options.timeout)
                self.wait.wait(app_id, jobs, deadline=deadline, on_finished=self._take)
            else:
                self.wait.refetch(app_id, jobs, self._note, have_ended=False)
            self._check(app_id, ids)
            values = self._values.of(ids)
            if (excess := self._values.find_excess(values)) is not None:
                raise excess
            self.record_outcome(TaskOutcome(app_id, [each for each in jobs if each not in self._errors]))
            return values[0] if is_single(self.task.job_id) else values

    def _note(self, job_id: str, outcome: Job | RunGenError) -> None:
        if isinstance(outcome, RunGenError):
            self._errors[job_id] = outcome
        else:
            self._take(outcome)

    def _take(self, job: Job) -> Job:
        """Keep the result of a job, or why there is none."""
        error = error_of(job)
        if error is None and self._output is not None:
            try:
                job = self._output.read(job)
            except RunGenError as misfit:
                error = misfit
        error = error or self._values.add_job(job)
        if job.is_terminal:
            self.usage.note(job)
        if error is not None:
            self._errors[job.id] = error
        return job

    def _check(self, app_id: str, ids: Sequence[str | None]) -> None:
        """
        Push the indexes of what failed.

        :raises RunGenError: more failed than may.
        """
        found = [
            RunGenError(NO_JOB, retryable=False) if each is None else self._errors.get(each) for each in ids
        ]
        errors = {index: error for index, error in enumerate(found) if error is not None}
        self.push_quietly("failed", [*errors][:MAX_FAILED], "what failed")
        if len(errors) <= (allowed := max_failures(self.options.max_failed, len(ids))):
            return
        if is_single(self.task.job_id):
            raise errors[0]
        reasons = [f"index {index}: {brief_reason(errors[index])}" for index in [*errors][:MAX_REASONS]]
        own = next((each.hint for each in errors.values() if each.hint), "")
        raise RunGenJobFailedError(
            f"{len(errors)} of {len(ids)} jobs failed, {allowed} may (max_failed): "
            f"{join_reasons(reasons, len(errors))}",
            app_id=app_id,
            hint=own or "Raise max_failed to collect the others, and clear the task",
            retryable=not all(map(is_permanent, errors.values())),
        )

    def cleanup(self) -> str:
        self.wait.cancel_on_kill()
        return ""

    def page_details(self) -> dict[str, Any]:
        return {"jobs": self._shown_ids}


def known_ids(job_id: Any, max_failed: float | str) -> list[str | None]:
    """
    Return the ids of jobs to collect, with ``None`` for an input without a job.

    :param max_failed: how many may have none.
    :raises RunGenInputError: something in it cannot be an id, or more have no job than may fail.
    """
    ids = parse_job_ids(job_id)
    absent, allowed = ids.count(None), max_failures(max_failed, len(ids))
    if absent > allowed:
        hint = "Raise max_failed to collect the others, and clear the task" if absent < len(ids) else ""
        message = f"job_id: {absent} of {len(ids)} have no job, {allowed} may (max_failed)"
        raise RunGenInputError(message, hint=hint)
    return ids
