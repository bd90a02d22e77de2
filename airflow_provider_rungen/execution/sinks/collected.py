"""Take collected results: for a value in XCom, a table in storage, or a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.price import Price
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenError, RunGenOutputError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.costs.prices import add_costs
from airflow_provider_rungen.execution.sinks.contact_sheet import SheetWriter, describe_job
from airflow_provider_rungen.execution.sinks.xcom_values import find_key_problem, find_xcom_problem
from airflow_provider_rungen.execution.table.job_rows import JobRows
from airflow_provider_rungen.execution.table.results import ResultCounts, ResultRow, ResultsTable


class Collected(Protocol):
    """Takes the results of jobs as they come."""

    def add_job(self, job: Job) -> RunGenOutputError | None:
        """Take the result of a completed job. Return the error of one that cannot be taken."""

    def add_stored(self, stored: StoredJob, *, is_reused: bool = False) -> None:
        """Take a job whose outputs are stored."""

    def add_failed(self, job: Job, error: RunGenError) -> None:
        """Note why a job that is over counts as failed."""

    def close(self) -> None:
        """Free what is held."""


class CollectedValues:
    """
    The results, or small manifests, that a task returns.

    :param max_bytes: bytes of all results at most.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    """

    def __init__(self, max_bytes: int, *, pushes_keys: bool) -> None:
        self._max_bytes = max_bytes
        self._pushes_keys = pushes_keys
        self._held_bytes = 0
        self._values: dict[str, Any] = {}

    def add_job(self, job: Job) -> RunGenOutputError | None:
        problem = find_xcom_problem(job.result) or (self._pushes_keys and find_key_problem(job.result))
        if problem:
            return RunGenOutputError(
                f"XCom cannot hold the result: {problem} {format_ids(job.app_id, job.id)}",
                app_id=job.app_id,
                job_id=job.id,
                hint="Set destination: the result is stored as a file then, and a small manifest is returned",
                retryable=False,
            )
        self._held_bytes += len(json.dumps(job.result))
        self.check_size(self._held_bytes)
        self._values[job.id] = job.result
        return None

    def add_stored(self, stored: StoredJob, *, is_reused: bool = False) -> None:
        self._values[stored.job_id] = stored.summary

    def add_failed(self, job: Job, error: RunGenError) -> None:
        pass

    def close(self) -> None:
        self._values.clear()

    def values(self, ids: Sequence[str | None]) -> list[Any]:
        """Return the values of jobs, with ``None`` for those that have none."""
        return [None if job_id is None else self._values.get(job_id) for job_id in ids]

    def check_size(self, size: int) -> None:
        """
        Check the size of results.

        :raises RunGenOutputError: they are too large for XCom.
        """
        if size > self._max_bytes:
            raise RunGenOutputError(
                f"The results have over {self._max_bytes} bytes (max_xcom_bytes), too much for XCom",
                hint="Set destination: the results are stored there, and small manifests are returned",
                retryable=False,
            )


class CollectedTable(JobRows):
    """
    The results table of a task.

    :param uri: the file to write.
    :raises RunGenInputError: it cannot be written.
    """

    def __init__(self, uri: Any) -> None:
        self._table = ResultsTable(uri)
        self.uri = self._table.uri
        self.prepare = self._table.prepare
        super().__init__()

    def write(
        self,
        ids: Sequence[str | None],
        errors: Mapping[str, RunGenError],
        missing: str = "",
        *,
        price: Price | None,
    ) -> ResultCounts:
        """
        Write the table: a row for each id, in order.

        :param errors: the errors of jobs that failed.
        :param missing: the error of the jobs of which nothing is known.
        :param price: what a worker costs.
        """
        self.add_errors(errors)
        counts = ResultCounts()
        rows = (self.row(index, job_id, missing=missing) for index, job_id in enumerate(ids))
        self._table.write(counts.count(add_costs(rows, price)))
        return counts


class CollectedSheet(JobRows):
    """
    The contact sheet of a task.

    :param destination: the folder of the outputs.
    :param ti: the task instance.
    :raises RunGenInputError: the destination cannot be used.
    """

    def __init__(self, destination: Any, ti: Any) -> None:
        self._writer = SheetWriter(destination)
        self._ti = ti
        self._is_written = False
        super().__init__(describe_job)

    def write(
        self,
        app_id: str,
        ids: Sequence[str | None],
        errors: Mapping[str, RunGenError],
        refused: Mapping[int, RunGenError] = MappingProxyType({}),
        missing: str = "",
    ) -> None:
        """
        Write the sheet, unless it is written.

        :param errors: the errors of jobs that failed.
        :param refused: by index, the errors of inputs without a job.
        :param missing: the error of the jobs of which nothing is known.
        """
        if self._is_written:
            return
        self._is_written = True
        self.add_errors(errors)

        def rows() -> Iterator[ResultRow]:
            for index, job_id in enumerate(ids):
                row = self.row(index, job_id, missing=missing)
                yield replace(row, error=refused[index].message) if index in refused else row

        self._writer.write(rows, self._ti, app_id)
