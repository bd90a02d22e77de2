"""Keep what the results table says about jobs in a temporary file, since their results may be large."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobCanceledError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.spool import Spool
from airflow_provider_rungen.execution.table.results import ResultRow, Status

#: Returns what to keep of the input and the outputs of a job.
Describe: TypeAlias = Callable[[Any, Sequence[Mapping[str, Any]]], Any]


class JobRows:
    """
    The rows of jobs, by job id. Close it when the table is written.

    :param describe: what else to keep of each job.
    :raises RunGenOutputError: a method could not use the folder for temporary files.
    """

    def __init__(self, describe: Describe | None = None) -> None:
        self._describe = describe
        self._spool = Spool()
        # by job, where its row is
        self._positions: dict[str, int] = {}

    def close(self) -> None:
        """Remove the file."""
        self._spool.close()

    def add_stored(self, stored: StoredJob) -> None:
        """Add a job whose outputs are stored."""
        self._add(
            stored.job_id,
            input=stored.input,
            files=stored.outputs,
            status=Status.COMPLETED,
            outputs=[output["uri"] for output in stored.outputs],
            sha256=stored.outputs[0]["sha256"] if stored.outputs else None,
            result=stored.result,
            has_result=True,
            execution_seconds=stored.execution_seconds,
            created_at=stored.created_at,
        )

    def add_job(self, job: Job) -> None:
        """Add a job that completed."""
        self._add_ended(job, status=Status.COMPLETED, result=job.result, has_result=True)

    def add_failed(self, job: Job, error: RunGenError) -> None:
        """Add a job that ended, and counts as failed."""
        self._add_ended(job, status=_status_of(error), error=error.message)

    def add_errors(self, errors: Mapping[str, RunGenError]) -> None:
        """Add the jobs that failed, unless they were added before, with more about them."""
        for job_id, error in errors.items():
            if job_id not in self._positions:
                self._add(job_id, status=_status_of(error), error=error.message)

    def row(
        self,
        index: int,
        job_id: str,
        values: Mapping[str, Any] = MappingProxyType({}),
        missing: str = "",
        *,
        is_reused: bool = False,
    ) -> ResultRow:
        """
        Return a row.

        :param missing: the error of a job that was not added.
        :param is_reused: whether the job was paid for before.
        """
        fields: dict[str, Any] = {"status": Status.FAILED, "error": missing}
        if job_id in self._positions:
            fields = self._spool.at(self._positions[job_id])
        fields["status"] = Status(fields["status"])
        return ResultRow(index=index, job_id=job_id, values=values, reused=is_reused, **fields)

    def _add_ended(self, job: Job, **fields: Any) -> None:
        self._add(
            job.id,
            input=job.input,
            execution_seconds=job.execution_time,
            created_at=job.created_at and job.created_at.isoformat(),
            **fields,
        )

    def _add(
        self,
        job_id: str,
        *,
        input: Any = None,
        files: Sequence[Mapping[str, Any]] = (),
        result: Any = None,
        **fields: Any,
    ) -> None:
        # signed URLs are removed before anything is on a disk. Those of stored files are none.
        stored = {output["uri"]: output["uri"] for output in files}
        fields["result"] = redact_value(result, stored)
        if self._describe is not None:
            fields["about"] = self._describe(redact_value(input), files)
        self._positions[job_id] = self._spool.append(fields)


def _status_of(error: RunGenError) -> Status:
    return Status.CANCELED if isinstance(error, RunGenJobCanceledError) else Status.FAILED
