"""Refuse a table that another task would replace."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.task.attempts import states_by_task

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

# Attributes of a task instance that differ between tasks, in a way that only Airflow knows.
_UNIQUE = {
    *("external_executor_id", "id", "job_id", "key", "log_url", "mark_success_url", "pid", "queued_dttm"),
    *("rendered_map_index", "start_date"),
}
# What else Airflow gives each task. ``params`` are those of the task, too.
_OF_TASK = (
    *("task_instance_key_str", "inlets", "outlets", "inlet_events", "outlet_events", "map_index_template"),
    *("expanded_ti_count", "params"),
)
# The states of a task whose table is in use. Of two in branches, one is skipped; a fallback comes after a
# failure.
_IN_USE = {
    *(TaskInstanceState.RUNNING, TaskInstanceState.DEFERRED, TaskInstanceState.UP_FOR_RETRY),
    TaskInstanceState.SUCCESS,
}


def check_tables(run: TaskRun[Any]) -> None:
    """
    Refuse a table that another task of the DAG run writes, or that each of the tasks of an ``expand`` would.

    The tasks of a mapped task group are not checked.

    :param run: an attempt of a task that writes tables.
    :raises RunGenInputError: one of them is that of another task, too.
    :raises Exception: Airflow failed or hung for too long.
    """
    dag: Any = run.context.get("dag")
    definition = None if dag is None else dag.task_dict.get(run.task.task_id)
    own = _tables_of(run.task, run.ti.map_index)
    for name, text in _tables_of(definition).items():
        if hasattr(definition, "partial_kwargs") and _is_same(run, own[name], text, definition, definition):
            raise RunGenInputError(
                f"{name}: each of the mapped tasks would replace the table of the others",
                hint="Write {{ ti.map_index }} into its name",
            )
        others = [each for each in dag.tasks if each is not definition]
        for other in _in_use(run, [each for each in others if str(text) in _texts_of(each)]):
            if _is_same(run, own[name], text, other, definition):
                raise RunGenInputError(
                    f"{name}: task {other.task_id!r} of this run writes the same table",
                    hint="Give each task a table of its own, for example with {{ task.task_id }} in its name",
                )


def _tables_of(task: Any, index: int | None = None) -> dict[str, Any]:
    """
    Return the tables that a task writes, by parameter: of a mapped one, those that are not mapped.

    :param task: a task that runs, or one of a DAG, whose templates are not rendered.
    :param index: the map index of a task that runs.
    """
    kind, given = getattr(task, "operator_class", type(task)), getattr(task, "partial_kwargs", None)
    names = getattr(kind, "written_tables", ())
    found = {name: getattr(task, name) if given is None else given.get(name) for name in names}
    if hasattr(kind, "default_results") and found.get("results", "") is None:
        if given is None:
            found["results"] = kind.default_results(task.destination, index)
        elif "destination" in given and not _is_mapped(task, "results"):
            found["results"] = kind.default_results(given["destination"], "{{ ti.map_index }}")
    return {name: value for name, value in found.items() if value is not None}


def _texts_of(task: Any) -> list[str]:
    return [str(value) for value in _tables_of(task).values()]


def _is_mapped(task: Any, name: str) -> bool:
    """Return whether a parameter of a task differs between the tasks of its ``expand``, if it is mapped."""
    expanded = getattr(getattr(task, "expand_input", None), "value", {})
    return name in expanded if isinstance(expanded, Mapping) else True  # expand_kwargs


def _in_use(run: TaskRun[Any], tasks: list[Any]) -> list[Any]:
    """Return those of some tasks whose tables are in use."""
    if not tasks:
        return []
    ask = partial(states_by_task, run.ti, [task.task_id for task in tasks])
    states = run.guard.call_patiently("ask which tasks have run", ask)
    return [task for task in tasks if not _IN_USE.isdisjoint(states[task.task_id])]


def _is_same(run: TaskRun[Any], own: Any, given: Any, task: Any, definition: Any) -> bool:
    """Return whether a parameter is the same for another task, or for another one of the ``expand``."""
    other: Any = copy(run.context)
    other["task"] = task  # if it is mapped, it has no values of `expand`, which templates may read
    has_params = task.params == definition.params and not _is_mapped(task, "params")
    for name in _OF_TASK:
        if name in other and not (name == "params" and has_params):
            del other[name]
    try:
        other["ti"] = other["task_instance"] = _OtherTaskInstance(run.ti, task, run.task.task_id)
        return str(own) == str(run.task.render_template(given, other))
    except Exception:
        if run.guard.is_killed:
            raise
        return False  # nobody knows


class _OtherTaskInstance:
    """
    The instance of another task, or of another one of an ``expand``, for templates.

    :param ti: the one of this task.
    :param task: the other task, or the mapped one.
    :param own_id: the id of this task.
    """

    def __init__(self, ti: Any, task: Any, own_id: str) -> None:
        self._ti, self.task, self.task_id = ti, task, task.task_id
        self.map_index = ti.map_index + (task.task_id == own_id)

    def __getattr__(self, name: str) -> Any:
        if name in _UNIQUE:
            raise AttributeError(name)
        return getattr(self._ti, name)
