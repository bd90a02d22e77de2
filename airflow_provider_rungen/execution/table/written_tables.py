"""Refuse a table that another task would replace."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.exceptions import RunGenInputError

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

# Attributes of a task instance that differ between mapped tasks, in a way that only Airflow knows.
_UNIQUE = {
    *("external_executor_id", "id", "job_id", "key", "log_url", "mark_success_url", "pid", "queued_dttm"),
    *("rendered_map_index", "start_date"),
}


def check_mapped(run: TaskRun[Any]) -> None:
    """
    Refuse a table that each of the tasks of an ``expand`` would replace, even if there is only one now.

    The tasks of a mapped task group are not checked.

    :param run: an attempt of one of them.
    :raises RunGenInputError: ``results`` or ``failed_table`` is the same for another one of them.
    """
    dag: Any = run.context.get("dag")
    mapped = None if dag is None else dag.task_dict.get(run.task.task_id)
    given: Mapping[str, Any] = getattr(mapped, "partial_kwargs", {})
    for name in ("results", "failed_table"):
        own = getattr(run.task, name, None)
        if own is None or given.get(name) is None:
            continue
        if str(own) == _render_for_another(run, given[name], mapped):
            raise RunGenInputError(
                f"{name}: each of the mapped tasks would replace the table of the others",
                hint="Write {{ ti.map_index }} into its name",
            )


def _render_for_another(run: TaskRun[Any], given: Any, mapped: Any) -> str | None:
    """Return a parameter as another task of the ``expand`` has it; ``None`` if that is unknown."""
    other: Any = copy(run.context)
    other["task"] = mapped  # it has no values of `expand`, which templates may read
    try:
        other["ti"] = other["task_instance"] = _OtherTaskInstance(run.ti, mapped)
        return str(run.task.render_template(given, other))
    except Exception:
        if run.guard.is_killed:
            raise
        return None


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
