"""Gather what the page of a task or a job shows: from Airflow, the store and the service, within seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.plugins import live, run_log
from airflow_provider_rungen.plugins.job_rows import UNKNOWN, JobRow, JobRows, rows_of_task, shown_text
from airflow_provider_rungen.plugins.pools import PoolName, TooSlowError, run_within
from airflow_provider_rungen.plugins.stored import StoredOutputs
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.runs.attempt_record import AttemptRecord

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
# Seconds until a page is sent, whatever does not answer.
PAGE_TIME = 4.0
_STORE_TIME = 2.5
_LEAST_TIME = 0.5
NOT_ASKED = (
    "RunGen is not asked, so that live figures are missing: the task does not name connection {conn_id} "
    "in its DAG, and you may not read it."
)
# What does not answer, and what a page lacks then.
_PARTS: dict[PoolName, tuple[str, str]] = {
    "store": ("The storage", "results"),
    "service": ("RunGen", "live figures"),
}
_LEFT_OUT = "The files of {jobs} are missing: their manifests are too large for this page."


def explain(pool: PoolName, error: Exception) -> str:
    """Return what a page says about an error of the storage or of the service."""
    name, missing = _PARTS[pool]
    if isinstance(error, TooSlowError):
        return f"{name} did not answer in time, so that {missing} are missing."
    if isinstance(error, RunGenError):
        return f"{missing.capitalize()} are missing: {error.message}."
    log.warning("%s could not be asked for a page (%s)", name, type(error).__name__)
    return f"{name} could not be asked ({type(error).__name__})."


@dataclass
class Gathering:
    """
    What one page has found so far, and what is missing.

    :param task: the task.
    :param may_ask: whether the service may be asked, with the connection of the task.
    :param began: when the page was asked for, by the monotonic clock.
    """

    task: TaskRecord
    may_ask: bool
    began: float = field(default_factory=time.monotonic)
    #: The record of the last attempt, once the run log was read.
    attempt: AttemptRecord | None = None
    notices: list[str] = field(init=False)
    _errors: dict[PoolName, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.notices = list(self.task.notices)

    @property
    def notice(self) -> str:
        return " ".join(dict.fromkeys(self.notices))

    def _left(self) -> float:
        return max(_LEAST_TIME, self.began + PAGE_TIME - time.monotonic())

    async def _ask(
        self, pool: PoolName, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return what a function returns, or ``None`` after an error, which the page explains."""
        try:
            return await run_within(seconds, pool, function, *args, **kwargs)
        except Exception as error:
            self._note(pool, error)
            return None

    def _note(self, pool: PoolName, error: Exception) -> None:
        self._errors[pool] = error
        self.notices.append(explain(pool, error))

    # --- the store ---

    @property
    def _store_time(self) -> float:
        return min(_STORE_TIME, self._left())

    async def rows(self, page: int) -> JobRows:
        """Return the rows of a page: those of the run log, or else those that the task has pushed."""
        logged = await self._logged(page)
        if logged is None:
            return await run_in_threadpool(rows_of_page, self.task, page)
        self.attempt = logged.attempt
        return await run_in_threadpool(logged.counted, self.task)

    async def _logged(self, page: int) -> run_log.LoggedRows | None:
        """Return what the run log says of a page, or ``None`` without one."""
        if not self.task.log:
            return None
        return await self._ask("store", self._store_time, run_log.read_page, self.task, page, _STORE_TIME)

    def _check_time(self) -> None:
        """Raise the error of a store that was too slow, so that nobody takes a job for missing."""
        if isinstance(error := self._errors.get("store"), TooSlowError):
            raise error

    async def has_job(self, job_id: str, page: int) -> bool:
        """
        Return whether a job is one of the task's.

        :param page: the page of the task that has it, unless the task has pushed it.
        :raises TooSlowError: the run log was not read in time.
        """
        if job_id in self.task.known_job_ids:
            return True
        logged = await self._logged(page)
        self._check_time()
        return logged is not None and any(row.job_id == job_id for row in logged.rows)

    async def row_of(self, job_id: str, page: int) -> JobRow | None:
        """
        Return the row of a job, or ``None`` if it is none of the task's.

        :param page: the page of the task that has it.
        :raises TooSlowError: the run log was not read in time.
        """
        rows = chain((await self.rows(page)).rows, rows_of_task(self.task))
        row = await run_in_threadpool(_find_row, rows, job_id)
        if row is not None:
            return row
        billing = () if self.attempt is None else self.attempt.still_billing
        if job_id in self.task.known_job_ids or job_id in billing:
            return JobRow(index=0, status=UNKNOWN, job_id=job_id)
        self._check_time()
        return None

    async def manifests(self, job_ids: Sequence[str]) -> dict[str, Manifest]:
        """Return what is stored of jobs."""
        task = self.task
        if not task.destination or not job_ids:
            return {}
        found = await self._ask("store", self._store_time, _read_manifests, task, list(job_ids)) or {}
        manifests = {job_id: manifest for job_id, manifest in found.items() if manifest is not None}
        if left_out := len(found) - len(manifests):
            self.notices.append(_LEFT_OUT.format(jobs=format_count(left_out, "job")))
        return manifests

    # --- the service ---

    async def jobs(self, job_ids: Sequence[str]) -> dict[str, Job | RunGenError]:
        """Ask the service for jobs."""
        task = self.task
        if not job_ids or not task.app_id or not self._can_ask():
            return {}
        seconds = self._left()
        found = await self._ask(
            "service", seconds, live.get_jobs, task.conn_id, task.app_id, job_ids, seconds
        )
        found = found or {}
        errors = [outcome for outcome in found.values() if isinstance(outcome, RunGenError)]
        if errors and len(errors) == len(found):
            self._note("service", errors[0])
        return found

    async def app(self, app_id: str) -> App | None:
        """Ask the service for an app."""
        if not app_id or not self._can_ask():
            return None
        seconds = self._left()
        return await self._ask("service", seconds, live.get_app, self.task.conn_id, app_id, seconds)

    def _can_ask(self) -> bool:
        if not self.task.conn_id or "service" in self._errors:
            return False
        if not self.may_ask:
            self.notices.append(NOT_ASKED.format(conn_id=shown_text(self.task.conn_id, 200)))
        return self.may_ask


def rows_of_page(task: TaskRecord, page: int) -> JobRows:
    """Return the jobs that a task has pushed, and those of a page of them. It may take long."""
    return JobRows.count(rows_of_task(task), page)


def _read_manifests(task: TaskRecord, job_ids: list[str]) -> dict[str, Manifest | None]:
    return StoredOutputs(task.destination, task.app_id).manifests(job_ids, _STORE_TIME)


def _find_row(rows: Iterable[JobRow], job_id: str) -> JobRow | None:
    return next((row for row in rows if row.job_id == job_id), None)
