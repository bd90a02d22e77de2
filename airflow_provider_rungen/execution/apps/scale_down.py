"""Scale apps to zero at the end of a run, unless another task or run needs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin, ends_within
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.scaling import ask_app, set_workers
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.client.workers import ScaleRecord, is_down, workers_of
from airflow_provider_rungen.exceptions import RunGenNotFoundError
from airflow_provider_rungen.execution.apps import block
from airflow_provider_rungen.execution.apps.bill import Bill
from airflow_provider_rungen.execution.apps.lifecycle import still_billed
from airflow_provider_rungen.execution.task.attempts import Attempt, states_in_run
from airflow_provider_rungen.execution.task.report import TaskOutcome
from airflow_provider_rungen.execution.task.run import TaskRun
from airflow_provider_rungen.execution.task.store_writer import reason_of
from airflow_provider_rungen.execution.task.xcom_keys import BILL_KEY

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that Airflow may take for the links, and for the bill. One that is only slow is waited for:
# ``dag.test()`` answers one thread at a time.
_REPORT_TIME = 20.0


class ScaleDownRun(TaskRun[Any]):
    """An attempt of the teardown of ``scaled_app``."""

    #: What the setup has done, and whether its record was found.
    _record = ScaleRecord("")
    _is_known = True
    #: The record of before a clear, if the setup has not run since.
    _old: ScaleRecord | None = None

    def execute(self) -> None:
        """
        Scale the app to zero, and see that it reports so.

        :raises RunGenAppError: it may still have workers, and be billed. A retry may always help.
        """
        with self.attempt():
            try:
                with self.guard.working():
                    is_due = self._is_due()
                    is_final = not is_due or self._scale_down()
            except Exception as error:
                app = f"of connection {self.options.rungen_conn_id}"
                failure = still_billed(self._record.app_id, error, app)
                if not self.guard.is_killed:  # it has other things to do in its last seconds
                    self._report(is_final=False)
                raise failure from None
            if not is_due:
                log.info("Nothing to scale down: this run did not scale the app up")
            if is_due or self._is_known:
                self._report(is_final=is_final)

    def _is_due(self) -> bool:
        """Read what the setup has done, and return whether there is something to scale down."""
        setup = self.task.scale_up_task_id
        self._record = ScaleRecord(self.known_app_id)
        read = partial(block.pull_record, self.ti, setup, self.ti.map_index)
        record = self._ask_airflow("read what the setup did", read, None)
        self._is_known = record is not None
        if record is not None:
            self._record = record
            if record.active_workers is None:
                return False
        started = self._ask_airflow("ask whether the setup started", self._has_setup_started, True)
        # one that waits for a retry when the run is marked is skipped, too
        attempt = Attempt.of(self.context, self.task)
        if record is not None and not started and attempt.was_cleared_after(record.clear_number):
            self._old, self._record = record, record.after_clear(None)
        for name, error in self.task.unrendered.items():
            log.warning("Could not render %s: %s", name, reason_of(error))
            if name == "app_id" and started and record is None:
                raise error
        return started or record is not None

    def _ask_airflow(self, purpose: str, call: Callable[[], T], otherwise: T) -> T:
        """Ask Airflow. If it fails for too long, the app is scaled down without an answer."""
        try:
            return self.guard.call_patiently(purpose, call)
        except Exception as error:
            if self.guard.is_killed:
                raise
            log.warning("Could not %s: %s; going on without", purpose, reason_of(error))
            return otherwise

    def _has_setup_started(self) -> bool:
        return any(map(block.has_started, states_in_run(self.ti, self.task.scale_up_task_id)))

    def _scale_down(self) -> bool:
        """Scale the app down as far as nobody needs it, and return whether it is down."""
        with self.opened():
            app_id = self._record.app_id or self.app_id
            self._record = replace(self._record, app_id=app_id)
            self.note_app(app_id)
            return self._set_to_zero(app_id)

    def _report(self, *, is_final: bool) -> None:
        """Push the links and the bill. Airflow may hang, and nobody kills a teardown."""
        if self.is_connected and self._record.app_id and not self.links:
            self._link_briefly(self._record.app_id)
        push = begin(self._push_bill, self._record, is_final=is_final)
        ends_within(_REPORT_TIME, push, self.guard.is_stopping)

    def _link_briefly(self, app_id: str) -> None:
        ends_within(_REPORT_TIME, begin(self.link_to, app_id), self.guard.is_stopping)

    def _set_to_zero(self, app_id: str) -> bool:
        try:
            app, needs = self._ask(app_id)
            has = workers_of(app)
            if self._old is not None:
                self._record = self._old.after_clear(None if needs else app)
            self._record = self._record.seen(app, time.time())
            # a single answer that has no more than others need may be old, if this one had more
            own = self._record.active_workers or 0
            is_needed = has is not None and (has < needs.workers or has == needs.workers >= own)
            if needs and is_needed:
                needs.warn(app_id, has)
                return False
            needs.warn(app_id)
            ask = block.asking(self, app_id, needs)
            pause = self.task.poll_interval
            app = self.hook.perform(set_workers(app_id, needs.workers, ask=ask, poll_interval=pause))
            if not needs and not is_down(app):
                return False
            log.info("Scaled to %s %s", format_count(needs.workers, "worker"), format_ids(app_id))
        except RunGenNotFoundError:
            log.info("Gone already %s", format_ids(app_id))
            needs = block.Needs()
            if Attempt.of(self.context, self.task).was_cleared_after(self._record.clear_number):
                self._record = self._record.after_clear(None)  # nothing has scaled it up since
        self._record = self._record.settled(needs.workers, time.time())
        return not needs

    def _ask(self, app_id: str) -> tuple[App, block.Needs]:
        """Return the app, and who needs it then: other runs may begin while the service is waited for."""
        return self.hook.perform(ask_app(app_id)), block.ask_needs(self, app_id)

    def _push_bill(self, record: ScaleRecord, *, is_final: bool) -> None:
        """Push and log what the block cost. It is not worth a failure."""
        app_id = record.app_id
        if not self._is_known:
            log.warning("No bill: it is unknown what the setup has done %s", format_ids(app_id))
            return
        try:
            bill = Bill(app_id, record.history, time.time(), is_final, self.find_price())
            self.ti.xcom_push(key=BILL_KEY, value=bill.to_json())
            log.info("%s", bill)
            self.record_outcome(TaskOutcome(app_id, (), bill=bill.to_json()))
            if is_final:
                bill.send_metrics()
        except Exception as error:
            line = "No bill: %s %s"
            log.warning(line, type(error).__name__, format_ids(app_id), exc_info=True)
