"""Store the outputs of many jobs: a limited number at a time, each job on its own, until an outage.

Import this module where it is used: it imports aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.download import Downloader
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.polling import concerns_one_job
from airflow_provider_rungen.client.progress import PROGRESS_INTERVAL, pace
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobError, RunGenOutputError
from airflow_provider_rungen.execution.archive.job_archiver import JobArchiver
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import Figures, StoredJob
from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

# So many failures in a row are an outage, and not single broken files.
OUTAGE_FAILURES = 16
_KILL_CHECK_SECONDS = 0.1


@dataclass
class OutputArchiver:
    """
    Store the outputs of many jobs of one app.

    :param perform: performs a flow in the running event loop.
    :param app_id: the app.
    :param storage: where to store them.
    :param downloader: downloads them.
    :param max_concurrency: how many downloads, and how many jobs, may be in progress at a time.
    :param schema: the schema that results must match.
    :param on_stored: takes each job that is stored.
    :param figures: counts what is stored.
    """

    perform: Callable[[Flow[Job]], Awaitable[Job]]
    app_id: str
    storage: Storage
    downloader: Downloader
    _: KW_ONLY
    max_concurrency: int
    on_stored: Callable[[StoredJob], object]
    schema: Schema | None = None
    figures: Figures = field(default_factory=Figures)
    slots: asyncio.Semaphore = field(init=False)
    _errors: dict[str, RunGenError] = field(init=False, default_factory=dict)
    _failures_in_a_row: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.max_concurrency)

    async def run(self, job_ids: Sequence[str], check: Callable[[], None]) -> dict[str, RunGenError]:
        """
        Store the outputs of jobs. Return, by job id, the errors of those that could not be stored.

        :param check: called often; an error that it raises ends the work.
        :raises RunGenError: an error that concerns all jobs and is not retryable.
        """
        begun_at = logged_at = time.monotonic()
        jobs_before = self.figures.jobs
        work = asyncio.ensure_future(gather_limited(self._archive, job_ids, self.max_concurrency))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=_KILL_CHECK_SECONDS)
                check()
                if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                    logged_at, count = now, len(job_ids)
                    done = self.figures.jobs - jobs_before + len(self._errors)
                    rate = pace(done, count - done, now - begun_at)
                    log.info("Stored so far: %s of %d of %d jobs%s", self.figures, done, count, rate)
            work.result()
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
        return self._errors

    async def _archive(self, job_id: str) -> None:
        job: Job | None = None
        try:
            self._check_outage(job_id)
            job = await self.perform(endpoints.get_job(self.app_id, job_id))
            job.raise_for_status()
            if self.schema is not None:
                self.schema.check_result(job)
            self.on_stored(await JobArchiver(self, job).run())
        except RunGenError as error:
            is_of_job = isinstance(error, RunGenJobError)
            if isinstance(error, RunGenJobError) and job is not None:
                error.execution_time = job.execution_time
            if not error.retryable and not is_of_job and not concerns_one_job(error):
                raise
            self._errors[job_id] = error
            # how a job ended, and a permanent error, are no sign of an outage
            if error.retryable and (not is_of_job or isinstance(error, RunGenOutputError)):
                self._failures_in_a_row += 1
        else:
            self._failures_in_a_row = 0
            self.figures.jobs += 1

    def _check_outage(self, job_id: str) -> None:
        if self._failures_in_a_row >= max(OUTAGE_FAILURES, 2 * self.max_concurrency):
            raise RunGenOutputError(
                f"Skipped: the last {self._failures_in_a_row} jobs could not be stored "
                f"{format_ids(self.app_id, job_id)}",
                app_id=self.app_id,
                job_id=job_id,
            )
