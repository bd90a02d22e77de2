"""Refuse a table that another task would replace."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.daemon_threads import begin, ends_within
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.execution.task.attempts import find_states
from airflow_provider_rungen.execution.task.store_writer import reason_of
from airflow_provider_rungen.execution.task.xcom_keys import PAGE_KEY

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# The parameters that name tables, which are in the XCom `PAGE_KEY`, too.
_NAMES = ("results", "failed_table")
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
# Seconds that Airflow may fail or hang when it is asked for other tasks. Hardly ever do two share a table.
_ASK_TIME = 10.0
# Seconds for which a task that has started again after a clear may have its old page, while it reads its DAG,
# and between two questions.
_OLD_PAGE_TIME = 30.0
_PAUSE = 2.0


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
    own, given = _tables_of(run.page_details()), getattr(definition, "partial_kwargs", {})
    for name in own:
        if given.get(name) is not None and _is_same_for_another(run, name, given[name], definition):
            raise _mapped_error(name)
    give_up_at = time.monotonic() + _OLD_PAGE_TIME
    while (error := _find_conflict(run, dag, definition, own)) is not None:
        if time.monotonic() >= give_up_at:
            raise error
        run.hook.sleep(_PAUSE)


def _find_conflict(
    run: TaskRun[Any], dag: Any, definition: Any, own: Mapping[str, str]
) -> RunGenInputError | None:
    """Return that a table is that of another task, too, as far as Airflow answers."""
    try:
        others = [*_find_others(run, dag, definition)]
    except Exception as error:
        if run.guard.is_killed:
            raise
        log.warning("Could not ask which tasks write the same table: %s", reason_of(error))
        return None
    for task_id, tables in others:
        for name, table in own.items():
            if table in tables.values() and task_id == run.task.task_id:
                return _mapped_error(name)
            if table in tables.values():
                return RunGenInputError(
                    f"{name}: task {task_id!r} of this run writes the same table",
                    hint="Give each task a table of its own, for example with {{ task.task_id }} in its name",
                )
    return None


def _mapped_error(name: str) -> RunGenInputError:
    return RunGenInputError(
        f"{name}: each of the mapped tasks would replace the table of the others",
        hint="Write {{ ti.map_index }} into its name",
    )


def _tables_of(page: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of a task, by parameter."""
    return {name: table for name in _NAMES if isinstance(table := page.get(name), str)}


def _find_others(run: TaskRun[Any], dag: Any, definition: Any) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the tables of other tasks of the run that are in use, with the ids of the tasks."""

    def ask(call: Callable[[], Any]) -> Any:
        if not ends_within(_ASK_TIME, answer := begin(call), run.guard.is_stopping):
            raise RunGenError("no answer")
        return answer.result()

    given = getattr(definition, "partial_kwargs", None)
    # otherwise each of the `expand` is known to have tables of its own
    is_asked = given is not None and any(
        getattr(run.task, name, None) is not None and given.get(name) is None for name in _NAMES
    )
    task_ids = [
        task.task_id
        for task in dag.tasks
        if getattr(getattr(task, "operator_class", task), "writes_tables", False)
        and (task is not definition or is_asked)
    ]
    find = partial(find_states, run.ti, task_ids, [run.ti.run_id])
    in_use: defaultdict[str, set[int]] = defaultdict(set)
    for place, states in (ask(find) if task_ids else {}).items():
        for task_id, state in states.items():
            if state in _IN_USE and (task_id, place.map_index) != (definition.task_id, run.ti.map_index):
                in_use[task_id].add(place.map_index)
    for task_id, indexes in in_use.items():
        pulled = ask(partial(run.ti.xcom_pull, task_ids=task_id, key=PAGE_KEY))
        for page in [pulled] if isinstance(pulled, Mapping) else pulled or ():
            # an index that was not started again after a clear has its old page
            if isinstance(page, Mapping) and page.get("index", -1) in indexes:
                yield task_id, _tables_of(page)


def _is_same_for_another(run: TaskRun[Any], name: str, given: Any, mapped: Any) -> bool:
    """Return whether a parameter is the same for another task of the ``expand``, as far as that is known."""
    other: Any = copy(run.context)
    other["task"] = mapped  # it has no values of `expand`, which templates may read
    if "params" in other and "params" in getattr(mapped.expand_input, "value", ()):
        del other["params"]
    try:
        other["ti"] = other["task_instance"] = _OtherTaskInstance(run.ti, mapped)
        return str(getattr(run.task, name)) == str(run.task.render_template(given, other))
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
