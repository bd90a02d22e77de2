"""Waits in the triggerer and yields one small event: ids, status words and error texts, no URLs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_rungen._airflow import TaskInstanceState, metrics
from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.models import JobStatus, clean_text
from airflow_provider_rungen.client.scaling import (
    AppTarget,
    ScaleRecord,
    not_lowered,
    restore_workers,
)
from airflow_provider_rungen.client.transport import gather_limited
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppTimeoutError,
    RunGenError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution.attempts import CLEAR_DISCARDS_STATE
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.links.rungen import (
    RunGenAppLink,
    RunGenJobLink,
    app_url,
    job_url,
)
from airflow_provider_rungen.triggers.task_instances import AttemptOverError, pushed_job_ids
from airflow_provider_rungen.triggers.task_instances import task_state as _read_state
from airflow_provider_rungen.triggers.watcher import shared_poller

if TYPE_CHECKING:
    from airflow_provider_rungen.client.settings import Settings

log = logging.getLogger(__name__)

# Airflow loses a deferred task whose trigger fires while the deferring process is still going down
# (apache/airflow #72716, #71580).
SETTLING_TIME = 6.0
# Airflow gives on_kill 30 s. In the first part of it, the next attempt may take up the jobs of this one.
TAKE_UP_TIME = 8.0
CANCEL_TIME = 20.0
# The states of a task that no attempt follows. One that was cleared has none at first.
_ENDED = (
    TaskInstanceState.SUCCESS,
    TaskInstanceState.FAILED,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)
# Airflow logs events: of more jobs, ids and errors are left out, and fetched again on the worker.
FEW = 100
_kills: set[asyncio.Task[None]] = set()


class RunGenTrigger(BaseTrigger):
    """What the triggers have in common: when they fire, that they never raise, and what a kill does."""

    rungen_conn_id: str
    app_id: str | None
    deferred_at: float

    def _start(self, unknown: Mapping[str, Any]) -> None:
        """Begin as a trigger does; note what another version of the package kept for it in the database."""
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        if unknown:
            log.warning(
                "%s ignores %s, which another version of airflow-provider-rungen kept for it",
                *(type(self).__name__, ", ".join(sorted(unknown))),
            )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            event = await self._event()
            await asyncio.sleep(self.deferred_at + SETTLING_TIME - time.time())
        except asyncio.CancelledError:
            if not hasattr(BaseTrigger, "on_kill"):  # before Airflow 3.3 nobody else would call it
                await self.on_kill()
            raise
        yield self._fired(event)

    async def _event(self) -> dict[str, Any]:
        event: dict[str, Any] = {"app_id": self.app_id or ""}
        try:
            await self._wait(event)
        except (RunGenJobTimeoutError, RunGenAppTimeoutError) as error:
            event |= {"outcome": "timeout", "message": error.message}
        except RunGenError as error:
            event |= {
                "outcome": "error",
                "message": error.message,
                "hint": error.hint,
                "retryable": error.retryable,
            }
            if isinstance(error, RunGenAPIError):
                event["status_code"] = error.status_code
        except Exception as error:
            # a trigger that raises reaches the task as a bare TaskDeferralError
            log.exception("Waiting for RunGen failed")
            message = f"{type(error).__name__} in the triggerer: {clean_text(str(error))}"
            event |= {"outcome": "error", "message": message, "retryable": True}
        return event

    async def _wait(self, event: dict[str, Any]) -> None:
        """Wait, and add to the event what came of it."""
        raise NotImplementedError

    def _fired(self, event: dict[str, Any]) -> TriggerEvent:
        return TriggerEvent(event)

    async def on_kill(self) -> None:
        """
        Undo what a kill makes useless, if the task is really no longer deferred.

        A trigger that ends because the triggerer stops, or because it moved to another one, leaves its task
        deferred, and it is still waited for.
        """
        if not self._undoes:
            return
        work = asyncio.create_task(self._undo_if_killed())
        _kills.add(work)
        work.add_done_callback(_kills.discard)
        while not work.done():
            # Airflow cancels an ending trigger anew each second, on_kill included (seen on 3.3.2)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(work)

    @property
    def _undoes(self) -> bool:
        """Whether there is anything to undo."""
        raise NotImplementedError

    async def _undo_if_killed(self) -> None:
        try:
            state = await _ask_airflow(_read_state, self.task_instance)
        except Exception:
            log.exception("The state of the task is not known: RunGen is left as it is")
            return
        try:
            async with asyncio.timeout(CANCEL_TIME), RunGenHook(self.rungen_conn_id) as hook:
                await self._undo(hook, state)
        except Exception as error:
            log.error("%s: %s", self._left_behind(), str(error) or type(error).__name__)

    def _left_behind(self) -> str:
        """Describe what may still run or be billed when it could not be undone."""
        raise NotImplementedError

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Undo what the state of the task makes useless."""
        raise NotImplementedError


class RunGenJobTrigger(RunGenTrigger):
    """
    Waits until jobs are over, however they end.

    The event is ``{"outcome": "over", "unsuccessful": [{"id", "status", "error"}, …], "count"}``, or
    ``{"outcome": "timeout" | "error", "message", …}``, with the ``app_id``, and a few ``job_ids``, not many.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out.
    :param job_id: the jobs to wait for: one id, a list, or the text that a template makes of a list.
    :param poll_interval: seconds between two looks at a job.
    :param timeout: seconds to wait at most, from the start of the task; used without a ``deadline``.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param deferred_at: the time (seconds since 1970) of the deferral, if a worker deferred the task.
    :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
    :param held_back: until when (seconds since 1970) the service asked not to be asked, by job.
    :param cancel_on_kill: cancel the jobs when a user marks or clears the task.
    :param on_clear: what becomes of the jobs of a task that is cleared: ``new`` cancels them, ``resume``
        leaves them to the next attempt.
    :param end_from_trigger: end the task here when all jobs completed.
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
        deferred_at: float = 0,
        known_by: float = 0,
        held_back: dict[str, float] | None = None,
        cancel_on_kill: bool = False,
        on_clear: str = "new",
        end_from_trigger: bool = False,
        **unknown: Any,
    ) -> None:
        self._start(unknown)
        self.rungen_conn_id = rungen_conn_id
        self.app_id = app_id
        self.job_id = job_id
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.deadline = deadline
        self.deferred_at = deferred_at
        self.known_by = known_by
        self.held_back = held_back
        self.cancel_on_kill = cancel_on_kill
        self.on_clear = on_clear
        self.end_from_trigger = end_from_trigger

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"airflow_provider_rungen.triggers.{type(self).__name__}", {
            "rungen_conn_id": self.rungen_conn_id,
            "app_id": self.app_id,
            "job_id": self.job_id,
            "poll_interval": self.poll_interval,
            "timeout": self.timeout,
            "deadline": self.deadline,
            "deferred_at": self.deferred_at,
            "known_by": self.known_by,
            "held_back": self.held_back,
            "cancel_on_kill": self.cancel_on_kill,
            "on_clear": self.on_clear,
            "end_from_trigger": self.end_from_trigger,
        }

    def _fired(self, event: dict[str, Any]) -> TriggerEvent:
        if self.end_from_trigger and event["outcome"] == "over" and not event["count"]:
            return TaskSuccessEvent()
        return TriggerEvent(event)

    @property
    def _undoes(self) -> bool:
        return self.cancel_on_kill

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Cancel the jobs that no attempt of the task waits for."""
        job_ids = rendered_job_ids(self.job_id)
        kept = await self._kept(job_ids, state)
        if kept:
            log.info("RunGen jobs are left to the attempt that waits for them: %s", ", ".join(kept[:FEW]))
        app_id = await hook.aresolve_app_id(self.app_id)
        rest = [job_id for job_id in job_ids if job_id not in set(kept)]
        await gather_limited(partial(self._cancel, hook, app_id), rest)

    def _left_behind(self) -> str:
        job_ids = rendered_job_ids(self.job_id)
        return f"RunGen jobs of app {self.app_id} that may still run: {', '.join(job_ids[:FEW])}"

    async def _kept(self, job_ids: list[str], state: str | None) -> list[str]:
        """
        Return the jobs that this attempt, on another triggerer, or a later one goes on waiting for.

        A task that is deferred may be so in its next attempt already, which has jobs of its own, or has taken
        up these: it has pushed the ids of its jobs.
        """
        may_resume = self.on_clear == "resume"
        give_up_at = time.monotonic() + TAKE_UP_TIME
        while state not in _ENDED:
            if state == TaskInstanceState.UP_FOR_RETRY:
                # this attempt ended on a worker, which decided about its jobs: a retry resumes what is left
                return job_ids
            if state in (TaskInstanceState.DEFERRED, TaskInstanceState.RUNNING):
                pushed = await self._pushed()
                if pushed is not None:
                    return [job_id for job_id in job_ids if job_id in pushed]
                if state == TaskInstanceState.DEFERRED:
                    return job_ids  # a sensor pushes none: it waits for the jobs of others
            if not may_resume and not CLEAR_DISCARDS_STATE:
                return []
            if time.monotonic() > give_up_at:
                # from Airflow 3.4 on, the next attempt most likely knows nothing of them
                return [] if CLEAR_DISCARDS_STATE else job_ids
            await asyncio.sleep(0.5)
            state = await _ask_airflow(_read_state, self.task_instance)
        return []

    async def _pushed(self) -> set[str] | None:
        try:
            found: set[str] | None = await _ask_airflow(pushed_job_ids, self.task_instance)
        except AttemptOverError:
            return set(rendered_job_ids(self.job_id)) if self.on_clear == "resume" else set()
        except Exception as error:
            log.warning("The jobs of the latest attempt are not known (%s)", type(error).__name__)
            return None
        return found

    async def _cancel(self, hook: RunGenHook, app_id: str, job_id: str) -> None:
        try:
            await hook.aperform(endpoints.cancel_job(app_id, job_id, patience=CANCEL_TIME))
            log.info("Canceled RunGen job %s", job_id)
        except RunGenError as error:
            log.warning("RunGen job %s was not canceled: %s", job_id, error)

    async def _link(self, settings: Settings, app_id: str, job_ids: list[str]) -> None:
        from airflow_provider_rungen._airflow import XCom

        ti: Any = self.task_instance
        links = {RunGenAppLink.key: app_url(settings, app_id)}
        if job_ids:
            links[RunGenJobLink.key] = job_url(settings, app_id, job_ids[0])
        for key, url in links.items():
            try:
                await XCom.aset(
                    key,
                    url,
                    dag_id=ti.dag_id,
                    task_id=ti.task_id,
                    run_id=ti.run_id,
                    map_index=ti.map_index,
                )
            except Exception as error:  # a task is not to fail for its links
                log.debug("The link to %s was not kept: %s", url, type(error).__name__)

    async def _wait(self, event: dict[str, Any]) -> None:
        job_ids = rendered_job_ids(self.job_id)
        event |= {"job_ids": job_ids} if len(job_ids) <= FEW else {}
        hook = RunGenHook(self.rungen_conn_id)
        event["app_id"] = await hook.aresolve_app_id(self.app_id)
        if not self.deferred_at:  # no worker has seen the task, and its connection, yet
            await self._link(await hook.asettings(), event["app_id"], job_ids)
        deadline = self.deadline
        if deadline is None:
            started = getattr(self.task_instance, "start_date", None)
            deadline = (started.timestamp() if started else time.time()) + self.timeout
        watcher = shared_poller(self.rungen_conn_id, event["app_id"])
        with metrics.timing("wait.triggerer"):
            jobs = await watcher.wait(
                job_ids,
                poll_interval=self.poll_interval,
                deadline=deadline,
                known_by=self.known_by,
                held_back=self.held_back or {},
            )
        unsuccessful = [
            {"id": job.id, "status": job.status.value, "error": job.error}
            for job in jobs
            if job.status is not JobStatus.COMPLETED
        ]
        event |= {"outcome": "over", "unsuccessful": unsuccessful[:FEW], "count": len(unsuccessful)}


class RunGenAppTrigger(RunGenTrigger):
    """
    Waits until an app has a status.

    The event is ``{"outcome": "there"}`` or ``{"outcome": "timeout" | "error", "message", …}``, with the
    ``app_id``.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app.
    :param status: the status to wait for, such as ``RUNNING``.
    :param active_workers: the number of workers that the app has to be set to at least, if that matters.
    :param poll_interval: seconds between two looks at the app.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param deferred_at: the time (seconds since 1970) of the deferral.
    :param raised: what to lower again when a user marks or clears the task, as `scaling.ScaleRecord.to_json`.
    :param unknown: what another version of the package kept in the database; it is ignored, and logged.
    """

    def __init__(
        self,
        *,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        app_id: str = "",
        status: str = "RUNNING",
        active_workers: int | None = None,
        poll_interval: float = 5,
        deadline: float = 0,
        deferred_at: float = 0,
        raised: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        self._start(unknown)
        self.rungen_conn_id = rungen_conn_id
        self.app_id = app_id
        self.status = status
        self.active_workers = active_workers
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.deferred_at = deferred_at
        self.raised = raised

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"airflow_provider_rungen.triggers.{type(self).__name__}", {
            "rungen_conn_id": self.rungen_conn_id,
            "app_id": self.app_id,
            "status": self.status,
            "active_workers": self.active_workers,
            "poll_interval": self.poll_interval,
            "deadline": self.deadline,
            "deferred_at": self.deferred_at,
            "raised": self.raised,
        }

    async def _wait(self, event: dict[str, Any]) -> None:
        goal = AppTarget(self.app_id or "", self.status, self.active_workers)
        watcher = shared_poller(self.rungen_conn_id, goal.app_id)
        await watcher.wait_for_app(goal, poll_interval=self.poll_interval, deadline=self.deadline)
        event["outcome"] = "there"

    @property
    def _undoes(self) -> bool:
        return self.raised is not None

    def _left_behind(self) -> str:
        return f"RunGen app {self.app_id} may still have the workers that this task gave it, and be billed"

    async def _undo(self, hook: RunGenHook, state: str | None) -> None:
        """Lower the app."""
        raised = ScaleRecord.from_json(self.raised)
        if raised is None:
            return
        if state in (TaskInstanceState.DEFERRED, TaskInstanceState.RUNNING):
            log.info("RunGen app %s is left to the attempt that waits for it", raised.app_id)
            return
        await hook.asettings()
        within = CANCEL_TIME * 0.8
        flow = restore_workers(raised, patience=within / 4)
        try:
            # a question without an answer must not take all the time
            await asyncio.to_thread(hook.perform_with_deadline, flow, within=within)
        except RunGenError as error:
            log.error("%s", not_lowered(raised, error))


def rendered_job_ids(job_id: Any) -> list[str]:
    """Give the ids of one, of a list, or of the text that a template makes of a list."""
    if isinstance(job_id, str) and job_id.startswith("["):
        with contextlib.suppress(ValueError, SyntaxError):
            job_id = ast.literal_eval(job_id)
    if job_id is None or job_id == "None":
        job_id = ""  # to be refused as an id that is empty
    if isinstance(job_id, str):
        return [job_id]
    ids = list(job_id)
    return [each for each in ids if each is not None] or [""] * len(ids)


async def _ask_airflow(question: Callable[[Any], Any], ti: Any) -> Any:
    # not asyncio.to_thread: Airflow 3.0 and 3.1 ask on this loop, which only asgiref finds there
    return await sync_to_async(question, thread_sensitive=False)(ti)
