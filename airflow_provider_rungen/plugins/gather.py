"""Gather what the page of a task or a job shows: from Airflow, the store and the service, within seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.pages.models import JobView
from airflow_provider_rungen.plugins import live, run_log
from airflow_provider_rungen.plugins.rows import UNKNOWN, JobRows, pushed_rows, shown_text
from airflow_provider_rungen.plugins.stored import StoredOutputs
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.threads import Pool, TooSlowError, run_within

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
# Seconds until a page is sent, whatever does not answer.
PAGE_TIME = 4.0
STORE_TIME = 2.5
_LEAST_TIME = 0.5
NOT_ASKED = (
    "RunGen is not asked, so that live figures are missing: the task does not name connection {conn_id} "
    "in its DAG, and you may not read it."
)
# What does not answer, and what a page lacks then.
_PARTS: dict[Pool, tuple[str, str]] = {
    "store": ("The storage", "results"),
    "service": ("RunGen", "live figures"),
}


def explain(pool: Pool, error: Exception) -> str:
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
    notices: list[str] = field(init=False)
    _errors: dict[Pool, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.notices = list(self.task.notices)

    @property
    def notice(self) -> str:
        return " ".join(dict.fromkeys(self.notices))

    async def _ask(
        self, pool: Pool, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return what a function returns, or ``None`` after an error, which the page explains."""
        try:
            return await run_within(seconds, pool, function, *args, **kwargs)
        except Exception as error:
            self._note(pool, error)
            return None

    def _note(self, pool: Pool, error: Exception) -> None:
        self._errors[pool] = error
        self.notices.append(explain(pool, error))

    def _seconds_left(self) -> float:
        return max(_LEAST_TIME, self.began + PAGE_TIME - time.monotonic())

    # --- the store ---

    async def rows(self, page: int) -> JobRows:
        """Return the rows of a page: those of the run log, or else those that the task has pushed."""
        rows = None
        if self.task.log:
            seconds = min(STORE_TIME, self._seconds_left())
            rows = await self._ask("store", seconds, run_log.read_page, self.task, page, seconds)
        return rows if rows is not None else await run_in_threadpool(pushed_rows, self.task, page)

    async def row_of(self, job_id: str, page: int) -> JobView | None:
        """
        Return the row of a job, or ``None`` if it is none of the task's.

        :param page: the page of the task that has it.
        :raises TooSlowError: the run log was not read in time, so that the job may be one of the task's.
        """
        rows = await self.rows(page)
        for row in (*rows.rows, *rows.failed):
            if row.job_id == job_id:
                return row
        billing = () if rows.attempt is None else rows.attempt.still_billing
        if self.task.has_pushed(job_id) or job_id in billing:
            return JobView(index=0, status=UNKNOWN, job_id=job_id)
        if isinstance(error := self._errors.get("store"), TooSlowError):
            raise error
        return None

    async def manifests(self, job_ids: Sequence[str]) -> dict[str, Manifest]:
        """Return what is stored of jobs."""
        task = self.task
        if not task.page.destination or not job_ids:
            return {}
        seconds = min(STORE_TIME, self._seconds_left())

        def read() -> dict[str, Manifest | None]:
            return StoredOutputs(task.page.destination, task.page.app, seconds).manifests(job_ids)

        found = await self._ask("store", seconds, read) or {}
        manifests = {job_id: manifest for job_id, manifest in found.items() if manifest is not None}
        if left_out := len(found) - len(manifests):
            jobs = format_count(left_out, "job")
            self.notices.append(
                f"The files of {jobs} are missing: their manifests are too large for this page."
            )
        return manifests

    # --- the service ---

    async def jobs(self, job_ids: Sequence[str]) -> dict[str, Job | RunGenError]:
        """Ask the service for jobs."""
        task = self.task
        if not job_ids or not task.page.app or not task.page.connection:
            return {}
        if not self.may_ask:
            self.notices.append(NOT_ASKED.format(conn_id=shown_text(task.page.connection, 200)))
            return {}
        seconds = self._seconds_left()
        found = await self._ask(
            "service", seconds, live.get_jobs, task.page.connection, task.page.app, job_ids, seconds
        )
        found = found or {}
        errors = [outcome for outcome in found.values() if isinstance(outcome, RunGenError)]
        if errors and len(errors) == len(found):
            self._note("service", errors[0])
        return found
