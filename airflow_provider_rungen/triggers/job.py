"""The trigger that waits for jobs, and yields one small event: ids, statuses and error texts, no URLs."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from airflow_provider_rungen._airflow import TaskInstanceState, metrics
from airflow_provider_rungen.client.counters import CounterTrust
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.progress import OtherInputs
from airflow_provider_rungen.client.queue_watch import QueueTimer
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.client.wait_goal import WaitGoal
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution import attempts, task_instances
from airflow_provider_rungen.execution.job_ids import parse_known_job_ids
from airflow_provider_rungen.execution.outcomes import unsuccessful_job
from airflow_provider_rungen.execution.page_record import MAX_PAGE_JOBS, PAGE_KEY
from airflow_provider_rungen.execution.ranges import format_ranges
from airflow_provider_rungen.execution.usage import USAGE_KEY, Usage, add_usage
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.links import RunGenAppLink, RunGenJobLink, RunGenResultsLink
from airflow_provider_rungen.links.pages import are_pages_enabled, page_url
from airflow_provider_rungen.links.urls import app_url, job_url
from airflow_provider_rungen.triggers import base
from airflow_provider_rungen.triggers.base import RunGenBaseTrigger, ask_airflow
from airflow_provider_rungen.triggers.watcher import shared_poller

if TYPE_CHECKING:
    from airflow_provider_rungen.client.settings import Settings

log = logging.getLogger(__name__)

# In the first part of CANCEL_TIME, the next attempt may resume the jobs of this one.
TAKE_UP_TIME = 8.0
# The states of a task that no attempt follows. One that was cleared has none at first.
_ENDED = (
    TaskInstanceState.SUCCESS,
    TaskInstanceState.FAILED,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)
# Airflow logs events: of more jobs, ids and errors are left out, and fetched again on the worker.
MAX_JOBS_IN_EVENT = 100


class RunGenJobTrigger(RunGenBaseTrigger):
    """
    Waits until jobs are over, however they end.

    The event is ``{"outcome": "over", "unsuccessful": [{"id", "status", "error"}, …], "count"}``, or
    ``{"outcome": "timeout" | "error", "message", …}``, with the ``app_id``, and a few ``job_ids``, not many.
    With ``left`` or ``stop_after``, it is ``{"outcome": "part", "ended": "0-499", …}`` while some jobs are
    still in flight. The numbers are positions in ``job_id``, and ``counters`` is as the parameter.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out.
    :param job_id: the jobs to wait for: one id, a list, or the text that a template makes of a list.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds to wait at most, from the start of the task; used without a ``deadline``.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param queued_timeout: seconds that the jobs may stay queued while none of them starts.
    :param queued_since: the time (seconds since 1970) when one was last seen to start, or the wait began.
    :param deferred_at: the time (seconds since 1970) of the deferral, if a worker deferred the task.
    :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
    :param held_back: until when (seconds since 1970) the service asked not to be asked, by job.
    :param cancel_on_kill: cancel the jobs when a user marks or clears the task.
    :param on_clear: whether a clear of the task cancels the jobs (``new``), leaves them to the next attempt
        if that resumes them (``resume``), or leaves them in any case (``keep``).
    :param borrowed: the jobs that other tasks submitted, which are never canceled.
    :param batch: what the attempt pushed under the XCom key ``batch`` in place of the ids of its jobs.
    :param end_from_trigger: end the task here when all jobs completed.
    :param left: how many jobs may still be in flight when the trigger fires.
    :param stop_after: fire also when so many jobs in a row have failed.
    :param failures: how many jobs in a row had failed before.
    :param used: the ``usage`` of the task's earlier jobs, for ``end_from_trigger``.
    :param others: how many more inputs of the batch are ``done`` (``failed`` among them) or ``unsent``.
    :param counters: how far the app's counters are trusted, as far as earlier waits know.
    :param unknown: what another version of the package kept in the database; it is ignored, and logged.
    """

    def __init__(
        self,
        *,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        app_id: str | None = None,
        job_id: Any = None,
        poll_interval: float = 5,
        timeout: float = 86400,
        deadline: float | None = None,
        queued_timeout: float | None = None,
        queued_since: float = 0,
        deferred_at: float = 0,
        known_by: float = 0,
        held_back: dict[str, float] | None = None,
        cancel_on_kill: bool = False,
        on_clear: str = "new",
        borrowed: list[str] | None = None,
        batch: str = "",
        end_from_trigger: bool = False,
        left: int = 0,
        stop_after: int | None = None,
        failures: int = 0,
        used: dict[str, float | None] | None = None,
        others: dict[str, int] | None = None,
        counters: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        self._start(unknown)
        self.rungen_conn_id = rungen_conn_id
        self.app_id = app_id
        self.job_id = job_id
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.deadline = deadline
        self.queued_timeout = queued_timeout
        self.queued_since = queued_since
        self.deferred_at = deferred_at
        self.known_by = known_by
        self.held_back = held_back
        self.cancel_on_kill = cancel_on_kill
        self.on_clear = on_clear
        self.borrowed = borrowed
        self.batch = batch
        self.end_from_trigger = end_from_trigger
        self.left = left
        self.stop_after = stop_after
        self.failures = failures
        self.used = used
        self.others = others
        self.counters = counters

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"airflow_provider_rungen.triggers.{type(self).__name__}", {
            "rungen_conn_id": self.rungen_conn_id,
            "app_id": self.app_id,
            "job_id": self.job_id,
            "poll_interval": self.poll_interval,
            "timeout": self.timeout,
            "deadline": self.deadline,
            "queued_timeout": self.queued_timeout,
            "queued_since": self.queued_since,
            "deferred_at": self.deferred_at,
            "known_by": self.known_by,
            "held_back": self.held_back,
            "cancel_on_kill": self.cancel_on_kill,
            "on_clear": self.on_clear,
            "borrowed": self.borrowed,
            "batch": self.batch,
            "end_from_trigger": self.end_from_trigger,
            "left": self.left,
            "stop_after": self.stop_after,
            "failures": self.failures,
            "used": self.used,
            "others": self.others,
            "counters": self.counters,
        }

    def _fired(self, event: dict[str, Any]) -> TriggerEvent:
        if self.end_from_trigger and event["outcome"] == "over" and not event["count"]:
            usage = Usage()
            usage.note_event(parse_known_job_ids(self.job_id), event)
            return TaskSuccessEvent(xcoms={USAGE_KEY: add_usage(usage.to_json(), self.used or {})})
        return TriggerEvent(event)

    @property
    def _undoes(self) -> bool:
        return self.cancel_on_kill

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Cancel the jobs that no attempt of the task waits for."""
        borrowed = set(self.borrowed or ())
        job_ids = [job_id for job_id in parse_known_job_ids(self.job_id) if job_id not in borrowed]
        kept = await self._kept(job_ids, state)
        if kept:
            log.info(
                "Left jobs to the attempt that waits for them: %s",
                ", ".join(kept[:MAX_JOBS_IN_EVENT]),
            )
        app_id = await hook.aresolve_app_id(self.app_id)
        rest = [job_id for job_id in job_ids if job_id not in set(kept)]
        await gather_limited(partial(self._cancel, hook, app_id), rest)

    def _left_behind(self) -> str:
        return f"May still run: jobs {clean_text(str(self.job_id), 4000)} of app {self.app_id}"

    async def _kept(self, job_ids: list[str], state: str | None) -> list[str]:
        """
        Return the jobs that this attempt, on another triggerer, or a later attempt still waits for.

        A deferred task may be in its next attempt already. That attempt has pushed the ids of its jobs: new
        ones, or these.
        """
        may_resume = self.on_clear == "resume"
        give_up_at = time.monotonic() + TAKE_UP_TIME
        while state not in _ENDED:
            # an attempt that is up for retry ended on a worker, which decided about its jobs
            if state == TaskInstanceState.UP_FOR_RETRY or self.on_clear == "keep":
                return job_ids
            if state in (TaskInstanceState.DEFERRED, TaskInstanceState.RUNNING):
                pushed = await self._pushed()
                if pushed is not None:
                    return [job_id for job_id in job_ids if job_id in pushed or self.batch in pushed]
                if state == TaskInstanceState.DEFERRED:
                    return job_ids  # a sensor pushes none: it waits for the jobs of others
            if not may_resume and not attempts.CLEAR_DISCARDS_STATE:
                return []
            if time.monotonic() > give_up_at:
                # from Airflow 3.4 on, the next attempt most likely knows nothing of them
                return [] if attempts.CLEAR_DISCARDS_STATE else job_ids
            await asyncio.sleep(0.5)
            state = await ask_airflow(task_instances.task_state, self.task_instance)
        return []

    async def _pushed(self) -> set[str] | None:
        try:
            found: set[str] | None = await ask_airflow(task_instances.pushed_job_ids, self.task_instance)
        except task_instances.AttemptOverError:
            return set(parse_known_job_ids(self.job_id)) if self.on_clear == "resume" else set()
        except Exception as error:
            log.warning("Could not read the jobs of the latest attempt (%s)", type(error).__name__)
            return None
        return found

    async def _cancel(self, hook: RunGenHook, app_id: str, job_id: str) -> None:
        try:
            await hook.acancel_job(app_id=app_id, job_id=job_id, retry_budget=base.CANCEL_TIME)
            log.info("Canceled job %s of app %s", job_id, app_id)
        except RunGenError as error:
            log.warning("%s", error.message)

    async def _link(self, settings: Settings, app_id: str, job_ids: list[str]) -> None:
        from airflow_provider_rungen._airflow import XCom

        ti: Any = self.task_instance
        try:
            for key, value in self._links(settings, app_id, job_ids).items():
                place = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id}
                await XCom.aset(key, value, **place, map_index=ti.map_index)
        except Exception as error:  # a task is not to fail for its links
            log.debug("Could not save the links of the task: %s", type(error).__name__)

    def _links(self, settings: Settings, app_id: str, job_ids: list[str]) -> dict[str, Any]:
        """Return what a worker would push: the links, and what the page of the task shows."""
        ti: Any = self.task_instance
        links = {
            RunGenResultsLink.key: page_url(ti),
            RunGenAppLink.key: app_url(settings, app_id) or page_url(ti, "apps", app_id),
        }
        for job_id in job_ids[:1]:
            links[RunGenJobLink.key] = job_url(settings, app_id, job_id) or page_url(ti, "jobs", job_id)
        record = {"connection": self.rungen_conn_id, "app": app_id, "jobs": job_ids[:MAX_PAGE_JOBS]}
        page = {PAGE_KEY: record} if are_pages_enabled() else {}
        return {key: url for key, url in links.items() if url} | page

    async def _wait(self, event: dict[str, Any]) -> None:
        job_ids = parse_known_job_ids(self.job_id)
        event |= {"job_ids": job_ids} if len(job_ids) <= MAX_JOBS_IN_EVENT else {}
        hook = RunGenHook(self.rungen_conn_id)
        event["app_id"] = await hook.aresolve_app_id(self.app_id)
        if not self.deferred_at:  # no worker has seen the task, and its connection, yet
            await self._link(await hook.asettings(), event["app_id"], job_ids)
        deadline = self.deadline
        if deadline is None:
            started = getattr(self.task_instance, "start_date", None)
            deadline = (started.timestamp() if started else time.time()) + self.timeout
        timer = None
        if self.queued_timeout is not None:
            timer = QueueTimer(self.queued_timeout, self.queued_since or time.time())
        goal = WaitGoal(self.left, self.stop_after, self.failures)
        watcher = shared_poller(self.rungen_conn_id, event["app_id"])
        with metrics.timing("wait.triggerer"):
            jobs = await watcher.wait(
                job_ids,
                poll_interval=self.poll_interval,
                deadline=deadline,
                visible_by=self.known_by,
                held_back=self.held_back or {},
                timer=timer,
                goal=goal,
                others=OtherInputs(**self.others or {}),
                trust=CounterTrust.from_json(self.counters),
            )
        unsuccessful = [unsuccessful_job(job) for job in jobs if job.status is not JobStatus.COMPLETED]
        seconds = [job.execution_time for job in jobs if job.execution_time is not None]
        event |= {
            "outcome": "over",
            "unsuccessful": unsuccessful[:MAX_JOBS_IN_EVENT],
            "count": len(unsuccessful),
            "execution_seconds": round(sum(seconds), 3) if seconds else None,
        }
        if self.left or self.stop_after is not None:
            event |= _part(job_ids, jobs, goal) | {"counters": watcher.trust.to_json()}


def _part(job_ids: list[str], jobs: list[Job], goal: WaitGoal) -> dict[str, Any]:
    """Return what a worker needs to go on: numbers in place of ids, since there may be many."""
    ended = {job.id: job for job in jobs}
    numbered = [(number, ended[job_id]) for number, job_id in enumerate(job_ids) if job_id in ended]
    failed = [number for number, job in numbered if job.status is not JobStatus.COMPLETED]
    part: dict[str, Any] = {"jobs": len(job_ids), "failures": goal.failures, "is_broken": goal.is_broken}
    if len(ended) < len(set(job_ids)):
        part |= {"outcome": "part", "ended": format_ranges(number for number, _ in numbered)}
    if len(failed) > MAX_JOBS_IN_EVENT:
        part["failed"] = format_ranges(failed)
    return part
