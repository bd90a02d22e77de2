"""Decides about the jobs of a table when its attempt ends: what is canceled, and what the next one adopts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.store.records import Policy, Status
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.job_ids import format_jobs
from airflow_provider_rungen.task.outcomes import is_misconfigured
from airflow_provider_rungen.work.collect import Collector, Strays

if TYPE_CHECKING:
    from airflow_provider_rungen.outputs.storage import Storage
    from airflow_provider_rungen.results.values import ResultReader
    from airflow_provider_rungen.schemas import OutputType
    from airflow_provider_rungen.store.store import Store
    from airflow_provider_rungen.task.kill import KillGuard
    from airflow_provider_rungen.task.options import JobOptions
    from airflow_provider_rungen.work.rows import Rows
    from airflow_provider_rungen.work.wait import JobWait

log = logging.getLogger(__name__)

# Seconds of a kill that are left after the cancels, to report them.
_AFTER_CANCEL = 0.4


class Attempt(Protocol):
    """What is ended."""

    policy: Policy
    wait: JobWait
    guard: KillGuard
    store: Store
    storage: Storage
    reader: ResultReader
    output: OutputType | None
    collector: Collector

    @property
    def ti(self) -> Any: ...
    @property
    def options(self) -> JobOptions: ...
    @property
    def collects(self) -> bool: ...
    @property
    def known_app_id(self) -> str: ...
    @property
    def rows(self) -> Rows: ...
    def in_loop(self, work: Any) -> Any:
        """Perform I/O, and return its result."""


class Ending:
    """
    Ends the jobs of one attempt.

    :param run: the attempt.
    """

    def __init__(self, run: Attempt) -> None:
        self._run = run
        self.stopped = ""  #: Why nothing more is bought, if everything fails.

    def stop(self) -> None:
        """Note that everything fails, or is refused. What runs of the one is canceled."""
        rows = self._run.rows
        what = "inputs in a row were refused" if rows.is_refused else "jobs in a row failed"
        self.stopped = f"{rows.refusals if rows.is_refused else rows.failures} {what}"
        log.warning("Stopped: %s", self.stopped)
        if rows.is_failing:
            self._cancel(f"after {self.stopped}")

    def end(self, error: RunGenError) -> bool:
        """
        Cancel what runs, unless an attempt follows an error, or somebody can mend what is wrong.

        :return: whether it is none after all: what was not over in time was so before it could be canceled.
        """
        if isinstance(error, RunGenJobTimeoutError):
            self._cancel("it was not over in time")
            return not self._run.wait.canceled and self._run.rows.is_over
        if not is_misconfigured(error) and not (error.retryable and attempts.has_next(self._run.ti)):
            self._cancel("the task failed")
        return False

    def kill(self) -> str:
        """Cancel what runs if no attempt follows that adopts it, and return the last words of the log."""
        run = self._run
        if not (jobs := [job for job in self._own_open() if job not in run.wait.canceled]):
            return ""
        if attempts.is_left_to_next(run.ti, run.guard.time_left() / 2, survives_clear=True):
            return f"The next attempt goes on with {format_jobs(jobs)}."
        if not run.options.cancel_on_kill:
            return f"{format_jobs(jobs)} may still run (cancel_on_kill)."
        within = max(run.guard.time_left() - _AFTER_CANCEL, 0.5)
        failures = run.wait.cancel(run.known_app_id, jobs, within=within)
        return f"{format_jobs(list(failures))} may still run." if failures else ""

    def _own_open(self) -> list[str]:
        run = self._run
        return [job for job, each in run.rows.open.items() if each.run == run.policy.run]

    def _cancel(self, why: str) -> None:
        """Cancel the jobs that this run has bought, and record that."""
        run = self._run
        jobs = self._own_open()
        if not jobs or run.collects:
            return
        failed = run.wait.cancel(run.known_app_id, jobs)
        canceled = [job for job in jobs if job in run.wait.canceled]
        seconds = run.wait.seconds_of(run.known_app_id, canceled)
        for job in canceled:
            changes = {"status": Status.CANCELED, "why": why, "seconds": seconds.get(job)}
            run.collector.end(run.rows.open[job].model_copy(update=changes))
        # others were over before
        run.collector.look([job for job in jobs if job not in failed and job not in run.wait.canceled])

    def tidy(self) -> None:
        """
        Record how old purchases ended that nobody waits for, and merge records. It is not worth a failure.

        They belong to no attempt: not to the ids, the counts or the bill of this one.
        """
        run, store = self._run, self._run.store
        try:
            stale = [fact for fact in run.in_loop(store.stale()) if fact.job not in run.rows.open]
            strays = Strays({fact.job: fact for fact in stale if fact.job})
            for fact in stale:
                if not fact.job:
                    store.end(fact)
            if strays.open:
                Collector(run, store, strays).look([*strays.open])
            run.in_loop(store.flush())
            run.in_loop(store.merge())
        except RunGenError as error:
            log.warning("Old records are left for the next attempt: %s", error.message)
