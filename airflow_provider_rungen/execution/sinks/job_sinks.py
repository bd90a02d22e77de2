"""What takes the jobs of a task, and what takes their ids alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.sinks.batch_result import check_inputs, check_single
from airflow_provider_rungen.execution.task.lineage import TaskOutcome
from airflow_provider_rungen.execution.task.outcomes import error_of

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.result_sink import ResultSink
    from airflow_provider_rungen.runs.plan import Manifest, PlannedRow

    #: Takes the jobs of a task as they end: see `Collector`.
    Sink: TypeAlias = "JobIds | ResultSink"

log = logging.getLogger(__name__)


class SinkPlan(Protocol):
    """What a sink needs of a plan."""

    @property
    def manifest(self) -> Manifest:
        """Its columns and sources."""

    def rows(self) -> Iterable[PlannedRow]:
        """Return the rows, in order. It may be called again."""


class JobIds:
    """
    Return the ids of jobs. There is nothing else to take.

    :param run: the attempt.
    :param is_single: whether there is one job, whose error is that of the task.
    :param waits: whether the task waits for the jobs.
    :param max_failed: how many may fail: a number, or a share below 1.
    """

    stores = False
    hold = staticmethod(strip_payloads)

    def __init__(self, run: Runner, *, is_single: bool, waits: bool = True, max_failed: float = 0) -> None:
        self.errors: dict[str, RunGenError] = {}
        self.stored: list[StoredJob] = []
        self._run = run
        self._is_single = is_single
        self._waits = waits
        self._max_failed = max_failed

    def prepare(self) -> None:
        pass

    def accepts(self, stored: StoredJob) -> bool:
        return True

    def add_stored(self, stored: StoredJob) -> None:
        pass

    def gather(self, app_id: str, job_ids: Iterable[str], jobs: Iterable[Job] = ()) -> None:
        pass

    def finish(self, result: BatchResult, plan: SinkPlan) -> Any:
        app_id, job_ids = self._run.known_app_id, result.job_ids
        by_job = {job.id: error for job in result.jobs if (error := error_of(job)) is not None}
        errors = result.errors(by_job)
        if self._is_single:
            check_single(app_id, errors)
        else:
            check_inputs(self._run, result, errors, self._max_failed)
            if not errors:
                state = "completed" if self._waits else "were submitted"
                log.info("All %d jobs %s %s", len(result.ids), state, format_ids(app_id))
        self._run.record_outcome(TaskOutcome(app_id, job_ids, len(errors)))
        return next(iter(job_ids), None) if self._is_single else result.ids

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        pass

    def close(self) -> None:
        pass
