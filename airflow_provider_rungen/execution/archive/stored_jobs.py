"""Jobs whose outputs are stored: their manifests as text, validated, and found in a destination."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_rungen.client.codec import to_seconds, to_text, to_time
from airflow_provider_rungen.client.daemon_threads import batches
from airflow_provider_rungen.client.models import JobStatus
from airflow_provider_rungen.client.output_urls import MAX_CONTENT_TYPE_CHARS
from airflow_provider_rungen.execution.archive.storage import File, Storage

MANIFEST = "manifest.json"
# A larger manifest is neither written nor read.
MAX_MANIFEST_BYTES = 128 * 1024 * 1024
# The fields of a file that a task returns.
_RETURNED_FIELDS = ("uri", "size", "sha256", "content_type")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_SIZE = 2**63 - 1
_MAX_NAME_BYTES = 255
# So many manifests are read at a time, and so many bytes of them are in memory. As objects, JSON takes
# several times as much.
_BATCH = 1000
_BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class StoredJob:
    """
    A job as its manifest describes it. Anybody who can write there may have changed it.

    :param app_id: its app.
    :param job_id: the job.
    :param manifest: the URI of its manifest.
    :param outputs: its files: the valid entries of the manifest, each with ``uri``, ``at`` (its place in the
        result), ``size``, ``sha256`` and ``content_type``.
    :param result: its result, with stored URIs in place of signed URLs.
    :param execution_seconds: how long it ran, if known.
    :param created_at: when it was created (ISO 8601), if known.
    :param input: its input, redacted, if known.
    :param fits: the digest of the `OutputType` that the result was of, as the service returned it.
    :param is_complete: whether all outputs were stored, according to the manifest, and the job completed.
    :param invalid_count: how many entries are not valid; 1 for a manifest that is not valid as a whole.
    """

    app_id: str
    job_id: str
    manifest: str
    outputs: Sequence[Mapping[str, Any]]
    result: Any = None
    execution_seconds: float | None = None
    created_at: str | None = None
    input: Any = None
    fits: str = ""
    is_complete: bool = True
    invalid_count: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """The small manifest that a task returns."""
        outputs = [{name: output[name] for name in _RETURNED_FIELDS} for output in self.outputs]
        return {"job_id": self.job_id, "manifest": self.manifest, "outputs": outputs}


# --- manifests ---


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest: JSON, with a line for each field."""
    fields = (
        f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in manifest.items()
    )
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode()


def parse_manifest(content: bytes, app_id: str, job_id: str, uri: str = "") -> StoredJob:
    """
    Parse a manifest of a job. One that is not valid, or belongs to another job, has no outputs.

    :param app_id: the app of the job; empty if it is not known.
    :param uri: where it is.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        fields = {}
    app, outputs = fields.get("app_id"), fields.get("outputs")
    is_of_job = app == (app_id or app) and fields.get("job_id") == job_id
    if not is_of_job or not isinstance(outputs, list):
        return StoredJob(app_id, job_id, uri, [], is_complete=False, invalid_count=1)
    entries = [entry for entry in map(_parse_entry, outputs) if entry is not None]
    return StoredJob(
        app_id=to_text(app),
        job_id=job_id,
        manifest=uri,
        outputs=list({(entry["uri"], entry["at"]): entry for entry in entries}.values()),
        result=fields.get("result"),
        execution_seconds=to_seconds(fields.get("execution_time")),
        created_at=fields["created_at"] if to_time(fields.get("created_at")) else None,
        input=fields.get("input"),
        fits=str(fields.get("fits", "")),
        is_complete=fields.get("complete") is True and fields.get("status") == JobStatus.COMPLETED,
        invalid_count=len(outputs) - len(entries),
    )


def _parse_entry(entry: Any) -> dict[str, Any] | None:
    """Return the known fields of an entry, or ``None`` unless each is as this package writes it."""
    if not isinstance(entry, dict):
        return None
    fields = {name: entry.get(name) for name in ("uri", "at", "size", "sha256", "content_type")}
    uri, at, size, sha256, content_type = fields.values()
    is_valid = (
        isinstance(uri, str)
        and isinstance(at, str)
        and type(size) is int
        and 0 <= size <= _MAX_SIZE
        and isinstance(sha256, str)
        and _SHA256.fullmatch(sha256) is not None
        and (content_type is None or _is_content_type(content_type))
    )
    return fields if is_valid else None


def _is_content_type(value: Any) -> bool:
    # each character may be escaped by up to ten
    return isinstance(value, str) and len(value) <= 10 * MAX_CONTENT_TYPE_CHARS + 1 and value.isprintable()


# --- what a destination has ---


def read_stored_jobs(
    storage: Storage,
    jobs: Mapping[str, str],
    on_stored: Callable[[StoredJob], object],
    *,
    are_remembered: bool,
) -> set[str]:
    """
    Find those of many jobs whose manifest is complete, and whose files are there with their size. Blocks.

    :param storage: their destination.
    :param jobs: the app of each job, by job id; empty if it is not known.
    :param on_stored: takes each, whose result may be large.
    :param are_remembered: whether all were stored there. Then the destination has to confirm what is missing.
    :raises RunGenOutputError: the destination cannot be read.
    """
    stored: set[str] = set()
    missing: set[File] = set()
    for some in batches(jobs, _BATCH):
        manifests = {(job_id, MANIFEST) for job_id in some}
        sizes = storage.sizes_of(manifests)
        missing |= manifests - sizes.keys()
        readable = [file for file, size in sizes.items() if size <= MAX_MANIFEST_BYTES]
        for batch in batches(readable, _BATCH, sizes.__getitem__, _BATCH_BYTES):
            contents = storage.read_all(batch)
            missing |= set(batch) - contents.keys()
            found: list[tuple[StoredJob, dict[File, int]]] = []
            for (job_id, name), content in contents.items():
                job = parse_manifest(content, jobs[job_id], job_id, storage.uri_of(job_id, name))
                if (files := files_of(storage, job)) is not None:
                    found.append((job, files))
            existing = storage.sizes_of(file for _, files in found for file in files)
            for job, files in found:
                missing |= files.keys() - existing.keys()
                if all(existing.get(file) == size for file, size in files.items()):
                    on_stored(job)
                    stored.add(job.job_id)
    if missing and are_remembered:
        storage.confirm_missing(missing)
    return stored


def files_of(storage: Storage, job: StoredJob) -> dict[File, int] | None:
    """Return the sizes of a job's files, or ``None`` unless all are stored in its folder."""
    if not job.is_complete or job.invalid_count:
        return None
    files = {}
    for uri, size in ((output["uri"], output["size"]) for output in job.outputs):
        name = uri.rpartition("/")[2]
        is_name = name not in ("", ".", "..") and name.isprintable() and "\\" not in name
        if not is_name or len(name.encode()) > _MAX_NAME_BYTES or uri != storage.uri_of(job.job_id, name):
            return None
        files[job.job_id, name] = size
    return files
