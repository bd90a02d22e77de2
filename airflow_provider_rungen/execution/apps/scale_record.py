"""Reads what setups have done to an app, and which blocks of a DAG still need it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.execution.task.block import teardowns
from airflow_provider_rungen.execution.task.xcom_keys import SCALED_KEY
from airflow_provider_rungen.runs import records

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

# The states of a teardown that is still to run.
_TO_COME = (None, TaskInstanceState.SCHEDULED, TaskInstanceState.QUEUED, TaskInstanceState.UP_FOR_RETRY)


def read_scale_record(value: Any) -> ScaleRecord | None:
    """Return the record of a stored value; ``None``, with a warning, when it is not one."""
    return records.parse(SCALED_KEY, value, _read_record, "it is unknown how many workers the app had")


def _read_record(fields: Mapping[str, Any]) -> ScaleRecord:
    numbers = {name: fields[name] for name in ("active_workers", "before")}
    sent_at = fields["sent_at"]
    return ScaleRecord(
        app_id=records.identifier(fields["app_id"], "app_id"),
        **{name: None if each is None else records.count(each, name) for name, each in numbers.items()},
        sent_at=None if sent_at is None else records.seconds(sent_at, "sent_at"),
        history=_read_history(fields),
    )


def _read_history(fields: Mapping[str, Any]) -> WorkerHistory:
    changes = [
        (records.seconds(change["at"], "at"), records.count(change["workers"], "workers"))
        for change in fields["changes"]
    ]
    # two changes at one time stay in their order
    return WorkerHistory(tuple(sorted(changes, key=itemgetter(0))))


def is_needed(context: Context, app_id: str) -> bool:
    """
    Return whether another block of the DAG, in any of its runs, has the app up, and will scale it down.

    :param context: that of the setup or teardown that asks.
    """
    ti: Any = context["ti"]
    if not hasattr(ti, "get_task_states"):
        return False
    setups = {down.task_id: down.scale_up_task_id for down in teardowns(context)}
    is_alone = ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) < 2
    runs: dict[str, Any] = {"run_ids": [ti.run_id]} if is_alone else {}
    others = []
    for run_id, states in task_states(ti, list(setups), **runs).items():
        for down_id, state in states.items():
            is_same_block = run_id == ti.run_id and ti.task_id in (down_id, setups[down_id])
            # one that runs right now decides like this one does: both scale down
            if state not in _TO_COME or is_same_block:
                continue
            record = pull_record(ti, setups[down_id], run_id=run_id)
            is_up = record and record.app_id == app_id and record.active_workers is not None
            if is_up and ti.get_dagrun_state(ti.dag_id, run_id) == "running":
                others.append(f"{down_id} of run {run_id}")
    if others:
        line = "STILL BILLED: app %s stays up until %s scales it down"
        log.warning(line, app_id, " or ".join(others))
    return bool(others)


def pull_record(ti: Any, scale_up_task_id: str, **of_run: str) -> ScaleRecord | None:
    """Return what the setup of a run has done."""
    pulled = ti.xcom_pull(task_ids=scale_up_task_id, key=SCALED_KEY, map_indexes=ti.map_index, **of_run)
    return read_scale_record(pulled)


def task_states(ti: Any, task_ids: list[str], **of_runs: Any) -> dict[str, dict[str, str | None]]:
    """Return the states of tasks (at this task's map index), by run."""
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, map_index=ti.map_index, **of_runs)
    # None is a task in a loop of Airflow 3.4 that is not mapped
    suffix = "" if ti.map_index is None or ti.map_index < 0 else f"_{ti.map_index}"
    return {
        run_id: {task_id: known[task_id + suffix] for task_id in task_ids if task_id + suffix in known}
        for run_id, known in states.items()
    }
