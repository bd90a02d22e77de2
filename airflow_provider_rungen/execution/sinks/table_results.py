"""Writes the results table of a task: a row for each row of its source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen.client.polling import strip_payloads
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenBadRequestError, RunGenJobFailedError
from airflow_provider_rungen.execution.costs.prices import add_costs, find_price
from airflow_provider_rungen.execution.sinks.collector import Collector
from airflow_provider_rungen.execution.sinks.contact_sheet import SheetWriter, describe_job
from airflow_provider_rungen.execution.sinks.failures import error_text, stop_error
from airflow_provider_rungen.execution.table.job_rows import JobRows
from airflow_provider_rungen.execution.table.results import (
    ResultCounts,
    ResultRow,
    ResultsTable,
    Status,
    results_uri,
)
from airflow_provider_rungen.execution.task.lineage import TaskOutcome
from airflow_provider_rungen.execution.task.outcomes import max_failures

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.collector import CollectingTask
    from airflow_provider_rungen.execution.sinks.job_sinks import SinkPlan, SinkTask
    from airflow_provider_rungen.execution.task.options import CollectOptions, TableOptions
    from airflow_provider_rungen.runs.plan import PlannedRow

log = logging.getLogger(__name__)

# How many rows an error names.
_MAX_NAMED = 10


class TableResults:
    """
    Write the results table and the contact sheet, and return the summary of the table.

    :param run: the attempt.
    :param table: the table, and where its results go.
    :param collect: what to do with results.
    :raises RunGenInputError: the schema, the destination or the results table cannot be used.
    """

    def __init__(
        self,
        run: SinkTask,
        table: TableOptions,
        collect: CollectOptions,
    ) -> None:
        self.stores = collect.destination is not None
        self._uri = results_uri(table)
        self._table = ResultsTable(self._uri)
        self._run = run
        self._options = table
        self._max_failed = collect.max_failed
        self._rows = JobRows(describe_job if collect.contact_sheet else None)
        self._collector = collector = Collector(
            cast("CollectingTask", run), collect, into=self._rows, runs_jobs=True
        )
        has_sheet = self.stores and collect.contact_sheet
        self._sheet = SheetWriter(table.destination, table.key) if has_sheet else None
        self._is_written = False
        self.errors, self.stored = collector.errors, collector.stored
        self.accepts, self.close = collector.accepts, collector.close
        self.add_stored, self.gather = collector.add_stored, collector.gather
        # polls are cheaper if nothing of a result is wanted
        self.hold: Callable[[Job], Job] = strip_payloads if self.stores else collector.hold

    def prepare(self) -> None:
        self._collector.prepare()
        folder = self._uri.rpartition("/")[0]
        if folder != str(self._options.destination).removesuffix("/"):
            self._table.prepare()

    def finish(self, result: BatchResult, plan: SinkPlan) -> dict[str, Any]:
        self._collector.gather_rest(self._run.known_app_id, result.ids, result.jobs)
        failures: list[str] = []
        counts = self._write(result, plan, failures)
        log.info(
            "%d rows: %d bought, %d reused, %d skipped, %d failed",
            *(counts.rows, counts.new_jobs, counts.reused, counts.skipped, counts.failed),
        )
        self._check(result, counts, failures)
        destination = self._options.destination
        self._run.record_outcome(
            TaskOutcome(
                self._run.known_app_id,
                result.job_ids,
                counts.failed,
                None if destination is None else redact(str(destination)),
                results=redact(self._uri),
                sources=plan.manifest.sources,
                file_count=counts.file_count,
            )
        )
        return counts.summary(self._uri)

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        if self._is_written:
            return
        try:
            if not any(result.ids):
                self.prepare()  # the folder may not be there yet
            self._collector.gather_known(self._run.known_app_id, result.ids, result.jobs)
            self._write(result, plan, [], error_text(error))
        except Exception as failure:
            log.warning("Could not write the results table: %s", clean_text(str(failure)))

    def _write(
        self, result: BatchResult, plan: SinkPlan, failures: list[str], missing: str = ""
    ) -> ResultCounts:
        """
        Write the table.

        :param failures: takes the first reasons why rows failed.
        :param missing: the error of jobs of which nothing is known.
        """
        self._rows.add_errors(self.errors)
        app_id, counts, manifest = self._run.known_app_id, ResultCounts(), plan.manifest
        price = find_price(cast("Any", self._run))
        table = ResultsTable(self._uri, dict(zip(manifest.columns, manifest.types, strict=True)))
        table.write(counts.count(add_costs(self._result_rows(result, plan, failures, missing), price)))
        self._is_written = True
        if result.submitted is not None:
            counts.new_jobs = result.submitted
        if self._sheet is not None:
            self._sheet.write(lambda: self._result_rows(result, plan, [], missing), self._run.ti, app_id)
        return counts

    def _result_rows(
        self, result: BatchResult, plan: SinkPlan, failures: list[str], missing: str
    ) -> Iterator[ResultRow]:
        columns = plan.manifest.columns
        for number, planned in enumerate(plan.rows()):
            values = dict(zip(columns, planned.values, strict=True))
            row = self._result_row(number, planned, values, result, missing)
            if row.error is not None and row.status is not Status.SKIPPED and len(failures) < _MAX_NAMED:
                key = ", ".join(str(values[name]) for name in self._options.key)
                failures.append(clean_text(f"{key}: {row.error}", 300))
            yield row

    def _result_row(
        self,
        number: int,
        planned: PlannedRow,
        values: Mapping[str, Any],
        result: BatchResult,
        missing: str,
    ) -> ResultRow:
        job_id, status, why = None, Status.FAILED, missing or "it was not submitted"
        if planned.status:
            status, why = Status(planned.status), planned.why
        elif (refusal := result.refused.get(number)) is not None:
            status = Status.REFUSED if isinstance(refusal, RunGenBadRequestError) else status
            why = refusal.message
        elif number < len(result.ids):
            job_id = result.ids[number]
            why = f"not submitted: {missing}" if missing else why
        if job_id is None:
            return ResultRow(index=number, status=status, values=values, error=why or None)
        return self._rows.row(number, job_id, values, missing=missing, reused=job_id in result.shared)

    def _check(self, result: BatchResult, counts: ResultCounts, failures: Sequence[str]) -> None:
        """Raise if too many rows failed."""
        where = f"All reasons are in {redact(self._uri)}. "
        if result.stopped is not None:
            raise stop_error(self._run, result, result.stopped, where)
        if counts.failed > (allowed := max_failures(self._max_failed, counts.runnable)):
            is_retryable, more = counts.failed > counts.refused, "; …" * (counts.failed > len(failures))
            again = self._run.retry_hint("only these again", "all rows again")
            raise RunGenJobFailedError(
                f"{counts.failed} of {counts.runnable} rows failed, {allowed} may (max_failed): "
                f"{'; '.join(failures)}{more}",
                app_id=self._run.known_app_id,
                job_id=next(iter(self.errors), ""),
                hint=where + (again if is_retryable else self._run.clear_hint()),
                retryable=is_retryable,
            )
        if counts.failed:
            log.warning(
                "Failed: %d of %d rows, as max_failed allows: %s",
                *(counts.failed, counts.runnable, "; ".join(failures)),
            )
