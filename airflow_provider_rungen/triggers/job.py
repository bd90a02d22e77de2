"""The trigger that waits for jobs, and yields one small event without URLs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from airflow_provider_rungen._airflow import TaskInstanceState, metrics
from airflow_provider_rungen.client.endpoints import cancel_job
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.progress import WaitGoal
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import RunGenConflictError, RunGenError
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.outcomes import GO_ON, format_ranges
from airflow_provider_rungen.triggers import base
from airflow_provider_rungen.triggers.base import RunGenBaseTrigger, ask_airflow
from airflow_provider_rungen.triggers.watcher import shared_poller

log = logging.getLogger(__name__)

# Seconds after a deferral until an event about a few of the jobs, since each event starts a worker. Of the
# time that an attempt has waited before, it is this share, if that is longer.
MIN_ROUND_TIME, ROUND_SHARE = 60.0, 0.2
# The states after which no attempt follows. A task that was cleared has no state at first.
_ENDED = (
    TaskInstanceState.SUCCESS,
    TaskInstanceState.FAILED,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)
# Jobs that a log line names at most.
_MAX_LISTED = 100


@dataclass(kw_only=True, eq=False, repr=False)
class RunGenJobTrigger(RunGenBaseTrigger):
    """
    Waits until jobs have ended, however they end, or until enough have ended to start a worker: down to
    ``left``, or any after a while (`MIN_ROUND_TIME`).

    The event is ``{"outcome": "go on", "app_id", "ended": "0-499,502", "in_flight"}``, with positions in
    ``job_id``. It is a hint: a worker polls the jobs itself. If the wait fails, it is
    ``{"outcome": "error", "app_id", "error"}``, with the error as `error_to_json` returns it.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out.
    :param job_id: the jobs to wait for.
    :param poll_interval: seconds between two polls.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param queued_timeout: seconds that jobs may wait while the app has no worker.
    :param queued_since: since when no worker was seen to take any of them (seconds since 1970). The event of
        a table has it, too.
    :param deferred_at: the time (seconds since 1970) of the deferral.
    :param not_before: the time (seconds since 1970) before which the service asked not to be polled.
    :param waited: seconds that the attempt had waited before the deferral.
    :param left: how many jobs may still be in flight when the trigger fires; 0 if it waits for all.
    :param failures: how many jobs in a row have failed; it fires also when they are too many. ``None`` if any
        number may.
    :param has_success: whether a job of the task completed before.
    :param cancel_on_kill: cancel the jobs when a user marks or clears the task.
    :param shared: the jobs that another task run submitted, which are never canceled.
    :param survives_clear: whether a clear of the task leaves the jobs to the next attempt.
    :param plan: the plan of a table, which the event names. Without one, it names the jobs that failed, in
        ``"failed"``.
    """

    rungen_conn_id: str = RunGenHook.default_conn_name
    app_id: str | None = None
    job_id: list[str] = field(default_factory=list)
    poll_interval: float = 5
    deadline: float = 0
    queued_timeout: float | None = 900
    queued_since: float = 0
    deferred_at: float = 0
    waited: float = 0
    not_before: float = 0
    left: int = 0
    failures: int | None = None
    has_success: bool = False
    cancel_on_kill: bool = False
    shared: list[str] = field(default_factory=list)
    survives_clear: bool = False
    plan: str = ""
    # the jobs that are being canceled, and may still run
    _open: dict[str, None] | None = field(default=None, init=False)

    @property
    def _has_undo(self) -> bool:
        return self.cancel_on_kill

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Cancel the jobs that no attempt of the task waits for."""
        shared = set(self.shared)
        job_ids = [job_id for job_id in self.job_id if job_id not in shared]
        kept = await self._wanted(job_ids, state)
        if kept:
            log.info("Not canceled, since another attempt waits: jobs %s", ", ".join(kept[:_MAX_LISTED]))
        app_id = await hook.aresolve_app_id(self.app_id)
        rest = [job_id for job_id in job_ids if job_id not in set(kept)]
        if not rest:
            return
        # Airflow may close the log of the task before the last answer
        log.info("Canceling jobs of app %s: %s", app_id, ", ".join(rest[:_MAX_LISTED]))
        self._open = dict.fromkeys(rest)
        await gather_limited(partial(self._cancel, hook, app_id), rest)
        if self._open:
            log.error("%s", self._remains())

    def _remains(self) -> str:
        jobs = clean_text(str(self.job_id), 4000)
        if self._open is not None:
            if not self._open:
                return f"No job of app {self.app_id} runs on"
            more = f" and {len(self._open) - _MAX_LISTED} more" if len(self._open) > _MAX_LISTED else ""
            jobs = f"{', '.join([*self._open][:_MAX_LISTED])}{more}"
        return f"May still run: jobs {jobs} of app {self.app_id}"

    async def _wanted(self, job_ids: list[str], state: str | None) -> list[str]:
        """
        Return the jobs that this attempt, on another triggerer, or a later attempt still waits for.

        A deferred task may be in its next attempt already. That attempt has pushed which job it waits for: a
        new one, or this.
        """
        if state in _ENDED:
            return []
        # an attempt that is up for retry ended on a worker, which decided about its jobs
        if state == TaskInstanceState.UP_FOR_RETRY or self.survives_clear:
            return job_ids
        if state in (TaskInstanceState.DEFERRED, TaskInstanceState.RUNNING):
            pushed = await self._pushed()
            if pushed is not None:
                return [job_id for job_id in job_ids if job_id == pushed]
            if state == TaskInstanceState.DEFERRED:
                return job_ids  # a sensor pushes none, since it waits for jobs of other tasks
        return []

    async def _pushed(self) -> str | None:
        try:
            found: str | None = await ask_airflow(attempts.pushed_job_id, self.task_instance)
        except attempts.AttemptOverError:
            return ""
        except Exception as error:
            log.warning("Could not read the job of the latest attempt (%s)", type(error).__name__)
            return None
        return found

    async def _cancel(self, hook: RunGenHook, app_id: str, job_id: str) -> None:
        try:
            # what is left of the time is for the last line
            budget = base.CANCEL_TIME * 0.8
            await hook.aperform(cancel_job(app_id, job_id, retry_budget=budget, is_known=True))
            log.info("Canceled job %s of app %s", job_id, app_id)
        except RunGenConflictError as error:  # it is over
            log.warning("%s", error.message)
        except RunGenError as error:
            log.warning("%s", error.message)
            return
        if self._open is not None:
            self._open.pop(job_id, None)

    async def _wait(self, event: dict[str, Any]) -> None:
        job_ids = self.job_id
        hook, deferred_at = RunGenHook(self.rungen_conn_id), self._local_time(self.deferred_at)
        if self.plan:
            event |= {"plan": self.plan, "deadline": self.deadline, "queued_since": self.queued_since}
        event["app_id"] = await hook.aresolve_app_id(self.app_id)
        with metrics.timing("wait.triggerer"):
            jobs = await shared_poller(self.rungen_conn_id, event["app_id"]).wait(
                job_ids,
                poll_interval=self.poll_interval,
                deadline=self._local_time(self.deadline),
                not_before=self._local_time(self.not_before),
                # a worker has submitted them, or looked at them
                are_known=bool(self.deferred_at),
                queued_timeout=self.queued_timeout,
                queued_since=self._local_time(self.queued_since) if self.queued_since else 0.0,
                goal=WaitGoal(self.left, self.failures, self.has_success, frozenset(self.shared)),
                part_at=deferred_at + max(MIN_ROUND_TIME, self.waited * ROUND_SHARE),
            )
        event |= {"outcome": GO_ON} | self._found(job_ids, jobs)

    def _found(self, job_ids: list[str], jobs: list[Job]) -> dict[str, Any]:
        """Return the fields of the event about the jobs that have ended. There may be many."""
        ended = {job.id for job in jobs}
        failed = {job.id for job in jobs if not job.is_usable}
        found: dict[str, Any] = {
            "ended": format_ranges(number for number, job_id in enumerate(job_ids) if job_id in ended),
            "in_flight": len(set(job_ids) - ended),
        }
        if not self.plan:
            found["failed"] = format_ranges(number for number, each in enumerate(job_ids) if each in failed)
        return found
