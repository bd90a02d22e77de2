"""Collects the results of jobs that are over: returns them, stores their outputs, or writes a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of, strip_payloads
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobTimeoutError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.costs.prices import find_price
from airflow_provider_rungen.execution.sinks.collected import (
    Collected,
    CollectedSheet,
    CollectedTable,
    CollectedValues,
)
from airflow_provider_rungen.execution.sinks.failures import (
    enforce_max_failed,
    failed_jobs,
    failure_reasons,
    is_useless,
)
from airflow_provider_rungen.execution.sinks.output_store import OutputStore
from airflow_provider_rungen.execution.task.job_ids import format_jobs
from airflow_provider_rungen.execution.task.lineage import TaskOutcome
from airflow_provider_rungen.execution.task.outcomes import JOB_IS_OVER
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.table.results import ResultCounts
    from airflow_provider_rungen.execution.task.kill import KillGuard
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.execution.task.usage import Usage
    from airflow_provider_rungen.hooks.rungen import RunGenHook

log = logging.getLogger(__name__)


class CollectingTask(Protocol):
    """What the collection of results needs of an attempt: a `TaskRun` with its usage, and with `refetch`."""

    task: BaseOperator
    context: Context
    hook: RunGenHook
    guard: KillGuard
    usage: Usage

    @property
    def ti(self) -> Any: ...

    def opened(self) -> AbstractContextManager[RunGenHook]: ...

    def record_outcome(self, outcome: TaskOutcome) -> None: ...

    def refetch(
        self, app_id: str, job_ids: Sequence[str], on_outcome: Callable[[str, Job | RunGenError], None]
    ) -> None: ...


class Collector:
    """
    Collects results for one attempt. What would keep it from doing so is found out here, before the wait.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :param into: takes the results, if neither XCom nor ``options.results`` does.
    :param runs_jobs: whether this task runs the jobs. Then what is stored is no reuse, and its files are not
        read again.
    :raises RunGenInputError: the schema, the destination or the results table cannot be used.
    """

    def __init__(
        self,
        run: CollectingTask,
        options: CollectOptions,
        *,
        pushes_keys: bool = False,
        into: Collected | None = None,
        runs_jobs: bool = False,
    ) -> None:
        self._run = run
        self._schema = Schema.of(options.result_schema, "result_schema")
        has_destination = options.destination is not None
        self._store = (
            OutputStore(run, options, self._schema, is_piecemeal=runs_jobs) if has_destination else None
        )
        self._values = CollectedValues(options.max_xcom_bytes, pushes_keys=pushes_keys)
        has_table = into is None and options.results is not None
        self._table = CollectedTable(options.results) if has_table else None
        self._collected: Collected = into or self._table or self._values
        has_sheet = into is None and has_destination and options.contact_sheet
        self._sheet = CollectedSheet(options.destination, run.ti) if has_sheet else None
        self._runs_jobs = runs_jobs
        # a task that runs the jobs counts their attempts, too
        self._usage = None if runs_jobs else run.usage
        self._known: set[str] = set()
        #: The jobs that cannot be used, or not yet.
        self.errors: dict[str, RunGenError] = {}
        #: The jobs whose outputs are stored, without inputs, results and outputs. The caller may remove them.
        self.stored: list[StoredJob] = []
        self._is_searched = False

    def prepare(self) -> None:
        """Raise `RunGenInputError` if the places of outputs and results cannot be written now."""
        if self._store is not None:
            self._store.prepare()
        if self._table is not None:
            self._table.prepare()

    def close(self) -> None:
        """Free what is held of results."""
        for rows in self._takers():
            rows.close()

    def _takers(self) -> Iterator[Collected]:
        yield self._collected
        if self._sheet is not None:
            yield self._sheet

    def find_stored(self, app_id: str, job_ids: Sequence[str]) -> list[str]:
        """
        Find the jobs that are stored and complete. Return the others, which only the service knows.

        :raises RunGenOutputError: the destination cannot be read now.
        """
        if self._store is None or not job_ids:
            return list(job_ids)
        others = self._store.find(app_id, job_ids, lambda stored: self.add_stored(stored, is_reused=True))
        self._is_searched = True
        if len(others) < len(job_ids):
            found = [job_id for job_id in job_ids if job_id not in others]
            log.info("Reused %s: stored in %s", format_jobs(found), self._store.shown)
        return others

    def accepts(self, stored: StoredJob) -> bool:
        """Return whether a stored job can be taken: its result has to fit the schema."""
        return self._store is None or self._store.accepts(stored)

    def hold(self, job: Job) -> Job:
        """
        Keep of a job that is over what `collect` returns: there may be many.

        :raises RunGenOutputError: the results are too large for XCom.
        """
        if self._store is None:
            self._add(job)
        return strip_payloads(job)

    @contextmanager
    def reporting_failure(self, app_id: str, ids: Sequence[str | None]) -> Iterator[None]:
        """Write the results table with what is known before an error ends the task."""
        try:
            yield
        except RunGenError as error:
            if self._table is not None:
                if isinstance(error, RunGenJobTimeoutError):
                    # those that are over are paid for
                    with suppress(RunGenError):
                        self.gather(app_id, ids)
                try:
                    self._write_table(self._table, app_id, ids, error.message)
                except RunGenError as failure:
                    log.warning("%s", failure)
            self.write_sheet(app_id, ids, missing=error.message)
            raise

    def collect(
        self,
        app_id: str,
        ids: Sequence[str | None],
        jobs: Iterable[Job] = (),
        *,
        max_failed: float,
        single: bool,
        logged_failures: int = 0,
        locate: Callable[[Iterable[int]], Mapping[int, Mapping[str, Any]]] = lambda _: {},
    ) -> Any:
        """
        Collect what jobs made, and fail when too many failed.

        :param app_id: their app.
        :param ids: the jobs, with ``None`` for an input without a job.
        :param jobs: those that are known to be over. The others are fetched.
        :param max_failed: how many may fail: a number, or a share below 1.
        :param single: whether to return the value of the only job, and not a list.
        :param logged_failures: how many failures the log names already.
        :param locate: returns the places of inputs in files, by index.
        :return: the result or small manifest of each job, ``None`` for those that failed; or what the results
            table has.
        """
        with self.reporting_failure(app_id, ids):
            self.gather_rest(app_id, ids, jobs)
        counts = None if self._table is None else self._write_table(self._table, app_id, ids)
        self.write_sheet(app_id, ids)
        reasons = failure_reasons(ids, self.errors)
        self._run.ti.xcom_push(key="failed", value=failed_jobs(ids, reasons, locate(reasons)))
        enforce_max_failed(ids, self.errors, reasons, max_failed, logged_failures)
        done = [each for each in dict.fromkeys(ids) if each is not None and each not in self.errors]
        value: Any
        destination = None if self._store is None else self._store.shown
        outcome = TaskOutcome(app_id, done, len(reasons), destination)
        if self._table is not None and counts is not None:
            value = counts.summary(self._table.uri)
            outcome = replace(outcome, results=redact(self._table.uri), file_count=counts.file_count)
        else:
            values = self._values.values(ids)
            value = values[0] if single else values
            if self._store is None:
                self._values.check_size(len(json.dumps(value)))
            else:
                outcome = replace(outcome, manifests=self._values.values(done))
        self._run.record_outcome(outcome)
        log.info("Collected the results of %s", format_jobs(done))
        return value

    def write_sheet(
        self,
        app_id: str,
        ids: Sequence[str | None],
        refused: Mapping[int, RunGenError] = MappingProxyType({}),
        missing: str = "",
    ) -> None:
        """
        Write the contact sheet, unless none is wanted or it is written.

        :param refused: by index, the errors of inputs without a job.
        :param missing: the error of jobs of which nothing is known.
        """
        if self._sheet is not None:
            self._sheet.write(app_id, ids, self.errors, refused, missing)

    def _write_table(
        self, table: CollectedTable, app_id: str, ids: Sequence[str | None], missing: str = ""
    ) -> ResultCounts:
        return table.write(ids, self.errors, missing, price=find_price(self._run))

    def gather_rest(self, app_id: str, ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """Gather, at the end, what was not gathered before. What failed stays as it is."""
        self.gather(app_id, (each for each in ids if each not in self.errors), jobs)
        if self._store is not None:
            self._store.log_total()

    def gather_known(self, app_id: str, ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """Gather what is known without the service, when an error ends the task."""
        self.gather(app_id, (), jobs)
        self._search(app_id, [each for each in dict.fromkeys(ids) if each and each not in self._known])

    def gather(self, app_id: str, ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """
        Take jobs that are over, once each. What failed for a reason that may pass is tried again.

        :param jobs: those among them that the service has just returned, and further ones that failed.
        """
        returned = set()
        for job in jobs:
            if job.status is JobStatus.COMPLETED:
                returned.add(job.id)
            elif job.id not in self._known:
                self._add(job)
        rest = [each for each in dict.fromkeys(ids) if each is not None and not self._is_settled(each)]
        if not self._is_searched:
            # the service may have forgotten what it has not just returned
            unsure = [each for each in rest if each not in returned and each not in self._known]
            settled = set(unsure).difference(self._search(app_id, unsure))
            rest = [each for each in rest if each not in settled]
        if rest:
            self._take(app_id, rest)

    def _search(self, app_id: str, job_ids: Sequence[str]) -> Sequence[str]:
        """Find the jobs that are stored, and return the others."""
        if self._store is None or not job_ids or not self._runs_jobs:
            return self.find_stored(app_id, job_ids)
        try:
            return self._store.find(app_id, job_ids, self.add_stored)
        except (RunGenOutputError, RunGenInputError) as error:
            if not error.retryable:
                raise
            self.errors |= {each: error for each in job_ids if each not in self._known}
            return ()

    def _is_settled(self, job_id: str) -> bool:
        error = self.errors.get(job_id)
        return job_id in self._known and (error is None or not error.retryable or is_useless(error))

    def add_stored(self, stored: StoredJob, *, is_reused: bool = False) -> StoredJob:
        """Take a job whose outputs are stored, and return what is kept of it."""
        if self._usage is not None and is_reused:
            self._usage.note_reused(stored.job_id)
        elif self._usage is not None:
            self._usage.note_end(stored.job_id, is_completed=True, seconds=stored.execution_seconds)
        for rows in self._takers():
            rows.add_stored(stored, is_reused=is_reused)
        self._known.add(stored.job_id)
        self.errors.pop(stored.job_id, None)
        self.stored.append(kept := replace(stored, input=None, result=None, outputs=()))
        return kept

    def _add(self, job: Job) -> None:
        """Take a job whose result is not stored, or note why it failed."""
        if job.is_terminal and self._usage is not None:
            self._usage.note(job)
        error: RunGenError | None
        try:
            job.raise_for_status()
            if self._schema is not None:
                self._schema.check_result(job)
        except RunGenError as failure:
            error = failure
            for rows in self._takers():
                rows.add_failed(job, failure)
        else:
            error = self._collected.add_job(job)
        self._known.add(job.id)
        self.errors.pop(job.id, None)
        if error is not None:
            self.errors[job.id] = error

    def _take(self, app_id: str, job_ids: list[str]) -> None:
        """Store the outputs of jobs, or fetch their results."""

        def note(job_id: str, found: Job | RunGenError) -> None:
            if isinstance(found, RunGenError) and len(job_ids) == 1:
                raise found
            self._add(job_of(found, app_id, job_id))

        if self._store is None:
            self._run.refetch(app_id, job_ids, note)
            return
        errors = self._store.store(app_id, job_ids, self.add_stored)
        self.errors |= errors
        self._known |= errors.keys()
        for job_id, error in errors.items():
            if isinstance(error, JOB_IS_OVER) and self._usage is not None:
                self._usage.note_end(job_id, is_completed=False)
