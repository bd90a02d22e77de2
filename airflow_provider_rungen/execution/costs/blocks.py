"""Which other blocks of a DAG, in any of its runs, have an app up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.execution.costs.scale_state import KEY, read_scale_record

_TO_COME = (
    None,
    TaskInstanceState.SCHEDULED,
    TaskInstanceState.QUEUED,
    TaskInstanceState.UP_FOR_RETRY,
)


def other_teardowns(ti: Any, teardowns: Iterable[Any], app_id: str, own: str) -> list[str]:
    """
    Return the teardowns of this DAG, in any of its runs, that are still to scale the same app down.

    :param own: that of the block that asks.
    """
    if not hasattr(ti, "get_task_states"):
        return []
    downs = {teardown.task_id: teardown for teardown in teardowns}
    is_alone = ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) < 2
    runs: dict[str, Any] = {"run_ids": [ti.run_id]} if is_alone else {}
    others = []
    for run_id, states in task_states(ti, list(downs), **runs).items():
        for task_id, state in states.items():
            # one that runs right now decides like this one does: both scale down
            if state not in _TO_COME or (run_id, task_id) == (ti.run_id, own):
                continue
            record = read_scale_record(
                pull_from_setup(ti, downs[task_id].scale_up_task_id, KEY, run_id=run_id)
            )
            if record and record.app_id == app_id and ti.get_dagrun_state(ti.dag_id, run_id) == "running":
                others.append(f"{task_id} of run {run_id}")
    return others


def pull_from_setup(ti: Any, scale_up_task_id: str, key: str, **of_run: str) -> Any:
    """Return what the setup of a run has pushed."""
    return ti.xcom_pull(task_ids=scale_up_task_id, key=key, map_indexes=ti.map_index, **of_run)


def task_states(ti: Any, task_ids: list[str], **of_runs: Any) -> dict[str, dict[str, str | None]]:
    """Return the states of tasks (at this task's map index), by run."""
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, map_index=ti.map_index, **of_runs)
    # None is a task in a loop of Airflow 3.4 that is not mapped
    suffix = "" if ti.map_index is None or ti.map_index < 0 else f"_{ti.map_index}"
    return {
        run_id: {task_id: known[task_id + suffix] for task_id in task_ids if task_id + suffix in known}
        for run_id, known in states.items()
    }
