"""Store the outputs of one job beside each other in the folder of its key."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.download import Downloader, RefusedError, RejectedUrlError
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.output_urls import Output as Found
from airflow_provider_rungen.client.output_urls import (
    expiry_time,
    find_outputs,
    find_urls,
    redact_value,
)
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.transport import MAX_CONCURRENCY, gather_limited
from airflow_provider_rungen.exceptions import RunGenConnectionError, RunGenError, RunGenOutputError
from airflow_provider_rungen.outputs.kept import fits_record, kept_value
from airflow_provider_rungen.outputs.outage import Outage
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.store.records import Output, Record, Status

log = logging.getLogger(__name__)

# The errors of what a worker cannot read.
_UNREADABLE = (RefusedError, RejectedUrlError, RunGenConnectionError)
# A result with more is no list of pictures.
MAX_OUTPUTS = 10_000
# A larger result is refused.
_MAX_RESULT_FILE = 128 << 20
_REFUSED_HINT = (
    "A retry or a clear downloads the outputs again, and buys nothing. If they are gone, they are bought "
    "again after seven days"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """
    What the archivers of all jobs share.

    :param storage: the destination.
    :param downloader: downloads outputs.
    :param slots: one for each download in progress.
    :param outage: takes what fails.
    :param renew: asks the service once more for a job.
    :param skip_error: returns why nothing more is worth a try, if so.
    :param keeps_input: whether a record has the input of its job.
    """

    storage: Storage
    downloader: Downloader
    slots: asyncio.Semaphore
    outage: Outage
    renew: Callable[[Job], Awaitable[Job]]
    skip_error: Callable[[], RunGenOutputError | None]
    keeps_input: bool = False


class JobArchiver:
    """
    Store the outputs of one job.

    :param tools: what all jobs share.
    :param record: the purchase.
    :param job: the completed job, its result as the service returned it.
    :param is_first: whether it was not tried before, so that its URLs may be old.
    :raises RunGenOutputError: it has too many outputs.
    """

    def __init__(self, tools: Tools, record: Record, job: Job, *, is_first: bool) -> None:
        self._tools, self._storage, self._record = tools, tools.storage, record
        self.job = job
        self._found = find_outputs(job.result, MAX_OUTPUTS + 1)
        if len(self._found) > MAX_OUTPUTS:
            message = f"it has more than {MAX_OUTPUTS:,} outputs, which is the limit"
            hint = "Let the model return fewer outputs, or one archive of them"
            raise self._error(RunGenOutputError(message, hint=hint, retryable=False))
        # by URL, the one that replaces it; None until the service was asked for new ones
        self._renewed_urls: dict[str, str] | None = None if is_first else {}
        # the stored files, by place in the result
        self._outputs: dict[str, Output] = {}

    async def run(self) -> Record:
        """
        Try to store the outputs that are not stored yet, and return the purchase as it is completed.

        :raises RunGenOutputError: an output could not be stored.
        """
        if failed := await self._download_missing():
            # what no retry can help, or what asks for the longest wait
            cause, found = min(failed, key=_retry_order)
            raise self._error(cause, f"{found.at}: ") from cause
        try:
            return await self._completed()
        except RunGenOutputError as error:
            self._tools.outage.note_failure(error)
            raise self._error(error) from error

    async def _completed(self) -> Record:
        job, kept = self.job, [each for each in self._found if each.at in self._outputs]
        created_at = "" if job.created_at is None else job.created_at.isoformat()
        changes: dict[str, Any] = {
            "status": Status.COMPLETED,
            "seconds": job.execution_time,
            "created_at": created_at,
            "outputs": tuple(self._outputs[each.at] for each in kept),
        }
        if self._tools.keeps_input:
            changes["input"] = kept_value(job.input)
        record = self._record.model_copy(update=changes)
        paths = {each.url: record.path_of(self._outputs[each.at]) for each in kept}
        result = redact_value(job.result, paths)
        content = json.dumps(result, allow_nan=False).encode()
        if fits_record(content):
            return record.model_copy(update={"result": result})
        if len(content) > _MAX_RESULT_FILE:
            raise RunGenOutputError(
                f"its result has more than {_MAX_RESULT_FILE >> 20} MiB, which is the limit",
                hint="Let the model return URLs of files, or less text",
                retryable=False,
            )
        folder, _, name = record.result_path.rpartition("/")
        await in_daemon_thread(self._storage.write, folder, name, content)
        return record.model_copy(update={"result_size": len(content)})

    # --- the files ---

    async def _download_missing(self) -> list[tuple[RunGenError, Found]]:
        """Store the files that are not stored yet. Return what failed."""
        failed: list[tuple[RunGenError, Found]] = []

        async def store(found: Found) -> None:
            async with self._tools.slots:
                if (skipped := self._tools.skip_error()) is not None:
                    failed.append((skipped, found))
                    return
                try:
                    self._outputs[found.at] = await self._store_output(found)
                except RunGenError as error:
                    if isinstance(error, _UNREADABLE) and self._may_leave_out(found):
                        log.warning("Left out: %s, which repeats the input: %s", found.at, error.message)
                    else:
                        self._tools.outage.note_failure(error)
                        failed.append((error, found))
                else:
                    self._tools.outage.note_file()

        missing = [each for each in self._found if each.at not in self._outputs]
        await gather_limited(store, missing, MAX_CONCURRENCY)
        return failed

    async def _store_output(self, found: Found) -> Output:
        """Store a file."""
        url = (self._renewed_urls or {}).get(found.url, found.url)
        number, _, name = found.name.partition("-")
        output = Output(number=int(number), name=name, size=0)
        folder, _, target = self._record.path_of(output).rpartition("/")
        self._storage.remove_leftovers(folder)
        with self._storage.incoming(folder, target) as (file, path):
            try:
                download = await self._tools.downloader.fetch(url, file)
            except RefusedError as error:
                if self._may_leave_out(found):
                    raise
                raise self._refusal_error(found, url, error) from None
            await in_daemon_thread(self._storage.put, file, path, folder, target)
        changes = {"size": download.size, "sha256": download.sha256, "type": download.content_type or ""}
        return output.model_copy(update=changes)

    async def renew_urls(self) -> None:
        """Ask the service for the URLs again, before another try, since they may have expired."""
        job = self.job
        try:
            renewed = await self._tools.renew(job)
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
        return {each.url: given[each.url] for each in self._found if each.url in given}

    def _may_leave_out(self, found: Found) -> bool:
        """
        Return whether an output that cannot be read is one of the input: perhaps only the service can.

        The result has it within a copy of the input, or was asked for twice. It has others, too.
        """
        if (at := self._repeated.get(found.url)) is None or len(self._repeated) == len(self._found):
            return False
        is_copy = found.at.endswith(at) and found.at != f"result{at}"
        return is_copy or self._renewed_urls is not None

    def _refusal_error(self, found: Found, url: str, refusal: RefusedError) -> RunGenOutputError:
        """
        Return the error of an output that its host refuses.

        The output has expired only if a new URL is refused, and its time is over or the host says so.
        Otherwise, a proxy may have refused it, and the job that was paid for must not be given up. Nor must
        it for a URL of the input, which a new job would repeat.
        """
        expires_at, when = expiry_time(url, self.job.created_at), ""
        is_past = expires_at is not None and expires_at <= datetime.now(UTC)
        is_over = (is_past or refusal.is_expired) and found.url not in self._repeated
        if self._renewed_urls is None or not is_over:
            message = f"{refusal.message}; check that the worker may reach it"
            return RunGenOutputError(message, hint=_REFUSED_HINT)
        if expires_at is not None:
            when = f" {'on' if is_past else 'early, before'} {expires_at:%Y-%m-%d %H:%M UTC}"
        message = f"the outputs of the job expired{when} ({refusal.message})"
        error = RunGenOutputError(message, hint="The next attempt buys it again", retryable=False)
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


def _retry_order(failed: tuple[RunGenError, Found]) -> tuple[bool, float]:
    """Sort what no retry can help first, then by how long to wait."""
    error, _ = failed
    return error.retryable, -(error.retry_after or 0.0)
