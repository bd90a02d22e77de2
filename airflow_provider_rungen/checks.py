"""Check the parameters of operators and sensors when a DAG is parsed, and set them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from airflow_provider_rungen._airflow import SET_DURING_EXECUTION
from airflow_provider_rungen.client.money import to_cost, to_limit
from airflow_provider_rungen.client.numbers import is_wanted, whole_number
from airflow_provider_rungen.client.texts import to_optional_seconds, to_seconds
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.rows import RowFunction, SqlRows


def set_parameters(task: Any, given: Mapping[str, Any]) -> None:
    """
    Set the parameters of a task, checked and converted; see `check_parameters`.

    :param task: the task.
    :param given: the local variables of its ``__init__``.
    :raises RunGenInputError: a parameter is wrong; the message names it, the operator and the task.
    """
    own = {name: value for name, value in given.items() if name not in ("self", "kwargs", "__class__")}
    is_running = getattr(task, "_BaseOperator__from_mapped", False)
    for name, value in check_parameters(type(task), task.task_id, own, is_running=is_running).items():
        # a task has a label of its own, for the UI
        setattr(task, "job_label" if name == "label" else name, value)


def check_parameters(
    kind: Any, task_id: Any, given: Mapping[str, Any], *, is_running: bool = False
) -> dict[str, Any]:
    """
    Check parameters of an operator, and return them as the task has them.

    A parameter is checked by its name, which means the same in every operator, and may be ``None`` where that
    is its default. A template field is checked only if it is a literal, since Airflow renders templates and
    outputs of tasks later.

    :param kind: the operator.
    :param given: the parameters. Those that are unknown here are left as they are.
    :param is_running: whether the task is one of a mapped one, whose template fields are rendered.
    :raises RunGenInputError: a parameter is wrong; the message names it, the operator and the task.
    """
    values, known = dict(given), _parameters(kind)
    with naming(kind, task_id):
        for name, value in given.items():
            if value is None and name in known and known[name].default is None:
                continue
            if name in _CONVERSIONS:
                values[name] = _CONVERSIONS[name](value, name)
            elif name in _LITERALS and not is_running and not _is_template(value, kind.template_ext):
                _LITERALS[name](value, name)
    return values


@contextmanager
def naming(kind: Any, task_id: Any) -> Iterator[None]:
    """Name the operator, as its user knows it, and the task in an error of a parameter."""
    try:
        yield
    except ValueError as error:
        owner = getattr(kind, "custom_operator_name", kind.__name__)
        message, hint = getattr(error, "message", error), getattr(error, "hint", "")
        raise RunGenInputError(f"{owner} {task_id!r}: {message}", hint=hint) from None


def check_output_columns(task: Any, own: Iterable[str]) -> None:
    """
    Check that no property of a result has the name of another column, as far as that is known.

    :param task: the task, with its ``output_type``.
    :param own: the other columns, beside those that every table has.
    :raises RunGenInputError: one has.
    """
    if task.output_type is None:
        return
    from airflow_provider_rungen.schemas.output_type import OutputType, check_columns
    from airflow_provider_rungen.schemas.schema import is_path

    if not is_path(task.output_type):
        with naming(type(task), task.task_id):
            columns = OutputType(task.output_type).columns
            check_columns([*dict.fromkeys(own), *columns], "property of output_type")


# --- values -------------------------------------------------------------------------------------------------


def _rule(allowed: str, is_right: Callable[[Any], bool], *, shows: bool = True) -> Callable[[Any, str], Any]:
    """
    Return a check that returns the value.

    :param allowed: what the value must be.
    :param shows: whether an error may show the value, which has no secret then.
    """

    def check(value: Any, name: str) -> Any:
        if not is_right(value):
            found = f"not {value!r}" if shows else f"but it is a {type(value).__name__}"
            raise ValueError(f"{name} must be {allowed}, {found}")
        return value

    return check


def _is_number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_columns(names: Any, name: str) -> tuple[str, ...]:
    """Return the names of columns, or statuses. A text is a single name."""
    columns = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
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
    return RowFunction(value) if callable(value) else _check_table(value, name)


def _check_schema(source: Any, name: str) -> Any:
    """Return a schema as it was given, checked as far as it can be when a DAG is parsed."""
    from airflow_provider_rungen.schemas import checked

    return checked(source, name)


_check_flag = _rule("True or False", lambda value: isinstance(value, bool))
_check_function = _rule("a function", callable, shows=False)
_check_limit = _rule("a positive whole number", lambda value: value is None or _is_number(value, 1))
_check_max_failed = _rule(
    "a whole number, a share below 1, or 'any'",
    lambda value: _is_number(value, 0) or value == "any" or (isinstance(value, float) and 0 <= value < 1),
)
_check_reuse = _rule(
    "True, False or a positive timedelta",
    lambda value: isinstance(value, bool) or (isinstance(value, timedelta) and value > timedelta()),
)
_check_table = _rule(
    "rows, the URI of files, SqlRows or a function",
    lambda value: (
        (isinstance(value, Iterable | os.PathLike | RowFunction | SqlRows) and not isinstance(value, bytes))
        or _is_template(value)
        or hasattr(value, "__arrow_c_stream__")
    ),
    shows=False,
)

_CONVERSIONS: dict[str, Callable[[Any, str], Any]] = {
    "cancel_on_kill": _check_flag,
    "check": _check_function,
    "columns": _check_columns,
    "deferrable": _check_flag,
    "finish_in": to_seconds,
    "input_schema": _check_schema,
    "key": _check_columns,
    "max_attempts": _rule("a positive whole number", lambda value: _is_number(value, 1)),
    "max_failed": _check_max_failed,
    "max_in_flight": _check_limit,
    "max_workers": _check_limit,
    "output_type": _check_schema,
    "per_row": _check_flag,
    "poll_interval": to_seconds,
    "queued_timeout": to_optional_seconds,
    "reuse": _check_reuse,
    "table": _to_table,
    "timeout": to_seconds,
    "to_input": _check_function,
    "wait_for_completion": _check_flag,
    "where": _check_columns,
}


# --- literals in template fields ----------------------------------------------------------------------------


def _is_template(value: Any, endings: Iterable[str] = ()) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value or value.endswith(tuple(endings))
    if isinstance(value, os.PathLike):  # its `resolve` is not that of a task's output
        return False
    return value is SET_DURING_EXECUTION or hasattr(value, "resolve")


def _are_ids(value: Any) -> bool:
    ids = [value] if isinstance(value, str) else value
    return isinstance(ids, Iterable) and not isinstance(ids, Mapping) and all(map(_may_be_id, ids))


def _may_be_id(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or value is None or _is_template(value)


def _check_folder(value: Any, name: str) -> None:
    text = str(value) if isinstance(value, str | os.PathLike) else ""
    if not text or ("://" not in text and not os.path.isabs(text)):
        raise ValueError(
            f"{name} must be a URI or an absolute path, not {text or value!r}: each worker has its own folder"
        )


def _check_configuration(value: Any, name: str) -> None:
    tier = _check_object(value, name).get("gpu_tier", "")
    if not isinstance(tier, str) or not tier or _is_template(tier):
        return
    # imported here and below, since most DAG files do not need it
    from airflow_provider_rungen.client.models import GPU_TIERS

    if tier not in GPU_TIERS:
        raise ValueError(f"{name}: gpu_tier must be one of {', '.join(GPU_TIERS)}, not {tier!r}")


_check_name = _rule("a text that is not empty", lambda value: isinstance(value, str) and bool(value))
_check_object = _rule(
    "an object (a dict), a template or a task's output", lambda value: isinstance(value, Mapping), shows=False
)
_check_text = _rule("a text", lambda value: isinstance(value, str))

_LITERALS: dict[str, Callable[[Any, str], object]] = {
    "active_workers": whole_number,
    "app_id": _check_text,
    "configuration": _check_configuration,
    "description": _check_text,
    "destination": _check_folder,
    "input": _check_object,
    "job_id": _rule("the id of a job, a list of ids, or the output of a task", _are_ids),
    "label": _check_text,
    "limit": to_limit,
    "max_cost": to_cost,
    "max_jobs": to_limit,
    "name": _check_name,
    "only_if": is_wanted,
    "results": _check_folder,
    "rungen_conn_id": _check_name,
    "status": _check_text,
    "version": _check_text,
    "workflow": _check_object,
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
def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return all parameters of a class by name, those of its bases included."""
    makers = [vars(each)["__init__"] for each in reversed(kind.__mro__) if "__init__" in vars(each)]
    return {
        name: parameter
        for maker in makers
        for name, parameter in inspect.signature(maker).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }


def parameter_names(kind: type) -> frozenset[str]:
    """Return the names of all parameters of a class, those of its bases included."""
    return frozenset(_parameters(kind))


def default_arg_names(kwargs: Mapping[str, Any]) -> set[str]:
    """
    Return the names in the ``default_args`` that apply to a task.

    :param kwargs: the arguments of the task's ``__init__``. For a mapped task, Airflow adds the defaults.
    """
    found = [getattr(kwargs.get(owner), "default_args", None) for owner in ("dag", "task_group")]
    return {name for each in (*found, kwargs.get("default_args")) for name in each or {}}
