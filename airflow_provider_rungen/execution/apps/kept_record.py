"""Keeps the record of what a task has done to an app."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.workers import ScaleRecord
from airflow_provider_rungen.execution.apps.block import read_scale_record
from airflow_provider_rungen.execution.task.attempts import Attempt
from airflow_provider_rungen.execution.task.xcom_keys import SCALED_KEY

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)


class KeptRecord:
    """
    The record of an attempt that scales an app.

    It is an XCom, for the worker after a deferral and for the teardown. Airflow wipes that when an attempt
    starts, so the record is in the task state store, too (Airflow 3.3).

    :param run: the attempt.
    :param store: Airflow's task state store, if there is one.
    """

    def __init__(self, run: TaskRun[Any], store: Any) -> None:
        self._run = run
        self._store = store
        #: What this attempt and those before it have done to the app.
        self.record = ScaleRecord("")
        #: Why it could not be read.
        self.unread: Exception | None = None
        # see `ScaleRecord`
        self._clear_number = self._attempt.clear_number

    @property
    def _attempt(self) -> Attempt:
        return Attempt.of(self._run.context, self._run.task)

    @property
    def is_old(self) -> bool:
        """Whether the task was cleared after the record was written."""
        return self._attempt.was_cleared_after(self._clear_number)

    def begin_again(self) -> None:
        """Note that what is written from now on is of after the clear."""
        self._clear_number = self._attempt.clear_number

    def load(self, *, was_deferred: bool) -> None:
        """Load the record of this attempt after a deferral, and otherwise that of an earlier one."""
        # until it is read, the app may have any number
        app = self._run.known_app_id or f"of connection {self._run.options.rungen_conn_id}"
        self.record = ScaleRecord(app, sent_at=time.time())
        found = self._read(partial(self._run.xcom_pull, SCALED_KEY)) if was_deferred else None
        if found is None and self._store is not None:
            found = self._read(partial(self._store.get, SCALED_KEY))
            if found is not None:
                self._clear_number = found.clear_number
                if self.is_old and not found.was_raised:  # otherwise it may still be up
                    found = found.after_clear(None)
                    self.begin_again()
                self.note(found)  # Airflow has wiped the XCom
        if found is not None:
            self.record, self.unread = found, None
        elif self.unread is None:
            self.record = ScaleRecord("")

    def _read(self, call: Callable[[], Any]) -> ScaleRecord | None:
        try:
            return read_scale_record(self._run.guard.call_patiently("read what was done to the app", call))
        except Exception as error:
            if self._run.guard.is_killed:
                raise
            self.unread = error
            return None

    def save(self, record: ScaleRecord) -> None:
        """Save what is about to be done."""
        self._run.guard.call_patiently("save what is about to be done", partial(self.write, record))
        self.record = record

    def note(self, record: ScaleRecord) -> None:
        """Save what was done. The bill is not worth a failure."""
        self.record = record
        try:
            self.write(record)
        except Exception as error:
            log.warning("Could not save the workers of the app for its bill: %s", type(error).__name__)

    def write(self, record: ScaleRecord) -> None:
        """Write it where it is kept."""
        was_cleared, clear_number = self._attempt.was_cleared, self._clear_number
        value = replace(record, was_cleared=was_cleared, clear_number=clear_number).to_json()
        self._run.ti.xcom_push(key=SCALED_KEY, value=value)
        if self._store is not None:
            self._store.set(SCALED_KEY, value)
