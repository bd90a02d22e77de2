"""Takes jobs: their ids, or their results. For a results table, see `sinks/table_results.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from airflow_provider_rungen.client.polling import strip_payloads
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.sinks.failures import (
    Advice,
    error_text,
    failed_jobs,
    inputs_error,
    stop_error,
)
from airflow_provider_rungen.execution.task.lineage import TaskOutcome
from airflow_provider_rungen.execution.task.outcomes import format_reasons, max_failures, raise_for_jobs

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.collector import CollectingTask
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.runs.plan import Manifest, PlannedRow

log = logging.getLogger(__name__)


class SinkTask(Advice, Protocol):
    """What a sink needs of the `TaskRun` that it is made for, beside what `Collector` needs."""

    @property
    def ti(self) -> Any:
        """The task instance."""

    def record_outcome(self, outcome: TaskOutcome) -> None:
        """Report what was done."""

    def locate(self, numbers: Iterable[int]) -> Mapping[int, Mapping[str, Any]]:
        """Return the ``file`` and ``line`` of inputs, by number: see `Source.places`."""


class SinkPlan(Protocol):
    """What a sink needs of a plan."""

    @property
    def manifest(self) -> Manifest:
        """Its columns and sources."""

    def rows(self) -> Iterable[PlannedRow]:
        """Return the rows, in order. It may be called again."""


class Sink(Protocol):
    """
    Takes the jobs of a task as they end.

    In a `BatchResult`, a row that is equal to another one has the job, or the refusal, of that row.
    """

    #: Whether outputs are stored.
    stores: bool
    #: The jobs that cannot be used, or not yet: see `failures.is_useless`.
    errors: dict[str, RunGenError]
    #: What was stored. The caller may remove what it has seen: there may be many.
    stored: list[StoredJob]

    def prepare(self) -> None:
        """
        Find out whether results can be kept, before anything is sent.

        :raises RunGenInputError: they cannot be kept now.
        """

    def accepts(self, stored: StoredJob) -> bool:
        """Return whether a stored job can be used."""

    def add_stored(self, stored: StoredJob, *, is_reused: bool = False) -> object:
        """Take a job that was found stored."""

    def hold(self, job: Job) -> Job:
        """Take the result of a job that a poll finds over, if results are not stored, and return the rest."""

    def gather(self, app_id: str, job_ids: Iterable[str], jobs: Iterable[Job] = ()) -> None:
        """Store or fetch what is over, and was not taken yet. See `Collector.gather`."""

    def finish(self, result: BatchResult, plan: SinkPlan) -> Any:
        """
        Return what the task returns, when all jobs are over.

        :raises RunGenError: too many failed.
        """

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        """Write what is known when an error ends the task. A failure to do so is logged."""

    def close(self) -> None:
        """Free what is held."""


class JobIds:
    """
    Return the ids of jobs.

    :param run: the attempt.
    :param is_single: whether there is one job, whose error is that of the task.
    :param waits: whether the task waits for the jobs.
    :param max_failed: how many may fail: a number, or a share below 1.
    """

    stores = False
    hold = staticmethod(strip_payloads)

    def __init__(
        self,
        run: SinkTask,
        *,
        is_single: bool,
        waits: bool = True,
        max_failed: float = 0,
    ) -> None:
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

    def add_stored(self, stored: StoredJob, *, is_reused: bool = False) -> None:
        pass

    def gather(self, app_id: str, job_ids: Iterable[str], jobs: Iterable[Job] = ()) -> None:
        pass

    def finish(self, result: BatchResult, plan: SinkPlan) -> Any:
        app_id, job_ids = self._run.known_app_id, result.job_ids
        if self._is_single:
            raise_for_single(app_id, result)
            self._run.record_outcome(TaskOutcome(app_id, job_ids))
            return job_ids[0] if job_ids else None
        failed_count = check_inputs(self._run, result, self._max_failed)
        if not failed_count:
            state = "completed" if self._waits else "were submitted"
            log.info("All %d jobs %s %s", len(result.ids), state, format_ids(app_id))
        self._run.record_outcome(TaskOutcome(app_id, job_ids, failed_count))
        return result.ids

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        pass

    def close(self) -> None:
        pass


class Results:
    """
    Return the results of jobs, or small manifests of what is stored of them.

    :param run: the attempt.
    :param options: what to do with results.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :raises RunGenInputError: the schema or the destination cannot be used.
    """

    def __init__(
        self,
        run: SinkTask,
        options: CollectOptions,
        *,
        pushes_keys: bool = False,
    ) -> None:
        # a single job without results does not need it
        from airflow_provider_rungen.execution.sinks.collector import Collector

        #: Whether there is one job, whose error is that of the task. Set it once that is known.
        self.is_single = False
        self.stores = options.destination is not None
        self._run = run
        self._options = options
        self._collector = collector = Collector(
            cast("CollectingTask", run), options, pushes_keys=pushes_keys, runs_jobs=True
        )
        self.errors, self.stored = collector.errors, collector.stored
        self.prepare, self.accepts, self.close = collector.prepare, collector.accepts, collector.close
        self.add_stored, self.gather = collector.add_stored, collector.gather
        # polls are cheaper if nothing of a result is wanted
        self.hold: Callable[[Job], Job] = strip_payloads if self.stores else collector.hold

    def finish(self, result: BatchResult, plan: SinkPlan) -> Any:
        app_id, collector, failed_count = self._run.known_app_id, self._collector, 0
        if self.stores:
            # what is paid for is stored, also if the task fails
            collector.gather_rest(app_id, result.ids, result.jobs)
            collector.write_sheet(app_id, result.ids, result.refused)
        if self.is_single:
            raise_for_single(app_id, result)
        else:
            failed_count = check_inputs(self._run, result, self._options.max_failed)
        return collector.collect(
            app_id,
            result.ids,
            result.jobs,
            max_failed=0 if self.is_single else self._options.max_failed,
            single=self.is_single,
            logged_failures=failed_count,
            locate=self._run.locate,
        )

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        if not self._options.contact_sheet or not result.ids:
            return
        app_id, missing = self._run.known_app_id, error_text(error)
        try:
            self._collector.gather_known(app_id, result.ids, result.jobs)
            self._collector.write_sheet(app_id, result.ids, result.refused, missing=missing)
        except RunGenError as failure:
            log.warning("Could not write the contact sheet: %s", failure.message)


def raise_for_single(app_id: str, result: BatchResult) -> None:
    """
    Raise the error of the only job.

    :raises RunGenError: it was refused, did not complete, or there was no time to submit it.
    """
    for error in result.refused.values():
        raise error
    raise_for_jobs(result.jobs)
    if not result.job_ids:
        message = f"The time was up before the job: it was not submitted {format_ids(app_id)}"
        raise RunGenJobTimeoutError(message, app_id=app_id)


def check_inputs(run: SinkTask, result: BatchResult, max_failed: float) -> int:
    """
    Report which inputs of a batch failed: in the log and as the XCom ``failed``. Return how many.

    :param max_failed: how many may fail: a number, or a share below 1.
    :raises RunGenJobFailedError: more failed.
    """
    reasons = result.reasons()
    run.ti.xcom_push(key="failed", value=failed_jobs(result.ids, reasons, run.locate(reasons)))
    if result.stopped is not None:
        raise stop_error(run, result, result.stopped)
    if len(reasons) > (allowed := max_failures(max_failed, len(result.ids))):
        raise inputs_error(run, result, reasons, allowed)
    if reasons:
        log.warning(
            "Failed: %d of %d inputs, as max_failed allows: %s",
            *(len(reasons), len(result.ids), format_reasons(reasons)),
        )
    return len(reasons)
