"""Collects the results of jobs that are over: returns them, or stores their outputs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of, strip_payloads
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.job_ids import format_jobs
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.outcomes import (
    combined_error,
    format_reasons,
    is_permanent,
    max_failures,
)
from airflow_provider_rungen.execution.xcom_values import find_key_problem, find_xcom_problem
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.options import CollectOptions
    from airflow_provider_rungen.execution.waiting import WaitingRun

log = logging.getLogger(__name__)


class Collector:
    """
    Collects results for one attempt. What would keep it from doing so is found out here, before the wait.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :raises RunGenInputError: the schema or the destination cannot be used.
    """

    def __init__(self, run: WaitingRun[Any], options: CollectOptions, *, pushes_keys: bool = False) -> None:
        self._run = run
        self._options = options
        self._pushes_keys = pushes_keys
        self._schema = Schema.of(options.result_schema, "result_schema")
        self._storage = None if options.destination is None else Storage(options.destination)
        # bytes of the results that are held
        self._held = 0
        # by id, errors of the jobs whose results XCom cannot hold
        self._misfits: dict[str, RunGenOutputError] = {}

    def hold(self, job: Job) -> Job:
        """
        Keep of a job that is over what `collect` returns: there may be many.

        :raises RunGenOutputError: the results are too large for XCom.
        """
        if self._storage is not None:
            return strip_payloads(job)
        if misfit := self._misfit_of(job):
            self._misfits[job.id] = misfit
            return strip_payloads(job)
        self._count_held(job.result)
        return replace(job, input=None)

    def collect(
        self,
        app_id: str,
        ids: Sequence[str | None],
        jobs: Iterable[Job] = (),
        *,
        max_failed: float,
        single: bool,
        logged_failures: int = 0,
    ) -> Any:
        """
        Collect what jobs made, and fail when too many failed.

        :param app_id: their app.
        :param ids: the jobs, with ``None`` for an input without a job.
        :param jobs: those that are known to be over. The others are fetched.
        :param max_failed: how many may fail: a number, or a share below 1.
        :param single: whether to return the value of the only job, and not a list.
        :param logged_failures: how many failures the log names already.
        :return: the result or small manifest of each job, ``None`` for those that failed.
        """
        outcomes: dict[str, Any] = {}
        for job in jobs:
            if self._storage is None or job.status is not JobStatus.COMPLETED:
                outcomes[job.id] = self._misfits.get(job.id) or self._result_of(job)
        job_ids = [job_id for job_id in dict.fromkeys(ids) if job_id is not None]
        if rest := [job_id for job_id in job_ids if job_id not in outcomes]:
            outcomes |= self._fetch(app_id, rest) if self._storage is None else self._store(app_id, rest)
        failed_count = self._enforce_max_failed(ids, outcomes, max_failed, logged_failures)
        collected = {
            job_id: value for job_id, value in outcomes.items() if not isinstance(value, RunGenError)
        }
        values = [None if job_id is None else collected.get(job_id) for job_id in ids]
        value = values[0] if single else values
        done = [job_id for job_id in job_ids if job_id in collected]
        outcome = TaskOutcome(app_id, done, failed_count)
        if self._storage is None:
            self._check_size(len(json.dumps(value)))
        else:
            destination, manifests = (
                redact(str(self._options.destination)),
                [collected[each] for each in done],
            )
            outcome = replace(outcome, destination=destination, manifests=manifests)
        self._run.record_outcome(outcome)
        log.info("Collected the results of %s", format_jobs(done))
        return value

    def _misfit_of(self, job: Job) -> RunGenOutputError | None:
        """Return the error of a job whose result XCom cannot hold."""
        problem = find_xcom_problem(job.result) or (self._pushes_keys and find_key_problem(job.result))
        if not problem:
            return None
        return RunGenOutputError(
            f"Job {job.id} of app {job.app_id} completed, but XCom cannot hold its result: {problem}",
            app_id=job.app_id,
            job_id=job.id,
            hint="Set destination: the result is stored as a file then, and a small manifest is returned",
            retryable=False,
        )

    def _count_held(self, result: Any) -> None:
        self._held += len(json.dumps(result))
        self._check_size(self._held)

    def _check_size(self, size: int) -> None:
        limit = self._options.max_xcom_bytes
        if size > limit:
            raise RunGenOutputError(
                f"The results have over {limit} bytes (max_xcom_bytes), too much for XCom",
                hint="Set destination: the results are stored there, and small manifests are returned",
                retryable=False,
            )

    def _result_of(self, job: Job) -> Any:
        """Return the result of a job, or the error in its place."""
        try:
            job.raise_for_status()
            if self._schema is not None:
                self._schema.check_result(job)
        except RunGenJobError as error:
            return error
        return self._misfit_of(job) or job.result

    def _fetch(self, app_id: str, job_ids: list[str]) -> dict[str, Any]:
        outcomes: dict[str, Any] = {}

        def note(job_id: str, found: Job | RunGenError) -> None:
            if isinstance(found, RunGenError) and len(job_ids) == 1:
                raise found
            outcomes[job_id] = outcome = self._result_of(job_of(found, app_id, job_id))
            if not isinstance(outcome, RunGenError):
                self._count_held(outcome)

        self._run.refetch(app_id, job_ids, note)
        return outcomes

    def _store(self, app_id: str, job_ids: list[str]) -> dict[str, Any]:
        from airflow_provider_rungen.client.download import Downloader
        from airflow_provider_rungen.execution.archive.archiver import OutputArchiver

        storage, hook, options, guard = self._storage, self._run.hook, self._options, self._run.guard
        assert storage is not None  # noqa: S101 - for the type checker; there is a destination

        async def store() -> dict[str, Any]:
            downloader = Downloader(
                hook.settings, max_bytes=options.max_output_bytes, at_once=options.max_concurrency
            )
            try:
                archiver = OutputArchiver(
                    hook.aperform,
                    app_id,
                    storage,
                    downloader,
                    max_concurrency=options.max_concurrency,
                    schema=self._schema,
                    max_outputs=options.max_outputs,
                    max_total_bytes=options.max_total_bytes,
                )
                return await archiver.run(job_ids, guard.check)
            finally:
                await downloader.close()
                await hook.aclose()

        # a kill is let through between two steps, so that it leaves no half file
        with guard.defer_signals(), storage:
            return asyncio.run(store())

    def _enforce_max_failed(
        self,
        ids: Sequence[str | None],
        outcomes: Mapping[str, Any],
        max_failed: float,
        logged_failures: int,
    ) -> int:
        """Push which jobs failed, and return how many. Fail when they are too many."""
        errors = {job_id: error for job_id, error in outcomes.items() if isinstance(error, RunGenError)}
        reasons = {
            index: "it has no job" if job_id is None else errors[job_id].message
            for index, job_id in enumerate(ids)
            if job_id is None or job_id in errors
        }
        self._run.ti.xcom_push(key="failed", value=list(reasons))
        if not reasons:
            return 0
        allowed = max_failures(max_failed, len(ids))
        is_running = any(type(error) is RunGenJobError for error in errors.values())
        if len(reasons) <= allowed and not is_running:
            if len(reasons) > logged_failures:
                log.warning(
                    "Failed: %d of %d jobs, as max_failed allows: %s",
                    *(len(reasons), len(ids), format_reasons(reasons)),
                )
            return len(reasons)
        permanent = sum(ids[index] is None or is_permanent(errors[ids[index] or ""]) for index in reasons)
        named = [error for error in errors.values() if permanent > allowed or not is_permanent(error)]
        limit = f" ({allowed} of {len(ids)} may fail)" if max_failed else ""
        raise combined_error(named, len(named), f"were not collected{limit}")
