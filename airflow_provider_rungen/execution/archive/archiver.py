"""Lands what jobs made: downloads each output, stores it, and writes a manifest of it beside it.

What is known of a file is written before the file is put in its place, so that an attempt after a kill
fetches only what is missing. Of a job with few outputs, the whole manifest is written. With many, that would
take quadratic time: what is new goes to parts beside the manifest, which are removed once it is ``complete``.

Imported where it is used, since it imports aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.download import Budget, Downloader
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import (
    Output,
    expiry_times,
    kept,
    outputs_of,
    replaced,
    urls_of,
)
from airflow_provider_rungen.client.polling import concerns_one_job
from airflow_provider_rungen.client.progress import EVERY, pace
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenAPIError, RunGenError, RunGenJobError, RunGenOutputError
from airflow_provider_rungen.execution.archive.manifests import (
    FIELDS,
    Manifest,
    manifest_text,
    read_manifest,
)
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PART = "manifest.part-"
# Outputs of a job for which no parts are written.
FEW = 8
# Bytes of an earlier attempt's manifest at most, and of its parts.
MOST_MANIFEST = 128 * 1024 * 1024
# The answers of a host to a URL that works no longer.
EXPIRED = (401, 403, 404, 410)
# Failures in a row that are taken for an outage, and not for files that are broken one by one.
OUTAGE = 16
# Seconds between two looks for a kill.
TICK = 0.1


@dataclass
class Tally:
    """What was landed so far."""

    jobs: int = 0
    failed: int = 0
    files: int = 0
    fetched: int = 0
    size: int = 0

    def line(self) -> str:
        told = f"{self.files} files ({self.size / 1e6:.1f} MB"
        if there := self.files - self.fetched:
            told += f", {there} were there already"
        told += f") of {self.jobs} RunGen jobs"
        return f"{told}; {self.failed} failed" if self.failed else told


class OutputArchiver:
    """
    Lands the outputs of many jobs of one app, so many at a time.

    :param perform: performs a flow in the running event loop.
    :param app_id: the app.
    :param storage: where to store them.
    :param downloader: downloads them.
    :param max_concurrency: how many downloads are under way at a time at most, and how many jobs.
    :param schema: what the results have to fit.
    :param max_outputs: how many outputs a job may have.
    :param max_total_bytes: how many bytes the outputs of a job may have together; ``None`` for any number.
    """

    def __init__(
        self,
        perform: Callable[[Flow[Job]], Awaitable[Job]],
        app_id: str,
        storage: Storage,
        downloader: Downloader,
        *,
        max_concurrency: int,
        schema: Schema | None = None,
        max_outputs: int = 10_000,
        max_total_bytes: int | None = None,
    ) -> None:
        self.perform = perform
        self.app_id = app_id
        self.storage = storage
        self.downloader = downloader
        self.at_once = max_concurrency
        self.max_outputs = max_outputs
        self.max_total_bytes = max_total_bytes
        self.slots = asyncio.Semaphore(max_concurrency)
        self.tally = Tally()
        self._schema = schema
        self._outcomes: dict[str, dict[str, Any] | RunGenError] = {}
        self._failures_in_a_row = 0

    async def run(
        self, job_ids: Sequence[str], check: Callable[[], None]
    ) -> dict[str, dict[str, Any] | RunGenError]:
        """
        Land the jobs; give a small manifest, or the error that kept it from being landed, of each.

        :param check: called again and again; what it raises ends the landing.
        """
        begun_at = said_at = time.monotonic()
        work = asyncio.ensure_future(gather_limited(self._land, job_ids, self.at_once))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=TICK)
                check()
                if (now := time.monotonic()) - said_at >= EVERY:
                    said_at, done = now, len(self._outcomes)
                    how_fast = pace(done, len(job_ids) - done, now - begun_at)
                    log.info("Landed %s, of %d%s", self.tally.line(), len(job_ids), how_fast)
            work.result()
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
            log.info("Landed in %s: %s", format_duration(time.monotonic() - begun_at), self.tally.line())
        return self._outcomes

    async def _land(self, job_id: str) -> None:
        try:
            if self._failures_in_a_row >= max(OUTAGE, 2 * self.at_once):
                raise RunGenOutputError(
                    f"RunGen job {job_id} of app {self.app_id} was not landed, since the last "
                    f"{self._failures_in_a_row} could not be",
                    app_id=self.app_id,
                    job_id=job_id,
                )
            job = await self.perform(endpoints.get_job(self.app_id, job_id))
            job.raise_for_status()
            if self._schema is not None:
                self._schema.check_result(job)
            self._outcomes[job_id] = await JobArchiver(self, job).run()
        except RunGenError as error:
            is_of_one = isinstance(error, RunGenJobError) or concerns_one_job(error)
            if not is_of_one and not error.retryable:
                raise
            self._outcomes[job_id] = error
            self.tally.failed += 1
            # permanent errors, and how a job ended, concern this one alone
            is_outage = isinstance(error, RunGenOutputError) or not isinstance(error, RunGenJobError)
            self._failures_in_a_row += is_outage and error.retryable
        else:
            self.tally.jobs += 1
            self._failures_in_a_row = 0


@dataclass
class JobArchiver:
    """Lands the outputs of one job."""

    landing: OutputArchiver
    job: Job
    outputs: list[Output] = field(init=False)
    # by name, what is stored or about to be
    _stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    _errors: list[RunGenError] = field(default_factory=list)
    # by name, what is stored, but written nowhere yet
    _unwritten: dict[str, dict[str, Any]] = field(default_factory=dict)
    # names of parts, with those of earlier attempts
    _parts: list[str] = field(default_factory=list)
    # one writes at a time, and writes what all have done until then
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # by URL, those that took their place after they had expired
    _renewed_urls: dict[str, str] | None = None
    _refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        most = self.landing.max_outputs
        self.outputs = outputs_of(self.job.result, most + 1)
        if len(self.outputs) > most:
            raise self._error(f"it has more than {most} outputs (max_outputs)", retryable=False)
        self._input = kept(self.job.input)
        self._budget = Budget(self.landing.max_total_bytes)
        self._token = secrets.token_hex(4)

    async def run(self) -> dict[str, Any]:
        """Land them, and give the small manifest."""
        landing = self.landing
        try:
            is_complete = await self._retry(self._load_manifest)
            landing.tally.files += len(self._stored)
            landing.tally.size += self._taken_by_stored()
            await self._complete(is_complete)
        except RunGenOutputError as error:
            raise error if error.job_id else self._error(error.message, error) from None
        return {
            "job_id": self.job.id,
            "manifest": landing.storage.uri_of(self.job.id, MANIFEST),
            "outputs": [{name: entry[name] for name in FIELDS} for entry in self._entries()],
        }

    def _taken_by_stored(self) -> int:
        size: int = sum(entry["size"] for entry in self._stored.values())
        self._budget.take(size)
        return size

    async def _complete(self, is_complete: bool) -> None:
        missing = [output for output in self.outputs if output.name not in self._stored]
        if missing or not is_complete:
            await gather_limited(self._fetch, missing, self.landing.at_once)
            if not self._errors:
                await self._retry(partial(self._write_manifest, is_complete=True))
            elif self._parts:
                await self._retry(self._write_manifest)
        if self._parts:
            await self._retry(self._remove_parts)
        if self._errors:
            raise next((error for error in self._errors if not error.retryable), self._errors[0])

    # --- what is there ---

    async def _load_manifest(self) -> bool:
        """Find what an earlier attempt has stored; tell whether it had come to the end."""
        return await asyncio.to_thread(self._look_around)

    def _look_around(self) -> bool:
        storage, job = self.landing.storage, self.job
        storage.tidy(job.id)
        content = storage.read(job.id, MANIFEST, MOST_MANIFEST)
        contents = [] if content is None else [content]
        if len(self.outputs) > FEW:
            sizes = storage.sizes(job.id, PART)
            self._parts = sorted(sizes)
            if 0 < sum(sizes.values()) <= MOST_MANIFEST:
                contents += storage.read_all(job.id, self._parts, MOST_MANIFEST)
        manifests = [read_manifest(content, job.app_id, job.id) for content in contents]
        entries: dict[tuple[str, str], dict[str, Any]] = {}
        for manifest in filter(None, manifests):
            entries |= manifest.entries
        for output in self.outputs:
            entry = entries.get((storage.uri_of(job.id, output.name), output.at))
            if entry and storage.digest(job.id, output.name, entry["size"]) == entry["sha256"]:
                self._stored[output.name] = entry
        self._warn_of_bad(manifests)
        return content is not None and manifests[0] is not None and manifests[0].is_complete

    def _warn_of_bad(self, manifests: Sequence[Manifest | None]) -> None:
        bad = sum(1 if manifest is None else manifest.bad for manifest in manifests)
        if bad:
            log.warning(
                "RunGen job %s: ignored %d unreadable entries of its manifest, fetching their files (%s)",
                self.job.id,
                bad,
                redact(self.landing.storage.uri_of(self.job.id, "")),
            )

    def _entries(self) -> list[dict[str, Any]]:
        return [self._stored[output.name] for output in self.outputs if output.name in self._stored]

    # --- what is written of it ---

    async def _write_down(self) -> None:
        """Write what is known of files that are about to be put in their places, unless another one has."""
        async with self._lock:
            if not (fresh := dict(self._unwritten)):
                return
            if len(self.outputs) <= FEW:
                await self._write_manifest()
            else:
                await self._write_part(fresh)
            for name in fresh:
                self._unwritten.pop(name, None)

    async def _write_part(self, entries: Mapping[str, dict[str, Any]]) -> None:
        name = f"{PART}{self._token}-{len(self._parts)}.json"
        content = manifest_text({**self._head(is_complete=False), "outputs": list(entries.values())})
        await asyncio.to_thread(self.landing.storage.write, self.job.id, name, content)
        self._parts.append(name)

    async def _write_manifest(self, *, is_complete: bool = False) -> None:
        content = manifest_text(self._manifest(is_complete=is_complete))
        await asyncio.to_thread(self.landing.storage.write, self.job.id, MANIFEST, content)

    async def _remove_parts(self) -> None:
        await asyncio.to_thread(self.landing.storage.remove, self.job.id, self._parts)

    def _head(self, *, is_complete: bool) -> dict[str, Any]:
        return {"job_id": self.job.id, "app_id": self.job.app_id, "complete": is_complete}

    def _manifest(self, *, is_complete: bool) -> dict[str, Any]:
        job = self.job
        uris = {o.url: self._stored[o.name]["uri"] for o in self.outputs if o.name in self._stored}
        return {
            **self._head(is_complete=is_complete),
            "status": str(job.status),
            "created_at": job.created_at and job.created_at.isoformat(),
            "execution_time": job.execution_time,
            "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": self._input,
            "result": replaced(job.result, uris),
            "outputs": self._entries(),
        }

    # --- what is not ---

    async def _fetch(self, output: Output) -> None:
        storage = self.landing.storage
        if self._budget.is_spent:
            return
        try:
            async with self.landing.slots:
                with storage.incoming(self.job.id, output.name) as (file, path):
                    await self._download(output, file)
                    await self._retry(self._write_down)
                    put = partial(storage.put, file, path, self.job.id, output.name)
                    await self._retry(lambda: asyncio.to_thread(put))
        except RunGenError as error:
            self._stored.pop(output.name, None)
            self._unwritten.pop(output.name, None)
            self._errors.append(self._error(f"{output.at}: {error}", error))
        else:
            self.landing.tally.files += 1
            self.landing.tally.fetched += 1
            self.landing.tally.size += self._stored[output.name]["size"]

    async def _download(self, output: Output, file: Any) -> None:
        url = output.url if self._renewed_urls is None else self._renewed_urls.get(output.url, output.url)
        for _ in range(2):
            try:
                fetched = await self._retry(partial(self.landing.downloader.fetch, url, file, self._budget))
            except RunGenAPIError as error:
                if error.status_code not in EXPIRED:
                    raise
                refusal = error
            else:
                self._stored[output.name] = self._unwritten[output.name] = {
                    "uri": self.landing.storage.uri_of(self.job.id, output.name),
                    "at": output.at,
                    "size": fetched.size,
                    "sha256": fetched.sha256,
                    "content_type": fetched.content_type,
                }
                return
            if (fresh := await self._refreshed(output)) in (None, url):
                break
            url = fresh
        raise self._expired(output, refusal)

    async def _refreshed(self, output: Output) -> str | None:
        """Give the URL that the service has for an output now; it is asked once for all of the job."""
        async with self._refreshing:
            if self._renewed_urls is None:
                log.info(
                    "The URL of %s of RunGen job %s is refused: asking for a new one", output.at, self.job.id
                )
                job = await self.landing.perform(endpoints.get_job(self.job.app_id, self.job.id))
                # place by place: what was one URL in two places may be signed as two now
                before, now = urls_of(self.job.result), urls_of(job.result)
                self._renewed_urls = {
                    old: new for (at, old), (new_at, new) in zip(before, now, strict=False) if at == new_at
                }
        return self._renewed_urls.get(output.url)

    def _expired(self, output: Output, refusal: RunGenAPIError) -> RunGenOutputError:
        """Say in words that it is too late, and since when, as far as that can be told."""
        ends = expiry_times(output.url, self.job.created_at)
        if not ends:
            said = "the outputs of the job have expired"
        elif ends[0].timestamp() <= time.time():
            said = f"the outputs of the job expired on {ends[0]:%Y-%m-%d at %H:%M UTC}"
        else:
            said = f"the outputs of the job expired before their time, {ends[0]:%Y-%m-%d %H:%M UTC}"
        return RunGenOutputError(
            f"{said} ({refusal.message})", hint="To have them, run the job again", retryable=False
        )

    async def _retry(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Do something until it succeeds, as often and as long as the API is asked again."""
        failures, give_up_at = 0, 0.0
        while True:
            try:
                return await action()
            except RunGenError as error:
                pause = retry.retry_delay(failures, error)
                failures += 1
                give_up_at = give_up_at or time.monotonic() + retry.RETRY_BUDGET
                if not error.retryable or failures == retry.ATTEMPTS or time.monotonic() + pause > give_up_at:
                    raise
                log.warning(
                    "RunGen job %s: %s; trying again in %s",
                    self.job.id,
                    error.message,
                    format_duration(pause),
                )
            await asyncio.sleep(pause)

    def _error(
        self, said: str, cause: RunGenError | None = None, *, retryable: bool = True
    ) -> RunGenOutputError:
        job = self.job
        error = RunGenOutputError(
            f"RunGen job {job.id} of app {job.app_id} was not landed: {said}",
            app_id=job.app_id,
            job_id=job.id,
            hint="" if cause is None else cause.hint,
            retryable=retryable if cause is None else cause.retryable,
        )
        error.__cause__ = cause
        return error
