"""Collects the results of jobs that are over: returns them, stores their outputs, or writes a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of, strip_payloads
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.collected import (
    Collected,
    CollectedSheet,
    CollectedTable,
    CollectedValues,
)
from airflow_provider_rungen.execution.cost import find_job_costs
from airflow_provider_rungen.execution.failures import enforce_max_failed, failed_jobs, failure_reasons
from airflow_provider_rungen.execution.job_ids import format_jobs
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import JOB_IS_OVER
from airflow_provider_rungen.execution.output_store import OutputStore
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.options import CollectOptions
    from airflow_provider_rungen.execution.table.results import ResultCounts
    from airflow_provider_rungen.execution.waiting import WaitingRun

log = logging.getLogger(__name__)


class Collector:
    """
    Collects results for one attempt. What would keep it from doing so is found out here, before the wait.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :param into: takes the results, if neither XCom nor ``options.results`` does.
    :raises RunGenInputError: the schema, the destination or the results table cannot be used.
    """

    def __init__(
        self,
        run: WaitingRun[Any],
        options: CollectOptions,
        *,
        pushes_keys: bool = False,
        into: Collected | None = None,
    ) -> None:
        self._run = run
        self._schema = Schema.of(options.result_schema, "result_schema")
        has_destination = options.destination is not None
        self._store = OutputStore(run, options, self._schema) if has_destination else None
        self._values = CollectedValues(options.max_xcom_bytes, pushes_keys=pushes_keys)
        has_table = into is None and options.results is not None
        self._table = CollectedTable(options.results) if has_table else None
        self._collected: Collected = into or self._table or self._values
        has_sheet = into is None and has_destination and options.contact_sheet
        self._sheet = CollectedSheet(options.destination, run.ti) if has_sheet else None
        self._known: set[str] = set()
        #: The jobs that failed.
        self.errors: dict[str, RunGenError] = {}
        #: The jobs whose outputs are stored, without inputs, results and outputs, of which there may be many.
        self.stored: list[StoredJob] = []
        self._is_searched = False

    def prepare(self) -> None:
        """
        Find out whether the places of outputs and results can be written, before anything is paid for.

        :raises RunGenInputError: one of them cannot be used now.
        """
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

        self._store.find(app_id, job_ids, lambda stored: self.add_stored(stored, is_reused=True))
        self._is_searched = True
        return [job_id for job_id in job_ids if job_id not in self._known]

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
            self.gather(app_id, ids, jobs)
        counts = None if self._table is None else self._write_table(self._table, app_id, ids)
        self.write_sheet(app_id, ids)
        reasons = failure_reasons(ids, self.errors)
        self._run.ti.xcom_push(key="failed", value=failed_jobs(ids, reasons, locate(reasons)))
        enforce_max_failed(ids, self.errors, reasons, max_failed, logged_failures)
        done = [each for each in dict.fromkeys(ids) if each is not None and each not in self.errors]
        destination = None if self._store is None else self._store.shown
        outcome = TaskOutcome(app_id, done, len(reasons), destination)
        if self._table is not None and counts is not None:
            value: Any = counts.summary(self._table.uri)
            outcome = replace(outcome, results=redact(self._table.uri), file_count=counts.file_count)
        else:
            value = self._value(ids, single=single)
            if self._store is not None:
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
        costs_of = partial(find_job_costs, self._run, app_id, is_collecting=True)
        return table.write(ids, self.errors, missing, costs_of=costs_of)

    def _value(self, ids: Sequence[str | None], *, single: bool) -> Any:
        values = self._values.values(ids)
        value = values[0] if single else values
        if self._store is None:
            self._values.check_size(len(json.dumps(value)))
        return value

    def gather(self, app_id: str, ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """
        Find the outcomes of the jobs that are not known yet.

        :param jobs: those that are known to be over.
        """
        for job in jobs:
            is_stored_below = self._store is not None and job.status is JobStatus.COMPLETED
            if job.id not in self._known and not is_stored_below:
                self._add(job)
        rest = [each for each in dict.fromkeys(ids) if each is not None and each not in self._known]
        if not self._is_searched:
            rest = self.find_stored(app_id, rest)
        if rest and self._store is None:
            self._fetch(app_id, rest)
        elif rest and self._store is not None:
            self._store_outputs(self._store, app_id, rest)

    def add_stored(self, stored: StoredJob, *, is_reused: bool = False) -> StoredJob:
        """Take a job whose outputs are stored, and return what is kept of it."""
        usage = self._run.usage
        if is_reused:
            usage.note_reused(stored.job_id)
        else:
            usage.note_end(stored.job_id, is_completed=True, seconds=stored.execution_seconds)
        for rows in self._takers():
            rows.add_stored(stored, is_reused=is_reused)
        self._known.add(stored.job_id)
        self.stored.append(kept := replace(stored, input=None, result=None, outputs=()))
        return kept

    def _add(self, job: Job) -> None:
        """Take a job whose result is not stored, or note why it failed."""
        if job.is_terminal:
            self._run.usage.note(job)
        error: RunGenError | None = None
        try:
            job.raise_for_status()
            if self._schema is not None:
                self._schema.check_result(job)
        except RunGenError as failure:
            error = failure
        if error is not None:
            for rows in self._takers():
                rows.add_failed(job, error)
        else:
            error = self._collected.add_job(job)
        self._known.add(job.id)
        if error is not None:
            self.errors[job.id] = error

    def _fetch(self, app_id: str, job_ids: list[str]) -> None:
        def note(job_id: str, found: Job | RunGenError) -> None:
            if isinstance(found, RunGenError) and len(job_ids) == 1:
                raise found
            self._add(job_of(found, app_id, job_id))

        self._run.refetch(app_id, job_ids, note)

    def _store_outputs(self, store: OutputStore, app_id: str, job_ids: list[str]) -> None:
        errors = store.store(app_id, job_ids, self.add_stored)
        self.errors |= errors
        for job_id, error in errors.items():
            if isinstance(error, JOB_IS_OVER):
                self._run.usage.note_end(job_id, is_completed=False)
        self._known |= errors.keys()
