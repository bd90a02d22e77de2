"""Store the outputs of many jobs: a limited number at a time, each job on its own, until an outage.

Import this module where it is used: it imports aiohttp.
"""

from __future__ import annotations

import asyncio
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
from airflow_provider_rungen.execution.archive.figures import Figures
from airflow_provider_rungen.execution.archive.job_archiver import JobArchiver
from airflow_provider_rungen.execution.archive.steps import run_with_checks
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

# So many failures in a row are an outage, and not single broken files.
OUTAGE_FAILURES = 16


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
    :param on_stored: what to keep of a job that is stored, since there may be many.
    :param figures: counts what is stored.
    """

    perform: Callable[[Flow[Job]], Awaitable[Job]]
    app_id: str
    storage: Storage
    downloader: Downloader
    _: KW_ONLY
    max_concurrency: int
    schema: Schema | None = None
    on_stored: Callable[[StoredJob], StoredJob] = lambda stored: stored
    figures: Figures = field(default_factory=Figures)
    slots: asyncio.Semaphore = field(init=False)
    _outcomes: dict[str, StoredJob | RunGenError] = field(init=False, default_factory=dict)
    _failures_in_a_row: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.max_concurrency)

    async def run(
        self, job_ids: Sequence[str], check: Callable[[], None]
    ) -> dict[str, StoredJob | RunGenError]:
        """
        Store the outputs of jobs. Return, by job id, what was stored or the error that it failed with.

        :param check: called often; an error that it raises ends the work.
        :raises RunGenError: an error that concerns all jobs and is not retryable.
        """
        begun_at = logged_at = time.monotonic()

        def check_and_log() -> None:
            nonlocal logged_at
            check()
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at, done, count = now, len(self._outcomes), len(job_ids)
                rate = pace(done, count - done, now - begun_at)
                log.info("Stored so far: %s of %d of %d jobs%s", self.figures, done, count, rate)

        try:
            await run_with_checks(gather_limited(self._archive, job_ids, self.max_concurrency), check_and_log)
        finally:
            self.figures.seconds += time.monotonic() - begun_at
        return self._outcomes

    async def _archive(self, job_id: str) -> None:
        job: Job | None = None
        try:
            self._check_outage(job_id)
            job = await self.perform(endpoints.get_job(self.app_id, job_id))
            job.raise_for_status()
            if self.schema is not None:
                self.schema.check_result(job)
            self._outcomes[job_id] = self.on_stored(await JobArchiver(self, job).run())
        except RunGenError as error:
            is_of_job = isinstance(error, RunGenJobError)
            if isinstance(error, RunGenJobError) and job is not None:
                error.execution_time = job.execution_time
            if not error.retryable and not is_of_job and not concerns_one_job(error):
                raise
            self._outcomes[job_id] = error
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
