"""What Airflow says of tasks and their attempts, also while this one is killed."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from airflow_provider_rungen._airflow import (
    AirflowTaskTimeout,
    TaskInstanceState,
    XCom,
)
from airflow_provider_rungen.client.daemon_threads import begin

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

T = TypeVar("T")

#: Seconds for a call to Airflow, when the task is killed: 5 s later the process is gone.
CALL_TIME = 1.5
_ENDED_BY_USER = (
    TaskInstanceState.FAILED,
    TaskInstanceState.SUCCESS,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.REMOVED,
)


class Place(NamedTuple):
    """Where tasks have run: in a run, at a map index, or -1."""

    run_id: str
    map_index: int


def task_state(ti: Any) -> str | None:
    """
    Return the state of a task instance, or ``None`` where it has none. It blocks.

    :param ti: the ``ti`` of a context, or the ``task_instance`` of a trigger.
    """
    found = states_in_run(ti, ti.task_id)
    if TaskInstanceState.DEFERRED in found:  # of several, one that may be this one: nothing is undone then
        return TaskInstanceState.DEFERRED
    return found[0] if found else None


def states_in_run(ti: Any, task_id: str) -> list[str | None]:
    """
    Return the state of a task of this run, at this map index. It blocks.

    :param ti: see `task_state`.
    :return: nothing if the run has no such task, or is gone; several for a task in a loop of Airflow 3.4.
    """
    # map_index may be None for a task in a loop of Airflow 3.4: Airflow then answers for each index
    which = {"task_ids": [task_id], "run_ids": [ti.run_id], "map_index": ti.map_index}
    states = asked_of(ti).get_task_states(dag_id=ti.dag_id, **which)
    return list(states.get(ti.run_id, {}).values())


def find_states(
    ti: Any, task_ids: Collection[str], run_ids: Collection[str] | None, map_index: int | None = -1
) -> Mapping[Place, Mapping[str, str | None]]:
    """
    Return the states of tasks in some runs, or in all, by place and task id. It blocks.

    :param ti: see `task_state`.
    :param map_index: that of the mapped ones to find; -1 for all.
    """
    states: defaultdict[Place, dict[str, str | None]] = defaultdict(dict)
    which: dict[str, Any] = {} if run_ids is None else {"run_ids": [*run_ids]}
    which |= {"dag_id": ti.dag_id, "task_ids": [*task_ids], "map_index": map_index}
    for run_id, found in asked_of(ti).get_task_states(**which).items():
        for name, state in found.items():
            task_id, _, index = name.rpartition("_")
            if name in task_ids:
                states[Place(run_id, -1)][name] = state
            elif index.isdecimal():
                states[Place(run_id, int(index))][task_id] = state
    return states


def asked_of(ti: Any) -> Any:
    """Return what answers questions about runs. In a trigger, that is not its ``ti``."""
    if hasattr(ti, "get_task_states"):
        return ti
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return RuntimeTaskInstance


def loop_position(ti: Any) -> list[Any]:
    """Return the place of a task in a loop, which Airflow has since 3.4; nothing outside of one."""
    region = getattr(ti, "region_id", None)
    # outside of a loop, the region is missing or nil, and the index is the map index
    return [] if region in (None, UUID(int=0)) else [str(region), ti.region_index]


def teardowns(context: Context) -> list[Any]:
    """Return the teardowns of all ``scaled_app`` blocks of the DAG."""
    dag = context.get("dag")
    return [task for task in dag.tasks if hasattr(task, "scale_up_task_id")] if dag else []


class AttemptOverError(Exception):
    """Another attempt has taken the place of the one that asks."""


def pushed_job_id(ti: Any) -> str | None:
    """
    Return the job that the latest attempt of a task has pushed; ``None`` until then.

    :param ti: a trigger's ``task_instance``. It blocks.
    :raises AttemptOverError: there is a later attempt, which Airflow does not let this one ask about.
    """
    place = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index}
    try:
        found: str | None = XCom.get_one(key="job_id", **place)
    except Exception as error:
        if "not a live attempt" in str(error):  # the words of the API server since Airflow 3.4
            raise AttemptOverError from error
        raise
    return found


def has_next(ti: Any) -> bool:
    """Return whether a retry follows when this attempt fails."""
    return bool(ti.try_number <= ti.max_tries)


def is_timing_out() -> bool:
    """Return whether ``execution_timeout`` is being handled: Airflow calls ``on_kill`` then, too."""
    error = sys.exception()
    return isinstance(error, AirflowTaskTimeout)


def ask_for_state(
    ti: Any, then: Callable[[str | None], None] = lambda state: None, *, within: float = CALL_TIME
) -> str | None:
    """
    Ask Airflow for the state of a task, in a bounded time; ``None`` when no answer came.

    :param then: called with the state, within the same time.
    :param within: see `call_briefly`.
    """

    def ask() -> str | None:
        state = task_state(ti)
        then(state)
        return state

    return call_briefly(ask, within)


def call_briefly(call: Callable[[], T], within: float) -> T | None:
    """
    Do something while a task is killed: in a bounded time, whether it succeeds or not.

    It runs in another thread, because the kill may have interrupted a call to Airflow's supervisor, which
    holds a lock.

    :param within: the seconds that it may take. It gets 1.5 s at most.
    """
    with suppress(Exception):
        return begin(call).result(min(within, CALL_TIME))
    return None


def is_left_to_next(ti: Any, within: float, *, survives_clear: bool = False) -> bool:
    """
    Return whether what a killed attempt has begun is left to the next one, which there may be already.

    An attempt may be asked to stop because it was cut off, after its successor took over. So it is not left
    only if Airflow reports that a user ended the task.

    :param within: seconds for the question.
    :param survives_clear: whether a clear leaves it, too.
    """
    if is_timing_out() or not (survives_clear or has_next(ti)):
        return False
    state = ask_for_state(ti, within=within)
    if state == TaskInstanceState.RESTARTING:  # a clear, after which there is a try more
        return survives_clear
    return has_next(ti) and state not in _ENDED_BY_USER
