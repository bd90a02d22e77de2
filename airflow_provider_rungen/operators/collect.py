"""The operator that collects what jobs made."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import COUNTER_THRESHOLD, job_of, strip_payloads
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.task import deadline_of, fail_without_retry
from airflow_provider_rungen.execution.tolerance import (
    checked_count,
    checked_max_failed,
    max_failures,
    told,
)
from airflow_provider_rungen.execution.waiting import (
    JobWaiter,
    failure_of,
    is_final,
    job_ids_of,
    names_of,
    read_event,
    refetch,
)
from airflow_provider_rungen.execution.xcom_values import find_key_problem, find_xcom_problem
from airflow_provider_rungen.hooks.connection import seconds
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.schemas import Schema, checked

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)


class RunGenCollectResultsOperator(JobWaiter):
    """
    Return the results of jobs, or store their outputs: one id gives one result, a list gives a list in order.

    Without ``destination``, the result itself is returned. That of an image model holds signed URLs, which
    whoever can read the XCom can open for seven days. A result that XCom cannot hold fails permanently.

    With ``destination``, every file that a result has the URL of is stored as
    ``{destination}/{job_id}/{n}-{name}``, and ``{destination}/{job_id}/manifest.json`` tells of the job: its
    input, times, result (with what was stored in place of the URLs), and of each file its size, SHA-256 and
    content type. Returned is a small manifest: ``{"job_id", "manifest": uri, "outputs": [{"uri", "size",
    "sha256", "content_type"}]}``. What is there already, as its manifest tells it, is not fetched again.

    The indexes of jobs that failed are pushed under the XCom key ``failed``; of those that may
    (``max_failed``), ``None`` is returned.

    :param job_id: one id, a list, or the ``.output`` of a task (templated). The ``None`` of an input that a
        batch could not submit counts as failed.
    :param destination: the folder to store outputs in: a URI such as ``s3://conn_id@bucket/prefix``, an
        absolute path, or an ``ObjectStoragePath`` (templated).
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until the jobs are over; without it a job that is not over is an error.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to look for the end on the worker first; a deferral takes longer than that.
    :param poll_interval: seconds between two looks at a job.
    :param timeout: seconds to wait at most.
    :param cancel_on_kill: cancel the jobs when the task is killed. Off by default, since a task that runs
        again would find them canceled.
    :param result_schema: the JSON Schema that every result has to fit: a dict, the path or URI of a file, or
        the name of a schema that comes with the package, such as ``flux-schnell``.
    :param max_failed: how many jobs may fail without failing the task: a number, or a share below 1.
    :param max_concurrency: how many files are downloaded at a time at most.
    :param max_output_bytes: bytes of a file at most.
    :param max_outputs: files of a job at most.
    :param max_total_bytes: bytes of all files of a job at most; no limit when left out.
    :param max_xcom_bytes: bytes at most that are returned without ``destination``.
    """

    template_fields: Sequence[str] = ("app_id", "destination", "job_id", "rungen_conn_id")

    _schema: Schema | None = None
    _storage: Storage | None = None
    # bytes of the results that are held
    _held = 0
    # by id, errors of the jobs whose results XCom cannot hold
    _unfit: dict[str, RunGenOutputError]
    #: Whether each key of a result becomes an XCom of its own, too.
    checks_keys = False
    # how many failures the log has told of already
    _told = 0

    def __init__(
        self,
        *,
        job_id: Any,
        destination: Any = None,
        wait_for_completion: bool = True,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta = 86400,
        cancel_on_kill: bool = False,
        result_schema: Any = None,
        max_failed: float = 0,
        max_concurrency: int = 8,
        max_output_bytes: int = 1 << 30,
        max_outputs: int = 10_000,
        max_total_bytes: int | None = None,
        max_xcom_bytes: int = 1_000_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(cancel_on_kill=cancel_on_kill, **kwargs)
        self.job_id = job_id
        self.destination = destination
        self.wait_for_completion = wait_for_completion
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")
        self.result_schema = checked(result_schema, "result_schema")
        self.max_failed = checked_max_failed(max_failed)
        self.max_concurrency = checked_count(max_concurrency, "max_concurrency")
        self.max_output_bytes = checked_count(max_output_bytes, "max_output_bytes")
        self.max_outputs = checked_count(max_outputs, "max_outputs")
        self.max_total_bytes = max_total_bytes
        if max_total_bytes is not None:
            checked_count(max_total_bytes, "max_total_bytes")
        self.max_xcom_bytes = checked_count(max_xcom_bytes, "max_xcom_bytes")

    def execute(self, context: Context) -> Any:
        """
        Collect the results, waiting for them first unless told not to.

        :return: the result or small manifest, or the list of them.
        """
        with self._failing(), self._working(context) as hook:
            app_id = hook.resolve_app_id(self.app_id)
            ids = self._ids()
            self._link_to(context, hook, app_id, _distinct(ids))
            self.prepare()
            jobs: list[Job] = []
            if self.wait_for_completion:
                jobs = self._wait(
                    hook,
                    app_id,
                    _distinct(ids),
                    poll_interval=self.poll_interval,
                    deadline=deadline_of(self, time.time() + self.timeout),
                    take=self._take,
                )
            return self._finish(context, hook, app_id, ids, jobs)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """
        Collect the results after the wait in the triggerer.

        :return: the result or small manifest, or the list of them.
        """
        with self._failing(), self._working(context) as hook:
            failed = read_event(event)
            self.prepare()
            app_id = event.get("app_id") or hook.resolve_app_id(self.app_id)
            return self._finish(context, hook, app_id, self._ids(), failed)

    def _ids(self) -> list[str | None]:
        """
        Give the ids, with ``None`` for what has no job.

        :raises RunGenInputError: something in it is no id, or more have no job than may fail.
        """
        ids = job_ids_of(self.job_id, or_none=self.max_failed > 0)
        absent, allowed = ids.count(None), max_failures(self.max_failed, len(ids))
        if absent > allowed:
            raise RunGenInputError(f"job_id: {absent} of {len(ids)} have no job, {allowed} may (max_failed)")
        return ids

    def prepare(self) -> None:
        """Find out before the wait what would keep results from being collected."""
        self._held, self._unfit = 0, {}
        self._schema = Schema.of(self.result_schema, "result_schema")
        self._storage = None if self.destination is None else Storage(self.destination)

    def collect(self, context: Context, hook: RunGenHook, app_id: str) -> Any:
        """
        Collect the results of jobs that are over, once it is prepared.

        :return: the result or small manifest, or the list of them.
        """
        return self._finish(context, hook, app_id, self._ids(), [])

    def _take(self, job: Job) -> Job:
        """Hold the result only if it is going to be returned: there may be many."""
        if self.destination is not None:
            return strip_payloads(job)
        if unfit := self._misfit_of(job):
            self._unfit[job.id] = unfit
            return strip_payloads(job)
        self._hold(job.result)
        return replace(job, input=None)

    def _misfit_of(self, job: Job) -> RunGenOutputError | None:
        """Return the error of a job whose result XCom cannot hold."""
        problem = find_xcom_problem(job.result) or (self.checks_keys and find_key_problem(job.result))
        if not problem:
            return None
        return RunGenOutputError(
            f"RunGen job {job.id} of app {job.app_id} completed, but XCom cannot hold its result: {problem}",
            app_id=job.app_id,
            job_id=job.id,
            hint="Set destination: the result is stored as a file then, and a small manifest is returned",
            retryable=False,
        )

    def _hold(self, result: Any) -> None:
        self._held += len(json.dumps(result))
        self._check_size(self._held)

    def _check_size(self, size: int) -> None:
        if size > self.max_xcom_bytes:
            raise RunGenOutputError(
                f"The results have over {self.max_xcom_bytes} bytes (max_xcom_bytes), too much for XCom",
                hint="Set destination: the results are stored there, and small manifests are returned",
                retryable=False,
            )

    @staticmethod
    def _failing() -> AbstractContextManager[None]:
        # another try would find the same job as it is
        return fail_without_retry(RunGenJobFailedError, RunGenJobCanceledError)

    def _finish(
        self, context: Context, hook: RunGenHook, app_id: str, ids: list[str | None], jobs: Iterable[Job]
    ) -> Any:
        """
        Collect what jobs made, and judge what failed.

        :param jobs: those that are known to be over; what is not among them is asked for.
        """
        outcomes: dict[str, Any] = {}
        for job in jobs:
            if self._storage is None or job.status is not JobStatus.COMPLETED:
                outcomes[job.id] = self._unfit.get(job.id) or self._result_of(job)
        rest = [job_id for job_id in _distinct(ids) if job_id not in outcomes]
        if rest and self._storage is None:
            outcomes |= self._look_at(hook, app_id, rest)
        elif rest:
            outcomes |= self._land(hook, app_id, rest)
        failed_count = self._enforce_max_failed(context, ids, outcomes)
        collected = {
            job_id: value for job_id, value in outcomes.items() if not isinstance(value, RunGenError)
        }
        values = [None if job_id is None else collected.get(job_id) for job_id in ids]
        value = values[0] if isinstance(self.job_id, str) else values
        job_ids = [job_id for job_id in _distinct(ids) if job_id in collected]
        done = TaskOutcome(app_id, job_ids, failed_count)
        if self._storage is None:
            self._check_size(len(json.dumps(value)))
        else:
            manifests = [collected[job_id] for job_id in job_ids]
            done = replace(done, destination=redact(str(self.destination)), manifests=manifests)
        self._tell(context, done)
        log.info("Collected the results of %s", names_of(job_ids))
        return value

    def _result_of(self, job: Job) -> Any:
        """Give the result of a job, or the error in its place."""
        try:
            job.raise_for_status()
            if self._schema is not None:
                self._schema.check_result(job)
        except RunGenJobError as error:
            return error
        return self._misfit_of(job) or job.result

    def _look_at(self, hook: RunGenHook, app_id: str, job_ids: list[str]) -> dict[str, Any]:
        outcomes: dict[str, Any] = {}

        def take(job_id: str, look: Job | RunGenError) -> None:
            if isinstance(look, RunGenError) and len(job_ids) == 1:
                raise look
            outcomes[job_id] = outcome = self._result_of(job_of(look, app_id, job_id))
            if not isinstance(outcome, RunGenError):
                self._hold(outcome)

        perform = hook.perform_concurrently if len(job_ids) > COUNTER_THRESHOLD else hook.perform
        perform(refetch(app_id, job_ids, take))
        return outcomes

    def _land(self, hook: RunGenHook, app_id: str, job_ids: list[str]) -> dict[str, Any]:
        from airflow_provider_rungen.client.download import Downloader
        from airflow_provider_rungen.execution.archive.archiver import OutputArchiver

        storage, at_once = self._storage, self.max_concurrency
        assert storage is not None  # noqa: S101 - for the type checker; there is a destination

        async def land() -> dict[str, Any]:
            downloader = Downloader(hook.settings, max_bytes=self.max_output_bytes, at_once=at_once)
            try:
                landing = OutputArchiver(
                    hook.aperform,
                    app_id,
                    storage,
                    downloader,
                    max_concurrency=at_once,
                    schema=self._schema,
                    max_outputs=self.max_outputs,
                    max_total_bytes=self.max_total_bytes,
                )
                return await landing.run(job_ids, self._check_killed)
            finally:
                await downloader.close()
                await hook.aclose()

        # a kill is let through between two steps, so that it leaves no half file
        with self.defer_signals(), storage:
            return asyncio.run(land())

    def _enforce_max_failed(
        self, context: Context, ids: Sequence[str | None], outcomes: Mapping[str, Any]
    ) -> int:
        """Fail when too many failed; else give their number."""
        errors = {job_id: error for job_id, error in outcomes.items() if isinstance(error, RunGenError)}
        reasons = {
            index: "it has no job" if job_id is None else str(errors[job_id])
            for index, job_id in enumerate(ids)
            if job_id is None or job_id in errors
        }
        context["ti"].xcom_push(key="failed", value=list(reasons))
        if not reasons:
            return 0
        allowed = max_failures(self.max_failed, len(ids))
        is_running = any(type(error) is RunGenJobError for error in errors.values())
        if len(reasons) <= allowed and not is_running:
            if len(reasons) > self._told:
                log.warning(
                    "%d of %d jobs failed, as max_failed allows: %s", len(reasons), len(ids), told(reasons)
                )
            return len(reasons)
        finals = sum(job_id is None or is_final(errors[job_id]) for job_id in map(ids.__getitem__, reasons))
        told_of = [error for error in errors.values() if finals > allowed or not is_final(error)]
        limit = f" ({allowed} of {len(ids)} may fail)" if self.max_failed else ""
        raise failure_of(told_of, len(told_of), f"were not collected{limit}")


def _distinct(ids: Sequence[str | None]) -> list[str]:
    return [job_id for job_id in dict.fromkeys(ids) if job_id is not None]
