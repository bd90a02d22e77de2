"""Bring an app to a number of workers, and back when something goes wrong."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

from airflow_provider_rungen._airflow import TaskDeferred
from airflow_provider_rungen.client.app_polling import AppTarget, LoweredError
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.retry import RETRY_BUDGET
from airflow_provider_rungen.client.scaling import (
    CONFIRM_TIME,
    ask_app,
    get_app_to_raise,
    restore_workers,
    set_workers,
)
from airflow_provider_rungen.client.texts import format_count, format_duration, format_ids
from airflow_provider_rungen.client.workers import ScaleRecord, changed_at_of, workers_of
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution.apps import block
from airflow_provider_rungen.execution.apps.kept_record import KeptRecord
from airflow_provider_rungen.execution.apps.lifecycle import is_wanted, wait_or_defer, whole_number
from airflow_provider_rungen.execution.task import attempts
from airflow_provider_rungen.execution.task.outcomes import error_to_json, raise_for_event
from airflow_provider_rungen.execution.task.run import TaskRun
from airflow_provider_rungen.execution.task.store_writer import reason_of
from airflow_provider_rungen.execution.task.xcom_keys import SCALED_KEY

log = logging.getLogger(__name__)


class ScaleRun(TaskRun[Any]):
    """An attempt that scales an app."""

    @cached_property
    def _kept(self) -> KeptRecord:
        return KeptRecord(self, self._store)

    @property
    def _record(self) -> ScaleRecord:
        """What this attempt and those before it have done to the app."""
        return self._kept.record

    def execute(self) -> str:
        """
        Set the number of workers, and wait for the app.

        :return: the app's id.
        """
        task = self.task
        with self._restoring():
            app_id = self.app_id
            self.link_to(app_id)
            wanted = whole_number(task.active_workers, "active_workers") if is_wanted(task.only_if) else None
            if self._kept.unread is not None:
                if wanted != 0:  # whatever was done before, this ends the bill
                    raise self._kept.unread
                self._kept.record = ScaleRecord(app_id)
            if self._record.app_id != app_id:
                if self._record.app_id:
                    self._leave_behind()
                self._kept.record = ScaleRecord(app_id)
            if wanted is None:
                return self._leave(app_id)
            deadline = self.deadline(time.time() + task.timeout)
            if wanted and self._down:
                block.check_teardown(self, self._down, app_id)
            is_up = self._set_workers(app_id, wanted, deadline)
            if is_up:
                target = AppTarget(app_id, active_workers=wanted, is_known=True)
                defer_at = time.time() if task.deferrable else math.inf
                raised = self._record.to_json() if self._is_to_restore else None
                undo = {"raised": raised, "blocks": list(map(asdict, self._blocks))}
                wait_or_defer(self, target, defer_at=defer_at, deadline=deadline, **undo)
            return self._finish(app_id)

    def complete(self, event: Mapping[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the app's id.
        """
        self.note_app(event.get("app_id") or self.known_app_id)
        with self._restoring(was_deferred=True):
            raise_for_event(event)  # an app that is up needs no record
            return self._finish(event.get("app_id") or self.app_id)

    def fail_deferral(self, reason: str) -> None:
        error = RunGenAppError(f"Airflow ended the wait for the app in the triggerer: {reason}")
        self.complete({"error": error_to_json(error)})

    def _leave(self, app_id: str) -> str:
        """Leave the app as it was. If an earlier attempt scaled it up, a teardown needs to know."""
        if not self.task.is_setup:
            self._restore("nothing has to run (only_if)")
        log.info("Nothing to run (only_if): left as it is %s", format_ids(app_id))
        record = self._record
        if not record.was_raised:
            # what it had up before a clear is not known any more: the teardown ends that
            unknown = 0 if self._attempt.was_cleared else None
            record = ScaleRecord(app_id, unknown, history=record.history)
        self._kept.save(record)
        return app_id

    @cached_property
    def _blocks(self) -> list[block.Block]:
        return block.blocks_of(self.context)

    @property
    def _down(self) -> str:
        """What scales the app down, in a block."""
        return next((each.down for each in self._blocks if each.up == self.task.task_id), "")

    @property
    def _attempt(self) -> attempts.Attempt:
        return attempts.Attempt.of(self.context, self.task)

    def _set_workers(self, app_id: str, wanted: int, deadline: float) -> bool:
        """Set the number if need be, with a record before, and return whether the app is to get up."""
        earlier = self._record
        if not wanted and not earlier.was_raised:
            self._kept.record = replace(earlier, active_workers=None, sent_at=time.time())  # until it is down
        app = self.hook.perform(get_app_to_raise(app_id, wanted))
        now = time.time()
        if self._kept.is_old:
            earlier = earlier.after_clear(app)
            self._kept.begin_again()
        has = before = most = workers_of(app)
        own, needs = wanted, block.Needs()
        if has not in (0, wanted) and self.task.is_setup:
            needs = block.ask_needs(self, app_id)
            if needs.workers > wanted and (has is None or wanted < has):
                needs.warn(app_id)
                wanted = max(wanted, min(has or needs.workers, needs.workers))
        if has != 0 and earlier.was_raised and earlier.covers(has):
            before, most = earlier.before, earlier.active_workers
            workers = format_count(most, "worker")
            log.info("Resuming: an earlier attempt scaled to %s %s", workers, format_ids(app_id))
        record = ScaleRecord(app_id, wanted, 0, None, earlier.seen(app, now).history)
        if has == wanted:
            log.info("Has %s already %s", format_count(wanted, "worker"), format_ids(app_id))
        else:
            workers = f"{format_count(has, 'worker')} to {format_count(wanted, 'worker')}"
            log.info("Scaling from %s %s", workers, format_ids(app_id))
        if has == wanted > 0:
            self._kept.save(record if own == wanted else replace(record, active_workers=own, before=own))
            return True
        # that it has none may be old news: only a request makes sure that nothing is billed
        unconfirmed = replace(record, active_workers=max(wanted, most or 0) or None, sent_at=now)
        if wanted:
            self._kept.save(unconfirmed)
        else:  # what ends the bill does not wait for Airflow
            self._kept.record = unconfirmed
        ask = block.asking(self, app_id, needs, own, wanted) if self.task.is_setup else None
        if (sent := self._send(record, before, deadline, ask)) is not None:
            since, app = sent
            is_whole = workers_of(app) in (None, wanted)
            self._kept.note(record.confirmed(since) if is_whole else record.seen(app, since))
        if own < wanted:
            self._kept.note(replace(self._record, active_workers=own, before=own))
        self.guard.check()  # a kill may have come while Airflow was asked
        return record.was_raised or bool(own and self.task.is_setup)

    def _send(
        self, record: ScaleRecord, before: int | None, deadline: float, ask: Callable[[], int] | None
    ) -> tuple[float, App] | None:
        """
        Set the number.

        :param before: the number that the app had.
        :param ask: see `set_workers`.
        :return: the first time (seconds since 1970) at which that may have happened, and the app then;
            ``None`` if the service takes the request to raise it and shows the old number, which may change.
        """
        app_id, wanted, since = record.app_id, record.active_workers or 0, time.time()
        limits: dict[str, Any] = {"poll_interval": self.task.poll_interval, "ask": ask}
        if record.was_raised:
            left = max(deadline - since, 0)
            limits |= {"before": before, "within": min(CONFIRM_TIME, left / 2)}
            limits |= {"retry_budget": min(RETRY_BUDGET, left)}
        try:
            app = self.hook.perform(set_workers(app_id, wanted, **limits))
        except RunGenAppTimeoutError as error:
            if not record.was_raised:
                raise
            log.warning("%s, though the service takes the request", error.message)
            return None
        except RunGenError as error:
            # refused, but perhaps not the first time it was sent, when the answer was lost
            is_refused = isinstance(error, RunGenAPIError) and 400 <= error.status_code < 500
            has = workers_of(self.hook.perform(ask_app(app_id))) if is_refused else None
            if record.was_raised and has is not None and has == before:
                self._kept.note(record.settled(has, since))
            raise
        changed_at = changed_at_of(app)
        # the clock of the service may differ
        return changed_at if since <= changed_at <= time.time() else since, app

    def _finish(self, app_id: str) -> str:
        if self._down and self._record.active_workers != 0:  # the teardown may have run meanwhile
            line = f"If {self._down} is not to come, nobody scales down"
            with self._going_on(line, app_id):
                block.check_teardown(self, self._down, app_id)
        if self._store is not None:  # it got there: from now on this is what it had
            # an attempt after a clear may lower the app to what it had before this one: that bills nothing
            with self._going_on("If the task is cleared and fails, it may scale back", app_id):
                self.guard.call_patiently("remove the record", partial(self._store.delete, SCALED_KEY))
        return app_id

    @contextmanager
    def _going_on(self, line: str, app_id: str) -> Iterator[None]:
        """Log what follows where Airflow fails for too long, and go on."""
        try:
            yield
        except RunGenAppError:
            raise
        except Exception as error:
            if self.guard.is_killed:
                raise
            log.warning("%s. %s %s", reason_of(error), line, format_ids(app_id))

    # --- when something goes wrong ---

    @property
    def _is_to_restore(self) -> bool:
        """Whether the number of workers is restored when something goes wrong."""
        return self._record.was_raised

    def _leave_behind(self) -> None:
        """
        Restore the app of an earlier attempt: it is that of no attempt any more, nor of the teardown.

        :raises RunGenAppError: it may still be raised, and nobody else scales it down.
        """
        if self._record.was_raised and (self._down or self._is_to_restore):
            is_shared, app_id = self._undo(), self._record.app_id
            if self._record.was_raised and not is_shared:
                message = f"App {app_id}, of an earlier attempt, may still have workers"
                raise RunGenAppError(message, app_id=app_id, retryable=True)
        elif not self._down:
            self._restore("the task has another app now")
        self._kept.note(ScaleRecord(self._record.app_id))  # others ask who needs it

    def _restore(self, reason: object) -> None:
        """Restore the number of workers, as far as nobody needs them, or log that they are still billed."""
        if self._is_to_restore:
            if not self.guard.is_killed:  # otherwise cleanup() has decided
                self._undo()
        elif self._may_be_raised and not isinstance(reason, RunGenNotFoundError):
            why = getattr(reason, "message", reason)
            ask = partial(block.find_teardown, self.ti, self._blocks)
            if left_to := attempts.call_briefly(ask, attempts.CALL_TIME):
                line = "App %s may have workers until %s scales it down: %s"
                log.warning(line, self._record.app_id, left_to, why)
            else:
                log.error("%s", self._record.still_billed(why))

    def _undo(self) -> bool:
        """Restore the number of workers, as far as nobody needs them. Return whether anybody does."""
        record = self._record
        down, needs = block.decide_in_time(self, self._blocks, record.app_id)
        if not down:
            needs.warn(record.app_id)
            again = block.asking(self, record.app_id, needs)
            flow = restore_workers(record, needed=needs.workers, ask=again)
            self._kept.note(self.hook.perform(flow))
        return bool(down or needs)

    @property
    def _may_be_raised(self) -> bool:
        record = self._record
        # without a store, nobody knows what an attempt before has done; a block has it up, whoever raised it
        is_up = self._down or (self._store is None and self.ti.try_number > 1)
        return record.was_raised or record.sent_at is not None or bool(record.active_workers and is_up)

    def page_details(self) -> dict[str, Any]:
        return {"up": self.task.task_id}

    def cleanup(self) -> str:
        """
        Restore the number of workers, unless the next attempt goes on with the app.

        An attempt may be asked to stop because it was cut off, after its successor began to wait for the app.
        """
        if not (self._is_to_restore and self.is_connected):
            return ""
        raised, self._kept.record = self._record, ScaleRecord("")
        app, workers = raised.app_id, format_count(raised.active_workers, "worker")
        if self._is_resumed():
            return f"STILL BILLED: app {app} keeps {workers} for the next attempt, which resumes."
        down, needs = block.decide_in_time(self, self._blocks, app)
        if down:
            return f"App {app} is left to {down}, which asks who needs it."
        needs.warn(app)
        within = max(self.guard.time_left() - 1, 1)
        try:
            flow = restore_workers(raised, needed=needs.workers, within=within)
            restored = self.hook.perform_with_deadline(flow, within=within)
        except RunGenError as error:
            log.error("%s", raised.still_billed(error.message))
            restored = raised
        attempts.call_briefly(partial(self._kept.write, restored), self.guard.time_left())
        return ""

    def _is_resumed(self) -> bool:
        may_be = self._store is not None and self._attempt.has_next and not attempts.is_timing_out()
        return may_be and not attempts.was_ended_by_user(attempts.ask_for_state(self.ti))

    @contextmanager
    def _restoring(self, *, was_deferred: bool = False) -> Iterator[None]:
        """Load the record, and open the hook. Restore the number of workers when anything goes wrong."""
        with self.attempt(), self.guard.working(), self.hook:
            try:
                self._kept.load(was_deferred=was_deferred)
                with self.opened():
                    yield
            except TaskDeferred:
                raise
            except LoweredError as error:
                if self._record.was_raised:
                    log.warning("%s", self._record.left_at(error.active_workers))
                    self._kept.note(self._record.settled(error.active_workers, time.time()))
                raise
            except BaseException as error:
                hint = f"Raise timeout (now {format_duration(self.task.timeout)}) if it needs longer"
                if self._record.was_raised and self._record.sent_at is not None:
                    hint = "The service took the request and did not do it: look at the app in its console"
                self._restore(error)
                if self._is_to_restore and isinstance(error, RunGenError):
                    error.retryable = True  # the next attempt resumes with the app, or restores it
                if isinstance(error, RunGenAppTimeoutError):
                    error.hint = hint
                raise
