"""Returns the results of jobs, or small manifests of what is stored of them, or writes a results table."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobTimeoutError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution.apps.bill import add_costs
from airflow_provider_rungen.execution.sinks.batch_result import (
    NOT_SUBMITTED,
    BatchResult,
    check_collected,
    check_inputs,
)
from airflow_provider_rungen.execution.sinks.collector import Collector
from airflow_provider_rungen.execution.sinks.contact_sheet import SheetWriter, describe_job
from airflow_provider_rungen.execution.sinks.xcom_values import XComValues
from airflow_provider_rungen.execution.table.result_rows import (
    JobRows,
    ResultCounts,
    ResultRow,
    Status,
)
from airflow_provider_rungen.execution.table.results_table import ResultsTable, json_text
from airflow_provider_rungen.execution.table.written_tables import check_tables
from airflow_provider_rungen.execution.task.job_ids import format_jobs
from airflow_provider_rungen.execution.task.options import CollectOptions
from airflow_provider_rungen.execution.task.outcomes import MAX_REASONS
from airflow_provider_rungen.execution.task.report import TaskOutcome
from airflow_provider_rungen.execution.task.store_writer import call_patiently
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS, check_columns

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price
    from airflow_provider_rungen.execution.collect_run import CollectRun
    from airflow_provider_rungen.execution.jobs.plans import Plan
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.task.report import Usage

log = logging.getLogger(__name__)


class ResultSink(Collector):
    """
    Takes the results of jobs. What prevents it from keeping them raises here, before the wait.

    :param run: the attempt.
    :param table: the URI of the results table. Without it, results or small manifests are returned.
    :param key: the columns that identify a row.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :param usage: takes what the jobs used, if the attempt collects those of another task.
    :param labels: the labels of those, by job. They are a column of the table.
    :raises RunGenInputError: the schema, the destination or the results table cannot be used.
    """

    def __init__(
        self,
        run: Runner | CollectRun,
        *,
        table: str | None = None,
        key: Sequence[str] = (),
        pushes_keys: bool = False,
        usage: Usage | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        options = CollectOptions.of(run.task)
        collects = usage is not None
        # a single job needs none
        has_sheet = options.destination is not None and (
            table is not None or (collects and not run.is_single)
        )
        output = OutputType.of(options.output_type)
        typed = output.columns if output is not None else {}
        if table is not None and typed:
            carried = [*key, *getattr(run.task, "columns", ())] if labels is None else ["label"]
            check_columns([*dict.fromkeys(carried), *typed], "property of output_type")
        has_rows = has_sheet or table is not None
        describe = describe_job if has_sheet else None
        rows = JobRows(describe, list(typed), keeps_inputs=collects) if has_rows else None
        self._label_of = (lambda _: options.job_label) if labels is None else labels.get
        self._values = XComValues(self._label_of, collects=collects, pushes_keys=pushes_keys)
        values = self._values if table is None else None
        super().__init__(run, options, output, values=values, rows=rows, usage=usage)
        self._table = None if table is None else ResultsTable(table, FIXED_COLUMNS | typed)
        self._sheet = SheetWriter(options.destination, key) if has_sheet else None
        self._key = key
        self._runner = cast("Runner", run) if usage is None else None
        self._is_written = self._is_kept = False
        self._price: Price | None = None
        # why rows have no result, by index
        self._row_errors: dict[int, RunGenError] = {}

    def _add(self, job: Job) -> None:
        super()._add(job)
        # a task that only collects leaves the others alone
        if self._runner is None and (excess := self._values.find_excess()) is not None:
            raise excess

    def check(self) -> None:
        super().check()
        if (table := self._table_elsewhere) is not None:
            table.check()

    def prepare(self) -> None:
        check_tables(self._run)
        super().prepare()
        if (table := self._table_elsewhere) is not None:
            table.prepare()

    @property
    def _table_elsewhere(self) -> ResultsTable | None:
        """The table, if it is in another folder than the outputs."""
        folder = str(self._options.destination).removesuffix("/")
        return None if self._table is None or self._table.folder == folder else self._table

    def finish(self, result: BatchResult, plan: Plan) -> Any:
        """
        Collect what was not collected before, write the table and the sheet, and return the task's value.

        :raises RunGenError: too many jobs failed.
        """
        app_id = self._run.known_app_id
        try:
            self.gather(app_id, [each for each in result.ids if each not in self.errors], result.jobs)
        finally:
            if self._store is not None:
                self._store.log_total()
        errors = result.errors(self.errors)
        counts = self._write(result, plan)
        try:
            self._check(result, errors, counts)
        except RunGenError:
            self._push_summary(counts)
            raise
        done = [job_id for job_id in result.job_ids if job_id not in self.errors]
        about: dict[str, Any] = {"failed_count": len(errors)}
        if self.stores:
            about["destination"] = redact(str(self._options.destination))
        if self._table is None:
            value = self._value(result)
            if self.stores:
                about["files"] = [file for manifest in self._values.of(done) for file in manifest["outputs"]]
            log.info("Collected the results of %s", format_jobs(done))
        else:
            value = self._summary(self._table, counts)
            about |= {"failed_count": counts.failed, "file_count": counts.file_count}
            about |= {"results": value["results"], "sources": plan.manifest.sources}
        self._run.record_outcome(TaskOutcome(app_id, done, **about))
        return value

    def report(self, result: BatchResult, plan: Plan, error: BaseException) -> None:
        """Write what is known before an error ends the task. A failure is logged."""
        if self._is_written or (self._table is None and not (self._sheet and result.ids)):
            return
        try:
            if not any(result.ids):
                self.prepare()  # the folder may not be there yet
            # without the service
            self._add_unsuccessful(self._run.known_app_id, result.jobs)
            self._search(self._run.known_app_id, self._unsettled(result.ids))
            cause = error if isinstance(error, RunGenError) else error.__cause__
            other = clean_text(f"{type(error).__name__}: {error}")
            missing = cause.message if isinstance(cause, RunGenError) else other
            self._push_summary(self._write(result, plan, missing))
        except Exception as failure:
            what = "contact sheet" if self._table is None else "results table"
            log.warning("Could not write the %s: %s", what, clean_text(str(failure)))

    # --- the value ---

    def _summary(self, table: ResultsTable, counts: ResultCounts) -> dict[str, Any]:
        # what another task bought is in the summary of that
        price = None if self._runner is None else self._price
        return counts.summary(table.uri, self._run.used(), price)

    def _push_summary(self, counts: ResultCounts) -> None:
        """Push what a task with a table returns, when it fails and so returns nothing."""
        if self._table is not None and not self._is_kept and self._run.task.do_xcom_push:
            self._run.push_quietly("return_value", self._summary(self._table, counts), "the summary")

    def _value(self, result: BatchResult) -> Any:
        values = self._values.of(result.ids)
        if not self.stores and (error := self._values.find_excess(values)) is not None:
            raise error
        return values[0] if self._run.is_single else values

    def _check(self, result: BatchResult, errors: Mapping[int, RunGenError], counts: ResultCounts) -> None:
        """Raise if too many jobs failed."""
        run = self._runner
        if run is None:
            check_collected(self._run, result, errors, self._options.max_failed)
        elif self._table is None:
            check_inputs(run, result, errors, count=len(result.ids))
        else:
            skipped = counts.by_status[Status.SKIPPED]
            log.info(
                "%d rows: %d bought, %d reused, %d skipped, %d failed",
                *(counts.rows, run.used()["jobs"], counts.reused, skipped, counts.failed),
            )
            check_inputs(
                run,
                result,
                self._row_errors,
                count=counts.runnable,
                what="rows",
                reasons=[
                    f"{self._name_of(row)}: {row['error']}" for row in counts.first_failed[:MAX_REASONS]
                ],
                where=f"All reasons are in {redact(self._table.uri)}. ",
            )

    def _name_of(self, row: Mapping[str, Any]) -> str:
        if not self._key:
            return f"index {row['index']}"
        return ", ".join(map(str, row["key"])) if len(self._key) > 1 else str(row["key"])

    # --- the table and the sheet ---

    def _write(self, result: BatchResult, plan: Plan, missing: str = "") -> ResultCounts:
        """
        Write the table and the sheet, as far as they are wanted.

        :param missing: the error of jobs of which nothing is known.
        """
        counts, rows = ResultCounts(self._key), self._rows
        if rows is None:
            return counts

        def result_rows() -> Iterator[ResultRow]:
            return self._result_rows(rows, result, plan, missing)

        def counted_rows() -> Iterator[ResultRow]:
            nonlocal counts
            counts = ResultCounts(self._key)
            return counts.count(add_costs(_with_inputs(result_rows(), plan), self._price))

        if self._table is not None:
            columns = dict(zip(plan.manifest.columns, plan.manifest.types, strict=True))
            if self._runner is None:
                columns["label"] = "text"
            self._price = self._run.find_price()
            is_over = bool(missing)
            if is_over and not any(result.ids) and self._table.exists():
                deque(counted_rows(), maxlen=0)
                self._is_kept = True
                log.warning("No row got a job: %s stays as it was", redact(self._table.uri))
            else:
                self._write_table(self._table, counted_rows, columns, is_over=is_over)
                self._run.push("results", redact(self._table.uri))
            if self._runner is not None:
                self._run.failed_rows = counts.first_failed
                self._run.push_quietly("failed", counts.first_failed, "what failed")
        self._is_written = True
        if self._sheet is not None:
            self._sheet.write(result_rows, self._run.ti, self._run.known_app_id)
        return counts

    def _write_table(
        self,
        table: ResultsTable,
        rows: Callable[[], Iterator[ResultRow]],
        columns: Mapping[str, str],
        *,
        is_over: bool,
    ) -> None:
        """
        Write a table, and again while the storage fails: a clear may buy all that is in it.

        :param rows: makes the rows.
        :param is_over: whether the attempt has failed already, and is to end soon.
        """

        def gives_up() -> bool:
            return is_over or self._run.guard.is_stopping()

        call_patiently("save the results", lambda: table.write(rows(), columns), gives_up, RunGenOutputError)

    def _result_rows(
        self, rows: JobRows, result: BatchResult, plan: Plan, missing: str
    ) -> Iterator[ResultRow]:
        """Yield a row for each row of the plan."""
        columns = plan.manifest.columns
        seconds = {job.id: job.execution_time for job in result.jobs}
        for number, (planned, job_id) in enumerate(zip(plan.rows(), result.ids, strict=True)):
            values = dict(zip(columns, planned.values, strict=True))
            if self._runner is None:
                values["label"] = self._label_of(job_id or "")
            if planned.status:
                status, why = Status(planned.status), planned.why or None
                row = ResultRow(index=number, status=status, values=values, error=why)
                failure: RunGenError = RunGenInputError(planned.why)
            elif job_id is None or number in result.refused:
                text = f"not submitted: {missing}" if missing else NOT_SUBMITTED
                failure = result.refused.get(number) or RunGenJobTimeoutError(text)
                status = Status.without_job(failure)
                row = ResultRow(index=number, status=status, values=values, error=failure.message)
            else:
                failure = self.errors.get(job_id) or RunGenError(missing)
                # of rows that share a job, the first has bought it
                is_reused = job_id in result.shared or planned.first is not None
                ran_for = seconds.get(job_id)
                row = rows.row(number, job_id, failure, values=values, is_reused=is_reused, seconds=ran_for)
            if row.is_failed:
                self._row_errors[number] = failure
            yield row


def _with_inputs(rows: Iterable[ResultRow], plan: Plan) -> Iterator[ResultRow]:
    for row, planned in zip(rows, plan.rows(), strict=True):
        if planned.has_input:
            yield replace(row, input=json_text(redact_value(plan.input(row.index))))
        else:
            yield row
