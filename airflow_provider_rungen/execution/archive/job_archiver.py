"""Store the outputs of one job: download each, move it to its target, and record it in the manifest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.download import Download, ExpiredUrlError
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import Output, expiry_time, find_outputs, find_urls
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenAPIError, RunGenError, RunGenOutputError
from airflow_provider_rungen.execution.archive.journal import ManifestJournal
from airflow_provider_rungen.execution.archive.steps import retry_step
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.archiver import OutputArchiver

log = logging.getLogger(__name__)

T = TypeVar("T")
# A result with more is no list of pictures. Its manifest would not fit into memory.
MAX_OUTPUTS = 10_000
# How a host answers to an expired URL. Proxies answer like this, too.
_REFUSED_STATUSES = (401, 403, 404, 410)
_REFUSED_HINT = (
    "With a ledger, a retry or a clear downloads the outputs again, and buys nothing. If they are gone, it "
    "buys them again after seven days, or at once with refresh=True"
)
_EXPIRED_HINT = "Run the job again, which is paid for again. With a ledger, the next attempt does so"


def _is_refusal(error: RunGenAPIError) -> bool:
    return error.status_code in _REFUSED_STATUSES or isinstance(error, ExpiredUrlError)


class JobArchiver:
    """
    Store the outputs of one job.

    :param archiver: what all jobs share: storage, downloader, limits and figures.
    :param job: the completed job.
    :raises RunGenOutputError: it has too many outputs.
    """

    def __init__(self, archiver: OutputArchiver, job: Job) -> None:
        self._archiver = archiver
        self._storage = archiver.storage
        self._job = job
        self._outputs = find_outputs(job.result, MAX_OUTPUTS + 1)
        if len(self._outputs) > MAX_OUTPUTS:
            raise self._error(
                RunGenOutputError(
                    f"it has more than {MAX_OUTPUTS:,} outputs, which is the limit",
                    hint="Let the model return fewer outputs, or one archive of them",
                    retryable=False,
                )
            )
        self._journal = ManifestJournal(self._storage, job, self._outputs)
        self._errors: list[RunGenOutputError] = []
        # by URL, the one that replaced it after a refusal; None before the service was asked
        self._renewed_urls: dict[str, str] | None = None
        self._renewal = asyncio.Lock()

    async def run(self) -> StoredJob:
        """
        Store the outputs that are not stored yet, and return what is stored.

        :raises RunGenOutputError: an output, or the manifest, could not be stored.
        """
        journal, figures = self._journal, self._archiver.figures
        try:
            await self._retry(in_daemon_thread, journal.load)
            figures.existing += len(journal.stored)
            figures.files += len(journal.stored)
            figures.total_bytes += sum(entry["size"] for entry in journal.entries)
            missing = [output for output in self._outputs if output.name not in journal.stored]
            await self._store_all(missing)
            if journal.is_changed or not (journal.is_complete or self._errors):
                await self._retry(partial(journal.save, is_complete=not self._errors))
        except RunGenOutputError as error:
            raise self._error(error) from error
        if self._errors:
            raise next((error for error in self._errors if not error.retryable), self._errors[0])
        return journal.stored_job()

    async def _store_all(self, outputs: Sequence[Output]) -> None:
        is_over = asyncio.Event()
        saving = asyncio.ensure_future(self._journal.save_regularly(is_over))
        try:
            await gather_limited(self._store, outputs, self._archiver.max_concurrency)
            is_over.set()
            # two writes at a time could replace the later manifest with the earlier one
            await saving
        finally:
            saving.cancel()

    async def _store(self, output: Output) -> None:
        archiver, storage, job = self._archiver, self._storage, self._job
        try:
            async with archiver.slots:
                with storage.incoming(job.id, output.name) as (file, path):
                    download = await self._download(output, file)
                    await self._retry(in_daemon_thread, storage.put, file, path, job.id, output.name)
            archiver.figures.files += 1
            archiver.figures.total_bytes += download.size
            self._journal.add(output, download)
        except RunGenError as error:
            self._errors.append(self._error(error, f"{output.at}: "))

    async def _download(self, output: Output, file: BinaryIO) -> Download:
        """Download an output. If its host refuses it, ask the service for a new URL."""
        url = (self._renewed_urls or {}).get(output.url, output.url)
        try:
            return await self._retry(self._archiver.downloader.fetch, url, file)
        except RunGenAPIError as error:
            if not _is_refusal(error):
                raise
        url = await self._renewed_url(output) or url
        return await self._retry(self._fetch_renewed, url, file)

    async def _fetch_renewed(self, url: str, file: BinaryIO) -> Download:
        """Download an output whose URL is as new as it can be."""
        try:
            return await self._archiver.downloader.fetch(url, file)
        except RunGenAPIError as error:
            if not _is_refusal(error):
                raise
            refusal = error
        raise self._refusal_error(url, refusal)

    async def _renewed_url(self, output: Output) -> str | None:
        """Return the current URL of an output. The service is asked once for all outputs of the job."""
        async with self._renewal:
            if self._renewed_urls is None:
                job = self._job
                ids = format_ids(job.app_id, job.id)
                log.info("Renewing URLs: %s was refused %s", output.at, ids)
                renewed = await self._archiver.perform(endpoints.get_job(job.app_id, job.id))
                # by place, because one URL in two places may have become two
                pairs = zip(find_urls(job.result), find_urls(renewed.result), strict=False)
                self._renewed_urls = {old: new for (at, old), (new_at, new) in pairs if at == new_at}
        return self._renewed_urls.get(output.url)

    def _refusal_error(self, url: str, refusal: RunGenAPIError) -> RunGenOutputError:
        """
        Return the error of an output that its host refuses.

        The output has expired only if its time is over, or if the host says so. Otherwise, a proxy may have
        refused it, and the job that was paid for must not be given up.
        """
        expires_at, when = expiry_time(url, self._job.created_at), ""
        is_past = expires_at is not None and expires_at <= datetime.now(UTC)
        if not is_past and not isinstance(refusal, ExpiredUrlError):
            message = f"{refusal.message}; check that the worker may reach it"
            return RunGenOutputError(message, hint=_REFUSED_HINT)
        if expires_at is not None:
            when = f" {'on' if is_past else 'early, before'} {expires_at:%Y-%m-%d %H:%M UTC}"
        error = RunGenOutputError(
            f"the outputs of the job expired{when} ({refusal.message})",
            hint=_EXPIRED_HINT,
            retryable=False,
        )
        error.is_expired = True
        return error

    async def _retry(self, action: Callable[..., Awaitable[T]], *args: Any) -> T:
        return await retry_step(self._job.id, action, *args)

    def _error(self, cause: RunGenError, place: str = "") -> RunGenOutputError:
        job = self._job
        error = RunGenOutputError(
            f"Could not store the outputs: {place}{cause.message} {format_ids(job.app_id, job.id)}",
            app_id=job.app_id,
            job_id=job.id,
            hint=cause.hint,
            retryable=cause.retryable,
        )
        error.is_expired = isinstance(cause, RunGenOutputError) and cause.is_expired
        return error
