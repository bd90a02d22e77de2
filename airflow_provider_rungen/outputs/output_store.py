"""Store the outputs of many jobs in a destination.

A limited number of jobs is stored at a time. What fails and may pass is tried again, all of it at once: there
is no other retry of storing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client import endpoints, polling, retry
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.poll_state import concerns_one_job
from airflow_provider_rungen.client.progress import PROGRESS_INTERVAL, pace
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import format_bytes, format_count, format_duration
from airflow_provider_rungen.client.transport import MAX_CONCURRENCY, gather_limited, watched
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.outputs.kept import kept_value
from airflow_provider_rungen.outputs.outage import OUTAGE_FAILURES, Outage
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.results.values import ResultReader
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.store.records import Record

if TYPE_CHECKING:
    from airflow_provider_rungen.outputs.archiver import JobArchiver

log = logging.getLogger(__name__)

# Bytes of a file at most.
MAX_OUTPUT_BYTES = 1 << 30
Check: TypeAlias = Callable[[Record], RunGenError | None]


@dataclass
class Figures:
    """
    How much was stored, for the log.

    :param jobs: how many jobs.
    :param files: how many files.
    :param total_bytes: the size of all files.
    """

    jobs: int = 0
    files: int = 0
    total_bytes: int = 0

    def add(self, record: Record) -> None:
        """Count a job with its files."""
        self.jobs += 1
        self.files += len(record.outputs)
        self.total_bytes += sum(each.size for each in record.outputs)

    def __str__(self) -> str:
        return f"{format_count(self.files, 'file')} ({format_bytes(self.total_bytes)})"


class OutputStore:
    """
    Stores the outputs of jobs for one attempt.

    :param run: the attempt.
    :param storage: the destination.
    :param reader: reads what is kept.
    :param on_stored: takes each purchase that was stored, and what the check returned.
    :param output: what every result has to be.
    :param check: returns why a stored job is rejected. It is called in a thread, for one job at a time.
    :param keeps_input: whether a record has the input of its job, as far as the service says it.
    """

    def __init__(
        self,
        run: Any,
        storage: Storage,
        reader: ResultReader,
        on_stored: Callable[[Record, RunGenError | None], Awaitable[None]],
        *,
        output: OutputType | None = None,
        check: Check | None = None,
        keeps_input: bool = False,
    ) -> None:
        self._run, self._hook, self._guard = run, run.hook, run.guard
        self._storage, self._reader, self._on_stored = storage, reader, on_stored
        self._output, self._check, self._keeps_input = output, check, keeps_input
        self._figures, self._seconds = Figures(), 0.0
        # of one call of `store`: what is final, and what failed in this round and may pass, by job
        self._errors: dict[str, RunGenError] = {}
        self._failed: dict[str, RunGenError] = {}
        self._outage = Outage()
        self._round_began_at = 0.0
        # the first that failed, to be gone on with
        self._archivers: dict[str, JobArchiver] = {}

    def store(self, app_id: str, records: Mapping[str, Record]) -> dict[str, RunGenError]:
        """
        Store the outputs of jobs. Return, by job id, the errors of those that could not be stored.

        :param records: the purchase of each job.
        :raises RunGenError: an error that concerns all jobs and is not retryable, or one of the check.
        """
        self._errors, self._outage = {}, Outage()
        begun_at = time.monotonic()
        # a kill is let through between two steps, so that it leaves no half file
        with self._guard.defer_signals():
            try:
                asyncio.run(self._store(app_id, records))
            finally:
                self._seconds += time.monotonic() - begun_at
        return self._errors

    async def _store(self, app_id: str, records: Mapping[str, Record]) -> None:
        from airflow_provider_rungen.client.download import Downloader  # it imports aiohttp
        from airflow_provider_rungen.outputs.archiver import Tools

        self._checking = asyncio.Lock()
        downloader = Downloader(self._hook.settings, max_bytes=MAX_OUTPUT_BYTES, at_once=MAX_CONCURRENCY)
        slots = asyncio.Semaphore(MAX_CONCURRENCY)
        self._tools = Tools(
            storage=self._storage,
            downloader=downloader,
            slots=slots,
            outage=self._outage,
            renew=self._renew,
            skip_error=self._skip_error,
            keeps_input=self._keeps_input,
        )
        try:
            await watched(self._store_all(app_id, records), self._watch(len(records)))
        finally:
            self._archivers.clear()
            await downloader.close()
            await self._hook.aclose()

    async def _store_all(self, app_id: str, records: Mapping[str, Record]) -> None:
        """
        Try to store jobs: each `ATTEMPTS` times, and for `OUTAGE_TIME` where most of many fail.

        They share the pauses, so that many take no longer than one.
        """
        # an attempt that an outage ends does not try the same jobs as the one before
        todo, rounds = random.sample([*records], len(records)), 0
        while todo:
            before, self._failed, self._round_began_at = self._figures.jobs, {}, time.monotonic()
            store = partial(self._store_one, app_id, records, is_first=rounds == 0)
            await gather_limited(store, todo, MAX_CONCURRENCY)
            stored, failed = self._figures.jobs - before, self._failed
            rounds = 1 if stored else rounds + 1
            is_over = rounds >= retry.ATTEMPTS and len(failed) < max(OUTAGE_FAILURES, stored)
            left = 0.0 if is_over else self._outage.time_left()
            todo = [each for each, error in failed.items() if (error.retry_after or 0.0) < left]
            self._errors |= {each: failed[each] for each in failed.keys() - todo}
            if todo:
                pause = min(max(retry.retry_delay(rounds - 1, failed[each]) for each in todo), left)
                line = "Storing %s once more in %s: %s"
                what = format_count(len(todo), "job")
                log.warning(line, what, format_duration(pause), failed[todo[0]].message)
                await asyncio.sleep(pause)

    def _watch(self, count: int) -> Callable[[], None]:
        """Return what raises if the task is killed, and logs how far the storing of so many jobs is."""
        begun_at = logged_at = time.monotonic()
        before = self._figures.jobs

        def look() -> None:
            nonlocal logged_at
            self._guard.check()
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at, done = now, self._figures.jobs - before + len(self._errors)
                rate = pace(done, count - done, now - begun_at)
                log.info("Stored so far: %s of %d of %d jobs%s", self._figures, done, count, rate)

        return look

    async def _store_one(
        self, app_id: str, records: Mapping[str, Record], job_id: str, *, is_first: bool
    ) -> None:
        from airflow_provider_rungen.outputs.archiver import storing_error

        if (skipped := self._skip_error()) is not None:
            self._failed[job_id] = storing_error(app_id, job_id, skipped)
            return
        archiver = self._archivers.get(job_id)
        execution_time: float | None = None
        try:
            if archiver is not None:
                await archiver.renew_urls()
            else:
                job = await self._fetch(app_id, job_id)
                execution_time = job.execution_time
                archiver = self._archiver_of(job, records[job_id], is_first=is_first)
            execution_time = archiver.job.execution_time
            stored = await archiver.run()
        except RunGenError as error:
            self._note_error(job_id, error, archiver, execution_time)
        else:
            self._archivers.pop(job_id, None)
            await self._note_stored(stored)

    async def _fetch(self, app_id: str, job_id: str) -> Job:
        are_known = self._run.wait.are_known
        job: Job = await self._hook.aperform(polling.get_job(app_id, job_id, are_known=are_known))
        return job

    async def _renew(self, job: Job) -> Job:
        renewed: Job = await self._hook.aperform(endpoints.get_job(job.app_id, job.id))
        return renewed

    def _archiver_of(self, job: Job, record: Record, *, is_first: bool) -> JobArchiver:
        """
        Return what stores a job.

        :raises RunGenError: it did not complete, or its result does not fit.
        """
        from airflow_provider_rungen.outputs.archiver import JobArchiver

        job.raise_for_status()
        if self._output is not None:
            with self._guard.allow_signals():  # a function of the user's may hang
                try:
                    self._output.read(job)
                except RunGenResultError as misfit:
                    misfit.returned = kept_value(job.result)
                    raise
        return JobArchiver(self._tools, record, job, is_first=is_first)

    def _note_error(
        self, job_id: str, failure: RunGenError, archiver: JobArchiver | None, execution_time: float | None
    ) -> None:
        """
        Note why a job was not stored.

        :raises RunGenError: it concerns all jobs.
        """
        error = copy(failure)  # its traceback refers to the result
        if is_of_job := isinstance(error, RunGenJobError):
            error.execution_time = execution_time
        elif retry.is_refusal(error) or not (error.retryable or concerns_one_job(error)):
            raise error
        # how a job ended, and a permanent error, say nothing of the next one
        if not error.retryable or (is_of_job and not isinstance(error, RunGenOutputError)):
            self._errors[job_id] = error
            return
        self._failed[job_id] = error
        if archiver is None:  # else it has noted each failure
            self._outage.note_failure(error)
        elif len(self._archivers) < OUTAGE_FAILURES:  # all of them may not fit into memory
            self._archivers[job_id] = archiver

    async def _note_stored(self, stored: Record) -> None:
        self._outage.note_job()
        self._figures.add(stored)
        with self._guard.allow_signals():
            stored = self._reader.noted(stored)
        rejection: RunGenError | None = None
        if self._check is not None:
            async with self._checking:
                rejection = await in_daemon_thread(self._check, stored)
        await self._on_stored(stored, rejection)

    def _skip_error(self) -> RunGenOutputError | None:
        return self._outage.skip_error(self._round_began_at)

    def log_total(self) -> None:
        """Log what was stored."""
        if jobs := self._figures.jobs:
            log.info(
                "Stored %s of %s in %s; %s",
                *(self._figures, format_count(jobs, "job"), redact(self._storage.uri_of("", ""))),
                format_duration(self._seconds),
            )
