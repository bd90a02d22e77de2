"""Runs a job for each row of a table, stores the outputs, and writes the results table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenInputError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
)
from airflow_provider_rungen.execution.batch.ended import DeferredBatch
from airflow_provider_rungen.execution.batch.inputs import Inputs
from airflow_provider_rungen.execution.batch.result import BatchResult
from airflow_provider_rungen.execution.batch.reuse import task_token
from airflow_provider_rungen.execution.batch.run import STATE_KEY, BatchRun
from airflow_provider_rungen.execution.batch.saved import SavedLines
from airflow_provider_rungen.execution.collector import Collector
from airflow_provider_rungen.execution.contact_sheet import SheetWriter, describe_job
from airflow_provider_rungen.execution.cost import find_job_costs
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import max_failures
from airflow_provider_rungen.execution.run import fail_without_retry
from airflow_provider_rungen.execution.table.job_rows import JobRows
from airflow_provider_rungen.execution.table.plan import PlannedRow, TablePlan
from airflow_provider_rungen.execution.table.reader import open_rows
from airflow_provider_rungen.execution.table.results import ResultCounts, ResultRow, ResultsTable, Status
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.batch.checkpoint import Checkpoint
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.execution.options import BatchOptions, CollectOptions, TableOptions
    from airflow_provider_rungen.execution.waiting import Defer

log = logging.getLogger(__name__)

# How many rows an error names.
MAX_NAMED = 10


class TableRun(BatchRun):
    """
    An attempt that runs a table.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: how to run the jobs.
    :param defer: see `WaitingRun`.
    :param table: the table, and where its results go.
    :param collect: what to do with results.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        options: BatchOptions,
        defer: Defer,
        *,
        table: TableOptions,
        collect: CollectOptions,
    ) -> None:
        super().__init__(task, context, options, defer)
        self._table_options = table
        self._collect_options = collect
        # set once the source is known
        self._plan: TablePlan
        self._results: ResultsTable
        self._collector: Collector
        self._sheet: SheetWriter | None = None
        self._rows = JobRows(describe_job if collect.contact_sheet else None)
        # whether an error that ends the task is still to be written to the results table
        self._has_to_report = False
        # what was submitted, as far as this attempt got
        self._submitted = BatchResult([])

    def execute(self, to_input: Callable[[dict[str, Any]], Any] | None) -> dict[str, Any]:
        """
        Run what has no job yet, and write the results table.

        :param to_input: makes the input of a row.
        :return: the summary.
        """
        with self._reporting_failure(), self.executing():
            return self._finish_table(self.submit_and_wait(lambda: to_input))

    def count_jobs(self, to_input: Callable[[dict[str, Any]], Any] | None) -> int:
        """
        Return how many jobs `execute` would wait for, and push how long such a job ran. It submits nothing.

        :param to_input: makes the input of a row.
        """
        with fail_without_retry(), self.opened():
            book = self._open_book(create=False)
            inputs = self._read_inputs(lambda: to_input, book)
            self.link_to(self.app_id)
            if book is not None:
                self._look_up(inputs, book)
            count = sum(not self.reuse.needs_no_job(number) for number in range(inputs.count))
            seconds = [place.execution_seconds for place in self.reuse.stored.values()]
            known = [each for each in seconds if each is not None]
            # not None, which XComArg takes for a value that was not pushed
            self.ti.xcom_push(key="seconds_per_job", value=round(fmean(known), 3) if known else 0)
            log.info("%d rows: %d jobs to run", len(self._plan), count)
            return count

    def complete(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """
        Go on after the wait in the triggerer.

        :return: the summary.
        """
        with self._reporting_failure(), self.completing(event) as result:
            return self._finish_table(result)

    def fail_deferral(self, reason: str) -> NoReturn:
        with self._reporting_failure():
            super().fail_deferral(reason)

    def page_details(self) -> dict[str, Any]:
        plan = self._plan
        return super().page_details() | {
            "rows": len(plan),
            "skipped": plan.skipped_count,
            "refused": plan.refused_count,
            "results": redact(self._results_uri),
            "key": list(self._table_options.key),
        }

    # --- before the wait ---

    def _read_inputs(self, read_inputs: Callable[[], Any], book: LedgerBook | None) -> Inputs:
        """Read the table. What is wrong with it is found before anything is sent."""
        options = self._table_options
        rows = open_rows(
            options.table,
            format=self.options.format,
            name="table",
            written=self._results_uri,
            are_folders_columns=True,
        )
        self._plan = plan = TablePlan(options.key, options.columns, rows.column_types())
        self._prepare(plan)
        schema = Schema.of(self.options.input_schema, "input_schema")
        inputs = Inputs(plan.inputs(rows, read_inputs(), schema), key_of=book.key if book else None)
        log.info(
            "Read %d rows of %s: %d to run or reuse, %d skipped, %d refused",
            *(
                len(plan),
                clean_text(rows.uri or "table"),
                inputs.count,
                plan.skipped_count,
                plan.refused_count,
            ),
        )
        self._has_to_report = True
        runnable = len(plan) - plan.skipped_count
        if plan.refused_count > self._allowed(runnable):
            self.prepare_storage()  # for the results table, which has all reasons
            raise RunGenInputError(
                f"The inputs of {plan.refused_count} of {runnable} rows do not fit, "
                f"{self._allowed(runnable)} may (max_failed): {plan.first_refusal}; nothing was sent"
            )
        return inputs

    def _prepare(self, plan: TablePlan) -> None:
        """Find out whether the results can be kept."""
        self._results = ResultsTable(self._results_uri, plan.types)
        self._collector = Collector(self, self._collect_options, into=self._rows)
        if self._collect_options.contact_sheet and self._table_options.destination is not None:
            self._sheet = SheetWriter(self._table_options.destination, self._table_options.key)

    def prepare_storage(self) -> None:
        self._collector.prepare()
        folder = self._results_uri.rpartition("/")[0]
        if folder != str(self._table_options.destination).removesuffix("/"):
            self._results.prepare()

    @property
    def _results_uri(self) -> str:
        options = self._table_options
        if options.results is not None:
            return str(options.results)
        return f"{str(options.destination).removesuffix('/')}/results.jsonl"

    def submit(self, deadline: float) -> bool:
        try:
            return super().submit(deadline)
        finally:
            # for the results table of an attempt that fails here
            self._submitted = self.result(self.batch)

    def _resume(self, checkpoint: Checkpoint, *, is_cleared: bool) -> set[str]:
        try:
            return super()._resume(checkpoint, is_cleared=is_cleared)
        finally:
            self._submitted = self.result(checkpoint)

    def push_submitted(self, ids: list[str | None], refused: Mapping[int, RunGenError]) -> None:
        # the ids would be too many
        self.ti.xcom_push(key="batch", value=self.batch.header.batch)

    def accepts(self, stored: StoredJob) -> bool:
        return self._collector.accepts(stored)

    def add_reused(self, stored: StoredJob) -> None:
        super().add_reused(stored)
        self._rows.add_stored(stored, is_reused=True)

    def keep(self, job: Job) -> Job:
        return self._collector.hold(job)

    # --- a deferral ---

    @property
    def saved_lines(self) -> SavedLines:
        folder, slash, _ = self._results_uri.rpartition("/")
        return SavedLines(folder + slash, task_token(self.ti), self.attempt.try_number)

    def defer(self, deadline: float, **arguments: Any) -> NoReturn:
        super().defer(deadline, batch=self.batch.header.batch, **arguments)

    @property
    def can_save_lines(self) -> bool:
        return True

    @property
    def saves_lines(self) -> bool:
        return True

    def lines_to_save(self) -> Iterator[Any]:
        """Yield what the plan is made of, and each row with the fate of its input."""
        yield self._plan.header()
        find, ids, refused = self.unsent.finder(), self._submitted.ids, self.refused
        for row, number in self._plan.numbered():
            sent: list[Any] | None = None
            if number is not None:
                error = refused.get(number)
                refusal = error and [error.message, error.retryable]
                saved = self.reuse.to_save(number, ids[number]) if self.reuse.keys else None
                sent = [ids[number], saved, refusal, find(number)]
            yield [list(row.values.values()), row.status, row.error, sent]

    def saved_inputs(self) -> Iterator[tuple[int, Any]]:
        lines = (sent for _, _, _, sent in islice(self._lines or (), 1, None) if sent is not None)
        for number, (*_, job_input) in enumerate(lines):
            if job_input is not None:
                yield number, job_input

    def _restore(self, app_id: str) -> DeferredBatch | None:
        self._lines = self.saved_lines.load()
        lines = iter(self._lines)
        self._plan = plan = TablePlan.restored(next(lines))
        ids: list[str | None] = []
        saved: list[Any] = []
        for values, status, error, sent in lines:
            plan.add(values, status and Status(status), error)
            if sent is None:
                continue
            job_id, saved_of_row, refusal, _ = sent
            if refusal is not None:
                message, retryable = refusal
                kind = RunGenError if retryable else RunGenBadRequestError
                self.refused[len(ids)] = kind(message, retryable=retryable)
            ids.append(job_id)
            saved.append(saved_of_row)
        self.restore_reuse(ids, saved)
        state = self.restore_batch(app_id, ids, self.xcom_pull(STATE_KEY))
        self._submitted = self.result(self.batch)
        self._prepare(plan)
        self._has_to_report = True
        return state

    # --- the end ---

    def _finish_table(self, result: BatchResult) -> dict[str, Any]:
        """Store the outputs, write the table, and fail if too many rows failed."""
        self._submitted = result
        new_ids = self.new_job_ids(result)
        self.jobs.finished = set(new_ids)  # they are not to be canceled any more
        self._gather(new_ids, result.jobs)
        failures: list[str] = []
        counts = self._write(failures)
        log.info(
            "%d rows: %d bought, %d reused, %d skipped, %d failed",
            *(counts.rows, counts.new_jobs, counts.reused, counts.skipped, counts.failed),
        )
        if result.stopped is not None:
            raise self.stop_error(result, result.stopped, f"All reasons are in {redact(self._results_uri)}. ")
        if counts.failed > self._allowed(counts.runnable):
            raise self._failure_of_table(failures, counts)
        if counts.failed:
            log.warning(
                "Failed: %d of %d rows, as max_failed allows: %s",
                *(counts.failed, counts.runnable, "; ".join(failures)),
            )
        destination = self._table_options.destination
        self.record_outcome(
            TaskOutcome(
                self.jobs.app_id,
                result.job_ids,
                counts.failed,
                None if destination is None else redact(str(destination)),
                results=redact(self._results_uri),
                sources=[redact(uri) for uri in self._plan.sources],
                file_count=counts.file_count,
            )
        )
        return counts.summary(self._results_uri)

    def _gather(self, job_ids: Sequence[str], jobs: Sequence[Job]) -> None:
        """Store the outputs of jobs, or fetch their results, and let the ledger know."""
        collector = self._collector
        with self.reuse.remembering(collector):
            collector.gather(self.jobs.app_id, job_ids, jobs)

    def _write(self, failures: list[str], missing: str = "") -> ResultCounts:
        """
        Write the table.

        :param failures: takes the first reasons why rows failed.
        :param missing: the error of rows of which nothing is known.
        """
        self._rows.add_errors(self._collector.errors)
        counts = ResultCounts()
        costs = find_job_costs(self, self.jobs.app_id, self._rows.seconds)
        self._results.write(counts.count(costs.charge(self._result_rows(failures, missing))))
        self._has_to_report = False
        if self._sheet is not None:
            self._sheet.write(lambda: self._result_rows([], missing), self.ti, self.jobs.app_id)
        return counts

    def _result_rows(self, failures: list[str], missing: str) -> Iterator[ResultRow]:
        for index, (row, number) in enumerate(self._plan.numbered()):
            found = self._result_row(index, row, number, missing)
            if found.error is not None and found.status is not Status.SKIPPED and len(failures) < MAX_NAMED:
                key = ", ".join(str(row.values[name]) for name in self._table_options.key)
                failures.append(clean_text(f"{key}: {found.error}", 300))
            yield found

    def _result_row(self, index: int, row: PlannedRow, number: int | None, missing: str) -> ResultRow:
        status, error = (row.status, row.error) if number is None else self._refusal(number)
        if status is not None or number is None:
            return ResultRow(index=index, status=status or Status.FAILED, values=row.values, error=error)
        job_id = self._job_of(number)
        if job_id is None:
            error = missing or "it was not submitted"
            if missing and number < len(self._submitted.ids):
                error = f"not submitted: {missing}"
            return ResultRow(index=index, status=Status.FAILED, values=row.values, error=error)
        return self._rows.row(index, job_id, row.values, missing=missing)

    def _job_of(self, number: int) -> str | None:
        """Return the job of an input, as far as it is known."""
        if number < len(self._submitted.ids):
            return self._submitted.ids[number]
        stored = self.reuse.stored.get(self.reuse.leader(number))
        return None if stored is None else stored.job_id

    def _refusal(self, number: int) -> tuple[Status | None, str | None]:
        """Return the status and error of an input that the service did not take."""
        error = self._submitted.refused.get(number)
        if error is None:
            return None, None
        is_refused = isinstance(error, RunGenBadRequestError)
        return Status.REFUSED if is_refused else Status.FAILED, error.message

    def _failure_of_table(self, failures: Sequence[str], counts: ResultCounts) -> RunGenJobFailedError:
        more = "; …" if counts.failed > len(failures) else ""
        again = self.retry_hint("only these again", "all rows again")
        is_retryable = counts.failed > counts.refused
        where = f"All reasons are in {redact(self._results_uri)}"
        return RunGenJobFailedError(
            f"{counts.failed} of {counts.runnable} rows failed, {self._allowed(counts.runnable)} may "
            f"(max_failed): {'; '.join(failures)}{more}",
            app_id=self.jobs.app_id,
            job_id=next(iter(self._collector.errors), ""),
            hint=f"{where}. {again if is_retryable else 'Correct them, and clear the task'}",
            retryable=is_retryable,
        )

    def _allowed(self, count: int) -> int:
        return max_failures(self.options.max_failed, count)

    @contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        """Write the results table with what is known before an error ends the task."""
        try:
            yield
        except Exception as error:
            if self._has_to_report and not self.guard.is_killed:
                self._report(error)
            raise
        finally:
            self._rows.close()

    def _report(self, error: Exception) -> None:
        cause = error if isinstance(error, RunGenError) else error.__cause__
        message = (
            cause.message
            if isinstance(cause, RunGenError)
            else clean_text(f"{type(error).__name__}: {error}")
        )
        try:
            self.read_stored()
            if self.has_to_store(error):
                self.store_completed(self._submitted, lambda job_ids: self._gather(job_ids, ()))
            self._rows.add_errors(
                {
                    job_id: RunGenJobCanceledError(f"Canceled: {message}", app_id="", job_id=job_id)
                    for job_id in self.canceled
                }
            )
            self._write([], message)
            self.push_usage()  # more of the jobs is known by now
        except Exception as failure:
            log.warning("Could not write the results table: %s", clean_text(str(failure)))
