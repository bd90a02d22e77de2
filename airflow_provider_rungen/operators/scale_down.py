"""The teardown of ``scaled_app``: it scales to zero what its run has scaled up, and nobody else needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.scaling import (
    CONFIRM_TIME,
    ScaleRecord,
    drain_app,
    set_workers,
)
from airflow_provider_rungen.exceptions import RunGenAppError, RunGenError, RunGenNotFoundError
from airflow_provider_rungen.execution.task import RunGenTask
from airflow_provider_rungen.hooks.connection import seconds
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.operators.scale import KEY

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

# Seconds that the counters may take to forget a job that has just ended.
LAG = 15.0
_NEVER_BEGUN = (
    None,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)
_TO_COME = (
    None,
    TaskInstanceState.SCHEDULED,
    TaskInstanceState.QUEUED,
    TaskInstanceState.UP_FOR_RETRY,
)


class RunGenScaleDownOperator(RunGenTask):
    """
    The teardown of `scaled_app`: scale the app to zero, if this run has scaled it up.

    :param app_id: the app; the connection's ``app_id`` when left out (templated).
    :param scale_up_task_id: the task that scaled it up.
    :param rungen_conn_id: the Airflow connection (templated).
    :param drain: wait until the app's own counters tell of no queued or running job.
    :param drain_timeout: seconds that may take; then it is scaled down all the same.
    :param keep_if_busy: leave the app up when its counters tell of jobs.
    :param poll_interval: seconds between two looks at the app.
    """

    template_fields: Sequence[str] = ("app_id", "rungen_conn_id")

    def __init__(
        self,
        *,
        app_id: Any,
        scale_up_task_id: str,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        drain: bool = False,
        drain_timeout: float | timedelta = 3600,
        keep_if_busy: bool = False,
        poll_interval: float | timedelta = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.app_id = app_id
        self.scale_up_task_id = scale_up_task_id
        self.rungen_conn_id = rungen_conn_id
        self.drain = drain
        self.drain_timeout = seconds(drain_timeout, "drain_timeout")
        self.keep_if_busy = keep_if_busy
        self.poll_interval = seconds(poll_interval, "poll_interval")

    def execute(self, context: Context) -> None:
        """
        Scale the app to zero, and see that it tells so.

        :raises RunGenAppError: it may still have workers, and be billed. A retry may always help.
        """
        raised = _scaled(context["ti"], self.scale_up_task_id)
        if raised is None and not _has_begun(context, self.scale_up_task_id):
            log.info("This run did not scale the app up: nothing is scaled down")
            return
        with self._working(context) as hook:
            app_id = raised.app_id if raised else hook.resolve_app_id(self.app_id)
            self._link_to(context, hook, app_id)
            if others := _others(context, app_id):
                told = " and ".join(others)
                log.warning("RunGen app %s is left up: %s is going to scale it down", app_id, told)
                return
            try:
                if self._is_busy(hook, app_id):
                    return
                by = time.time() + CONFIRM_TIME
                hook.perform(set_workers(app_id, 0, poll_interval=min(self.poll_interval, 5), deadline=by))
            except RunGenNotFoundError:
                log.info("RunGen app %s is gone", app_id)
            except RunGenError as error:
                raise RunGenAppError(
                    f"RunGen app {app_id} is perhaps NOT scaled down, and billed until it is: {error}",
                    app_id=app_id,
                ) from error
            else:
                up = (
                    ""
                    if raised is None
                    else f"; it was up for {format_duration(max(time.time() - raised.at, 0))}"
                )
                log.info("RunGen app %s is scaled to 0 workers%s", app_id, up)

    def _is_busy(self, hook: RunGenHook, app_id: str) -> bool:
        """Wait for the app's jobs, as far as asked for, and tell whether it has to stay up for them."""
        if not self.drain and not self.keep_if_busy:
            return False
        by = time.time() + (self.drain_timeout if self.drain else LAG)
        left = hook.perform(drain_app(app_id, poll_interval=self.poll_interval, deadline=by))
        if left is None:
            log.warning("RunGen app %s does not count its jobs: it is scaled down all the same", app_id)
        elif left and self.keep_if_busy:
            log.warning(
                "RunGen app %s is LEFT UP, and billed: %d jobs are queued or running (keep_if_busy)",
                app_id,
                left,
            )
            return True
        elif left:
            log.warning(
                "RunGen app %s has %d jobs queued or running still (drain_timeout): it is scaled down",
                app_id,
                left,
            )
        return False


def _scaled(ti: Any, scale_up_task_id: str, **of_run: str) -> ScaleRecord | None:
    """Give what a run's scaling up did, as far as it is known."""
    pulled = ti.xcom_pull(task_ids=scale_up_task_id, key=KEY, map_indexes=ti.map_index, **of_run)
    return ScaleRecord.from_json(pulled)


def _has_begun(context: Context, task_id: str) -> bool:
    """Tell whether a task of this run was ever begun, as far as Airflow can tell."""
    ti = context["ti"]
    if hasattr(ti, "get_task_states"):  # Airflow 3
        states = _states(ti, [task_id], run_ids=[ti.run_id])
        state = states.get(ti.run_id, {}).get(task_id)
    else:
        dag_run: Any = context["dag_run"]
        other = dag_run.get_task_instance(task_id, map_index=ti.map_index)
        state = None if other is None else other.state
    return state not in _NEVER_BEGUN


def _others(context: Context, app_id: str) -> list[str]:
    """Give the teardowns of this DAG, in any of its runs, that are still to scale the same app down."""
    ti = context["ti"]
    if not hasattr(ti, "get_task_states"):
        return []
    downs = {t.task_id: t for t in context["dag"].tasks if isinstance(t, RunGenScaleDownOperator)}
    is_alone = ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) < 2
    runs: dict[str, Any] = {"run_ids": [ti.run_id]} if is_alone else {}
    others = []
    for run_id, states in _states(ti, list(downs), **runs).items():
        for task_id, state in states.items():
            # one that runs right now decides like this one does: both scale down
            if state not in _TO_COME or (run_id, task_id) == (ti.run_id, ti.task_id):
                continue
            scaled = _scaled(ti, downs[task_id].scale_up_task_id, run_id=run_id)
            if scaled and scaled.app_id == app_id and ti.get_dagrun_state(ti.dag_id, run_id) == "running":
                others.append(f"{task_id} of run {run_id}")
    return others


def _states(ti: Any, task_ids: list[str], **of_runs: Any) -> dict[str, dict[str, str | None]]:
    """Give the states of tasks (at this task's map index), by run."""
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, map_index=ti.map_index, **of_runs)
    # None is a task in a loop of Airflow 3.4 that is not mapped
    suffix = "" if ti.map_index is None or ti.map_index < 0 else f"_{ti.map_index}"
    return {
        run_id: {task_id: known[task_id + suffix] for task_id in task_ids if task_id + suffix in known}
        for run_id, known in states.items()
    }
