"""Tells what a task was given from what its DAG or task group gives to all of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def default_arg_names(kwargs: Mapping[str, Any]) -> set[str]:
    """
    Return the names in the ``default_args`` that apply to a task.

    :param kwargs: what the task's ``__init__`` was given. For a mapped task Airflow mixes the two.
    """
    found = [getattr(kwargs.get(home), "default_args", None) for home in ("dag", "task_group")]
    return {name for each in (*found, kwargs.get("default_args")) for name in each or {}}
