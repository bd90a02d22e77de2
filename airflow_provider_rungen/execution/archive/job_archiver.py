"""Store the outputs of one job: first its files, and last the manifest that lists them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.download import RefusedError, RejectedUrlError
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
from airflow_provider_rungen.client.transport import MAX_CONCURRENCY, gather_limited
from airflow_provider_rungen.exceptions import RunGenConnectionError, RunGenError, RunGenOutputError
from airflow_provider_rungen.execution.archive.stored_jobs import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    StoredJob,
    manifest_text,
    parse_manifest,
)

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.archive.output_store import OutputStore

log = logging.getLogger(__name__)

# The errors of what a worker cannot read.
_UNREADABLE = (RefusedError, RejectedUrlError, RunGenConnectionError)
# A result with more is no list of pictures. Its manifest would not fit into memory.
MAX_OUTPUTS = 10_000
_REFUSED_HINT = (
    "With a ledger, or where a task only collects, a retry or a clear downloads the outputs again, and buys "
    "nothing. If they are gone, a ledger buys them again after seven days, or at once with refresh=True"
)
_EXPIRED_HINT = "Run the job again, which is paid for again. With a ledger, the next attempt does so"


class JobArchiver:
    """
    Store the outputs of one job.

    :param store: what all jobs share: storage, downloader, limits and figures.
    :param job: the completed job.
    :param is_first: whether it was not tried before, so that its URLs may be old.
    :raises RunGenOutputError: it has too many outputs.
    """

    def __init__(self, store: OutputStore, job: Job, *, is_first: bool) -> None:
        self._store = store
        self._storage = store.storage
        self.job = job
        self._outputs = find_outputs(job.result, MAX_OUTPUTS + 1)
        if len(self._outputs) > MAX_OUTPUTS:
            message = f"it has more than {MAX_OUTPUTS:,} outputs, which is the limit"
            hint = "Let the model return fewer outputs, or one archive of them"
            raise self._error(RunGenOutputError(message, hint=hint, retryable=False))
        # by URL, the one that replaces it; None until the service was asked for new ones
        self._renewed_urls: dict[str, str] | None = None if is_first else {}
        # what is in storage; None until it was read
        self._stored: StoredJob | None = None
        # the manifest entries of the stored files, by name
        self._entries: dict[str, Mapping[str, Any]] = {}

    async def run(self) -> StoredJob:
        """
        Try to store the outputs that are not stored yet, and return what is stored.

        :raises RunGenOutputError: an output, or the manifest, could not be stored.
        """
        try:
            if self._stored is None:
                self._stored = await in_daemon_thread(self._load)
                if self._renewed_urls is None:
                    self._store.figures.add(self._entries.values(), are_new=False)
            failed = await self._download_missing()
            outputs = [self._entries[each.name] for each in self._outputs if each.name in self._entries]
            stored = self._stored
            found = (stored.outputs, stored.is_complete, stored.invalid_count)
            if found != (outputs, not failed, 0) or self._store.read(stored) is None:
                self._stored = await in_daemon_thread(self._save, outputs, stored, is_complete=not failed)
        except RunGenOutputError as error:
            self._store.note_failure(error)
            raise self._error(error) from error
        if failed:
            # what no retry can help, or what asks for the longest wait
            cause, output = min(failed, key=_retry_order)
            raise self._error(cause, f"{output.at}: ") from cause
        return self._stored

    # --- the manifest ---

    def _load(self) -> StoredJob:
        """Return what an earlier attempt has stored, and note the entries of its files."""
        storage, job = self._storage, self.job
        storage.remove_leftovers(job.id)
        content = storage.read_all([(job.id, MANIFEST)], MAX_MANIFEST_BYTES).get((job.id, MANIFEST))
        uri = storage.uri_of(job.id, MANIFEST)
        if content is None:
            return StoredJob(job.app_id, job.id, uri, [], is_complete=False)
        stored, sizes = parse_manifest(content, job.app_id, job.id, uri), storage.list_folder(job.id)
        entries = {(entry["uri"], entry["at"]): entry for entry in stored.outputs}
        for output in self._outputs:
            entry = entries.get((storage.uri_of(job.id, output.name), output.at))
            # files appear as a whole, so there is no need to read them for their digest
            if entry and sizes.get(output.name) == entry["size"]:
                self._entries[output.name] = entry
        if invalid := stored.invalid_count:
            log.warning("Ignored %d invalid manifest entries (job %s, %s)", invalid, job.id, redact(uri))
        return stored

    def _save(self, outputs: list[Mapping[str, Any]], before: StoredJob, *, is_complete: bool) -> StoredJob:
        """Write the manifest, with URIs of files in place of their URLs, and return it as it is read."""
        job, uris = self.job, {each["at"]: each["uri"] for each in outputs}
        uri = self._storage.uri_of(job.id, MANIFEST)
        fields = {
            "job_id": job.id,
            "app_id": job.app_id,
            "complete": is_complete,
            "status": str(job.status),
            "created_at": None if job.created_at is None else job.created_at.isoformat(),
            "execution_time": job.execution_time,
            "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": redact_value(job.input),
            "result": redact_value(
                job.result, {each.url: uris[each.at] for each in self._outputs if each.at in uris}
            ),
            "outputs": outputs,
        }
        if before.fits and not self._store.fits:
            fields["fits"] = before.fits
        content = manifest_text(fields)
        stored = parse_manifest(content, job.app_id, job.id, uri)
        if self._store.read(stored) is None:  # it fitted with what the manifest lacks
            content = manifest_text(fields | {"fits": self._store.fits})
            stored = replace(stored, fits=self._store.fits)
        if len(content) > MAX_MANIFEST_BYTES:
            raise RunGenOutputError(
                f"its manifest would have more than {MAX_MANIFEST_BYTES >> 20} MiB, which is the limit",
                hint="Let the model return URLs of files, or less text",
                retryable=False,
            )
        self._storage.write(job.id, MANIFEST, content)
        return stored

    # --- the files ---

    async def _download_missing(self) -> list[tuple[RunGenError, Output]]:
        """Store the files that have no entry, and add their entries. Return what failed."""
        failed: list[tuple[RunGenError, Output]] = []

        async def store(output: Output) -> None:
            async with self._store.slots:
                if self._store.is_out():
                    failed.append((self._store.skip_error(), output))
                    return
                try:
                    self._entries[output.name] = entry = await self._store_output(output)
                except RunGenError as error:
                    if isinstance(error, _UNREADABLE) and self._may_leave_out(output):
                        log.warning("Left out: %s, which repeats the input: %s", output.at, error.message)
                    else:
                        self._store.note_failure(error)
                        failed.append((error, output))
                else:
                    self._store.add_file(entry)

        missing = [output for output in self._outputs if output.name not in self._entries]
        await gather_limited(store, missing, MAX_CONCURRENCY)
        return failed

    async def _store_output(self, output: Output) -> dict[str, Any]:
        """Store a file, and return its manifest entry."""
        storage, job_id = self._storage, self.job.id
        url = (self._renewed_urls or {}).get(output.url, output.url)
        with storage.incoming(job_id, output.name) as (file, path):
            try:
                download = await self._store.downloader.fetch(url, file)
            except RefusedError as error:
                if self._may_leave_out(output):
                    raise
                raise self._refusal_error(output, url, error) from None
            await in_daemon_thread(storage.put, file, path, job_id, output.name)
        return {
            "uri": storage.uri_of(job_id, output.name),
            "at": output.at,
            "size": download.size,
            "sha256": download.sha256,
            "content_type": download.content_type,
        }

    async def renew_urls(self) -> None:
        """Ask the service for the URLs again, before another try, since they may have expired."""
        job = self.job
        try:
            renewed = await self._store.hook.aperform(endpoints.get_job(job.app_id, job.id))
        except RunGenError as error:
            # the old ones may do, and the next attempt asks for the job again
            log.warning("Could not renew the URLs of outputs: %s", error.message)
            return
        # by place, because one URL in two places may have become two
        pairs = zip(find_urls(job.result), find_urls(renewed.result), strict=False)
        self._renewed_urls = {old: new for (at, old), (new_at, new) in pairs if at == new_at}

    @cached_property
    def _repeated(self) -> dict[str, str]:
        """The URLs of the input that the result repeats, with their places in the input."""
        given = {url: at.removeprefix("result") for at, url in find_urls(self.job.input)}
        return {each.url: given[each.url] for each in self._outputs if each.url in given}

    def _may_leave_out(self, output: Output) -> bool:
        """
        Return whether an output that cannot be read is one of the input: perhaps only the service can.

        The result has it within a copy of the input, or was asked for twice. It has others, too.
        """
        if (at := self._repeated.get(output.url)) is None or len(self._repeated) == len(self._outputs):
            return False
        is_copy = output.at.endswith(at) and output.at != f"result{at}"
        return is_copy or self._renewed_urls is not None

    def _refusal_error(self, output: Output, url: str, refusal: RefusedError) -> RunGenOutputError:
        """
        Return the error of an output that its host refuses.

        The output has expired only if a new URL is refused, and its time is over or the host says so.
        Otherwise, a proxy may have refused it, and the job that was paid for must not be given up. Nor must
        it for a URL of the input, which a new job would repeat.
        """
        expires_at, when = expiry_time(url, self.job.created_at), ""
        is_past = expires_at is not None and expires_at <= datetime.now(UTC)
        is_over = (is_past or refusal.is_expired) and output.url not in self._repeated
        if self._renewed_urls is None or not is_over:
            message = f"{refusal.message}; check that the worker may reach it"
            return RunGenOutputError(message, hint=_REFUSED_HINT)
        if expires_at is not None:
            when = f" {'on' if is_past else 'early, before'} {expires_at:%Y-%m-%d %H:%M UTC}"
        message = f"the outputs of the job expired{when} ({refusal.message})"
        error = RunGenOutputError(message, hint=_EXPIRED_HINT, retryable=False)
        error.is_expired = True
        return error

    def _error(self, cause: RunGenError, place: str = "") -> RunGenOutputError:
        return storing_error(self.job.app_id, self.job.id, cause, place)


def storing_error(app_id: str, job_id: str, cause: RunGenError, place: str = "") -> RunGenOutputError:
    """
    Return the error of a job whose outputs could not be stored.

    :param place: where in the result the output is that could not.
    """
    error = RunGenOutputError(
        f"Could not store the outputs: {place}{cause.message} {format_ids(app_id, job_id)}",
        app_id=app_id,
        job_id=job_id,
        hint=cause.hint,
        retryable=cause.retryable,
        retry_after=cause.retry_after,
    )
    error.is_expired, error.is_outage = getattr(cause, "is_expired", False), retry.is_outage(cause)
    return error


def _retry_order(failed: tuple[RunGenError, Output]) -> tuple[bool, float]:
    """Sort what no retry can help first, then by how long to wait."""
    error, _ = failed
    return error.retryable, -(error.retry_after or 0.0)
