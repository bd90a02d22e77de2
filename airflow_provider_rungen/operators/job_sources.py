"""Finds out which app and connection know the jobs that another task of this provider ran."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from airflow_provider_rungen._airflow import XComArg
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context


class JobConsumer(Protocol):
    """A task that is given the ids of jobs."""

    task_id: str
    app_id: str | XComArg | None
    rungen_conn_id: str
    job_sources: list[str]

    def get_dag(self) -> Any:
        """Return its DAG, if it has one."""


def find_job_sources(*values: Any) -> list[str]:
    """Return the ids of the tasks of this provider whose output stands in values."""
    from airflow_provider_rungen.operators.base import RunGenBaseOperator

    tasks = (task for value in values for task, _ in XComArg.iter_xcom_references(value))
    # a mapped task names its class, any other one has it
    kinds = ((task.task_id, getattr(task, "operator_class", type(task))) for task in tasks)
    return list(dict.fromkeys(task_id for task_id, kind in kinds if issubclass(kind, RunGenBaseOperator)))


def follow_job_sources(task: JobConsumer, context: Context) -> None:
    """
    Set the app and connection of a task that names none to those of the tasks that ran its jobs.

    :raises AirflowFailException: the jobs are of several apps.
    """
    from airflow_provider_rungen.execution.run import fail_without_retry

    sources = task.job_sources or _sources_of_mapped(task)
    if not sources:
        return
    ti: Any = context["ti"]
    with fail_without_retry():
        if task.app_id is None:
            task.app_id = _pull(ti, sources, "app_id")
        if task.rungen_conn_id == DEFAULT_CONN_ID:
            task.rungen_conn_id = _pull(ti, sources, "rungen_conn_id") or DEFAULT_CONN_ID


def _sources_of_mapped(task: JobConsumer) -> list[str]:
    """Return the sources of a task that was made of a mapped one, which got ids in place of outputs."""
    definition = getattr(task.get_dag(), "task_dict", {}).get(task.task_id)
    if not hasattr(definition, "iter_mapped_dependencies"):
        return []
    given = cast("Any", definition).partial_kwargs.get("job_id")
    return find_job_sources(given, cast("Any", definition).expand_input)


def _pull(ti: Any, sources: Iterable[str], key: str) -> str | None:
    """Return what the sources pushed under a key; if they differ, and are mapped, what the twin pushed."""
    from airflow_provider_rungen.exceptions import RunGenInputError

    found: set[str] = set()
    for source in sources:
        pulled = ti.xcom_pull(task_ids=source, key=key)
        values = [pulled] if isinstance(pulled, str) else [each for each in pulled or () if each]
        if len(set(values)) > 1 and ti.map_index >= 0:  # only the one of its twin, if that has pushed any
            twin = ti.xcom_pull(task_ids=source, key=key, map_indexes=ti.map_index)
            values = [twin] if isinstance(twin, str) else []
        found.update(values)
    if len(found) > 1:
        raise RunGenInputError(
            f"job_id names jobs of several apps or connections ({', '.join(sorted(found))})",
            hint=f"Use one task for each, or set {key}",
        )
    return next(iter(found), None)
