"""Bring an app to a number of workers, and back when something goes wrong."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from airflow_provider_rungen._airflow import TaskDeferred
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.endpoints import get_app, scale_app
from airflow_provider_rungen.client.retry import RETRY_BUDGET
from airflow_provider_rungen.client.scaling import (
    AppTarget,
    LoweredError,
    ask_app,
    outlast_404,
    restore_workers,
    set_workers,
)
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.client.workers import ScaleRecord, workers_of
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError, RunGenError, RunGenInputError
from airflow_provider_rungen.execution.apps.app_wait import wait_or_defer
from airflow_provider_rungen.execution.apps.scale_record import KEY, is_needed, read_scale_record
from airflow_provider_rungen.execution.task import attempts
from airflow_provider_rungen.execution.task.outcomes import raise_for_event
from airflow_provider_rungen.execution.task.run import TaskRun, fail_without_retry

log = logging.getLogger(__name__)


class ScaleRun(TaskRun[Any]):
    """
    An attempt that scales an app.

    Its record is an XCom, for the worker after a deferral and for the teardown. Airflow wipes that when an
    attempt starts, so the record is in the task state store, too (Airflow 3.3).
    """

    _record: ScaleRecord | None = None

    def execute(self) -> str:
        """
        Set the number of workers, and wait for the app.

        :return: the app's id.
        """
        task = self.task
        with fail_without_retry(), self.opened():
            app_id = self.app_id
            self.link_to(app_id)
            if not is_wanted(task.only_if):
                return self._leave(app_id)
            wanted = whole_number(task.active_workers, "active_workers")
            deadline = self.deadline(time.time() + task.timeout)
            with self._restoring():
                is_up = self._set_workers(app_id, wanted, deadline)
                if is_up and task.wait_until_running:
                    target, raised = AppTarget(app_id, active_workers=wanted), self._raised
                    defer_at = time.time() + task.defer_after if task.deferrable else math.inf
                    to_undo = None if raised is None else raised.to_json()
                    wait_or_defer(self, target, defer_at=defer_at, deadline=deadline, raised=to_undo)
                return self._finish(app_id)

    def complete(self, event: Mapping[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the app's id.
        """
        with fail_without_retry(), self.opened():
            self.note_app(event.get("app_id") or self.known_app_id)
            self._record = read_scale_record(self.xcom_pull(KEY))
            with self._restoring():
                raise_for_event(event)
                return self._finish(event.get("app_id") or self.app_id)

    def _leave(self, app_id: str) -> str:
        """Leave the app as it is. If an earlier attempt scaled it up, the teardown needs to know."""
        log.info("Nothing to run (only_if): left as it is %s", format_ids(app_id))
        earlier = self._load(app_id)
        self._save(earlier if earlier.was_raised else ScaleRecord(app_id))
        return app_id

    def _set_workers(self, app_id: str, wanted: int, deadline: float) -> bool:
        """Set the number if need be, with a record before, and return whether the app goes up."""
        earlier = self._load(app_id)
        app = self.hook.perform(outlast_404(app_id, partial(get_app, app_id)))
        now = time.time()
        has = before = workers_of(app)
        if has is not None and wanted < has and self.task.is_setup and is_needed(self.context, app_id):
            wanted = has
        if earlier.was_raised and has in (None, earlier.active_workers):
            workers = format_count(earlier.active_workers, "worker")
            log.info("Resuming: an earlier attempt scaled to %s %s", workers, format_ids(app_id))
            before = earlier.before
        history = earlier.seen(app, now).history
        record = ScaleRecord(app_id, wanted, before, None if has == wanted else now, history)
        self._save(record)
        if has == wanted:
            log.info("Has %s already %s", format_count(wanted, "worker"), format_ids(app_id))
            return wanted > 0
        workers = f"{format_count(has, 'worker')} to {format_count(wanted, 'worker')}"
        log.info("Scaling from %s %s", workers, format_ids(app_id))
        self._note(record.confirmed(self._send(record, deadline)))
        self.guard.check()  # a kill may have come while Airflow was asked
        return record.was_raised

    def _send(self, record: ScaleRecord, deadline: float) -> float:
        """Set the number, and return the first time (seconds since 1970) at which that may have happened."""
        app_id, wanted, since = record.app_id, record.active_workers or 0, time.time()
        try:
            if not record.was_raised:
                self.hook.perform(set_workers(app_id, wanted, poll_interval=self.task.poll_interval))
                return since
            budget = min(RETRY_BUDGET, max(deadline - since, 0))
            scale = partial(scale_app, app_id, wanted, retry_budget=budget)
            app = self.hook.perform(outlast_404(app_id, scale, within=budget))
        except RunGenError as error:
            # refused, but perhaps not the first time it was sent, when the answer was lost
            has = None if error.retryable else workers_of(self.hook.perform(ask_app(app_id)))
            if has is not None and has == record.before:
                self._note(record.settled(has, since))
            raise
        changed_at = 0.0 if app.updated_at is None else app.updated_at.timestamp()
        # the clock of the service may differ
        return changed_at if since <= changed_at <= time.time() else since

    def _finish(self, app_id: str) -> str:
        if self._store is not None:
            self._store.delete(KEY)  # it got there: from now on this is what it had
        return app_id

    # --- the record ---

    @property
    def _store(self) -> Any:
        """Airflow's task state store, where there is one."""
        return self.context.get("task_state_store")

    def _load(self, app_id: str) -> ScaleRecord:
        """Return what earlier attempts have done to the app."""
        earlier = None if self._store is None else read_scale_record(self._store.get(KEY))
        return earlier if earlier is not None and earlier.app_id == app_id else ScaleRecord(app_id)

    def _save(self, record: ScaleRecord) -> None:
        """Save what is about to be done."""
        self.ti.xcom_push(key=KEY, value=record.to_json())
        if self._store is not None:
            self._store.set(KEY, record.to_json())
        self._record = record

    def _note(self, record: ScaleRecord) -> None:
        """Save what was done. The bill is not worth a failure."""
        self._record = record
        try:
            self._save(record)
        except Exception as error:
            log.warning("Could not save the workers of the app for its bill: %s", type(error).__name__)

    # --- when something goes wrong ---

    @property
    def _raised(self) -> ScaleRecord | None:
        """What is restored when something goes wrong."""
        record = self._record
        is_restored = self.task.scale_down_on_failure and record is not None and record.was_raised
        return record if is_restored else None

    def cleanup(self) -> str:
        """
        Restore the number of workers, unless the next attempt goes on with the app.

        An attempt may be asked to stop because it was cut off, after its successor began to wait for the app.
        """
        raised, self._record = self._raised, None
        if raised is None:
            return ""
        if self._is_left_to_next():
            workers = format_count(raised.active_workers, "worker")
            return f"STILL BILLED: app {raised.app_id} keeps {workers} for the next attempt, which resumes."
        within = max(self.guard.time_left() - 1, 1)
        self.hook.perform_with_deadline(restore_workers(raised, within=within), within=within)
        return ""

    def _is_left_to_next(self) -> bool:
        is_resumed = self._store is not None and attempts.Attempt.of(self.context, self.task).has_next
        return (
            is_resumed
            and not attempts.is_timing_out()
            and not attempts.was_ended_by_user(attempts.ask_for_state(self.ti))
        )

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        """Restore the number of workers when anything goes wrong."""
        try:
            yield
        except TaskDeferred:
            raise
        except LoweredError as error:
            if self._raised is not None:
                log.warning("Left as somebody else has set it %s", format_ids(error.app_id))
            raise
        except BaseException as error:
            raised = self._raised
            if raised is not None and not self.guard.is_killed:  # then cleanup() has decided
                self._note(self.hook.perform(restore_workers(raised)))
                if self._raised is not None and isinstance(error, RunGenError):
                    error.retryable = True  # the next attempt resumes with the app, or restores it
            if isinstance(error, RunGenAppTimeoutError):
                error.hint = f"Raise timeout (now {format_duration(self.task.timeout)}) if it needs longer"
            raise


def whole_number(value: Any, name: str) -> int:
    """
    Return a number of workers, which a template may have made text.

    :raises RunGenInputError: it is not a whole number from 0.
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RunGenInputError(f"{name} must be a whole number from 0, not {value!r}; nothing was sent")
    return value


def is_wanted(value: Any) -> bool:
    """
    Return whether there is something to run: a number or a boolean, which a template may have made text.

    :raises RunGenInputError: it is neither.
    """
    if isinstance(value, str):
        words = {"": False, "none": False, "false": False, "true": True}
        value = words.get(value.strip().lower(), value)
    return value is not None and (value if isinstance(value, bool) else whole_number(value, "only_if") > 0)
