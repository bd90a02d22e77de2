"""Takes what jobs made, once each: stores it, or keeps it for what a task returns or writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenInputError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution.archive.output_store import OutputStore
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.sinks.contact_sheet import SheetWriter, describe_job
from airflow_provider_rungen.execution.table.job_rows import JobRows
from airflow_provider_rungen.execution.table.results import ResultRow, Status
from airflow_provider_rungen.execution.task.outcomes import is_useless
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.failures import Advice
    from airflow_provider_rungen.execution.sinks.job_sinks import SinkPlan
    from airflow_provider_rungen.execution.sinks.xcom_values import XComValues
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.execution.task.run import TaskRun
    from airflow_provider_rungen.runs.plan import PlannedRow

#: Fetches jobs that are over: see `JobWait.refetch`.
Refetch: TypeAlias = Callable[[str, Sequence[str], Callable[[str, Job | RunGenError], None]], None]


class Collector:
    """
    What the sinks of results have in common: how each job ended, and the rows of tables and sheets.

    What prevents it from collecting raises here, before the wait.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param refetch: fetches the results of jobs that are over.
    :param values: takes what the task returns. Otherwise rows are kept, for a results table.
    :param key: the columns that identify a row, for a contact sheet.
    :param advice: what the attempt knows of its inputs, if it runs the jobs; ``None`` if it collects those of
        another task.
    :raises RunGenInputError: the schema or the destination cannot be used.
    """

    def __init__(
        self,
        run: TaskRun[Any],
        options: CollectOptions,
        *,
        refetch: Refetch,
        values: XComValues | None = None,
        key: Sequence[str] = (),
        advice: Advice | None = None,
    ) -> None:
        #: Whether outputs are stored.
        self.stores = options.destination is not None
        #: The jobs that cannot be used, or not yet: see `outcomes.is_useless`.
        self.errors: dict[str, RunGenError] = {}
        #: The jobs whose outputs are stored, without inputs, results and outputs.
        self.stored: list[StoredJob] = []
        #: Takes the result of a job that a poll finds over, if results are not stored, and returns the rest.
        # polls are cheaper if nothing of a result is wanted
        self.hold: Callable[[Job], Job] = strip_payloads if self.stores else self._hold
        self._run = run
        self._options = options
        self._refetch = refetch
        self._advice = advice
        self._schema = Schema.of(options.result_schema, "result_schema")
        self._store = OutputStore(run, options, self._schema) if self.stores else None
        has_sheet = self.stores and options.contact_sheet
        self._sheet = SheetWriter(options.destination, key) if has_sheet else None
        self._results: list[XComValues | JobRows] = []
        if values is not None:
            self._results.append(values)
        if values is None or has_sheet:
            self._rows = JobRows(describe_job if has_sheet else None)
            self._results.append(self._rows)
        self._shown_destination = redact(str(options.destination)) if self.stores else None
        # the jobs whose results were taken
        self._taken: set[str] = set()
        # the jobs that were looked for in the destination
        self._searched: set[str] = set()
        self._is_written = False

    def prepare(self) -> None:
        """
        Find out whether results can be kept, before anything is sent.

        :raises RunGenInputError: they cannot be kept now.
        """
        if self._store is not None:
            self._store.prepare()

    def close(self) -> None:
        """Free what is held of results."""
        for results in self._results:
            results.close()

    # --- how jobs ended ---

    def accepts(self, stored: StoredJob) -> bool:
        """Return whether a stored job can be used: its result has to fit the schema."""
        return self._store is None or self._store.accepts(stored)

    def gather(self, app_id: str, job_ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """
        Take jobs that are over, once each. What failed for a reason that may pass is tried again.

        :param jobs: those among them that the service has just returned, and further ones that failed.
        """
        returned = self._add_unsuccessful(jobs)
        rest = [each for each in dict.fromkeys(job_ids) if each is not None and not self._is_settled(each)]
        # the service may have forgotten what it has not just returned
        settled = self._search(app_id, [each for each in rest if each not in returned])
        if rest := [each for each in rest if each not in settled]:
            self._take(app_id, rest)

    def gather_known(self, app_id: str, job_ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """Gather what is known without the service, when an error ends the task."""
        self._add_unsuccessful(jobs)
        self._search(app_id, [each for each in dict.fromkeys(job_ids) if each and not self._is_settled(each)])

    def find_stored(self, app_id: str, job_ids: Sequence[str]) -> list[str]:
        """
        Find the jobs that are stored and complete. Return the others, which only the service knows.

        :raises RunGenOutputError: the destination cannot be read now.
        """
        unsure = [each for each in job_ids if each not in self._searched]
        if self._store is not None and unsure:
            self._store.find(app_id, unsure, self.add_stored)
            self._searched.update(unsure)
        return [each for each in job_ids if each not in self._taken]

    def add_stored(self, stored: StoredJob) -> None:
        """Take a job whose outputs are stored."""
        for results in self._results:
            results.add_stored(stored)
        self._note_taken(stored.job_id)
        self.stored.append(replace(stored, input=None, result=None, outputs=()))

    def _note_taken(self, job_id: str) -> None:
        self._taken.add(job_id)
        self.errors.pop(job_id, None)

    def _add_unsuccessful(self, jobs: Iterable[Job]) -> set[str]:
        """Add the jobs that did not complete, and return those that did."""
        completed = set()
        for job in jobs:
            if job.status is JobStatus.COMPLETED:
                completed.add(job.id)
            elif not self._is_settled(job.id):
                self._add(job)
        return completed

    def _search(self, app_id: str, job_ids: Sequence[str]) -> set[str]:
        """Find the jobs that are stored. Return those, or all in an outage, which is their error then."""
        try:
            return set(job_ids).difference(self.find_stored(app_id, job_ids))
        except (RunGenOutputError, RunGenInputError) as error:
            if not error.retryable:
                raise
            self.errors |= {each: error for each in job_ids if each not in self._taken}
            return set(job_ids)

    def _is_settled(self, job_id: str) -> bool:
        error = self.errors.get(job_id)
        return job_id in self._taken if error is None else not error.retryable or is_useless(error)

    def _hold(self, job: Job) -> Job:
        self._add(job)
        return strip_payloads(job)

    def _add(self, job: Job) -> None:
        """Take a job whose result is not stored, or note why it failed."""
        try:
            job.raise_for_status()
            if self._schema is not None:
                self._schema.check_result(job)
        except RunGenError as error:
            for results in self._results:
                results.add_failed(job, error)
            self.errors[job.id] = error
        else:
            self._note_taken(job.id)
            for results in self._results:
                if problem := results.add_job(job):
                    self.errors[job.id] = problem

    def _take(self, app_id: str, job_ids: list[str]) -> None:
        """Store the outputs of jobs, or fetch their results."""

        def note(job_id: str, found: Job | RunGenError) -> None:
            if isinstance(found, RunGenError) and len(job_ids) == 1:
                raise found
            self._add(job_of(found, app_id, job_id))

        if self._store is None:
            self._refetch(app_id, job_ids, note)
        else:
            self.errors |= self._store.store(app_id, job_ids, self.add_stored)

    # --- the end ---

    def _gather_rest(self, result: BatchResult) -> dict[int, RunGenError]:
        """Gather what was not gathered before, and return why inputs have no result, by their index."""
        ids = [each for each in result.ids if each not in self.errors]
        try:
            self.gather(self._run.known_app_id, ids, result.jobs)
        finally:
            if self._store is not None:
                self._store.log_total()
        return result.errors(self.errors)

    def _done(self, result: BatchResult) -> list[str]:
        """Return the jobs that can be used."""
        return [job_id for job_id in result.job_ids if job_id not in self.errors]

    def _write_sheet(self, result: BatchResult, plan: SinkPlan, missing: str = "") -> None:
        """
        Write the contact sheet, if one is wanted.

        :param missing: the error of jobs of which nothing is known.
        """
        self._is_written = True
        if self._sheet is not None:
            app_id = self._run.known_app_id
            self._sheet.write(lambda: self._result_rows(result, plan, missing), self._run.ti, app_id)

    def _result_rows(self, result: BatchResult, plan: SinkPlan, missing: str = "") -> Iterator[ResultRow]:
        """
        Yield a row for each row of the plan.

        :param missing: the error of jobs of which nothing is known.
        """
        self._rows.add_errors(self.errors)
        columns = plan.manifest.columns
        for number, planned in enumerate(plan.rows()):
            values = dict(zip(columns, planned.values, strict=True))
            job_id = result.ids[number] if number < len(result.ids) else None
            if job_id is None or planned.status or number in result.refused:
                status, why = _end_without_job(number, planned, result, missing)
                yield ResultRow(index=number, status=status, values=values, error=why or None)
            else:
                yield self._rows.row(number, job_id, values, missing, is_reused=job_id in result.shared)


def _end_without_job(
    number: int, planned: PlannedRow, result: BatchResult, missing: str
) -> tuple[Status, str]:
    """Return how a row ended that has no job, and why."""
    if planned.status:
        return Status(planned.status), planned.why
    if (refusal := result.refused.get(number)) is not None:
        is_refused = isinstance(refusal, RunGenBadRequestError)
        return Status.REFUSED if is_refused else Status.FAILED, refusal.message
    if number >= len(result.ids):
        return Status.FAILED, missing or "it was not submitted"
    return Status.FAILED, f"not submitted: {missing}" if missing else "it was not submitted"
