"""The operator that sets how many workers an app has."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen._airflow import TaskDeferred, conf
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.endpoints import get_app, scale_app
from airflow_provider_rungen.client.scaling import (
    CONFIRM_TIME,
    AppTarget,
    ScaleRecord,
    not_lowered,
    restore_workers,
    set_workers,
    wait_for_app,
    workers_of,
)
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError, RunGenError, RunGenInputError
from airflow_provider_rungen.execution.attempts import (
    Attempt,
    ask_for_state,
    is_timing_out,
    was_ended_by_user,
)
from airflow_provider_rungen.execution.task import (
    RunGenTask,
    deadline_of,
    fail_without_retry,
    kill_time,
)
from airflow_provider_rungen.execution.waiting import GRACE, raise_for_event
from airflow_provider_rungen.hooks.connection import seconds
from airflow_provider_rungen.hooks.rungen import RunGenHook

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

#: The key, in XCom and in Airflow's task state store, of what was done to the app.
KEY = "scaled"


class RunGenScaleAppOperator(RunGenTask):
    """
    Bring an app to a number of workers; going up, wait until it is ``RUNNING``. Return the app's id.

    An app that has the number already is sent nothing. The bill runs from the first worker until the number
    is 0; `scaled_app` makes sure that it gets there.

    :param active_workers: the number of workers to have; 0 stops the app and its bill (templated).
    :param app_id: the app; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_until_running: going up, wait until the app is ``RUNNING``.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to wait on the worker first; a deferral takes longer than that.
    :param poll_interval: seconds between two looks at the app.
    :param timeout: seconds that the app may take to be ``RUNNING``.
    :param scale_down_on_failure: when the app does not get there in time, or the task fails or is killed or
        cleared on the way, lower what was raised to what it was before.
    """

    template_fields: Sequence[str] = ("app_id", "active_workers", "rungen_conn_id")

    # what is to be lowered again when something goes wrong
    _raised: ScaleRecord | None = None
    # the attempt that runs, if what it did to the app is in the task state store for the next one
    _attempt: Attempt | None = None

    def __init__(
        self,
        *,
        active_workers: Any,
        app_id: Any = None,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        wait_until_running: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float | timedelta = 5,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta = 1800,
        scale_down_on_failure: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.active_workers = active_workers
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.wait_until_running = wait_until_running
        self.deferrable = deferrable
        self.defer_after = seconds(defer_after, "defer_after", or_none=True)
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")
        self.scale_down_on_failure = scale_down_on_failure

    def execute(self, context: Context) -> str:
        """
        Set the number, and wait.

        :return: the app's id.
        """
        with fail_without_retry(), self._working(context) as hook:
            app_id = hook.resolve_app_id(self.app_id)
            self._link_to(context, hook, app_id)
            wanted = whole_number(self.active_workers, "active_workers")
            deadline = deadline_of(self, time.time() + self.timeout)
            with self._lowering(context, hook):
                is_up = self._set(context, hook, app_id, wanted)
                if is_up and self.wait_until_running:
                    self._wait(hook, AppTarget(app_id, active_workers=wanted), deadline)
                return self._finish(context, app_id)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the app's id.
        """
        ti = context["ti"]
        with fail_without_retry(), self._working(context) as hook:
            self._note(
                ScaleRecord.from_json(ti.xcom_pull(task_ids=ti.task_id, key=KEY, map_indexes=ti.map_index))
            )
            if context.get("task_state_store") is not None:
                self._note_attempt(context)
            with self._lowering(context, hook):
                raise_for_event(event)
                return self._finish(context, event.get("app_id") or hook.resolve_app_id(self.app_id))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; when Airflow ended it without an event, the app is lowered, too."""
        if next_method == "__fail__":
            reason = (next_kwargs or {}).get("error", "unknown")
            message = f"Airflow ended the wait for the RunGen app in the triggerer: {reason}"
            return self.execute_complete(context, {"app_id": "", "outcome": "error", "message": message})
        return super().resume_execution(next_method, next_kwargs, context)

    def _set(self, context: Context, hook: RunGenHook, app_id: str, wanted: int) -> bool:
        """Set the number if need be, leaving a trace before; tell whether the app goes up."""
        store = context.get("task_state_store")
        app = hook.get_app(app_id=app_id)
        before = workers_of(app)
        raised = ScaleRecord(app_id, wanted, before, time.time())
        kept = ScaleRecord.from_json(store.get(KEY)) if store is not None else None
        is_ours = kept is not None and kept.was_raised and before in (None, kept.active_workers)
        if kept is not None and kept.app_id == app_id and is_ours:
            said = "An earlier attempt set RunGen app %s to %d active workers: going on"
            log.info(said, app_id, kept.active_workers)
            raised = replace(kept, active_workers=wanted)
            self._note_attempt(context)
        # for the next attempt, for the worker after a deferral, and for the teardown of scaled_app
        context["ti"].xcom_push(key=KEY, value=raised.to_json())
        self._note(raised)
        if before == wanted:
            log.info("RunGen app %s has %d active workers already", app_id, wanted)
            return wanted > 0
        if store is not None:
            store.set(KEY, raised.to_json())
            self._note_attempt(context)
        log.info(
            "Setting RunGen app %s to %d active workers; it had %s",
            *(app_id, wanted, "an unknown number" if before is None else before),
        )
        try:
            if raised.was_raised:
                hook.perform(scale_app(app_id, wanted))
            else:
                by = time.time() + CONFIRM_TIME
                hook.perform(
                    set_workers(app_id, wanted, poll_interval=min(self.poll_interval, 5), deadline=by)
                )
        except RunGenError as error:
            # refused; but perhaps not the first time it was sent, whose answer was lost
            if not error.retryable and _has(hook, raised.before, app_id):
                self._raised = None
            raise
        return raised.was_raised

    def _note_attempt(self, context: Context) -> None:
        self._ti, self._attempt = context["ti"], Attempt.of(context, self)

    def _note(self, raised: ScaleRecord | None) -> None:
        if self.scale_down_on_failure and raised is not None and raised.was_raised:
            self._raised = raised

    def _wait(self, hook: RunGenHook, goal: AppTarget, deadline: float) -> None:
        limit = min(time.time() + self.defer_after, deadline) if self.deferrable else deadline
        try:
            hook.perform(wait_for_app(goal, poll_interval=self.poll_interval, deadline=limit))
        except RunGenAppTimeoutError:
            if time.time() >= deadline:
                raise
            self._defer(goal, deadline)

    def _defer(self, goal: AppTarget, deadline: float) -> NoReturn:
        from airflow_provider_rungen.triggers.rungen import RunGenAppTrigger

        now = time.time()
        log.info("Waiting for RunGen app %s in the triggerer", goal.app_id)
        self.defer(
            trigger=RunGenAppTrigger(
                rungen_conn_id=self.rungen_conn_id,
                app_id=goal.app_id,
                status=goal.status,
                active_workers=goal.active_workers,
                poll_interval=self.poll_interval,
                deadline=deadline,
                deferred_at=now,
                raised=None if self._raised is None else self._raised.to_json(),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(deadline - now, 0)) + GRACE,
        )

    def _finish(self, context: Context, app_id: str) -> str:
        if (store := context.get("task_state_store")) is not None:
            store.delete(KEY)  # it got there: from now on this is what it was
        return app_id

    @contextmanager
    def _lowering(self, context: Context, hook: RunGenHook) -> Iterator[None]:
        """Lower again what was raised, when anything goes wrong."""
        try:
            yield
        except TaskDeferred:
            raise
        except RunGenAppTimeoutError as error:
            self._lower(context, hook)
            hint = f"Raise timeout (now {format_duration(self.timeout)}) if it needs longer"
            raise RunGenAppTimeoutError(error.message, app_id=error.app_id, hint=hint) from None
        except BaseException:
            if not self._is_killed:  # then on_kill has decided
                self._lower(context, hook)
            raise

    def _lower(self, context: Context, hook: RunGenHook) -> None:
        if self._raised is None:
            return
        try:
            hook.perform(restore_workers(self._raised))
        except RunGenError as error:
            log.error("%s", not_lowered(self._raised, error))
            return
        self._raised = None
        if (store := context.get("task_state_store")) is not None:
            store.delete(KEY)

    def _abandon(self, hook: RunGenHook) -> None:
        """
        Lower again what was raised, unless the next attempt goes on with it.

        An attempt may be told to stop because it was cut off, after its successor began to wait for the app.
        """
        raised = self._raised
        if raised is None:
            return
        begun_at, within = time.monotonic(), kill_time()
        if self._is_left_to_the_next():
            self._last_words = (
                f"RunGen app {raised.app_id} is left at {raised.active_workers} active workers, which are "
                "billed: the next attempt goes on with it."
            )
            return
        within = max(within - (time.monotonic() - begun_at) - 1, 1)
        try:
            hook.perform_with_deadline(restore_workers(raised, patience=within / 4), within=within)
            self._raised = None
        except RunGenError as error:
            log.error("%s", not_lowered(raised, error))

    def _is_left_to_the_next(self) -> bool:
        attempt = self._attempt
        if attempt is None or not attempt.has_next or is_timing_out():
            return False
        if self._state_at_kill is None:
            self._state_at_kill = (ask_for_state(self._ti),)
        [state] = self._state_at_kill
        return not was_ended_by_user(state)


def _has(hook: RunGenHook, before: int | None, app_id: str) -> bool:
    """Tell whether an app tells the number of workers that it had before."""
    try:
        return workers_of(hook.perform(get_app(app_id, attempts=1))) == before
    except RunGenError:
        return False


def whole_number(value: Any, name: str) -> int:
    """
    Give a number of workers, which a template may have made text.

    :raises RunGenInputError: it is none.
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RunGenInputError(f"{name} must be a whole number from 0, not {value!r}; nothing was sent")
    return value
