"""What takes the jobs of a task, and what takes their ids alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.sinks.failures import Advice, check_inputs
from airflow_provider_rungen.execution.task.lineage import TaskOutcome

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.returned import Results
    from airflow_provider_rungen.execution.sinks.table_results import TableResults
    from airflow_provider_rungen.execution.task.run import TaskRun
    from airflow_provider_rungen.runs.plan import Manifest, PlannedRow

    #: Takes the jobs of a task as they end: see `Collector`.
    Sink: TypeAlias = "JobIds | Results | TableResults"

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
    :param advice: what it knows of its inputs.
    :param is_single: whether there is one job, whose error is that of the task.
    :param waits: whether the task waits for the jobs.
    :param max_failed: how many may fail: a number, or a share below 1.
    """

    stores = False
    hold = staticmethod(strip_payloads)

    def __init__(
        self,
        run: TaskRun[Any],
        *,
        advice: Advice,
        is_single: bool,
        waits: bool = True,
        max_failed: float = 0,
    ) -> None:
        self.errors: dict[str, RunGenError] = {}
        self.stored: list[StoredJob] = []
        self._run = run
        self._advice = advice
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
        app_id, job_ids, errors = self._run.known_app_id, result.job_ids, result.errors({})
        if self._is_single:
            raise_for_single(app_id, errors)
        else:
            check_inputs(self._run.ti, self._advice, result, errors, self._max_failed)
            if not errors:
                state = "completed" if self._waits else "were submitted"
                log.info("All %d jobs %s %s", len(result.ids), state, format_ids(app_id))
        self._run.record_outcome(TaskOutcome(app_id, job_ids, len(errors)))
        return next(iter(job_ids), None) if self._is_single else result.ids

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        pass

    def close(self) -> None:
        pass


def raise_for_single(app_id: str, errors: Mapping[int, RunGenError]) -> None:
    """
    Raise the error of the only job.

    :raises RunGenError: it was refused, did not complete, or there was no time to submit it.
    """
    for error in errors.values():
        if type(error) is RunGenJobTimeoutError and not error.job_id:
            message = f"The time was up before the job: it was not submitted {format_ids(app_id)}"
            raise RunGenJobTimeoutError(message, app_id=app_id)
        raise error
