"""Keep the manifest of one job in the destination, so that a later attempt downloads only what is missing.

The manifest is written every second while files arrive, and at the end. It only lists files that are there.
What arrived since it was written last is in no manifest. After a kill, the next attempt downloads that again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.download import Download
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import Output, redact_value
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.manifests import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RETURNED_FIELDS,
    manifest_text,
    parse_manifest,
)
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

log = logging.getLogger(__name__)

# Seconds between two writes while files arrive.
SAVE_INTERVAL = 1.0


class ManifestJournal:
    """
    The manifest of a job, as it is being written.

    :param storage: where it is written.
    :param job: the job.
    :param outputs: all outputs of the job.
    """

    def __init__(self, storage: Storage, job: Job, outputs: Sequence[Output]) -> None:
        #: By output name, the files that are stored.
        self.stored: dict[str, dict[str, Any]] = {}
        #: Whether an earlier attempt stored everything.
        self.is_complete = False
        self._storage = storage
        self._job = job
        self._outputs = outputs
        self._input = redact_value(job.input)
        self._saved_count = 0

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of the stored files, in the order of the outputs."""
        return [self.stored[output.name] for output in self._outputs if output.name in self.stored]

    @property
    def is_changed(self) -> bool:
        """Whether files were stored that the manifest does not list yet."""
        return len(self.stored) > self._saved_count

    def load(self) -> None:
        """Find the files that an earlier attempt has stored. Blocks."""
        storage, job = self._storage, self._job
        storage.remove_leftovers(job.id)
        content = storage.read(job.id, MANIFEST, MAX_MANIFEST_BYTES)
        if content is None:
            return
        manifest, sizes = parse_manifest(content, job.app_id, job.id), storage.list_folder(job.id)
        self.is_complete = manifest.is_complete
        for output in self._outputs:
            entry = manifest.entries.get((storage.uri_of(job.id, output.name), output.at))
            # files appear as a whole, so there is no need to read them for their digest
            if entry and sizes.get(output.name) == entry["size"]:
                self.stored[output.name] = entry
        self._saved_count = len(self.stored)
        if manifest.invalid_count:
            uri = redact(storage.uri_of(job.id, MANIFEST))
            log.warning(
                "Ignored %d invalid manifest entries (job %s, %s)", manifest.invalid_count, job.id, uri
            )

    def add(self, output: Output, download: Download) -> None:
        """Add an output whose file is stored."""
        self.stored[output.name] = {
            "uri": self._storage.uri_of(self._job.id, output.name),
            "at": output.at,
            "size": download.size,
            "sha256": download.sha256,
            "content_type": download.content_type,
        }

    async def save_regularly(self, is_over: asyncio.Event) -> None:
        """Write the manifest whenever files were added. What fails is tried again."""
        pause = SAVE_INTERVAL
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), pause)
                return
            begun_at = time.monotonic()
            if self.is_changed:
                with contextlib.suppress(RunGenOutputError):
                    await self.save(is_complete=False)
            # a large manifest takes a while to write, and is not to take most of the time
            pause = max(SAVE_INTERVAL, 9 * (time.monotonic() - begun_at))

    async def save(self, *, is_complete: bool) -> None:
        """Write the manifest."""
        manifest, count = self._manifest(is_complete=is_complete), len(self.stored)
        await in_daemon_thread(self._write, manifest)
        self._saved_count = count

    def _write(self, manifest: dict[str, Any]) -> None:
        self._storage.write(self._job.id, MANIFEST, manifest_text(manifest))

    def stored_job(self) -> StoredJob:
        """Return what is stored of the job."""
        job = self._job
        return StoredJob(
            job.app_id,
            job.id,
            self._storage.uri_of(job.id, MANIFEST),
            [{name: entry[name] for name in RETURNED_FIELDS} for entry in self.entries],
            self._result(),
            job.execution_time,
            self._created_at(),
            self._input,
        )

    def _result(self) -> Any:
        """Return the result with the URIs of the stored files in place of their URLs."""
        stored = (output for output in self._outputs if output.name in self.stored)
        return redact_value(
            self._job.result, {output.url: self.stored[output.name]["uri"] for output in stored}
        )

    def _created_at(self) -> str | None:
        created_at = self._job.created_at
        return None if created_at is None else created_at.isoformat()

    def _manifest(self, *, is_complete: bool) -> dict[str, Any]:
        job = self._job
        return {
            "job_id": job.id,
            "app_id": job.app_id,
            "complete": is_complete,
            "status": str(job.status),
            "created_at": self._created_at(),
            "execution_time": job.execution_time,
            "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": self._input,
            "result": self._result(),
            "outputs": self.entries,
        }
