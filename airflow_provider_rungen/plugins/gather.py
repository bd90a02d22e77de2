"""Gather what the page of a task or a job shows: from Airflow, the store and the service, within seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from starlette.concurrency import run_in_threadpool

from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.pages.models import JobView, shown_text
from airflow_provider_rungen.plugins import database, live, xcoms
from airflow_provider_rungen.plugins.limits import Pool, TooSlowError, charge, run_within
from airflow_provider_rungen.plugins.logged_rows import logged_rows
from airflow_provider_rungen.plugins.rows import PAGE_SIZE, UNKNOWN, PageRows, pushed_rows
from airflow_provider_rungen.plugins.stored import read_manifests
from airflow_provider_rungen.plugins.task_record import TaskRecord

log = logging.getLogger(__name__)

T = TypeVar("T")
#: The job as the service returned it, or the error; ``None`` if it was not asked.
Answer: TypeAlias = Job | RunGenError | None
#: Seconds until a page is sent, even if something does not answer.
PAGE_TIME = 4.0
#: Seconds for one question to the store.
STORE_TIME = 2.5
_LEAST_TIME = 0.5
# Seconds to read the XComs of a task, where they are not in the database.
_XCOM_TIME = 2.5
_NOT_ASKED = (
    "RunGen is not asked, so that live figures are missing: the task does not name connection {conn_id} "
    "in its DAG, and you may not read it."
)


def _explain(pool: Pool, error: Exception) -> str:
    """Return what a page says about an error of the storage or of the service."""
    name, missing = ("RunGen", "live figures") if pool == "service" else ("The storage", "results")
    if isinstance(error, TooSlowError):
        return f"{name} did not answer in time, so that {missing} are missing."
    if isinstance(error, RunGenError):
        return f"{missing.capitalize()} are missing: {error.message}."
    log.warning("%s could not be asked for a page (%s)", name, type(error).__name__)
    return f"{name} could not be asked ({type(error).__name__})."


async def ask_service(
    conn_id: str, function: Callable[..., T], *args: Any, within: float = PAGE_TIME
) -> tuple[T | None, str]:
    """
    Return what the service answers, or ``None`` and what a page says about it.

    :param function: a function of `live`, which takes the connection, ``args``, and seconds.
    """
    charge("connection", conn_id)
    try:
        return await run_within(within, "service", function, conn_id, *args, within), ""
    except Exception as error:
        return None, _explain("service", error)


async def find_tasks(*place: Any) -> Sequence[TaskRecord]:
    """Return tasks: see `database.find_tasks`."""
    find = partial(database.find_tasks, *place)
    # XComs that are elsewhere may hang
    return await (run_within(_XCOM_TIME, "store", find) if xcoms.uses_files() else run_in_threadpool(find))


@dataclass
class Gathering:
    """
    What one page has found so far, and what is missing.

    :param task: the task.
    :param user: who asks.
    :param began: when the page was asked for, by the monotonic clock.
    """

    task: TaskRecord
    user: Any
    began: float = field(default_factory=time.monotonic)
    notices: list[str] = field(default_factory=list)
    _is_store_slow: bool = False
    _manifests: dict[str, StoredJob | None] = field(default_factory=dict)
    _rows: dict[int, PageRows] = field(default_factory=dict)
    _answers: dict[str, Job | RunGenError] = field(default_factory=dict)

    @property
    def notice(self) -> str:
        """Why something is missing on the page."""
        return " ".join(dict.fromkeys([*self.task.notices, *self.notices]))

    def _seconds_left(self) -> float:
        return max(_LEAST_TIME, self.began + PAGE_TIME - time.monotonic())

    async def task_of_run(self, task_id: str) -> TaskRecord | None:
        """Return another task of the run: that of the same map index, if it is mapped, too."""
        task = self.task
        for map_index in dict.fromkeys([task.map_index, -1]) if task_id else ():
            for found in await find_tasks(task.dag_id, task.run_id, task_id, map_index):
                return found
        return None

    async def of_block(self) -> Gathering:
        """Return this, or what is known of the block of a teardown that has not begun, from another task."""
        task = self.task
        tasks = () if task.page.connection else await find_tasks(task.dag_id, task.run_id)
        inside = (each for each in tasks if each.page.down == task.task_id)
        same = next((each for each in inside if each.map_index in (task.map_index, -1)), None)
        return Gathering(same, self.user, self.began, self.notices) if same else self

    # --- the store ---

    async def _ask_store(self, function: Callable[..., T], *args: Any) -> T | None:
        seconds = min(STORE_TIME, self._seconds_left())
        try:
            return await run_within(seconds, "store", function, *args, seconds)
        except Exception as error:
            self._is_store_slow = isinstance(error, TooSlowError)
            self.notices.append(_explain("store", error))
            return None

    async def rows(self, page: int) -> PageRows:
        """Return the rows of a page, or `ALL`: those of the run log, or else what the task has pushed."""
        if page not in self._rows:
            found = await self._ask_store(logged_rows, self.task, page) if self.task.log else None
            if found is None:
                found = await run_in_threadpool(pushed_rows, self.task, page)
            self._rows[page] = found if self.task.is_moving else await self._with_ends(found)
        return self._rows[page]

    async def _with_ends(self, jobs: PageRows) -> PageRows:
        """Return rows of a task that has ended with the ends that its log lacks, for up to a page of jobs."""
        unsure = [row.job_id for row in jobs.rows if row.job_id and row.status == UNKNOWN][:PAGE_SIZE]
        if not unsure:
            return jobs
        manifests = await self.manifests(unsure)
        answers = await self.jobs([job_id for job_id in unsure if job_id not in manifests])
        ends = {
            job_id: answer
            for job_id, answer in answers.items()
            if isinstance(answer, Job) and answer.is_terminal
        }
        rows = (
            replace(row, status=status_of(row, manifests.get(row.job_id), ends.get(row.job_id)))
            for row in jobs.rows
        )
        return replace(jobs, rows=list(rows))

    async def row_of(self, job_id: str, page: int) -> JobView | None:
        """
        Return the row of a job, or ``None`` if the task has no such job.

        :param page: the page of the task that has it.
        :raises TooSlowError: the run log was not read in time, so that the job may be one of the task's.
        """
        rows = await self.rows(page)
        for row in (*rows.rows, *rows.failed):
            if row.job_id == job_id:
                return row
        billing = self.task.failure.still_billing if self.task.failure else ()
        if self.task.has_pushed(job_id) or job_id in billing:
            return JobView(index=0, status=UNKNOWN, job_id=job_id)
        if self._is_store_slow:
            raise TooSlowError
        return None

    async def manifests(self, job_ids: Sequence[str]) -> dict[str, StoredJob]:
        """Return what is stored of jobs."""
        page = self.task.page
        missing = [job_id for job_id in job_ids if job_id not in self._manifests]
        if page.destination and missing:
            found = await self._ask_store(read_manifests, page.destination, page.app, missing) or {}
            self._manifests |= found
            if left_out := list(found.values()).count(None):
                jobs = format_count(left_out, "job")
                self.notices.append(
                    f"The files of {jobs} are missing: their manifests are too large for this page."
                )
        known = ((job_id, self._manifests.get(job_id)) for job_id in job_ids)
        return {job_id: manifest for job_id, manifest in known if manifest is not None}

    # --- the service ---

    async def may_ask(self) -> bool:
        """Return whether the service may be asked with the connection of the task. If not, note it."""
        if await run_in_threadpool(database.may_use_connection, self.user, self.task):
            return True
        self.notices.append(_NOT_ASKED.format(conn_id=shown_text(self.task.page.connection, 200)))
        return False

    async def app(self) -> App | None:
        """Ask the service for the app."""
        page = self.task.page
        if not page.app or not page.connection or not await self.may_ask():
            return None
        seconds = self._seconds_left()
        app, notice = await ask_service(page.connection, live.get_app, page.app, within=seconds)
        self.notices += [notice] * bool(notice)
        return app

    async def jobs(self, job_ids: Sequence[str]) -> dict[str, Job | RunGenError]:
        """Ask the service for jobs."""
        page, known = self.task.page, {each: self._answers[each] for each in job_ids if each in self._answers}
        missing = [job_id for job_id in job_ids if job_id not in known]
        if not missing or not page.app or not page.connection or not await self.may_ask():
            return known
        seconds = self._seconds_left()
        found, notice = await ask_service(page.connection, live.get_jobs, page.app, missing, within=seconds)
        errors = [outcome for outcome in (found or {}).values() if isinstance(outcome, RunGenError)]
        if found and len(errors) == len(found):
            notice = _explain("service", errors[0])
        if notice:
            self.notices.append(notice)
        self._answers |= found or {}
        return known | (found or {})


def status_of(row: JobView, manifest: StoredJob | None, answer: Answer) -> str:
    """
    Return the status of a job.

    :param row: what the run log or Airflow knows.
    :param manifest: what is stored of it.
    """
    if row.status == UNKNOWN and manifest is not None:
        return "completed"
    if not isinstance(answer, Job) or row.status not in (UNKNOWN, "failed", "completed"):
        return row.status
    if row.status == "failed" and answer.status is JobStatus.COMPLETED:
        return row.status  # it completed, but its result cannot be used
    return answer.status.value.lower()
