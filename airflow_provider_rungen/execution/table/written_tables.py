"""Refuse a table that another task would replace."""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.task.attempts import states_in_run

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

# Attributes of a task instance that differ between tasks, in a way that only Airflow knows.
_UNIQUE = {
    *("external_executor_id", "id", "job_id", "key", "log_url", "mark_success_url", "pid", "queued_dttm"),
    *("rendered_map_index", "start_date"),
}
# The states of a task whose table is in use. Of two in branches, one is skipped; a fallback comes after a
# failure.
_IN_USE = (TaskInstanceState.RUNNING, TaskInstanceState.DEFERRED, TaskInstanceState.SUCCESS)


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
    rendered = _tables_of(run.task)
    for name, text in _tables_of(definition).items():
        if hasattr(definition, "partial_kwargs") and _is_same(run, rendered[name], text, definition):
            raise RunGenInputError(
                f"{name}: each of the mapped tasks would replace the table of the others",
                hint="Write {{ ti.map_index }} into its name",
            )
        for other in dag.tasks:
            is_shared = other is not definition and str(text) in map(str, _tables_of(other).values())
            if is_shared and _is_same(run, rendered[name], text, other) and _is_in_use(run, other.task_id):
                raise RunGenInputError(
                    f"{name}: task {other.task_id!r} of this run writes the same table",
                    hint="Give each task a table of its own, for example with {{ task.task_id }} in its name",
                )


def _tables_of(task: Any) -> dict[str, Any]:
    """Return the tables that a task of a DAG writes, by parameter: of a mapped one, those that are given."""
    given = getattr(task, "partial_kwargs", None)
    names = getattr(getattr(task, "operator_class", task), "written_tables", ())
    found = {name: getattr(task, name) if given is None else given.get(name) for name in names}
    if "results" in found and found["results"] is None and given is None:
        found["results"] = task.default_results
    return {name: value for name, value in found.items() if value is not None}


def _is_same(run: TaskRun[Any], own: Any, given: Any, task: Any) -> bool:
    """Return whether a parameter is the same for another task, or for another one of the ``expand``."""
    other: Any = copy(run.context)
    other["task"] = task  # if it is mapped, it has no values of `expand`, which templates may read
    try:
        other["ti"] = other["task_instance"] = _OtherTaskInstance(run.ti, task, run.task.task_id)
        return str(own) == str(run.task.render_template(given, other))
    except Exception:
        if run.guard.is_killed:
            raise
        return False  # nobody knows


def _is_in_use(run: TaskRun[Any], task_id: str) -> bool:
    ask = partial(states_in_run, run.ti, task_id)
    states = run.guard.call_patiently(f"ask whether {task_id} has run", ask)
    return not set(_IN_USE).isdisjoint(states)


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
