"""Keep the manifest of one job in the destination, so that a later attempt downloads only what is missing.

An entry is written before its file is moved to its target. A job with few outputs rewrites its whole manifest
for that. With many outputs this would take quadratic time, so new entries are written to parts beside the
manifest. The parts are removed once the manifest is written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.download import Download
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import Output, redact_value
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.execution.archive.manifests import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RETURNED_FIELDS,
    manifest_text,
    parse_manifest,
)
from airflow_provider_rungen.execution.archive.many_files import read_listed
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

log = logging.getLogger(__name__)

PART_PREFIX = "manifest.part-"
# A job with more outputs writes parts.
MAX_OUTPUTS_WITHOUT_PARTS = 8


class ManifestJournal:
    """
    The manifest of a job, as it is being written.

    :param storage: where it is written.
    :param job: the job.
    :param outputs: all outputs of the job.
    """

    def __init__(self, storage: Storage, job: Job, outputs: Sequence[Output]) -> None:
        #: By output name, the files that are stored or about to be.
        self.stored: dict[str, dict[str, Any]] = {}
        #: Whether an earlier attempt stored everything.
        self.is_complete = False
        #: The names of all parts, including those of earlier attempts.
        self.parts: list[str] = []
        self._storage = storage
        self._job = job
        self._outputs = outputs
        self._input = redact_value(job.input)
        self._unwritten: dict[str, dict[str, Any]] = {}
        # one call writes at a time, including the entries of those that wait
        self._lock = asyncio.Lock()
        self._token = secrets.token_hex(4)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of the stored files, in the order of the outputs."""
        return [self.stored[output.name] for output in self._outputs if output.name in self.stored]

    def load(self) -> None:
        """Find the files that an earlier attempt has stored. Blocks."""
        storage, job = self._storage, self._job
        storage.remove_leftovers(job.id)
        content = storage.read(job.id, MANIFEST, MAX_MANIFEST_BYTES)
        contents = [] if content is None else [content]
        if len(self._outputs) > MAX_OUTPUTS_WITHOUT_PARTS:
            sizes = storage.sizes(job.id, PART_PREFIX)
            self.parts = sorted(sizes)
            if 0 < sum(sizes.values()) <= MAX_MANIFEST_BYTES:
                for some in read_listed(storage, {(job.id, part): size for part, size in sizes.items()}):
                    contents += some.values()
        manifests = [parse_manifest(content, job.app_id, job.id) for content in contents]
        self.is_complete = content is not None and manifests[0].is_complete
        entries = {key: entry for manifest in manifests for key, entry in manifest.entries.items()}
        for output in self._outputs:
            entry = entries.get((storage.uri_of(job.id, output.name), output.at))
            if entry and storage.digest(job.id, output.name, entry["size"]) == entry["sha256"]:
                self.stored[output.name] = entry
        if invalid_count := sum(manifest.invalid_count for manifest in manifests):
            uri = redact(storage.uri_of(job.id, MANIFEST))
            log.warning("Ignored %d invalid manifest entries (job %s, %s)", invalid_count, job.id, uri)

    def add(self, output: Output, download: Download) -> None:
        """Add an output whose file is about to be moved to its target."""
        self.stored[output.name] = self._unwritten[output.name] = {
            "uri": self._storage.uri_of(self._job.id, output.name),
            "at": output.at,
            "size": download.size,
            "sha256": download.sha256,
            "content_type": download.content_type,
        }

    def discard(self, output: Output) -> None:
        """Forget an output that could not be stored."""
        self.stored.pop(output.name, None)
        self._unwritten.pop(output.name, None)

    async def flush(self) -> None:
        """Write the entries that were added, unless a concurrent call has written them."""
        async with self._lock:
            if not (entries := dict(self._unwritten)):
                return
            if len(self._outputs) <= MAX_OUTPUTS_WITHOUT_PARTS:
                await in_daemon_thread(self._write, MANIFEST, self._manifest(is_complete=False))
            else:
                part = f"{PART_PREFIX}{self._token}-{len(self.parts)}.json"
                content = {**self._head(is_complete=False), "outputs": list(entries.values())}
                await in_daemon_thread(self._write, part, content)
                self.parts.append(part)
            for name in entries:
                self._unwritten.pop(name, None)

    def finish(self, is_complete: bool) -> None:
        """Write the whole manifest, then remove its parts. Blocks."""
        self._write(MANIFEST, self._manifest(is_complete=is_complete))
        self._storage.remove(self._job.id, self.parts)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self._storage.write(self._job.id, name, manifest_text(content))

    def _head(self, *, is_complete: bool) -> dict[str, Any]:
        return {"job_id": self._job.id, "app_id": self._job.app_id, "complete": is_complete}

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
            **self._head(is_complete=is_complete),
            "status": str(job.status),
            "created_at": self._created_at(),
            "execution_time": job.execution_time,
            "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": self._input,
            "result": self._result(),
            "outputs": self.entries,
        }
