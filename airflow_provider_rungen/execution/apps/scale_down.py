"""Scales an app to zero at the end of a run, unless another task or run still needs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.price import Price, parse_price
from airflow_provider_rungen.client.scaling import ScaleRecord, drain_app, set_workers
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.client.worker_history import WorkerHistory, see_app
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenError, RunGenNotFoundError
from airflow_provider_rungen.execution.costs.bill import BILL_KEY, Bill, read_usage
from airflow_provider_rungen.execution.costs.scale_state import (
    KEY,
    LEFT_KEY,
    other_teardowns,
    pull_from_setup,
    read_history,
    read_scale_record,
    task_states,
)
from airflow_provider_rungen.execution.task.lineage import TaskOutcome
from airflow_provider_rungen.execution.task.options import RunOptions
from airflow_provider_rungen.execution.task.run import TaskRun

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

# Seconds that the counters may take to forget a job that has just ended.
COUNTER_GRACE = 15.0
_NOT_STARTED = (
    None,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)


@dataclass(frozen=True, kw_only=True)
class ScaleDownOptions(RunOptions):
    """How an app is scaled down. The fields are named and described as the operator's parameters are."""

    scale_up_task_id: str
    drain: bool
    drain_timeout: float
    keep_if_busy: bool
    price: str | None
    poll_interval: float
    job_task_ids: Sequence[str]
    collect_task_ids: Sequence[str]
    runners_of: Mapping[str, Sequence[str]]


class ScaleDownRun(TaskRun[ScaleDownOptions]):
    """An attempt of the teardown of ``scaled_app``."""

    # the workers that the app had while the block had it up
    _history = WorkerHistory()

    def execute(self, teardowns: Iterable[Any]) -> None:
        """
        Scale the app to zero, and see that it reports so.

        :param teardowns: the teardowns of the DAG.
        :raises RunGenAppError: it may still have workers, and be billed. A retry may always help.
        """
        scale_up = self.options.scale_up_task_id
        pushed = pull_from_setup(self.ti, scale_up, KEY)
        record = read_scale_record(pushed)
        if record is None:
            left_app_id = pull_from_setup(self.ti, scale_up, LEFT_KEY)
            if left_app_id or not _has_started(self.context, scale_up):
                log.info("Nothing to scale down: this run did not scale the app up")
                if left_app_id:
                    self._push_bill(left_app_id, is_final=True)
                return
        with self.opened():
            app_id = record.app_id if record else self.app_id
            self.link_to(app_id)
            self._history = read_history(pushed)
            try:
                is_left_up = self._is_left_up(app_id, record, teardowns)
            except RunGenError as error:
                self._push_bill(app_id, is_final=False)
                raise RunGenAppError(
                    f"STILL BILLED: app {app_id} may not be scaled down: {error.message}",
                    app_id=app_id,
                    hint=error.hint,
                ) from error
            self._push_bill(app_id, is_final=not is_left_up)

    def _is_left_up(self, app_id: str, record: ScaleRecord | None, teardowns: Iterable[Any]) -> bool:
        """Scale the app to zero, unless it has to stay up."""
        others = other_teardowns(self.ti, teardowns, app_id, self.ti.task_id)
        if others:
            line = "STILL BILLED: app %s stays up until %s scales it down"
            log.warning(line, app_id, " or ".join(others))
        try:
            is_left_up = bool(others) or self._is_kept_up(app_id)
            app = self.hook.perform(see_app(app_id))
            self._history = self._history.seen(app, time.time(), record)
            if not is_left_up:
                self._scale_to_zero(app_id, record)
        except RunGenNotFoundError:
            log.info("Gone already %s", format_ids(app_id))
            is_left_up = False
        if not is_left_up:
            self._history = self._history.changed(0, time.time())
        return is_left_up

    def _scale_to_zero(self, app_id: str, record: ScaleRecord | None) -> None:
        self.hook.perform(set_workers(app_id, 0, poll_interval=self.options.poll_interval))
        up = "" if record is None else f" after {format_duration(max(time.time() - record.at, 0))}"
        log.info("Scaled to 0 workers%s %s", up, format_ids(app_id))

    def _push_bill(self, app_id: str, *, is_final: bool) -> None:
        """Push and log what the block cost. It is not worth a failure."""
        options = self.options
        try:
            tasks = options.job_task_ids, options.collect_task_ids
            usage = read_usage(self.ti, *tasks, runners_of=options.runners_of)
            bill = Bill(app_id, self._history, time.time(), is_final, usage, self._price())
            self.ti.xcom_push(key=BILL_KEY, value=bill.to_json())
            log.info("%s", bill)
            self.record_outcome(TaskOutcome(app_id, (), bill=bill.to_json()))
            if is_final:
                bill.send_metrics()
        except Exception as error:
            line = "No bill: %s %s"
            log.warning(line, type(error).__name__, format_ids(app_id), exc_info=True)

    def _price(self) -> Price | None:
        if self.options.price is None:
            return self.hook.settings.price
        try:
            return parse_price(self.options.price)
        except ValueError as error:
            log.error("The bill has no cost: price %s", error)
            return None

    def _is_kept_up(self, app_id: str) -> bool:
        """Wait for the app's jobs, as far as asked for, and return whether it has to stay up for them."""
        options = self.options
        if not options.drain and not options.keep_if_busy:
            return False
        by = time.time() + (options.drain_timeout if options.drain else COUNTER_GRACE)
        left = self.hook.perform(drain_app(app_id, poll_interval=options.poll_interval, deadline=by))
        if left is None:
            log.warning("Scaling down without counted jobs: the service counts none %s", format_ids(app_id))
        elif left and options.keep_if_busy:
            line = "STILL BILLED: app %s is left up: %s queued or running (keep_if_busy)"
            log.warning(line, app_id, format_count(left, "job"))
            return True
        elif left:
            line = "Scaling down with %s queued or running (drain_timeout) %s"
            log.warning(line, format_count(left, "job"), format_ids(app_id))
        return False


def _has_started(context: Context, task_id: str) -> bool:
    """Return whether a task of this run was ever started, as far as Airflow knows."""
    ti = context["ti"]
    if hasattr(ti, "get_task_states"):  # Airflow 3
        states = task_states(ti, [task_id], run_ids=[ti.run_id])
        state = states.get(ti.run_id, {}).get(task_id)
    else:
        dag_run: Any = context["dag_run"]
        other = dag_run.get_task_instance(task_id, map_index=ti.map_index)
        state = None if other is None else other.state
    return state not in _NOT_STARTED
