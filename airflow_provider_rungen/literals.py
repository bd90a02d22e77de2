"""Find mistakes in literal template fields when a DAG is parsed. Airflow renders the others later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import SET_DURING_EXECUTION
from airflow_provider_rungen.client.models import GPU_TIERS

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator


def check_literals(task: BaseOperator) -> None:
    """
    Check the template fields of a task, as far as they are known before it runs.

    Templates and outputs of tasks are not, and a task that Airflow makes of a mapped one runs already.

    :raises ValueError: a field is wrong; the message names it.
    """
    if getattr(task, "_BaseOperator__from_mapped", False):
        return
    for name in task.template_fields:
        value = getattr(task, name, None)
        if (check := _CHECKS.get(name)) and not _is_rendered_later(value, task.template_ext):
            check(value, name)


def _is_rendered_later(value: Any, endings: Iterable[str] = ()) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value or value.endswith(tuple(endings))
    if isinstance(value, os.PathLike):  # it has another `resolve` than what Airflow resolves
        return False
    return value is SET_DURING_EXECUTION or hasattr(value, "resolve")


def _check_input(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name} must be an object (a dict), a template or a task's output, but it is a {_type(value)}"
        )


def _check_inputs(value: Any, name: str) -> None:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if not _is_rendered_later(item):
                _check_input(item, f"{name}[{index}]")
    elif isinstance(value, Mapping):
        raise ValueError(
            f"{name} must be a list of objects, or the URI of files. For a single job, use "
            f"[{{…}}] or RunGenRunJobOperator(input={{…}})"
        )
    elif isinstance(value, bytes) or not (isinstance(value, Iterable | os.PathLike) or _is_table(value)):
        raise ValueError(f"{name} must be a list of objects, or the URI of files, but it is a {_type(value)}")


def _type(value: Any) -> str:
    return type(value).__name__  # not the value, which may hold a secret


def _is_table(value: Any) -> bool:
    return hasattr(value, "__arrow_c_stream__")


def _check_folder(value: Any, name: str) -> None:
    text = str(value) if isinstance(value, str | os.PathLike) else ""
    if text and "://" not in text and not os.path.isabs(text):
        raise ValueError(
            f"{name} must be a URI or an absolute path, not {text!r}: each worker has its own folder"
        )


def _check_configuration(value: Any, name: str) -> None:
    tier = value.get("gpu_tier", "") if isinstance(value, Mapping) else ""
    if isinstance(tier, str) and tier and not _is_rendered_later(tier) and tier not in GPU_TIERS:
        raise ValueError(f"{name}: gpu_tier must be one of {', '.join(GPU_TIERS)}, not {tier!r}")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "input": _check_input,
    "inputs": _check_inputs,
    "destination": _check_folder,
    "results": _check_folder,
    "configuration": _check_configuration,
}
