"""Store the outputs of one job: download each, move it to its target, and record it in the manifest.

The manifest only lists files that are there. It is written every second while files arrive, and at the end.
After a kill, the next attempt downloads again what arrived in the last second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.download import Download, ExpiredUrlError
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import (
    Output,
    expiry_time,
    find_outputs,
    find_urls,
    redact_value,
)
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenAPIError, RunGenError, RunGenOutputError
from airflow_provider_rungen.execution.archive.manifests import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RETURNED_FIELDS,
    manifest_text,
    parse_manifest,
)
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.output_store import OutputStore

log = logging.getLogger(__name__)

T = TypeVar("T")
# A result with more is no list of pictures. Its manifest would not fit into memory.
MAX_OUTPUTS = 10_000
# Seconds between two writes of a manifest while files arrive.
SAVE_INTERVAL = 1.0
# How a host answers to an expired URL. Proxies answer like this, too.
_REFUSED_STATUSES = (401, 403, 404, 410)
_REFUSED_HINT = (
    "With a ledger, a retry or a clear downloads the outputs again, and buys nothing. If they are gone, it "
    "buys them again after seven days, or at once with refresh=True"
)
_EXPIRED_HINT = "Run the job again, which is paid for again. With a ledger, the next attempt does so"


class JobArchiver:
    """
    Store the outputs of one job.

    :param store: what all jobs share: storage, downloader, limits and figures.
    :param job: the completed job.
    :raises RunGenOutputError: it has too many outputs.
    """

    def __init__(self, store: OutputStore, job: Job) -> None:
        self._store = store
        self._storage = store.storage
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
        # the manifest entries of the files that are stored, by name, and how many of them it lists
        self._stored: dict[str, dict[str, Any]] = {}
        self._saved_count = 0
        self._was_complete = False
        self._errors: list[RunGenOutputError] = []
        # by URL, the one that replaced it after a refusal; None before the service was asked
        self._renewed_urls: dict[str, str] | None = None
        self._renewal = asyncio.Lock()

    async def run(self) -> StoredJob:
        """
        Store the outputs that are not stored yet, and return what is stored.

        :raises RunGenOutputError: an output, or the manifest, could not be stored.
        """
        try:
            await self._retry(in_daemon_thread, self._load)
            self._store.figures.add(self._stored.values(), are_new=False)
            await self._download_all([each for each in self._outputs if each.name not in self._stored])
            if self._is_unsaved or not (self._was_complete or self._errors):
                await self._retry(partial(self._save, is_complete=not self._errors))
        except RunGenOutputError as error:
            raise self._error(error) from error
        if self._errors:
            raise next((error for error in self._errors if not error.retryable), self._errors[0])
        return self._stored_job()

    # --- the manifest ---

    def _load(self) -> None:
        """Find the files that an earlier attempt has stored."""
        storage, job = self._storage, self._job
        storage.remove_leftovers(job.id)
        content = storage.read_all([(job.id, MANIFEST)], MAX_MANIFEST_BYTES).get((job.id, MANIFEST))
        if content is None:
            return
        manifest, sizes = parse_manifest(content, job.app_id, job.id), storage.list_folder(job.id)
        self._was_complete = manifest.is_complete
        for output in self._outputs:
            entry = manifest.entries.get((storage.uri_of(job.id, output.name), output.at))
            # files appear as a whole, so there is no need to read them for their digest
            if entry and sizes.get(output.name) == entry["size"]:
                self._stored[output.name] = entry
        self._saved_count = len(self._stored)
        if manifest.invalid_count:
            uri = redact(storage.uri_of(job.id, MANIFEST))
            log.warning(
                "Ignored %d invalid manifest entries (job %s, %s)", manifest.invalid_count, job.id, uri
            )

    @property
    def _is_unsaved(self) -> bool:
        """Whether files are stored that the manifest does not list yet."""
        return len(self._stored) > self._saved_count

    async def _save_regularly(self, has_ended: asyncio.Event) -> None:
        """Write the manifest whenever files were added. What fails is tried again."""
        pause = SAVE_INTERVAL
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(has_ended.wait(), pause)
                return
            begun_at = time.monotonic()
            if self._is_unsaved:
                with contextlib.suppress(RunGenOutputError):
                    await self._save(is_complete=False)
            # a large manifest takes a while to write, and is not to take most of the time
            pause = max(SAVE_INTERVAL, 9 * (time.monotonic() - begun_at))

    async def _save(self, *, is_complete: bool) -> None:
        job, stored, count = self._job, self._stored_job(), len(self._stored)
        fields = {
            "job_id": job.id,
            "app_id": job.app_id,
            "complete": is_complete,
            "status": str(job.status),
            "created_at": stored.created_at,
            "execution_time": job.execution_time,
            "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": stored.input,
            "result": stored.result,
            "outputs": self._entries,
        }
        await in_daemon_thread(self._write, fields)
        self._saved_count = count

    def _write(self, fields: dict[str, Any]) -> None:
        self._storage.write(self._job.id, MANIFEST, manifest_text(fields))

    @property
    def _entries(self) -> list[dict[str, Any]]:
        """The entries of the stored files, in the order of the outputs."""
        return [self._stored[output.name] for output in self._outputs if output.name in self._stored]

    def _stored_job(self) -> StoredJob:
        """Return what is stored, with the URIs of the files in place of their URLs."""
        job = self._job
        stored = (output for output in self._outputs if output.name in self._stored)
        uris = {output.url: self._stored[output.name]["uri"] for output in stored}
        return StoredJob(
            job.app_id,
            job.id,
            self._storage.uri_of(job.id, MANIFEST),
            [{name: entry[name] for name in RETURNED_FIELDS} for entry in self._entries],
            redact_value(job.result, uris),
            job.execution_time,
            None if job.created_at is None else job.created_at.isoformat(),
            redact_value(job.input),
        )

    # --- the files ---

    async def _download_all(self, outputs: Sequence[Output]) -> None:
        has_ended = asyncio.Event()
        saving = asyncio.ensure_future(self._save_regularly(has_ended))
        try:
            await gather_limited(self._store_output, outputs, self._store.max_concurrency)
            has_ended.set()
            # two writes at a time could replace the later manifest with the earlier one
            await saving
        finally:
            saving.cancel()

    async def _store_output(self, output: Output) -> None:
        storage, job = self._storage, self._job
        try:
            async with self._store.slots:
                with storage.incoming(job.id, output.name) as (file, path):
                    download = await self._download(output, file)
                    await self._retry(in_daemon_thread, storage.put, file, path, job.id, output.name)
        except RunGenError as error:
            self._errors.append(self._error(error, f"{output.at}: "))
        else:
            self._stored[output.name] = entry = {
                "uri": storage.uri_of(job.id, output.name),
                "at": output.at,
                "size": download.size,
                "sha256": download.sha256,
                "content_type": download.content_type,
            }
            self._store.figures.add([entry])

    async def _download(self, output: Output, file: BinaryIO) -> Download:
        """Download an output. If its host refuses it, ask the service for a new URL."""
        fetch = self._store.downloader.fetch
        url = (self._renewed_urls or {}).get(output.url, output.url)
        try:
            return await self._retry(fetch, url, file)
        except RunGenAPIError as error:
            if not _is_refusal(error):
                raise
        url = await self._renewed_url(output) or url

        async def fetch_renewed() -> Download:
            try:
                return await fetch(url, file)
            except RunGenAPIError as error:
                raise self._refusal_error(url, error) if _is_refusal(error) else error from None

        return await self._retry(fetch_renewed)

    async def _renewed_url(self, output: Output) -> str | None:
        """Return the current URL of an output. The service is asked once for all outputs of the job."""
        async with self._renewal:
            if self._renewed_urls is None:
                job = self._job
                ids = format_ids(job.app_id, job.id)
                log.info("Renewing URLs: %s was refused %s", output.at, ids)
                renewed = await self._store.hook.aperform(endpoints.get_job(job.app_id, job.id))
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
        message = f"the outputs of the job expired{when} ({refusal.message})"
        error = RunGenOutputError(message, hint=_EXPIRED_HINT, retryable=False)
        error.is_expired = True
        return error

    # --- errors ---

    async def _retry(self, action: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Do something, again after a retryable error, as often as an API request is retried."""
        failures, give_up_at = 0, math.inf
        while True:
            try:
                return await action(*args)
            except RunGenError as error:
                delay, now = retry.retry_delay(failures, error), time.monotonic()
                failures += 1
                give_up_at = min(give_up_at, now + retry.RETRY_BUDGET)
                if not error.retryable or failures == retry.ATTEMPTS or now + delay > give_up_at:
                    raise
                pause = format_duration(delay)
                log.warning("Retrying in %s: %s (job %s)", pause, error.message, self._job.id)
            await asyncio.sleep(delay)

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


def _is_refusal(error: RunGenAPIError) -> bool:
    return error.status_code in _REFUSED_STATUSES or isinstance(error, ExpiredUrlError)
