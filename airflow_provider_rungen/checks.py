"""Check the parameters of operators and sensors when a DAG is parsed, and set them."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from airflow_provider_rungen._airflow import SET_DURING_EXECUTION
from airflow_provider_rungen.client.money import to_cost, to_limit
from airflow_provider_rungen.client.texts import to_optional_seconds, to_seconds
from airflow_provider_rungen.rows import RowFunction, SqlRows

log = logging.getLogger(__name__)


def set_parameters(task: Any, given: Mapping[str, Any]) -> None:
    """
    Set the parameters of a task, checked and converted.

    A parameter is checked by its name, which means the same in every operator. A template field is checked
    only if it is a literal, since Airflow renders templates and outputs of tasks later. It is not checked
    when Airflow makes a task of a mapped one, since that task is already running.

    :param task: the task.
    :param given: the local variables of its ``__init__``.
    :raises ValueError: a parameter is wrong; the message names it.
    """
    is_running = getattr(task, "_BaseOperator__from_mapped", False)
    for name, value in given.items():
        if name in ("self", "kwargs", "__class__"):
            continue
        # a task has a label of its own, for the UI
        attribute = "job_label" if name == "label" else name
        if (convert := _CONVERSIONS.get(name)) is not None:
            setattr(task, name, convert(value, name))
            continue
        if (check := _LITERALS.get(name)) and not is_running and not _is_template(value, task.template_ext):
            check(value, name)
        setattr(task, attribute, value)


def check_output_columns(output_type: Any, own: Iterable[str]) -> None:
    """
    Check that no property of a result has the name of another column, as far as that is known.

    :param own: the other columns, beside those that every table has.
    :raises ValueError: one has.
    """
    if output_type is None:
        return
    from airflow_provider_rungen.schemas.output_type import OutputType, check_columns
    from airflow_provider_rungen.schemas.schema import is_path

    if not is_path(output_type):
        check_columns([*dict.fromkeys(own), *OutputType(output_type).columns], "property of output_type")


# --- values -------------------------------------------------------------------------------------------------


def _check_count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return value


def _check_limit(value: Any, name: str) -> int | None:
    return None if value is None else _check_count(value, name)


def _check_max_failed(value: Any, name: str) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_count and value != "any" and not (isinstance(value, float) and 0 <= value < 1):
        raise ValueError(f"{name} must be a whole number, a share below 1, or 'any', not {value!r}")
    return value


def _check_columns(names: Any, name: str) -> tuple[str, ...]:
    """Return the names of columns, or statuses. A text is a single name."""
    columns = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(column, str) and column for column in columns):
        what = "a status" if name == "where" else "the name of a column"
        raise ValueError(f"{name} must be {what}, or several, not {names!r}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{name} has a name twice: {names!r}")
    return columns


class _Rows:
    """Rows that are in the DAG file. Airflow would render the texts of a list, and rows are data."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = list(rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"{len(self._rows)} rows"


def _to_table(value: Any, name: str) -> Any:
    if isinstance(value, list | tuple):
        return _Rows(value)
    if callable(value):
        return RowFunction(value)
    is_table = isinstance(value, Iterable | os.PathLike | RowFunction | SqlRows)
    if isinstance(value, bytes) or not (
        is_table or _is_template(value) or hasattr(value, "__arrow_c_stream__")
    ):
        expected = "rows, the URI of files, SqlRows or a function"
        raise ValueError(f"{name} must be {expected}, but it is a {_type(value)}")
    return value


def _check_function(value: Any, name: str) -> Any:
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function, but it is a {_type(value)}")
    return value


def _check_schema(source: Any, name: str) -> Any:
    """Return a schema as it was given, checked as far as it can be when a DAG is parsed."""
    if source is None:
        return None
    from airflow_provider_rungen.schemas import checked

    return checked(source, name)


_CONVERSIONS: dict[str, Callable[[Any, str], Any]] = {
    "check": _check_function,
    "to_input": _check_function,
    "columns": _check_columns,
    "idle_for": to_seconds,
    "input_schema": _check_schema,
    "key": _check_columns,
    "max_failed": _check_max_failed,
    "max_in_flight": _check_limit,
    "poll_interval": to_seconds,
    "queued_timeout": to_optional_seconds,
    "output_type": _check_schema,
    "table": _to_table,
    "timeout": to_seconds,
    "where": _check_columns,
}


# --- literals in template fields ----------------------------------------------------------------------------


def _is_template(value: Any, endings: Iterable[str] = ()) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value or value.endswith(tuple(endings))
    if isinstance(value, os.PathLike):  # its `resolve` is not that of a task's output
        return False
    return value is SET_DURING_EXECUTION or hasattr(value, "resolve")


def _check_input(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name} must be an object (a dict), a template or a task's output, but it is a {_type(value)}"
        )


def _type(value: Any) -> str:
    return type(value).__name__  # not the value, which may hold a secret


def _check_folder(value: Any, name: str) -> None:
    text = str(value) if isinstance(value, str | os.PathLike) else ""
    if text and "://" not in text and not os.path.isabs(text):
        raise ValueError(
            f"{name} must be a URI or an absolute path, not {text!r}: each worker has its own folder"
        )


def _check_configuration(value: Any, name: str) -> None:
    tier = value.get("gpu_tier", "") if isinstance(value, Mapping) else ""
    if not isinstance(tier, str) or not tier or _is_template(tier):
        return
    # imported here and below, since most DAG files do not need it
    from airflow_provider_rungen.client.models import GPU_TIERS

    if tier not in GPU_TIERS:
        raise ValueError(f"{name}: gpu_tier must be one of {', '.join(GPU_TIERS)}, not {tier!r}")


_LITERALS: dict[str, Callable[[Any, str], object]] = {
    "input": _check_input,
    "destination": _check_folder,
    "results": _check_folder,
    "configuration": _check_configuration,
    "limit": to_limit,
    "max_cost": to_cost,
    "max_jobs": to_limit,
}


# --- names --------------------------------------------------------------------------------------------------


def check_names(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """
    Check that every parameter that was given is known. Airflow's own, with ``_`` in front, are not checked.

    :param owner: the operator, decorator or function that has the parameters, as its user knows it.
    :raises TypeError: one is unknown; the message names it, and the parameter with the closest name.
    """
    known = sorted(known)
    for name in given:
        if name in known or name.startswith("_"):
            continue
        from difflib import get_close_matches

        meant = get_close_matches(name, known, 1)
        raise TypeError(f"{owner} has no parameter {name!r}" + (f": use {meant[0]!r}" if meant else ""))


@cache
def parameter_names(kind: type) -> frozenset[str]:
    """Return the names of all parameters of a class, those of its bases included."""
    makers = [vars(each)["__init__"] for each in kind.__mro__ if "__init__" in vars(each)]
    signatures = [inspect.signature(maker) for maker in makers]
    return frozenset(
        name
        for signature in signatures
        for name, parameter in signature.parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    )


def default_arg_names(kwargs: Mapping[str, Any]) -> set[str]:
    """
    Return the names in the ``default_args`` that apply to a task.

    :param kwargs: the arguments of the task's ``__init__``. For a mapped task, Airflow adds the defaults.
    """
    found = [getattr(kwargs.get(owner), "default_args", None) for owner in ("dag", "task_group")]
    return {name for each in (*found, kwargs.get("default_args")) for name in each or {}}
