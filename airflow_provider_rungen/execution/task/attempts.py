"""The numbers of an attempt: is it a retry or the first after a clear, and does another follow."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from airflow_provider_rungen._airflow import (
    AirflowTaskTimeout,
    TaskInstanceState,
    XCom,
)
from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.runs.attempt_record import End

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context

T = TypeVar("T")

#: Seconds for a call to Airflow or to the ledger, when the task is killed: 5 s later the process is gone.
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


def find_blocks(task: Any, context: Context, *, is_before: bool = False) -> list[Any]:
    """
    Return the teardowns of the ``scaled_app`` blocks that run the jobs of a task, its own block's first.

    :param task: the operator, which has its relatives and the sources of its jobs.
    :param is_before: also return, last, those of the blocks that come after the task.
    """
    downs, task_id, sources = teardowns(context), task.task_id, set(task.all_job_sources)
    members = {down.task_id: {down.task_id, down.scale_up_task_id, *down.jobs_of} for down in downs}
    after = task.get_flat_relative_ids(upstream=False)
    found = [down for down in downs if sources & members[down.task_id]]
    found = found or [down for down in downs if task_id in members[down.task_id]]
    # with jobs of two blocks, a task is on the bill of neither, but it comes before the teardown of its own
    found.sort(key=lambda down: (task_id not in members[down.task_id], down.task_id not in after))
    return found + [down for down in downs if is_before and down.task_id in after]


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


@dataclass(frozen=True)
class Attempt:
    """
    The numbers that Airflow gives an attempt.

    :param try_number: which attempt it is, from 1; it goes on after a clear.
    :param max_tries: the attempt after which no retry follows is ``max_tries + 1``.
    :param retries: the ``retries`` of the task in the DAG that this attempt runs.
    :param clear_number: how often tasks of the DAG run were cleared.
    """

    try_number: int = 1
    max_tries: int = 0
    retries: int | None = None
    clear_number: int | None = None

    @classmethod
    def of(cls, context: Context, task: BaseOperator) -> Attempt:
        """Return the numbers of the attempt that runs."""
        ti, dag_run = context["ti"], context.get("dag_run")
        return cls(
            try_number=ti.try_number,
            max_tries=ti.max_tries,
            retries=task.retries,
            clear_number=getattr(dag_run, "clear_number", None),
        )

    @property
    def has_next(self) -> bool:
        """Whether a retry follows when this attempt fails."""
        return self.try_number <= self.max_tries

    @property
    def was_cleared(self) -> bool:
        """Whether the task was cleared in this run. A retry after ``retries`` were changed looks the same."""
        return self.try_number > 1 and self.max_tries != self.retries

    def was_cleared_after(self, clear_number: int | None) -> bool:
        """Return whether the task was cleared after the ``clear_number`` was this one, if it is known."""
        return self.was_cleared and (clear_number is None or clear_number != self.clear_number)

    def was_cleared_since(self, earlier: Attempt, end: End) -> bool:
        """
        Return whether the task was cleared after an earlier attempt; else this attempt is a retry.

        A retry leaves ``max_tries`` as it is. A clear sets it to ``try_number + retries``, with the number of
        the last attempt and the current ``retries``. So the attempt after a clear, which has the next number,
        sees ``max_tries - (try_number - 1) == retries``. The result is the old ``max_tries`` if ``retries``
        was lowered by as many as the attempts made: 2 retries, attempt 1, lowered to 1, cleared: 1 + 1 = 2.

        A retry sees the same equation if ``retries`` was lowered like this without a clear. Two things tell
        them apart. Every clear in the DAG run raises ``clear_number`` (except ``reset_dag_runs=false`` of the
        API). And hardly ever does a retry follow a final failure. It can, like one that follows a success, if
        Airflow did not learn how the attempt ended.

        :param earlier: the attempt of the record.
        :param end: how it ended.
        """
        if self.max_tries != earlier.max_tries:
            return True
        if self.try_number <= earlier.try_number:
            return False  # the same attempt once more
        would_be_the_same = self.max_tries - (self.try_number - 1) == self.retries
        may_be_retry = self.clear_number is not None and self.clear_number == earlier.clear_number
        is_unheard = may_be_retry and not would_be_the_same
        if end is End.CLEARED or (end is End.FAILED and not is_unheard):
            return True
        if self.clear_number is None or earlier.clear_number is None:
            return would_be_the_same and earlier.retries not in (None, self.retries)
        if may_be_retry:
            return False
        return would_be_the_same or end is End.SUCCEEDED


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


def was_ended_by_user(state: str | None) -> bool:
    """Return whether a user marked the task: then no other attempt follows."""
    return state in _ENDED_BY_USER
