"""Refuse a table that another task would replace."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.daemon_threads import begin, ends_within
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.execution.task.attempts import find_states
from airflow_provider_rungen.execution.task.store_writer import reason_of
from airflow_provider_rungen.execution.task.xcom_keys import PAGE_KEY

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# Attributes of a task instance that differ between mapped tasks, in a way that only Airflow knows.
_UNIQUE = {
    *("external_executor_id", "id", "job_id", "key", "log_url", "mark_success_url", "pid", "queued_dttm"),
    *("rendered_map_index", "start_date"),
}
# The states of a task whose table is in use. Of two in branches, one is skipped; a fallback comes after a
# failure.
_IN_USE = {
    *(TaskInstanceState.RUNNING, TaskInstanceState.DEFERRED, TaskInstanceState.UP_FOR_RETRY),
    TaskInstanceState.SUCCESS,
}
# Those of a task that writes it no more.
_ENDED = {
    *(TaskInstanceState.FAILED, TaskInstanceState.SKIPPED, TaskInstanceState.UPSTREAM_FAILED),
    TaskInstanceState.REMOVED,
}
# Seconds that Airflow may fail or hang when it is asked for other tasks. Hardly ever do two share a table.
_ASK_TIME = 10.0
# Seconds for which a task that has started again after a clear may have its old page, while it reads its DAG,
# and between two questions.
_OLD_PAGE_TIME = 30.0
_PAUSE = 2.0

# A task id, and its map index or -1.
_Place: TypeAlias = tuple[str, int]


def check_tables(run: TaskRun[Any]) -> None:
    """
    Refuse a table that another task of the DAG run writes, or that each of the tasks of an ``expand`` would.

    The tasks of a mapped task group are not checked.

    :param run: an attempt of a task that writes tables, which has pushed its page.
    :raises RunGenInputError: one of them is that of another task, too.
    """
    dag: Any = run.context.get("dag")
    definition = None if dag is None else dag.task_dict.get(run.task.task_id)
    if definition is None:
        return
    table = run.page_details().get("results")
    if not isinstance(table, str):
        return
    given = getattr(definition, "partial_kwargs", {}).get("results")
    if given is not None and _is_same_for_another(run, given, definition):
        raise _mapped_error()
    give_up_at = time.monotonic() + _OLD_PAGE_TIME
    shared: Collection[_Place] = ()
    while shared := _find_shared(run, dag, definition, table, before := shared):
        task_id, _ = next(iter(shared))
        if not before:
            log.info("results: task %r has named the same table; asking again for a while", task_id)
        if time.monotonic() < give_up_at:
            run.hook.sleep(_PAUSE)
        elif task_id == run.task.task_id:
            raise _mapped_error()
        else:
            raise RunGenInputError(
                f"results: task {task_id!r} of this run writes the same table",
                hint="Give each task a table of its own, for example with {{ task.task_id }} in its name",
            )


def _mapped_error() -> RunGenInputError:
    return RunGenInputError(
        "results: each of the mapped tasks would replace the table of the others",
        hint="Write {{ ti.map_index }} into its name",
    )


def _find_shared(
    run: TaskRun[Any], dag: Any, definition: Any, table: str, before: Collection[_Place]
) -> Collection[_Place]:
    """
    Return which other tasks of the run write the table, as far as Airflow answers.

    :param before: what was found before: what starts again writes it until it names another or has ended.
    """
    try:
        return _ask_for_shared(run, dag, definition, table, before)
    except Exception as error:
        if run.guard.is_killed:
            raise
        log.warning("Could not ask which tasks write the same table: %s", reason_of(error))
        return before


def _ask_for_shared(
    run: TaskRun[Any], dag: Any, definition: Any, table: str, before: Collection[_Place]
) -> Collection[_Place]:
    def ask(call: Callable[[], Any]) -> Any:
        if not ends_within(_ASK_TIME, answer := begin(call), run.guard.is_stopping):
            raise RunGenError("no answer")
        return answer.result()

    given = getattr(definition, "partial_kwargs", None)
    # otherwise each of the `expand` is known to have a table of its own
    is_asked = (
        given is not None and getattr(run.task, "results", None) is not None and given.get("results") is None
    )
    task_ids = [
        task.task_id
        for task in dag.tasks
        if getattr(getattr(task, "operator_class", task), "writes_tables", False)
        and (task is not definition or is_asked)
    ]
    if not task_ids:
        return ()
    after = definition.get_flat_relative_ids(upstream=False)
    others: defaultdict[str, set[int]] = defaultdict(set)
    for (_, index), states in ask(partial(find_states, run.ti, task_ids, [run.ti.run_id])).items():
        for task_id, state in states.items():
            # a fallback that has succeeded, and this task is cleared without it
            is_over = state in _ENDED or (state == TaskInstanceState.SUCCESS and task_id in after)
            is_writing = not is_over and (state in _IN_USE or (task_id, index) in before)
            if is_writing and (task_id, index) != (definition.task_id, run.ti.map_index):
                others[task_id].add(index)
    shared: list[_Place] = []
    for task_id, indexes in others.items():
        pulled = ask(partial(run.ti.xcom_pull, task_ids=task_id, key=PAGE_KEY))
        pages = [pulled] if isinstance(pulled, Mapping) else pulled or ()
        # an index that was not started again after a clear has its old page
        named = {page.get("index", -1): page for page in pages if isinstance(page, Mapping)}
        for index in indexes:
            place = task_id, index
            if named[index].get("results") == table if index in named else place in before:
                shared.append(place)
    return shared


def _is_same_for_another(run: TaskRun[Any], given: Any, mapped: Any) -> bool:
    """Return whether ``results`` is the same for another task of the ``expand``, as far as that is known."""
    other: Any = copy(run.context)
    other["task"] = mapped  # it has no values of `expand`, which templates may read
    other.pop("params", None)  # they may be of the `expand`, too
    try:
        other["ti"] = other["task_instance"] = _OtherTaskInstance(run.ti, mapped)
        return str(run.task.results) == str(run.task.render_template(given, other))
    except Exception:
        if run.guard.is_killed:
            raise
        return False


class _OtherTaskInstance:
    """
    Another task instance of an ``expand``, for templates.

    :param ti: the one of this task.
    :param mapped: the mapped task.
    """

    def __init__(self, ti: Any, mapped: Any) -> None:
        self._ti, self.map_index, self.task = ti, ti.map_index + 1, mapped

    def __getattr__(self, name: str) -> Any:
        if name in _UNIQUE:
            raise AttributeError(name)
        return getattr(self._ti, name)
