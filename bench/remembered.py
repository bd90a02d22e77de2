"""Stores jobs and remembers them in a ledger, as an earlier run would have done."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bench.service import APP

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.storage import File, Storage
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

FILE_NAME = "0-output.png"
_FILE = b"a picture"
_CREATED_AT = "2026-11-01T12:00:00+00:00"
_RUN = "b" * 36
_AT_A_TIME = 10_000


def remember(ledger: str, destination: str, model: str, inputs: Iterable[Mapping[str, Any]]) -> None:
    """
    Store a job with one file for each input, and remember it.

    :param ledger: the URI of the ledger.
    :param destination: the URI of the folder of the jobs.
    :param model: the identity of the model.
    """
    from airflow_provider_rungen.execution.archive.storage import Storage
    from airflow_provider_rungen.execution.archive.threads import batches
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.operators import Ledger

    book, storage = LedgerBook(Ledger(ledger), model, _RUN), Storage(destination).prepare()
    book.open()
    for batch in batches(inputs, _AT_A_TIME):
        files: dict[File, bytes] = {}
        jobs: dict[str, StoredJob] = {}
        for job_input in batch:
            key = book.key(job_input)
            jobs[key] = _add_job(storage, str(uuid.uuid5(uuid.NAMESPACE_OID, key)), job_input, files)
        storage.write_all(files)
        book.add_done(jobs)


def _add_job(
    storage: Storage, job_id: str, job_input: Mapping[str, Any], files: dict[File, bytes]
) -> StoredJob:
    """Add the files of a job to those that are written, and return the job."""
    from airflow_provider_rungen.execution.archive.manifests import MANIFEST, manifest_text
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

    uri = storage.uri_of(job_id, FILE_NAME)
    output = {
        "uri": uri,
        "size": len(_FILE),
        "sha256": hashlib.sha256(_FILE).hexdigest(),
        "content_type": "image/png",
    }
    manifest = {
        "job_id": job_id,
        "app_id": APP,
        "complete": True,
        "status": "COMPLETED",
        "created_at": _CREATED_AT,
        "execution_time": 2.0,
        "landed_at": _CREATED_AT,
        "input": job_input,
        "result": {"images": [uri]},
        "outputs": [{**output, "at": "result.images[0]"}],
    }
    files[job_id, FILE_NAME] = _FILE
    files[job_id, MANIFEST] = manifest_text(manifest)
    return StoredJob(
        app_id=APP,
        job_id=job_id,
        manifest=storage.uri_of(job_id, MANIFEST),
        outputs=[output],
        result=manifest["result"],
        execution_seconds=2.0,
        created_at=_CREATED_AT,
    )
