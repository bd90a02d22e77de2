"""Asks Airflow about a task instance, through names that Airflow does not document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS, TaskInstanceState

#: The XCom that names the attempt whose log has the jobs: ``{"attempt": writer, "resumes": [writers]}``.
LOG_KEY = "rungen_log"


def task_state(ti: Any) -> str | None:
    """
    Return the state of a task instance, or ``None`` where it has none. It blocks.

    :param ti: the ``ti`` of a context, or the ``task_instance`` of a trigger.
    """
    is_on_worker = hasattr(ti, "get_task_states")
    return _state_from_supervisor(ti) if is_on_worker or AIRFLOW_V_3_0_PLUS else _state_from_database(ti)


def loop_position(ti: Any) -> list[Any]:
    """Return the place of a task in a loop, which Airflow has since 3.4; nothing outside of one."""
    region = getattr(ti, "region_id", None)
    # outside of a loop, the region is missing or nil, and the index is the map index
    return [] if region in (None, UUID(int=0)) else [str(region), ti.region_index]


def _state_from_supervisor(ti: Any) -> str | None:
    ask = getattr(ti, "get_task_states", None)
    if ask is None:  # in a trigger
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ask = RuntimeTaskInstance.get_task_states
    # map_index may be None for a task in a loop of Airflow 3.4: Airflow then answers for each index
    states = ask(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index)
    found: list[str | None] = list(states.get(ti.run_id, {}).values())
    if TaskInstanceState.DEFERRED in found:  # of several, one that may be this one: nothing is undone then
        return TaskInstanceState.DEFERRED
    return found[0] if found else None


def _state_from_database(ti: Any) -> str | None:
    """Ask Airflow 2's database, which its triggerer may read. Another try is another task here."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        state: str | None = (
            session.query(TaskInstance.state)
            .filter(
                TaskInstance.dag_id == ti.dag_id,
                TaskInstance.task_id == ti.task_id,
                TaskInstance.run_id == ti.run_id,
                TaskInstance.map_index == ti.map_index,
                TaskInstance.try_number == ti.try_number,
            )
            .scalar()
        )
        return state


class AttemptOverError(Exception):
    """Another attempt has taken the place of the one that asks."""


def pushed_job_ids(ti: Any) -> set[str] | None:
    """
    Return what the latest attempt of a task waits for, as far as it has pushed that; ``None`` until then.

    :param ti: a trigger's ``task_instance``. It blocks.
    :return: its jobs; of a table, the attempts that submitted them: itself, and those it resumes.
    :raises AttemptOverError: there is a later attempt, which Airflow does not let this one ask about.
    """
    from airflow_provider_rungen._airflow import XCom

    for key in ("job_id", "job_ids", LOG_KEY):
        try:
            found: Any = XCom.get_one(
                key=key, dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index
            )
        except Exception as error:
            if "not a live attempt" in str(error):  # the words of the API server since Airflow 3.4
                raise AttemptOverError from error
            raise
        if isinstance(found, Mapping):
            found = [found.get("attempt"), *found.get("resumes", ())]
        if found is not None:
            return {found} if isinstance(found, str) else {each for each in found if each}
    return None
