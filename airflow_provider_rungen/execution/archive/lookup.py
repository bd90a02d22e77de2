"""Find the jobs that are stored already. The service is not asked for them: it may have forgotten them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from typing import Any

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.output_urls import find_outputs, redact_value
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.journal import MAX_OUTPUTS_WITHOUT_PARTS, PART_PREFIX
from airflow_provider_rungen.execution.archive.manifests import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest
from airflow_provider_rungen.execution.archive.steps import retry_step, run_with_checks
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, files_of, stored_job


@dataclass(frozen=True)
class StoredJobFinder:
    """
    Find the jobs of an app whose manifest is complete, and whose files are as it describes them.

    :param storage: where they may be stored.
    :param app_id: the app.
    :param max_concurrency: how many jobs to look at at a time.
    """

    storage: Storage
    app_id: str
    _: KW_ONLY
    max_concurrency: int = 8

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
                stored = await retry_step(job_id, in_daemon_thread, self.find, job_id)
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
        files, entries = files_of(storage, job_id, manifest), list(manifest.entries.values())
        if (
            files is None
            or len(files) != len(entries)
            or not _describes(entries, manifest.result)
            or not all(
                storage.digest(*file, size) == entry["sha256"]
                for (file, size), entry in zip(files.items(), entries, strict=False)
            )
        ):
            return None
        if len(entries) > MAX_OUTPUTS_WITHOUT_PARTS:
            # an attempt may have been killed before it removed them
            storage.remove(job_id, storage.sizes(job_id, PART_PREFIX))
        return stored_job(storage, self.app_id, job_id, manifest)


def _describes(entries: Collection[dict[str, Any]], result: Any) -> bool:
    """Return whether the files of a manifest are the outputs of its result, each in its place."""
    # not every URI of a file is a URL, so that outputs could be found by it
    urls = {entry["uri"]: f"stored://{number}" for number, entry in enumerate(entries)}
    found = find_outputs(redact_value(result, urls), len(entries) + 1)
    return [(output.at, output.url) for output in found] == [
        (entry["at"], urls[entry["uri"]]) for entry in entries
    ]
