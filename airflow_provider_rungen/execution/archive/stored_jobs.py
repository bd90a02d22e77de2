"""Jobs whose outputs are stored, as their manifests describe them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow_provider_rungen.client.daemon_threads import batches
from airflow_provider_rungen.client.models import JobStatus
from airflow_provider_rungen.client.texts import format_bytes, format_count
from airflow_provider_rungen.execution.archive.manifests import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RETURNED_FIELDS,
    Manifest,
    parse_manifest,
)
from airflow_provider_rungen.execution.archive.storage import File, Storage

T = TypeVar("T")
# So many manifests are read at a time, and so many bytes of them are in memory. As objects, JSON takes
# several times as much.
_BATCH = 1000
_BATCH_BYTES = 8 << 20
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class StoredJob:
    """
    A job whose outputs are all stored.

    :param app_id: its app.
    :param job_id: the job.
    :param manifest: the URI of its manifest.
    :param outputs: its files, each with ``uri``, ``size``, ``sha256`` and ``content_type``.
    :param result: its result, with stored URIs in place of signed URLs.
    :param execution_seconds: how long it ran, if known.
    :param created_at: when it was created (ISO 8601), if known.
    :param input: its input, redacted, if known.
    """

    app_id: str
    job_id: str
    manifest: str
    outputs: Sequence[Mapping[str, Any]]
    result: Any
    execution_seconds: float | None = None
    created_at: str | None = None
    input: Any = None

    @property
    def summary(self) -> dict[str, Any]:
        """The small manifest that a task returns."""
        return {"job_id": self.job_id, "manifest": self.manifest, "outputs": list(self.outputs)}


@dataclass
class Figures:
    """
    How much was stored, for the log.

    :param jobs: how many jobs.
    :param files: how many files, those included that an earlier attempt had stored.
    :param existing: how many files an earlier attempt had stored.
    :param total_bytes: the size of all files.
    """

    jobs: int = 0
    files: int = 0
    existing: int = 0
    total_bytes: int = 0

    def add(self, entries: Iterable[Mapping[str, Any]], *, are_new: bool = True) -> None:
        """Count files, given their manifest entries."""
        for entry in entries:
            self.files += 1
            self.existing += not are_new
            self.total_bytes += entry["size"]

    def __str__(self) -> str:
        files = f"{format_count(self.files, 'file')} ({format_bytes(self.total_bytes)})"
        return f"{files}, {self.existing} there before," if self.existing else files


def read_stored_jobs(
    storage: Storage, jobs: Mapping[str, str], on_stored: Callable[[StoredJob], T], *, are_remembered: bool
) -> dict[str, T]:
    """
    Find those of many jobs whose manifest is complete, and whose files are there with their size. Blocks.

    :param storage: their destination.
    :param jobs: the app of each job, by job id; empty if it is not known.
    :param on_stored: takes each, whose result may be large, and returns what to return of it.
    :param are_remembered: whether all were stored there. Then the destination has to confirm what is missing.
    :raises RunGenOutputError: the destination cannot be read.
    """
    stored: dict[str, T] = {}
    missing: set[File] = set()
    for some in batches(jobs, _BATCH):
        manifests = {(job_id, MANIFEST) for job_id in some}
        sizes = storage.sizes_of(manifests)
        missing |= manifests - sizes.keys()
        readable = [file for file, size in sizes.items() if size <= MAX_MANIFEST_BYTES]
        for batch in batches(readable, _BATCH, sizes.__getitem__, _BATCH_BYTES):
            contents = storage.read_all(batch)
            missing |= set(batch) - contents.keys()
            found: dict[str, tuple[Manifest, dict[File, int]]] = {}
            for (job_id, _), content in contents.items():
                manifest = parse_manifest(content, jobs[job_id], job_id)
                files = files_of(storage, job_id, manifest)
                if files is not None:
                    found[job_id] = manifest, files
            existing = storage.sizes_of(file for _, files in found.values() for file in files)
            for job_id, (manifest, files) in found.items():
                missing |= files.keys() - existing.keys()
                if all(existing.get(file) == size for file, size in files.items()):
                    stored[job_id] = on_stored(stored_job(storage, job_id, manifest))
    if missing and are_remembered:
        storage.confirm_missing(missing)
    return stored


def files_of(storage: Storage, job_id: str, manifest: Manifest) -> dict[File, int] | None:
    """Return the sizes of a job's files, or ``None`` unless all are stored in its folder."""
    if not manifest.is_complete or manifest.invalid_count or manifest.status != JobStatus.COMPLETED:
        return None
    files = {}
    for uri, size in ((entry["uri"], entry["size"]) for entry in manifest.entries.values()):
        name = uri.rpartition("/")[2]
        is_name = name not in ("", ".", "..") and name.isprintable() and "\\" not in name
        if not is_name or len(name.encode()) > _MAX_NAME_BYTES or uri != storage.uri_of(job_id, name):
            return None
        files[job_id, name] = size
    return files


def stored_job(storage: Storage, job_id: str, manifest: Manifest) -> StoredJob:
    """Return a job as its manifest describes it."""
    return StoredJob(
        app_id=manifest.app_id,
        job_id=job_id,
        manifest=storage.uri_of(job_id, MANIFEST),
        outputs=[{name: entry[name] for name in RETURNED_FIELDS} for entry in manifest.entries.values()],
        result=manifest.result,
        execution_seconds=manifest.execution_seconds,
        created_at=manifest.created_at,
        input=manifest.input,
    )
