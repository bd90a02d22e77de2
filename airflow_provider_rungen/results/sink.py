"""Writes how the rows of a table ended: the results, the contact sheet, and the summary."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.apps.bill import add_costs
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text, format_count, format_duration
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobFailedError,
    RunGenOutputError,
)
from airflow_provider_rungen.results.rows import ResultCounts, ResultRow, Status
from airflow_provider_rungen.results.sheet import write_sheet
from airflow_provider_rungen.results.writers import ResultsTable, json_text
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS, check_columns
from airflow_provider_rungen.store import records
from airflow_provider_rungen.store.records import Adopt, GivenUp, Record, Reuse
from airflow_provider_rungen.task.outcomes import MAX_REASONS, join_reasons, max_failures
from airflow_provider_rungen.task.report import TaskOutcome, format_unrun
from airflow_provider_rungen.task.store_writer import call_patiently

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price
    from airflow_provider_rungen.table.inputs import PlannedRow
    from airflow_provider_rungen.work.rows import Rows
    from airflow_provider_rungen.work.table_run import TableRun

log = logging.getLogger(__name__)

#: Why a row has no job, if it was neither refused nor submitted.
NOT_SUBMITTED = "it was not submitted"
# What the page shows of a row.
_SHOWN = [name for name in FIXED_COLUMNS if name not in ("output", "bought_at")]
_STATUSES = {
    records.Status.COMPLETED: Status.COMPLETED,
    records.Status.INVALID: Status.INVALID,
    records.Status.REJECTED: Status.REJECTED,
    records.Status.CANCELED: Status.CANCELED,
    records.Status.REFUSED: Status.REFUSED,
}


class ResultSink:
    """
    Writes the results of one attempt.

    :param run: the attempt.
    :param uri: the results table.
    :param key: the columns that identify a row.
    :param columns: the other columns of the source that it repeats.
    :raises RunGenInputError: the schema, the destination or the results table cannot be used.
    """

    def __init__(
        self, run: TableRun, uri: str, *, key: Sequence[str] = (), columns: Sequence[str] = ()
    ) -> None:
        output = run.output
        typed = output.columns if output is not None else {}
        if typed:
            check_columns([*dict.fromkeys([*key, *columns]), *typed], "property of output_type")
        self._run, self._key = run, key
        self._typed = list(typed)
        self._table = ResultsTable(uri, FIXED_COLUMNS | typed)
        self._price: Price | None = None
        self.reused = 0  #: How many rows were bought by other runs.

    def prepare(self) -> None:
        """
        Find out whether results can be kept, before anything is sent.

        :raises RunGenInputError: they cannot be kept now.
        """
        self._run.storage.prepare()
        if f"{self._table.folder}/".startswith(f"{str(self._run.options.destination).removesuffix('/')}/"):
            self._table.create_folder()
        else:
            self._table.prepare()

    def page_details(self) -> dict[str, Any]:
        """Return what the page of the task has to know."""
        return {"results": redact(self._table.uri), "key": list(self._key)}

    def finish(self, rows: Rows, unsent: RunGenError | None) -> dict[str, Any]:
        """
        Write the table and the sheet, and return the summary.

        :param unsent: why rows were not bought, if they could not be.
        :raises RunGenError: more failed than may.
        """
        self._run.collector.outputs.log_total()
        counts = self._write(rows, "" if unsent is None else unsent.message)
        value = self._summary(counts)
        self._log(value)
        try:
            self._check(rows, counts, unsent)
        except RunGenError:
            if self._run.task.do_xcom_push:
                self._run.push_quietly("return_value", value, "the summary")
            raise
        self._run.record_outcome(
            TaskOutcome(
                self._run.known_app_id,
                (),
                failed_count=counts.failed,
                file_count=counts.file_count,
                destination=redact(str(self._run.options.destination)),
                results=value["results"],
                sources=rows.plan.manifest.sources,
            )
        )
        return value

    def report(self, rows: Rows, error: Exception) -> None:
        """Write what is known before an error ends the task. A failure is logged."""
        try:
            missing = getattr(error, "message", "") or clean_text(f"{type(error).__name__}: {error}")
            value = self._summary(self._write(rows, missing, is_over=True))
            self._log(value)
            if self._run.task.do_xcom_push:
                self._run.push_quietly("return_value", value, "the summary")
        except Exception as failure:
            log.warning("Could not write the results table: %s", clean_text(str(failure)))

    def _log(self, summary: Mapping[str, Any]) -> None:
        """Log what a user wants to know at the end: how it went, what it cost, and where the results are."""
        used, jobs = self._run.used(), format_count(summary["jobs"], "job")
        seconds, lost, unrun = summary["execution_seconds"], used.get("lost"), format_unrun(used)
        bought = f"This run bought {jobs}"
        if self._run.collects:
            bought = f"This run collected {jobs}"
        elif used["bought"] != used["jobs"]:
            bought = f"This attempt bought {used['bought']}, this run {jobs}"
        cost = f"{summary['cost']} {summary['currency']}" if summary.get("cost") else ""
        spent = ", ".join(filter(None, [format_duration(seconds) if seconds else "", cost]))
        ends = [f"{summary['completed']} completed"]
        ends += [f"{summary[name]} {name}" for name in ("reused", "failed", "skipped") if summary[name]]
        log.info(
            "%s: %s. %s%s%s%s. Results: %s",
            format_count(summary["rows"], "row"),
            ", ".join(ends),
            bought,
            f": {unrun}" if unrun else "",
            f" ({spent})" if spent else "",
            f", and lost {format_count(lost, 'answer')}, which may have cost" if lost else "",
            clean_text(summary["results"]),
        )

    def _summary(self, counts: ResultCounts) -> dict[str, Any]:
        return counts.summary(self._table.uri, self._run.used(), self._price)

    def _write(self, rows: Rows, missing: str, *, is_over: bool = False) -> ResultCounts:
        counts = ResultCounts(self._key)

        def written() -> Iterator[ResultRow]:
            nonlocal counts
            counts = ResultCounts(self._key)
            return counts.count(add_costs(self._result_rows(rows, missing), self._price))

        self._price = self._run.find_price()
        columns = dict(zip(rows.plan.manifest.columns, rows.plan.manifest.types, strict=True))

        def gives_up() -> bool:
            return is_over or self._run.guard.is_stopping()

        def write() -> None:
            self._table.write(written(), columns)

        call_patiently("save the results", write, gives_up, RunGenOutputError)
        self.reused = counts.reused
        self._run.push("results", redact(self._table.uri))
        self._run.failed_rows = counts.first_failed
        self._run.push_quietly("failed", counts.first_failed, "what failed")
        if counts.file_count:  # a sheet shows pictures, and without one its rows would be read for nothing
            write_sheet(
                self._table.uri,
                add_costs(self._result_rows(rows, missing), self._price),
                self._summary(counts),
                key=self._key,
                ti=self._run.ti,
                app_id=self._run.known_app_id,
            )
        return counts

    def _check(self, rows: Rows, counts: ResultCounts, unsent: RunGenError | None) -> None:
        """Raise if too many rows failed."""
        run = self._run
        if unsent is not None:
            raise unsent
        where = f". All reasons are in {redact(self._table.uri)}"
        failed = [row["job_id"] for row in counts.first_failed if row["job_id"]]
        run.note_app(run.known_app_id, list(dict.fromkeys(failed)))
        job_id = next(iter(failed), "")
        allowed = max_failures(run.options.max_failed, counts.runnable)
        reasons = [f"{self._name_of(row)}: {row['error']}" for row in counts.first_failed[:MAX_REASONS]]
        why = join_reasons(reasons, counts.failed)
        if run.ending.stopped and run.options.max_failed != "any":
            raise RunGenJobFailedError(
                f"Stopped: {run.ending.stopped}. {len(rows.new)} of {counts.rows} inputs were not bought. "
                f"Reasons: {why}",
                app_id=run.known_app_id,
                job_id=job_id,
                hint=f"Check the app and the inputs. A retry buys only what did not complete{where}",
                retryable=not rows.is_refused,
            )
        if counts.failed <= allowed:
            if counts.failed:
                log.warning(
                    "Failed: %d of %d rows, as max_failed allows: %s", counts.failed, counts.runnable, why
                )
            return
        outages = [*rows.unstored.values()]
        given_up = counts.by_status[Status.GIVEN_UP]
        final = given_up + counts.by_status[Status.REFUSED]
        hint = "A retry or a clear buys only these again"
        is_final = counts.failed <= final
        if run.collects:
            # a retry finds a job that has ended as it was
            is_final, hint = not rows.open, "Raise max_failed to collect the others, and clear the task"
        elif given_up:
            hint = "Correct the inputs, or raise max_attempts to buy what was given up once more"
        elif is_final:
            hint = "Correct the input of these rows"
        raise RunGenJobFailedError(
            f"{counts.failed} of {counts.runnable} rows failed, {allowed} may (max_failed): {why}",
            app_id=run.known_app_id,
            job_id=job_id,
            hint=(outages[0].hint if outages else hint) + where,
            retryable=not is_final,
        )

    def _name_of(self, row: Mapping[str, Any]) -> str:
        if not self._key:
            return f"index {row['index']}"
        return ", ".join(map(str, row["key"])) if len(self._key) > 1 else str(row["key"])

    # --- the rows ---

    def last_rows(self, rows: Rows) -> list[dict[str, Any]]:
        """Return the rows whose jobs ended last, as the results have them, for the page of a running task."""
        names, price = rows.plan.manifest.columns, self._run.find_price()
        found: list[dict[str, Any]] = []
        for number, record in rows.last_ended:
            row = self._failed(number, [record], is_final=False)
            uris = self._run.reader.uris(record)
            row.result = None if record.result is None else json_text(redact_value(record.result, uris))
            row.values = dict(zip(names, rows.plan.row(number).values, strict=True))
            if not self._run.collects:
                row.input = json_text(redact_value(rows.plan.input(number)))
            [row] = add_costs([row], price)
            found.append({k: v for k, v in row.written(names, _SHOWN).items() if v not in (None, "", [])})
        return found

    def _result_rows(self, rows: Rows, missing: str) -> Iterator[ResultRow]:
        """
        Yield a row for each row of the plan.

        :param missing: why rows have nothing, if it is known.
        """
        names = rows.plan.manifest.columns
        for number, planned in enumerate(rows.plan.rows()):
            row = self._row(rows, number, planned, missing)
            row.values = dict(zip(names, planned.values, strict=True))
            if planned.has_input and not self._run.collects:
                row.input = json_text(redact_value(rows.plan.input(number)))
            yield row

    def _row(self, rows: Rows, number: int, planned: PlannedRow, missing: str) -> ResultRow:
        if planned.status:
            return ResultRow(index=number, status=Status(planned.status), error=planned.why or None)
        match rows.verdict(planned.digest):
            case Reuse(fact):
                return self._completed(number, fact, is_equal=planned.first is not None)
            case GivenUp(failures, is_final):
                return self._failed(number, failures, is_final=is_final)
            case Adopt(fact):
                return self._running(rows, number, fact.job, missing)
        if self._run.collects and (job := rows.plan.input(number)) in rows.open:
            return self._running(rows, number, job, missing)
        text = f"not submitted: {missing}" if missing else NOT_SUBMITTED
        return ResultRow(index=number, status=Status.FAILED, error=text)

    def _running(self, rows: Rows, number: int, job: str, missing: str) -> ResultRow:
        error = rows.unstored.get(job)
        why = missing or "it has not ended" if error is None else error.message
        return ResultRow(index=number, status=Status.FAILED, job_id=job, error=why)

    def _completed(self, number: int, fact: Record, *, is_equal: bool) -> ResultRow:
        reader = self._run.reader
        result, uris = reader.read(fact), [*reader.uris(fact).values()]
        return ResultRow(
            index=number,
            status=Status.COMPLETED,
            job_id=fact.job,
            is_equal=is_equal,
            reused=is_equal or fact.run != self._run.policy.run,
            outputs=uris,
            input=_input(fact),
            result=json_text(result),
            seconds=fact.seconds,
            bought_at=_time(fact.at),
            typed={name: result.get(name) for name in self._typed} if isinstance(result, Mapping) else {},
        )

    def _failed(self, number: int, failures: Sequence[Record], *, is_final: bool) -> ResultRow:
        last = failures[-1]
        status, error = _STATUSES.get(last.status, Status.FAILED), last.why
        if is_final:
            status = Status.GIVEN_UP
            error = f"given up after {len(failures)} failed jobs, the last: {last.why}"
        return ResultRow(
            index=number,
            status=status,
            error=error,
            job_id=last.job or None,
            reused=last.run != self._run.policy.run,
            result=None if last.result is None else json_text(last.result),
            outputs=[*self._run.reader.uris(last).values()],
            input=_input(last),
            seconds=last.seconds,
            bought_at=_time(last.at),
        )


def _input(record: Record) -> str | None:
    """Return what the service says of the request of a collected job."""
    return None if record.input is None else json_text(record.input)


def _time(at: float) -> str | None:
    """Return a time (seconds since 1970) in ISO 8601, if it is known."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at else None
