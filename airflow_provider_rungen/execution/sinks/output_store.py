"""Find and store the outputs of jobs in the destination of one attempt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import Figures, StoredJob, read_stored_jobs
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)


class OutputStore:
    """
    Where an attempt stores the outputs of jobs.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param schema: what every result has to fit.
    :raises RunGenInputError: there can be no such place.
    """

    def __init__(self, run: TaskRun[Any], options: CollectOptions, schema: Schema | None) -> None:
        self._run = run
        self._options = options
        self._schema = schema
        self._storage = Storage(options.destination)
        self._is_prepared = False
        self._figures = Figures()
        self._seconds = 0.0

    def prepare(self, *, create: bool = True) -> None:
        """
        Find out whether outputs can be stored, once.

        :param create: see `Storage.prepare`.
        :raises RunGenInputError: they cannot be stored now.
        """
        if not self._is_prepared:
            self._storage.prepare(create=create)
            self._is_prepared = True

    def find(self, app_id: str, job_ids: Sequence[str], on_found: Callable[[StoredJob], object]) -> None:
        """
        Find the jobs that are stored as a whole, without asking the service.

        :param on_found: takes each, as it is found.
        :raises RunGenOutputError: the destination cannot be read now.
        """

        def note(stored: StoredJob) -> bool:
            if is_accepted := self.accepts(stored):
                on_found(stored)
            return is_accepted

        found = read_stored_jobs(self._storage, dict.fromkeys(job_ids, app_id), note, are_remembered=False)
        if len(found) < len(job_ids):
            # a folder that is not there has none of them, but it may be a mount that is missing
            self.prepare(create=False)

    def store(
        self, app_id: str, job_ids: Sequence[str], on_stored: Callable[[StoredJob], object]
    ) -> dict[str, RunGenError]:
        """
        Store the outputs of jobs. Return the errors of those that failed.

        :param on_stored: takes each job that is stored.
        :raises RunGenError: an error that concerns all jobs and is not retryable.
        """
        from airflow_provider_rungen.client.download import Downloader
        from airflow_provider_rungen.execution.archive.archiver import OutputArchiver

        hook, options, guard = self._run.hook, self._options, self._run.guard

        async def store() -> dict[str, RunGenError]:
            downloader = Downloader(
                hook.settings, max_bytes=options.max_output_bytes, at_once=options.max_concurrency
            )
            archiver = OutputArchiver(
                hook.aperform,
                app_id,
                self._storage,
                downloader,
                max_concurrency=options.max_concurrency,
                schema=self._schema,
                on_stored=on_stored,
                figures=self._figures,
            )
            try:
                return await archiver.run(job_ids, guard.check)
            finally:
                await downloader.close()
                await hook.aclose()

        begun_at = time.monotonic()
        # a kill is let through between two steps, so that it leaves no half file
        with guard.defer_signals():
            try:
                return asyncio.run(store())
            finally:
                self._seconds += time.monotonic() - begun_at

    def log_total(self) -> None:
        """Log what was stored."""
        if jobs := self._figures.jobs:
            log.info(
                "Stored %s of %s in %s; %s",
                *(self._figures, format_count(jobs, "job"), redact(str(self._options.destination))),
                format_duration(self._seconds),
            )

    def accepts(self, stored: StoredJob) -> bool:
        """
        Return whether a stored result fits the schema.

        The schema is about what the service returns, so a URL stands in for each stored URI. A result that
        does not fit like this may still fit as it was: then the service is asked for the job.
        """
        if self._schema is None:
            return True
        urls = {
            output["uri"]: f"https://stored.invalid/{output['uri'].rpartition('/')[2]}"
            for output in stored.outputs
        }
        result = redact_value(stored.result, urls)
        try:
            self._schema.check_result(Job(stored.job_id, stored.app_id, JobStatus.COMPLETED, result))
        except RunGenJobError:
            return False
        return True
