"""Find and store the outputs of jobs in the destination of one attempt.

A limited number of jobs is stored at a time. What fails and may pass is tried again, all of it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client import polling, retry
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.client.poll_state import concerns_one_job
from airflow_provider_rungen.client.progress import PROGRESS_INTERVAL, pace
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import format_bytes, format_count, format_duration
from airflow_provider_rungen.client.transport import MAX_CONCURRENCY, gather_limited, watched
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, read_stored_jobs
from airflow_provider_rungen.schemas import OutputType

if TYPE_CHECKING:
    from airflow_provider_rungen.client.download import Downloader
    from airflow_provider_rungen.execution.archive.job_archiver import JobArchiver
    from airflow_provider_rungen.execution.task.options import CollectOptions

log = logging.getLogger(__name__)

# Bytes of a file at most.
MAX_OUTPUT_BYTES = 1 << 30
Check: TypeAlias = Callable[[StoredJob], RunGenError | None]
# So many failures may be an outage, and fewer are single broken files.
OUTAGE_FAILURES = 16
# Seconds for which an outage is outlasted.
OUTAGE_TIME = retry.RETRY_BUDGET


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


class OutputStore:
    """
    Where an attempt stores the outputs of jobs.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param output: what every result has to be.
    :param on_stored: takes each job that was stored, its result as it is used, and what the check returned.
    :param check: returns why a stored job is rejected. It is called in a thread, for one job at a time.
    :raises RunGenInputError: there can be no such place.
    """

    #: What downloads outputs, while they are stored.
    downloader: Downloader
    #: One for each download in progress.
    slots: asyncio.Semaphore

    def __init__(
        self,
        run: Any,
        options: CollectOptions,
        output: OutputType | None,
        on_stored: Callable[[StoredJob, RunGenError | None], object],
        check: Check | None,
    ) -> None:
        self.hook = run.hook
        self.storage = Storage(options.destination)
        self.figures = Figures()
        self._guard, self._wait = run.guard, run.wait
        self._options = options
        self._output, self._on_stored, self._check = output, on_stored, check
        #: The digest of what every result is.
        self.fits = "" if output is None else output.digest
        self._is_prepared = False
        # what is final, and what failed when all were last tried and may pass, by job
        self._errors: dict[str, RunGenError] = {}
        self._failed: dict[str, RunGenError] = {}
        # the first that failed, to be gone on with
        self._archivers: dict[str, JobArchiver] = {}
        # when something failed first since a job was stored, and the outages since a file was
        self._failing_since: float | None = None
        self._outages = 0
        self._last_outage: RunGenError | None = None
        self._began_at = self._seconds = 0.0

    def check(self) -> None:
        """Find out whether outputs can be stored, as `prepare` does, without creating the destination."""
        self._is_prepared = self._is_prepared or self.storage.check()

    def prepare(self, *, create: bool = True) -> None:
        """
        Find out whether outputs can be stored, once.

        :param create: see `Storage.prepare`.
        :raises RunGenInputError: they cannot be stored now.
        """
        if not self._is_prepared:
            self.storage.prepare(create=create)
            self._is_prepared = True

    def find(self, app_id: str, job_ids: Sequence[str], on_found: Callable[[StoredJob], object]) -> None:
        """
        Find the jobs that are stored as a whole, without asking the service.

        :param on_found: takes each, as it is found, with its result as it is used.
        :raises RunGenOutputError: the destination cannot be read now.
        """

        def note(stored: StoredJob) -> None:
            if (fitting := self.read(stored)) is not None:
                on_found(fitting)

        found = read_stored_jobs(self.storage, dict.fromkeys(job_ids, app_id), note, are_remembered=False)
        if len(found) < len(job_ids):
            # a folder that is not there has none of them, but it may be a mount that is missing
            try:
                self.prepare(create=False)
            except RunGenInputError as error:
                outage = RunGenOutputError(error.message, hint=error.hint, retryable=error.retryable)
                outage.is_outage = True
                raise outage from None

    def read(self, stored: StoredJob) -> StoredJob | None:
        """
        Return a stored job with its result as it is used, or ``None`` if that does not fit.

        Its type is about what the service returns, so a URL stands in for each stored URI. A result that
        does not fit like this may have fitted as it was, which the manifest says, otherwise the service.
        """
        if self._output is None:
            return stored
        urls = {
            output["uri"]: f"https://stored.invalid/{output['uri'].rpartition('/')[2]}"
            for output in stored.outputs
        }
        job = Job(stored.job_id, stored.app_id, JobStatus.COMPLETED, redact_value(stored.result, urls))
        try:
            job = self._output.read(job)
        except RunGenJobError:
            if stored.fits != self.fits:
                return None
            # a text may be no JSON any more without its signatures
            with contextlib.suppress(RunGenJobError):
                job = self._output.read(job, is_known=True)
        return replace(stored, result=redact_value(job.result, {url: uri for uri, url in urls.items()}))

    # --- storing ---

    def store(self, app_id: str, job_ids: Sequence[str]) -> dict[str, RunGenError]:
        """
        Store the outputs of jobs. Return, by job id, the errors of those that could not be stored.

        :raises RunGenError: an error that concerns all jobs and is not retryable, or one of the check.
        """
        self._errors, self._failing_since, self._outages = {}, None, 0
        begun_at = time.monotonic()
        # a kill is let through between two steps, so that it leaves no half file
        with self._guard.defer_signals():
            try:
                asyncio.run(self._store(app_id, job_ids))
            finally:
                self._seconds += time.monotonic() - begun_at
        return self._errors

    async def _store(self, app_id: str, job_ids: Sequence[str]) -> None:
        # it imports aiohttp
        from airflow_provider_rungen.client.download import Downloader

        self.slots = asyncio.Semaphore(MAX_CONCURRENCY)
        self._checking = asyncio.Lock()
        self.downloader = Downloader(self.hook.settings, max_bytes=MAX_OUTPUT_BYTES, at_once=MAX_CONCURRENCY)

        try:
            await watched(self._store_all(app_id, job_ids), self._watch(len(job_ids)))
        finally:
            self._archivers.clear()
            await self.downloader.close()
            await self.hook.aclose()

    async def _store_all(self, app_id: str, job_ids: Sequence[str]) -> None:
        """
        Try to store jobs: each `ATTEMPTS` times, and for `OUTAGE_TIME` where most of many fail.

        They share the pauses, so that many take no longer than one.
        """
        # an attempt that an outage ends does not try the same jobs as the one before
        todo, failures = random.sample(job_ids, len(job_ids)), 0
        while todo:
            before, self._failed, self._began_at = self.figures.jobs, {}, time.monotonic()
            store = partial(self._store_one, app_id, is_first=failures == 0)
            await gather_limited(store, todo, MAX_CONCURRENCY)
            stored, now = self.figures.jobs - before, time.monotonic()
            failures, failed = 1 if stored else failures + 1, self._failed
            is_over = failures >= retry.ATTEMPTS and len(failed) < max(self._most_failures, stored)
            left = 0.0 if is_over else (self._failing_since or now) + OUTAGE_TIME - now
            todo = [each for each, error in failed.items() if (error.retry_after or 0.0) < left]
            self._errors |= {each: failed[each] for each in failed.keys() - todo}
            if todo:
                pause = max(retry.retry_delay(failures - 1, failed[each]) for each in todo)
                pause, what = min(pause, left), format_count(len(todo), "job")
                line = "Storing %s once more in %s: %s"
                log.warning(line, what, format_duration(pause), failed[todo[0]].message)
                await asyncio.sleep(pause)

    def _watch(self, count: int) -> Callable[[], None]:
        """Return what raises if the task is killed, and logs how far the storing of so many jobs is."""
        begun_at = logged_at = time.monotonic()
        before = self.figures.jobs

        def look() -> None:
            nonlocal logged_at
            self._guard.check()
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at, done = now, self.figures.jobs - before + len(self._errors)
                rate = pace(done, count - done, now - begun_at)
                log.info("Stored so far: %s of %d of %d jobs%s", self.figures, done, count, rate)

        return look

    async def _store_one(self, app_id: str, job_id: str, *, is_first: bool) -> None:
        from airflow_provider_rungen.execution.archive.job_archiver import JobArchiver, storing_error

        execution_time: float | None = None
        if self.is_out():
            self._failed[job_id] = storing_error(app_id, job_id, self.skip_error())
            return
        try:
            if (archiver := self._archivers.get(job_id)) is not None:
                await archiver.renew_urls()
            else:
                are_known = self._wait.are_known
                job = await self.hook.aperform(polling.get_job(app_id, job_id, are_known=are_known))
                execution_time = job.execution_time
                job.raise_for_status()
                if self._output is not None:
                    with self._guard.allow_signals():  # a function of the user's may hang
                        self._output.read(job)
                archiver = JobArchiver(self, job, is_first=is_first)
            execution_time = archiver.job.execution_time
            stored = await archiver.run()
        except RunGenError as failure:
            error = copy(failure)  # its traceback refers to the result
            if is_of_job := isinstance(error, RunGenJobError):
                error.execution_time = execution_time
            elif retry.is_refusal(error) or not (error.retryable or concerns_one_job(error)):
                raise
            # how a job ended, and a permanent error, say nothing of the next one
            if not error.retryable or (is_of_job and not isinstance(error, RunGenOutputError)):
                self._errors[job_id] = error
                return
            self._failed[job_id] = error
            if archiver is None:  # else it has noted each failure
                self.note_failure(error)
            # all of them may not fit into memory
            if archiver is not None and len(self._archivers) < self._most_failures:
                self._archivers[job_id] = archiver
        else:
            self._failing_since, self._outages = None, 0
            self._archivers.pop(job_id, None)
            self.figures.jobs += 1
            with self._guard.allow_signals():
                stored, rejection = self.read(stored) or stored, None
            if self._check is not None:
                async with self._checking:
                    rejection = await in_daemon_thread(self._check, stored)
            self._on_stored(stored, rejection)

    @property
    def _most_failures(self) -> int:
        return max(OUTAGE_FAILURES, 2 * MAX_CONCURRENCY)

    def note_failure(self, error: RunGenError) -> None:
        """Note that a file could not be stored, or a job for another reason."""
        if error.retryable:
            self._failing_since = self._failing_since or time.monotonic()
        if retry.is_outage(error):
            self._outages, self._last_outage = self._outages + 1, error

    def add_file(self, entry: Mapping[str, Any]) -> None:
        """Count a file that was stored."""
        self.figures.add([entry])
        self._outages = 0

    def is_out(self) -> bool:
        """Return whether there is an outage that has lasted too long to try everything."""
        if self._outages < self._most_failures or self._failing_since is None:
            return False
        return time.monotonic() > max(self._failing_since, self._began_at) + OUTAGE_TIME

    def skip_error(self) -> RunGenOutputError:
        """Return the error of what is not tried, for there is such an outage."""
        last = self._last_outage or RunGenOutputError()
        message = f"skipped, for others could not be stored; the last: {last.message}"
        error = RunGenOutputError(message, hint=last.hint)
        error.is_outage = True
        return error

    def log_total(self) -> None:
        """Log what was stored."""
        if jobs := self.figures.jobs:
            log.info(
                "Stored %s of %s in %s; %s",
                *(self.figures, format_count(jobs, "job"), redact(str(self._options.destination))),
                format_duration(self._seconds),
            )
