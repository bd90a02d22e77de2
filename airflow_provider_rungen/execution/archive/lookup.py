"""Find the jobs that are stored already. The service is not asked for them: it may have forgotten them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from typing import Any

from airflow_provider_rungen.client.models import JobStatus
from airflow_provider_rungen.client.output_urls import find_outputs, redact_value
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.journal import MAX_OUTPUTS_WITHOUT_PARTS, PART_PREFIX
from airflow_provider_rungen.execution.archive.manifests import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RETURNED_FIELDS,
    parse_manifest,
)
from airflow_provider_rungen.execution.archive.steps import retry_step, run_with_checks
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob


@dataclass(frozen=True)
class StoredJobFinder:
    """
    Find the jobs of an app whose manifest is complete, and whose files are as it describes them.

    :param storage: where they may be stored.
    :param app_id: the app.
    :param max_concurrency: how many jobs to look at at a time.
    :param max_outputs: a job with more outputs does not count as stored.
    :param max_total_bytes: nor does one whose outputs have more bytes together.
    """

    storage: Storage
    app_id: str
    _: KW_ONLY
    max_concurrency: int = 8
    max_outputs: int | None = None
    max_total_bytes: int | None = None

    async def run(
        self, job_ids: Collection[str], on_found: Callable[[StoredJob], None], check: Callable[[], None]
    ) -> None:
        """
        Look for jobs.

        :param on_found: takes each job that is stored, as it is found.
        :param check: called often; an error that it raises ends the work.
        :raises RunGenOutputError: the storage cannot be read now.
        """

        async def look(job_id: str) -> None:
            try:
                stored = await retry_step(job_id, asyncio.to_thread, self.find, job_id)
            except RunGenOutputError as error:
                # asking the service does not help while the storage is out of order
                if error.retryable:
                    raise
                return
            if stored is not None:
                on_found(stored)

        await run_with_checks(gather_limited(look, job_ids, self.max_concurrency), check)

    def find(self, job_id: str) -> StoredJob | None:
        """
        Return a job, or ``None`` if it is not stored, or not as a whole. Blocks.

        :raises RunGenOutputError: the storage cannot be read.
        """
        storage = self.storage
        content = storage.read(job_id, MANIFEST, MAX_MANIFEST_BYTES)
        if content is None:
            return None
        manifest = parse_manifest(content, self.app_id, job_id)
        if not manifest.is_complete or manifest.invalid_count:
            return None
        entries, fields = list(manifest.entries.values()), json.loads(content)
        if (
            fields.get("status") != JobStatus.COMPLETED
            or self._exceeds_limits(entries)
            or not _describes(entries, fields.get("result"))
            or not all(self._is_stored(job_id, number, entry) for number, entry in enumerate(entries))
        ):
            return None
        if len(entries) > MAX_OUTPUTS_WITHOUT_PARTS:
            # an attempt may have been killed before it removed them
            storage.remove(job_id, storage.sizes(job_id, PART_PREFIX))
        return StoredJob(
            self.app_id,
            job_id,
            storage.uri_of(job_id, MANIFEST),
            [{name: entry[name] for name in RETURNED_FIELDS} for entry in entries],
            fields.get("result"),
            _to_seconds(fields.get("execution_time")),
            created_at if isinstance(created_at := fields.get("created_at"), str) else None,
        )

    def _exceeds_limits(self, entries: Collection[dict[str, Any]]) -> bool:
        size = sum(entry["size"] for entry in entries)
        return (self.max_outputs is not None and len(entries) > self.max_outputs) or (
            self.max_total_bytes is not None and size > self.max_total_bytes
        )

    def _is_stored(self, job_id: str, number: int, entry: dict[str, Any]) -> bool:
        name = entry["uri"].rpartition("/")[2]
        is_ours = name.startswith(f"{number}-") and entry["uri"] == self.storage.uri_of(job_id, name)
        sha256: str = entry["sha256"]
        return is_ours and self.storage.digest(job_id, name, entry["size"]) == sha256


def _describes(entries: Collection[dict[str, Any]], result: Any) -> bool:
    """Return whether the files of a manifest are the outputs of its result, each in its place."""
    # not every URI of a file is a URL, so that outputs could be found by it
    urls = {entry["uri"]: f"stored://{number}" for number, entry in enumerate(entries)}
    found = find_outputs(redact_value(result, urls), len(entries) + 1)
    return [(output.at, output.url) for output in found] == [
        (entry["at"], urls[entry["uri"]]) for entry in entries
    ]


def _to_seconds(value: Any) -> float | None:
    """Return a number of seconds, or ``None``: anybody may have written it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e12 and math.isfinite(value) else None
