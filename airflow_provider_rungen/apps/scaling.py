"""Bring an app up for a run, and down at its end: whoever ends it sets it to zero."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from airflow_provider_rungen._airflow import TaskInstanceState as State
from airflow_provider_rungen.apps.bill import Bill
from airflow_provider_rungen.apps.sharing import (
    TO_COME,
    Block,
    end_bill,
    is_left_to,
    other_run,
    still_billed,
)
from airflow_provider_rungen.apps.waiting import wait_or_defer
from airflow_provider_rungen.client.apps import AppTarget, take_down
from airflow_provider_rungen.client.daemon_threads import begin, ends_within
from airflow_provider_rungen.client.endpoints import get_app, scale_app
from airflow_provider_rungen.client.numbers import is_wanted, whole_number
from airflow_provider_rungen.client.texts import format_count, format_duration, format_ids
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenAppTimeoutError, RunGenError
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.outcomes import error_to_json, raise_for_event
from airflow_provider_rungen.task.report import TaskOutcome
from airflow_provider_rungen.task.run import TaskRun
from airflow_provider_rungen.task.xcom_keys import PLAN_KEY, SCALED_KEY, USAGE_KEY

log = logging.getLogger(__name__)

T = TypeVar("T")

# The states of a setup that has not begun, at least since it was cleared.
_NOT_BEGUN = (*TO_COME, State.SKIPPED, State.UPSTREAM_FAILED, State.REMOVED)
# Those of a teardown that is still to run, and may have run before.
_MAY_RUN = (*TO_COME, State.UP_FOR_RETRY, State.RESTARTING)
# Seconds in which a teardown asks Airflow, and reports to it.
_AIRFLOW_TIME = 20.0


class ScaleRun(TaskRun[Any]):
    """An attempt that sets the number of an app's workers."""

    #: The app, once it may have been scaled up.
    _raised = ""

    @property
    def _block(self) -> Block | None:
        up = self.task.task_id
        downs = (each for each in attempts.teardowns(self.context) if each.scale_up_task_id == up)
        return next((Block(up, down.task_id) for down in downs), None)

    def execute(self) -> str:
        """
        Set the number of workers, and wait until the app runs.

        :return: the app's id.
        """
        with self.attempt(), self.opened():
            app_id, task = self.app_id, self.task
            workers = self._limited(whole_number(task.active_workers, "active_workers"))
            self.link_to(app_id)
            if not is_wanted(task.only_if):
                self._write_up(app_id, 0)
                log.info("Nothing to run (only_if): left as it is %s", format_ids(app_id))
            elif not workers:
                self._end_bill(app_id)
            else:
                self._raised = app_id if self.ti.try_number > 1 else ""  # the one before may be cut off
                with self._undoing():
                    self._scale_up(app_id, workers)
            return app_id

    def complete(self, event: Mapping[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the app's id.
        """
        self.note_app(event.get("app_id") or self.known_app_id)
        with self.attempt(), self.opened():
            self._raised = self.known_app_id
            with self._undoing():
                raise_for_event(event)
            return self.known_app_id

    def fail_deferral(self, reason: str) -> None:
        error = RunGenAppError(f"Airflow ended the wait for the app in the triggerer: {reason}")
        self.complete({"error": error_to_json(error)})

    def _limited(self, asked: int) -> int:
        """Return how many workers to have, and say what fewer than were asked for mean for a plan."""
        most: int | None = self.task.max_workers
        if most is None or asked <= most:
            return asked
        planners = sorted(self.task.upstream_task_ids)
        pull = partial(self.ti.xcom_pull, task_ids=planners, key=PLAN_KEY)
        pulled = self.guard.call_patiently("read the plan", pull) if planners else ()
        plans = (each for each in pulled if isinstance(each, Mapping) and each.get("workers") == asked)
        late = ""
        if plan := next(plans, None):
            gpu, takes = format_duration(plan["seconds"]), format_duration(plan["seconds"] / most)
            late = f": finish_in cannot be met. {gpu} of GPU take {takes}"
        log.warning("Only %d of %s (max_workers)%s", most, format_count(asked, "worker"), late)
        return most

    def _scale_up(self, app_id: str, workers: int) -> None:
        deadline, block = self.deadline(time.time() + self.task.timeout), self._block
        self.hook.perform(get_app(app_id))  # a wrong app or key is refused here
        if block is not None:
            self._check_teardown(block.down, app_id)
        self._write_up(app_id, workers)
        self._raised = app_id
        log.info("Scaling to %s %s", format_count(workers, "worker"), format_ids(app_id))
        self.hook.perform(scale_app(app_id, workers))
        target = AppTarget(app_id, active_workers=workers, is_known=True)
        wait_or_defer(
            self, target, deadline, is_deferred=self.task.deferrable, down=block.down if block else ""
        )

    def _check_teardown(self, down: str, app_id: str) -> None:
        """Check that the teardown is still to run: a clear of what failed only leaves it out."""
        ask = partial(attempts.states_in_run, self.ti, down)
        states = self.guard.call_patiently(f"ask whether {down} is to come", ask)
        if states and not any(state in _MAY_RUN for state in states):
            raise RunGenAppError(
                f"Nothing would scale the app down: {down} runs or has ended",
                app_id=app_id,
                hint=f"Clear {self.task.task_id} with its downstream tasks, and not only failed ones",
                retryable=False,
            )

    def _write_up(self, app_id: str, workers: int) -> None:
        """Write down when the app is scaled up: for the bill, also that of a retry."""
        record = {"app_id": app_id, "active_workers": workers, "up_at": time.time()}
        if self._store is not None and workers:
            tries = {"app_id": app_id, "max_tries": self.ti.max_tries}  # a clear changes the number
            found = attempts.call_briefly(partial(self._store.get, SCALED_KEY), attempts.CALL_TIME)
            if isinstance(found, Mapping) and tries.items() <= found.items():
                record["up_at"] = found["up_at"]
            attempts.call_briefly(partial(self._store.set, SCALED_KEY, record | tries), attempts.CALL_TIME)
        self.push(SCALED_KEY, record)

    # --- when something goes wrong ---

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        """Take the app down if it may be up, and anything goes wrong."""
        try:
            yield
        except Exception as error:
            if isinstance(error, RunGenAppTimeoutError):
                error.hint = f"Raise timeout (now {format_duration(self.task.timeout)}) if it needs longer"
            if self._raised and not self.guard.is_killed:  # otherwise cleanup() has done it
                self._end_bill(self._raised, is_raising=False)
            raise

    def _end_bill(self, app_id: str, *, is_raising: bool = True) -> None:
        try:
            end_bill(self, self._block, app_id)
        except Exception as error:
            failure = still_billed(app_id, error)
            if is_raising or self.guard.is_killed:
                raise failure from None

    def cleanup(self) -> str:
        if not (self._raised and self.is_connected):
            return ""
        app_id, self._raised = self._raised, ""
        if (block := self._block) is not None:
            question = partial(other_run, self.ti, block)
            if is_left_to(app_id, partial(attempts.call_briefly, question, attempts.CALL_TIME)):
                return ""
        within = max(self.guard.time_left() - 1, 1)
        try:
            flow = take_down(app_id, within=within * 0.75, pause=0.4)
            self.hook.perform_with_deadline(flow, within=within)
            log.info("Scaled to 0 workers %s", format_ids(app_id))
        except RunGenError as error:
            still_billed(app_id, error)
        return ""


class ScaleDownRun(TaskRun[Any]):
    """An attempt of a teardown."""

    #: What the setup wrote down, if it did.
    _up: Mapping[str, Any] | None = None

    def execute(self) -> None:
        """
        Set the app to zero, and see that it says so.

        :raises RunGenAppError: it may still have workers, and be billed. A retry may always help.
        """
        with self.attempt():
            try:
                with self.guard.working():
                    if not self._is_due():
                        log.info("Nothing to scale down: this run did not scale the app up")
                        return
                    with self.opened():
                        self.note_app((self._up or {}).get("app_id") or self.app_id)
                        is_down = end_bill(self, self._block, self.known_app_id)
            except Exception as error:
                app = self.known_app_id or f"of connection {self.options.rungen_conn_id}"
                failure = still_billed(app, error)
                if not self.guard.is_killed:  # it has other things to do in its last seconds
                    self._report(is_down=False)
                raise failure from None
            self._report(is_down=is_down)

    @property
    def _block(self) -> Block:
        return Block(self.task.scale_up_task_id, self.task.task_id)

    def _is_due(self) -> bool:
        """Read what the setup wrote down; return whether it may have scaled up. Without an answer, it may."""
        block = self._block
        pull = partial(self.ti.xcom_pull, task_ids=block.up, key=SCALED_KEY, map_indexes=self.ti.map_index)
        up = self._ask_airflow("read when the app was scaled up", pull, None)
        ask = partial(attempts.states_in_run, self.ti, block.up)
        states: list[str | None] = self._ask_airflow("ask whether the setup began", ask, [])
        if isinstance(up, Mapping) and up.get("active_workers") == 0:  # only_if
            return False
        if states and all(state in _NOT_BEGUN for state in states):
            # what is written down may be of before a clear, or of an attempt that was cut off: it has no bill
            self.note_app(up["app_id"] if isinstance(up, Mapping) else "")
            return isinstance(up, Mapping)
        self._up = up if isinstance(up, Mapping) else None
        return True

    def _ask_airflow(self, purpose: str, call: Callable[[], T], otherwise: T) -> T:
        try:
            return self.guard.call_patiently(purpose, call, _AIRFLOW_TIME)
        except Exception as error:
            if self.guard.is_killed:
                raise
            log.warning("Could not %s: %s; the app is scaled down", purpose, type(error).__name__)
            return otherwise

    def _report(self, *, is_down: bool) -> None:
        """Push the links and the bill. Airflow may hang, which is not worth an app that is up."""
        work = begin(self._push, time.time(), is_down=is_down)
        if not ends_within(_AIRFLOW_TIME, work, self.guard.is_stopping):
            log.warning("No bill: Airflow does not answer %s", format_ids(self.known_app_id))

    def _push(self, until: float, *, is_down: bool) -> None:
        app_id = self.known_app_id
        try:
            if self.is_connected and app_id and not self.links:
                self.link_to(app_id)
            if self._up is None:
                return
            price = self.find_price() if self.is_connected else None
            bill = Bill(app_id, self._up["active_workers"], self._up["up_at"], until, is_down, price)
            log.info("%s", bill)
            self.ti.xcom_push(key=USAGE_KEY, value=bill.to_json())
            self.record_outcome(TaskOutcome(app_id, (), bill=bill.to_json()))
            if is_down:
                bill.send_metrics()
        except Exception as error:
            log.warning("No bill: %s %s", type(error).__name__, format_ids(app_id))
