"""Checks the parameters of operators and sensors when a DAG is parsed, and names their types."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.durations import to_optional_seconds, to_seconds
from airflow_provider_rungen.client.price import parse_price

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, MutableMapping, Sequence
    from datetime import datetime
    from typing import Literal, Required, TypeAlias, TypedDict

    from airflow_provider_rungen._airflow import ObjectStoragePath, XComArg
    from airflow_provider_rungen.ledger import Ledger

    #: One id, a list, or the output of a task.
    JobIds: TypeAlias = str | XComArg | Sequence[str | XComArg | None]
    # values are objects, since mypy infers dict[str, object] for a variable with values of several types
    #: A JSON object. Templates and outputs of tasks may stand in it.
    JsonObject: TypeAlias = str | XComArg | Mapping[str, object]
    JobInput: TypeAlias = JsonObject
    #: The inputs of many jobs, or the URI of files that hold them.
    JobInputs: TypeAlias = str | os.PathLike[str] | ObjectStoragePath | XComArg | Iterable[JobInput]
    #: How the files of a table are read.
    TableFormat: TypeAlias = Literal["jsonl", "csv", "parquet"]
    #: The URI of a file, of a folder or of a glob, or rows.
    Table: TypeAlias = str | os.PathLike[str] | ObjectStoragePath | XComArg | Iterable[Mapping[str, object]]
    #: Makes the input of a job of a row, or skips the row.
    ToInput: TypeAlias = Callable[[dict[str, Any]], Mapping[str, object] | None]
    #: A JSON Schema, the path or URI of a file, or the name of a schema that comes with the package.
    SchemaSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
    #: The folder to store outputs in.
    Destination: TypeAlias = str | os.PathLike[str] | ObjectStoragePath | XComArg
    #: What remembers which inputs were paid for, or the folder of one that has nothing else to set.
    LedgerSource: TypeAlias = Ledger | str | os.PathLike[str] | ObjectStoragePath
    Duration: TypeAlias = float | timedelta

    class CommonArguments(TypedDict, total=False):
        """What Airflow's tasks take, so that a type checker knows all names."""

        owner: str
        email: str | Sequence[str] | None
        email_on_retry: bool
        email_on_failure: bool
        retries: int | None
        retry_delay: timedelta | float
        retry_exponential_backoff: float
        max_retry_delay: timedelta | float | None
        retry_policy: Any
        start_date: datetime | None
        end_date: datetime | None
        depends_on_past: bool
        ignore_first_depends_on_past: bool
        wait_for_past_depends_before_skipping: bool
        wait_for_downstream: bool
        dag: Any
        params: MutableMapping[str, Any] | None
        default_args: dict[str, Any] | None
        priority_weight: int
        weight_rule: Any
        queue: str
        pool_slots: int
        sla: timedelta | None
        execution_timeout: timedelta | None
        on_execute_callback: Any
        on_failure_callback: Any
        on_success_callback: Any
        on_retry_callback: Any
        on_skipped_callback: Any
        pre_execute: Any
        post_execute: Any
        trigger_rule: str
        resources: dict[str, Any] | None
        run_as_user: str | None
        map_index_template: str | None
        max_active_tis_per_dag: int | None
        max_active_tis_per_dagrun: int | None
        executor: str | None
        executor_config: dict[str, Any] | None
        do_xcom_push: bool
        inlets: Any
        outlets: Any
        task_group: Any
        doc: str | None
        doc_md: str | None
        doc_json: str | None
        doc_yaml: str | None
        doc_rst: str | None
        task_display_name: str | None
        logger_name: str | None
        allow_nested_operators: bool
        render_template_as_native_obj: bool | None

    class TaskArguments(CommonArguments, total=False):
        """What every decorated task takes."""

        task_id: str
        pool: str | None

    class OperatorArguments(CommonArguments, total=False):
        """What every operator takes."""

        task_id: Required[str]
        pool: str | None

    class JobDecoratorArguments(TaskArguments, total=False):
        """What both decorators take."""

        format: TableFormat | None
        app_id: str | XComArg | None
        rungen_conn_id: str
        deferrable: bool
        defer_after: Duration
        poll_interval: Duration
        timeout: Duration
        queued_timeout: Duration | None
        cancel_on_kill: bool
        durable: bool
        on_unknown_submission: Literal["resubmit", "fail"]
        on_clear: Literal["new", "resume"]
        input_schema: SchemaSource | None
        destination: Destination | None
        contact_sheet: bool
        ledger: LedgerSource | None
        result_schema: SchemaSource | None
        max_concurrency: int
        max_in_flight: int | None
        max_failed: float
        stop_after: int | None
        max_output_bytes: int

    class DecoratorArguments(JobDecoratorArguments, total=False):
        """What ``@task.rungen`` takes: see `RunGenDecoratedOperator`."""

        max_xcom_bytes: int

    class TableDecoratorArguments(JobDecoratorArguments, total=False):
        """What ``@task.rungen_table`` takes: see `RunGenRunTableOperator`."""

        table: Required[Table]
        key: Required[str | Sequence[str]]
        columns: Sequence[str]
        results: Destination | None

    class ScaleUpArguments(CommonArguments, total=False):
        """What scaling up takes beside the app and its workers: see `RunGenScaleAppOperator`."""

        wait_until_running: bool
        deferrable: bool
        defer_after: Duration
        timeout: Duration
        scale_down_on_failure: bool

    class SensorArguments(OperatorArguments, total=False):
        """What every sensor takes."""

        poke_interval: timedelta | float
        timeout: timedelta | float
        soft_fail: bool
        mode: Literal["poke", "reschedule"]
        exponential_backoff: bool
        max_wait: timedelta | float | None
        silent_fail: bool
        never_fail: bool


__all__ = [
    "DEFAULT_CONN_ID",
    "check_choice",
    "check_columns",
    "check_contact_sheet",
    "check_count",
    "check_format",
    "check_ledger",
    "check_limit",
    "check_max_failed",
    "check_names",
    "check_price",
    "check_schema",
    "default_arg_names",
    "parameter_names",
    "to_optional_seconds",
    "to_seconds",
]

DEFAULT_CONN_ID = "rungen_default"


def check_count(value: int, name: str) -> int:
    """
    Return a positive whole number.

    :raises ValueError: it is not one; the message names the parameter.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return value


def check_limit(value: int | None, name: str) -> int | None:
    """
    Return a positive whole number, or ``None`` for no limit.

    :raises ValueError: it is neither; the message names the parameter.
    """
    return None if value is None else check_count(value, name)


def check_max_failed(value: float) -> float:
    """
    Return a ``max_failed``: a number, or a share below 1.

    :raises ValueError: it is neither.
    """
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_count and not (isinstance(value, float) and 0 <= value < 1):
        raise ValueError(f"max_failed must be a whole number, or a share below 1, not {value!r}")
    return value


def check_choice(value: str, choices: tuple[str, ...], name: str) -> None:
    """
    Check that a value is one of some words.

    :raises ValueError: it is not; the message names the parameter.
    """
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def check_format(value: str | None) -> None:
    """
    Check that a ``format`` is one that tables are read in, or left out.

    :raises ValueError: it is neither.
    """
    if value is not None:
        check_choice(value, ("jsonl", "csv", "parquet"), "format")


def check_columns(names: str | Sequence[str], name: str, *, allow_none: bool = False) -> tuple[str, ...]:
    """
    Return the names of columns, of which a text is one.

    :raises ValueError: they are not names, or one occurs twice; the message names the parameter.
    """
    columns = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(column, str) and column for column in columns) or not (columns or allow_none):
        raise ValueError(f"{name} must be the name of a column, or several, not {names!r}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{name} names a column twice: {names!r}")
    return columns


def check_contact_sheet(contact_sheet: bool, destination: Any) -> bool:
    """
    Return a ``contact_sheet`` as it was given.

    :raises ValueError: it is no bool, or there is no ``destination`` to write the sheet to.
    """
    if not isinstance(contact_sheet, bool):
        raise ValueError(f"contact_sheet must be True or False, not {contact_sheet!r}")
    if contact_sheet and destination is None:
        raise ValueError("contact_sheet needs destination: the sheet is written beside the outputs")
    return contact_sheet


def check_ledger(ledger: LedgerSource | None, destination: Any) -> Ledger | None:
    """
    Return a ledger, made of its folder if that was given.

    :raises ValueError: there is no ``destination``, and only what is stored can be reused.
    """
    from airflow_provider_rungen.ledger import Ledger

    if ledger is None:
        return None
    if destination is None:
        raise ValueError("ledger needs destination: only jobs whose outputs are stored can be reused")
    return ledger if isinstance(ledger, Ledger) else Ledger(ledger)


def check_price(price: Any) -> Any:
    """
    Return a price as it was given; a template or another task's output is checked when the task runs.

    :raises ValueError: it is no price of a worker.
    """
    is_known = isinstance(price, str | int | float) and not any(each in str(price) for each in ("{{", "{%"))
    if is_known:
        try:
            parse_price(price)
        except ValueError as error:
            raise ValueError(f"price {error}, not {price!r}") from None
    return price


def check_schema(source: Any, name: str) -> Any:
    """
    Return a schema as it was given, checked as far as it can be when a DAG is parsed.

    :raises RunGenInputError: it is not a schema, or its name is unknown.
    """
    if source is None:
        return None
    from airflow_provider_rungen.schemas import checked

    return checked(source, name)


def check_names(given: Iterable[str], known: Iterable[str], taker: str) -> None:
    """
    Check that every parameter that was given is known. Airflow's own, with ``_`` in front, are not checked.

    :param taker: what takes them, as its user knows it.
    :raises TypeError: one is unknown; the message names it, and what may have been meant.
    """
    known = sorted(known)
    for name in given:
        if name in known or name.startswith("_"):
            continue
        meant = get_close_matches(name, known, 1)
        raise TypeError(f"{taker} has no parameter {name!r}" + (f": use {meant[0]!r}" if meant else ""))


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

    :param kwargs: what the task's ``__init__`` was given. For a mapped task, Airflow mixes the two.
    """
    found = [getattr(kwargs.get(owner), "default_args", None) for owner in ("dag", "task_group")]
    return {name for each in (*found, kwargs.get("default_args")) for name in each or {}}
