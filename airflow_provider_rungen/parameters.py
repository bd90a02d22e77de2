"""The types of the parameters of operators and sensors, for type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
    from datetime import datetime, timedelta
    from typing import Any, Literal, Required, TypeAlias, TypedDict

    from airflow_provider_rungen._airflow import ObjectStoragePath, XComArg
    from airflow_provider_rungen.rows import SqlRows

    #: One id, a list, or the output of a task.
    JobIds: TypeAlias = str | XComArg | Sequence[str | XComArg | None]
    # values are objects, since mypy infers dict[str, object] for a variable with values of several types
    #: A JSON object. Templates and outputs of tasks may stand in it.
    JsonObject: TypeAlias = str | XComArg | Mapping[str, object]
    JobInput: TypeAlias = JsonObject
    #: The URI of a file, of a folder or of a glob; rows, a query or a task's output; or what returns rows.
    Table: TypeAlias = (
        str
        | os.PathLike[str]
        | ObjectStoragePath
        | XComArg
        | Iterable[Mapping[str, object]]
        | SqlRows
        | Callable[..., object]
    )
    #: Makes the input of a job of a row, or skips the row. It may take ``params``, too.
    ToInput: TypeAlias = Callable[..., Mapping[str, object] | None]
    #: A JSON Schema, the path or URI of a file, or the name of a schema that comes with the package.
    SchemaSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
    #: What results have to be: a class that pydantic knows, or a JSON Schema.
    OutputSource: TypeAlias = SchemaSource | type[Any]
    #: Takes a result and its stored files, and raises ``RejectRow`` if they will not do.
    Check: TypeAlias = Callable[[Any, list[ObjectStoragePath]], object]
    #: The folder to store outputs in.
    Destination: TypeAlias = str | os.PathLike[str] | ObjectStoragePath | XComArg
    Duration: TypeAlias = float | timedelta
    #: A number of rows or jobs, or a template of one.
    Limit: TypeAlias = int | str | XComArg

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

    class OperatorArguments(CommonArguments, total=False):
        """What every operator takes."""

        task_id: Required[str]
        pool: str | None

    class ScaleUpArguments(CommonArguments, total=False):
        """What scaling up takes beside the app and its workers: see `RunGenScaleAppOperator`."""

        deferrable: bool
        timeout: Duration

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


DEFAULT_CONN_ID = "rungen_default"
