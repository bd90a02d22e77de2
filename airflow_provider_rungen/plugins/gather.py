"""Gather what the page of a task or a job shows: from Airflow, the store and the service, within seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.plugins import live
from airflow_provider_rungen.plugins.job_rows import (
    UNKNOWN,
    JobRow,
    JobRows,
    rows_of_table,
    rows_of_task,
    shown_text,
)
from airflow_provider_rungen.plugins.pools import PoolName, TooSlowError, run_within
from airflow_provider_rungen.plugins.stored import StoredOutputs, read_table
from airflow_provider_rungen.plugins.table_jobs import job_ids_of_table
from airflow_provider_rungen.plugins.task_record import TaskRecord

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

_LEFT_OUT = "The files of {jobs} are missing: their manifests are too large for this page."


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
    _is_service_down: bool = False
    _is_store_slow: bool = False

    def __post_init__(self) -> None:
        self.notices = list(self.task.notices)

    @property
    def notice(self) -> str:
        return " ".join(dict.fromkeys(self.notices))

    def _left(self) -> float:
        return max(_LEAST_TIME, self.began + PAGE_TIME - time.monotonic())

    # --- the store ---

    async def rows(self, page: int) -> JobRows:
        """Return the rows of a page: those of the results table once it is written, or else the jobs."""
        task = self.task
        if task.results and not task.is_moving:
            table = await self._ask_store("tables", _count_table, task, page)
            if table is not None:
                return table
        return await run_in_threadpool(rows_of_page, task, page)

    async def has_job(self, job_id: str) -> bool:
        """
        Return whether a job is one of the task's.

        :raises RunGenError: its results table cannot be read.
        :raises TooSlowError: its results table was not read in time.
        """
        task = self.task
        if job_id in task.known_job_ids:
            return True
        if not task.results or task.is_moving:
            return False
        return job_id in await run_within(_STORE_TIME, "tables", job_ids_of_table, task)

    async def row_of(self, job_id: str) -> JobRow | None:
        """
        Return the row of a job, or ``None`` if it is none of the task's.

        :raises TooSlowError: its results table was not read in time.
        """
        task = self.task
        row = await run_in_threadpool(_find_row, task, job_id)
        if row is None and task.results and not task.is_moving:
            row = await self._ask_store("tables", _find_in_table, task, job_id)
            if row is None and self._is_store_slow:
                raise TooSlowError
        return row

    async def manifests(self, job_ids: Sequence[str]) -> dict[str, Manifest]:
        """Return what is stored of jobs."""
        task = self.task
        if not task.destination or not job_ids:
            return {}
        found = await self._ask_store("store", _read_manifests, task, list(job_ids)) or {}
        manifests = {job_id: manifest for job_id, manifest in found.items() if manifest is not None}
        if left_out := len(found) - len(manifests):
            self.notices.append(_LEFT_OUT.format(jobs=format_count(left_out, "job")))
        return manifests

    async def _ask_store(
        self, pool: PoolName, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        try:
            return await run_within(min(_STORE_TIME, self._left()), pool, function, *args, **kwargs)
        except TooSlowError:
            self._is_store_slow = True
            self.notices.append("The storage did not answer in time, so that results are missing.")
        except RunGenError as error:
            self.notices.append(f"Results are missing: {error.message}.")
        except Exception as error:
            log.warning("Could not read what a task stored (%s)", type(error).__name__)
            self.notices.append(f"The storage could not be read ({type(error).__name__}).")
        return None

    # --- the service ---

    async def jobs(self, job_ids: Sequence[str]) -> dict[str, Job | RunGenError]:
        """Ask the service for jobs."""
        task = self.task
        if not job_ids or not task.app_id or not self._can_ask():
            return {}
        seconds = self._left()
        found = await self._ask_service(live.get_jobs, task.conn_id, task.app_id, job_ids, seconds) or {}
        errors = [outcome for outcome in found.values() if isinstance(outcome, RunGenError)]
        if errors and len(errors) == len(found):
            self._note_service(errors[0])
        return found

    async def app(self, app_id: str) -> App | None:
        """Ask the service for an app."""
        if not app_id or not self._can_ask():
            return None
        return await self._ask_service(live.get_app, self.task.conn_id, app_id, self._left())

    def _can_ask(self) -> bool:
        if not self.task.conn_id or self._is_service_down:
            return False
        if not self.may_ask:
            self.notices.append(NOT_ASKED.format(conn_id=shown_text(self.task.conn_id, 200)))
        return self.may_ask

    async def _ask_service(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return await run_within(self._left(), "service", function, *args, **kwargs)
        except TooSlowError:
            self._is_service_down = True
            self.notices.append("RunGen did not answer in time, so that live figures are missing.")
        except RunGenError as error:
            self._note_service(error)
        except Exception as error:
            log.warning("Could not ask RunGen (%s)", type(error).__name__)
            self.notices.append(f"RunGen could not be asked ({type(error).__name__}).")
        return None

    def _note_service(self, error: RunGenError) -> None:
        self._is_service_down = True
        self.notices.append(f"Live figures are missing: {error.message}.")


def rows_of_page(task: TaskRecord, page: int) -> JobRows:
    """Return the jobs that a task has pushed, and those of a page of them. It may take long."""
    return JobRows.count(rows_of_task(task), page)


def _count_table(task: TaskRecord, page: int) -> JobRows:
    return JobRows.count(rows_of_table(read_table(task.results, _STORE_TIME), task.key), page)


def _read_manifests(task: TaskRecord, job_ids: list[str]) -> dict[str, Manifest | None]:
    return StoredOutputs(task.destination, task.app_id).manifests(job_ids, _STORE_TIME)


def _find_in_table(task: TaskRecord, job_id: str) -> JobRow | None:
    """Return the row of a job, or ``None`` if the results table does not have it. Blocks."""
    rows = (row for row in read_table(task.results, _STORE_TIME) if row["job_id"] == job_id)
    return next(iter(rows_of_table(rows, task.key)), None)


def _find_row(task: TaskRecord, job_id: str) -> JobRow | None:
    """Return the row of a job that the task has pushed, or ``None``."""
    for row in rows_of_task(task):
        if row.job_id == job_id:
            return row
    return JobRow(index=0, status=UNKNOWN, job_id=job_id) if job_id in task.known_job_ids else None
