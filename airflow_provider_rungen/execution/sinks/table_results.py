"""Writes the results table of a task: a row for each row of its source."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.execution.apps.bill import add_costs, find_price
from airflow_provider_rungen.execution.sinks.collector import Collector, Refetch
from airflow_provider_rungen.execution.sinks.failures import (
    Advice,
    check_collected,
    error_text,
    failure_error,
    stop_error,
    warn_of_failures,
)
from airflow_provider_rungen.execution.table.results import ResultCounts, ResultsTable, results_uri
from airflow_provider_rungen.execution.task.lineage import TaskOutcome
from airflow_provider_rungen.execution.task.outcomes import max_failures

if TYPE_CHECKING:
    from airflow_provider_rungen.exceptions import RunGenError
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.job_sinks import SinkPlan
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)


class TableResults(Collector):
    """
    Write the results table and the contact sheet, and return the summary of the table.

    :param run: the attempt.
    :param options: what to do with results.
    :param refetch: see `Collector`.
    :param key: the columns that identify a row.
    :param advice: see `Collector`.
    :raises RunGenInputError: the schema, the destination or the results table cannot be used.
    """

    def __init__(
        self,
        run: TaskRun[Any],
        options: CollectOptions,
        *,
        refetch: Refetch,
        key: Sequence[str] = (),
        advice: Advice | None = None,
    ) -> None:
        super().__init__(run, options, refetch=refetch, key=key, advice=advice)
        self._key = key
        self._uri = results_uri(options)
        self._table = ResultsTable(self._uri)

    def prepare(self) -> None:
        super().prepare()
        if self._uri.rpartition("/")[0] != str(self._options.destination).removesuffix("/"):
            self._table.prepare()

    def finish(self, result: BatchResult, plan: SinkPlan) -> dict[str, Any]:
        errors = self._gather_rest(result)
        counts = self._write(result, plan)
        if self._advice is None:
            check_collected(self._run.ti, result, errors, self._options.max_failed)
        else:
            log.info(
                "%d rows: %d bought, %d reused, %d skipped, %d failed",
                *(counts.rows, counts.new_jobs, counts.reused, counts.skipped, counts.failed),
            )
            self._check_rows(self._advice, result, errors, counts)
        outcome = TaskOutcome(
            self._run.known_app_id,
            self._done(result),
            counts.failed,
            self._shown_destination,
            results=redact(self._uri),
            sources=plan.manifest.sources,
            file_count=counts.file_count,
        )
        self._run.record_outcome(outcome)
        return counts.summary(self._uri)

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        if self._is_written:
            return
        try:
            if not any(result.ids):
                self.prepare()  # the folder may not be there yet
            self.gather_known(self._run.known_app_id, result.ids, result.jobs)
            self._write(result, plan, error_text(error))
        except Exception as failure:
            log.warning("Could not write the results table: %s", clean_text(str(failure)))

    def _write(self, result: BatchResult, plan: SinkPlan, missing: str = "") -> ResultCounts:
        """
        Write the table and the sheet.

        :param missing: the error of jobs of which nothing is known.
        """
        counts, manifest = ResultCounts(), plan.manifest
        table = ResultsTable(self._uri, dict(zip(manifest.columns, manifest.types, strict=True)))
        rows = self._result_rows(result, plan, missing)
        table.write(counts.count(add_costs(rows, find_price(self._run))))
        if result.submitted is not None:
            counts.new_jobs = result.submitted
        self._write_sheet(result, plan, missing)
        return counts

    def _check_rows(
        self, advice: Advice, result: BatchResult, errors: Mapping[int, RunGenError], counts: ResultCounts
    ) -> None:
        """Raise if too many rows failed."""
        where = f"All reasons are in {redact(self._uri)}. "
        if result.stopped is not None:
            raise stop_error(advice, result.stopped, errors, len(result.ids), where)
        reasons = "; ".join(
            clean_text(f"{', '.join(str(row.values[name]) for name in self._key)}: {row.error}", 300)
            for row in counts.first_failed
        )
        if counts.failed > (allowed := max_failures(self._options.max_failed, counts.runnable)):
            reasons += "; …" if counts.failed > len(counts.first_failed) else ""
            raise failure_error(
                advice,
                f"{counts.failed} of {counts.runnable} rows failed, {allowed} may (max_failed): {reasons}",
                job_id=next(iter(self.errors), ""),
                what="rows",
                retryable=counts.failed > counts.refused,
                otherwise=advice.clear_hint(),
                where=where,
            )
        warn_of_failures(counts.failed, counts.runnable, "rows", reasons)
