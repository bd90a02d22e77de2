"""What earlier tasks returned and pushed, as a task sees it, without Airflow's database."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import jinja2

from airflow_provider_rungen.emulator.fakes import RETURN_VALUE


def xcoms(upstream: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the XComs of earlier tasks, by task id and key."""
    return {task_id: _xcoms_of(result) for task_id, result in upstream.items()}


def _xcoms_of(result: Any) -> dict[str, Any]:
    if hasattr(result, "xcoms"):
        return dict(result.xcoms)
    if isinstance(result, list) and result and all(hasattr(each, "xcoms") for each in result):
        keys = dict.fromkeys(key for each in result for key in each.xcoms)
        return {key: [each.xcoms[key] for each in result if key in each.xcoms] for key in keys}
    return {RETURN_VALUE: result}


def states(upstream: Mapping[str, Any]) -> dict[str, str]:
    """Return the states of earlier tasks, by task id."""
    from airflow_provider_rungen._airflow import AirflowSkipException

    found = dict.fromkeys(upstream, "success")
    for task_id, result in upstream.items():
        for each in result if isinstance(result, list) else [result]:
            if (error := getattr(each, "error", None)) is not None and hasattr(each, "xcoms"):
                found[task_id] = "skipped" if isinstance(error, AirflowSkipException) else "failed"
    return found


def is_task(task: Any) -> bool:
    """Return whether this is a task, and not a mapped one, from which Airflow makes tasks."""
    return hasattr(task, "execute")


def render(operator: Any, context: dict[str, Any], pulled: Mapping[str, Mapping[str, Any]]) -> Any:
    """Render the templates of a task, and return it: for a mapped task, the one of the map index."""
    environment = operator.get_template_env()
    environment.undefined = jinja2.StrictUndefined if not operator.has_dag() else environment.undefined
    if is_task(operator):
        for name in operator.template_fields:
            if hasattr(operator, name):
                setattr(operator, name, _resolve_mapped(getattr(operator, name), pulled))
        operator.render_template_fields(context, environment)
        return operator
    mapped, expanded = copy.copy(operator), operator._get_specified_expand_input()
    setattr(mapped, operator._expand_input_attr, _Expansion(expanded, context, pulled))
    mapped.render_template_fields(context, environment)
    return context["task"]


class _Expansion:
    """
    What a mapped task maps over, resolved, since Airflow would look up its length in its database.

    :param expanded: Airflow's own.
    :param context: what Airflow gives the task.
    :param pulled: the XComs of earlier tasks, by task id and key.
    """

    def __init__(
        self, expanded: Any, context: dict[str, Any], pulled: Mapping[str, Mapping[str, Any]]
    ) -> None:
        values = _resolve(expanded.value, context, pulled)
        index, count = context["ti"].map_index, len(values)
        given: Any = expanded.value
        if isinstance(values, dict):
            count = math.prod(map(len, values.values()))
        if index not in range(count):
            raise IndexError(f"map_index is {index}, but {context['task']!r} is mapped over {count}")
        self._resolved = type(expanded)(values)
        self._given = given if isinstance(given, dict) else given[index] if isinstance(given, list) else {}

    def resolve(self, *args: Any, **kwargs: Any) -> tuple[Mapping[str, Any], set[int]]:
        """Return the parameters of the task, and the ids of those that are no templates."""
        data, _ = self._resolved.resolve(*args, **kwargs)
        given = self._given if isinstance(self._given, dict) else {}
        return data, {id(each) for name, each in data.items() if hasattr(given.get(name, self), "resolve")}


def _resolve(value: Any, context: dict[str, Any], pulled: Mapping[str, Mapping[str, Any]]) -> Any:
    """Replace the outputs of tasks by what they returned."""
    if isinstance(value, dict):
        return {name: _resolve(each, context, pulled) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_resolve(each, context, pulled) for each in value)
    value = _resolve_mapped(value, pulled)
    return value.resolve(context) if hasattr(value, "resolve") and hasattr(value, "operator") else value


def _resolve_mapped(value: Any, pulled: Mapping[str, Mapping[str, Any]]) -> Any:
    """Replace the output of mapped tasks, which Airflow would look up in its database."""
    if type(value) in (list, tuple):
        return type(value)(_resolve_mapped(each, pulled) for each in value)
    task: Any = getattr(value, "operator", None)
    is_known = not is_task(task) and getattr(task, "task_id", None) in pulled
    return pulled[task.task_id].get(value.key) if is_known else value
