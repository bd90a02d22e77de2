"""Finds out which app and connection know the jobs that another task of this provider ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen._airflow import XComArg
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.operators.base import RunGenBaseOperator


def find_job_sources(*values: Any) -> list[str]:
    """Return the ids of the tasks of this provider whose output stands in values."""
    tasks = (task for value in values for task, _ in XComArg.iter_xcom_references(value))
    return list(dict.fromkeys(task.task_id for task in tasks if is_of_provider(task)))


def is_of_provider(task: Any) -> bool:
    """Return whether a task of a DAG, mapped or not, is of this provider."""
    from airflow_provider_rungen.operators.base import RunGenBaseOperator

    return issubclass(_class_of(task), RunGenBaseOperator)


def is_job_consumer(task: Any) -> bool:
    """Return whether a task of a DAG, mapped or not, only waits for, collects or cancels jobs of others."""
    return hasattr(_class_of(task), "job_sources")


def _class_of(task: Any) -> Any:
    """Return the class of a task. A mapped one names it."""
    return getattr(task, "operator_class", type(task))


def job_sources_of(task: Any) -> Sequence[str]:
    """Return the tasks of this provider whose outputs a task of a DAG, mapped or not, is given as jobs."""
    if not hasattr(task, "iter_mapped_dependencies"):
        return cast("Sequence[str]", task.job_sources)
    return find_job_sources(task.partial_kwargs.get("job_id"), task.expand_input)


def follow_job_sources(task: RunGenBaseOperator, context: Context) -> None:
    """
    Set the app and connection of a task that names none to those of the tasks that ran its jobs.

    :raises AirflowFailException: the jobs are of several apps.
    """
    from airflow_provider_rungen.execution.task.run import fail_without_retry

    sources = task.job_sources or _sources_of_mapped(task)
    if not sources:
        return
    ti: Any = context["ti"]
    with fail_without_retry():
        if task.app_id is None:
            task.app_id = _pull(ti, sources, "app", "app_id")
        if task.rungen_conn_id == DEFAULT_CONN_ID:
            task.rungen_conn_id = _pull(ti, sources, "connection", "rungen_conn_id") or DEFAULT_CONN_ID


def _sources_of_mapped(task: RunGenBaseOperator) -> Sequence[str]:
    """Return the sources of a task that was made of a mapped one, which got ids in place of outputs."""
    definition = getattr(task.get_dag(), "task_dict", {}).get(task.task_id)
    return [] if definition is None else job_sources_of(definition)


def _pull(ti: Any, sources: Iterable[str], name: str, parameter: str) -> str | None:
    """
    Return what the sources pushed about themselves; if they differ, and are mapped, what the twin pushed.

    :param name: a key of the XCom: see `page_record`.
    :param parameter: the parameter to set if they differ.
    """
    from airflow_provider_rungen.exceptions import RunGenInputError
    from airflow_provider_rungen.execution.task.page_record import PAGE_KEY

    found: set[str] = set()
    for source in sources:
        values = set(_texts(ti.xcom_pull(task_ids=source, key=PAGE_KEY), name))
        if len(values) > 1 and ti.map_index >= 0:  # only the one of its twin, if that has pushed any
            twin = ti.xcom_pull(task_ids=source, key=PAGE_KEY, map_indexes=ti.map_index)
            values = set(_texts(twin, name))
        found |= values
    if len(found) > 1:
        raise RunGenInputError(
            f"job_id names jobs of several apps or connections ({', '.join(sorted(found))})",
            hint=f"Use one task for each, or set {parameter}",
        )
    return next(iter(found), None)


def _texts(pulled: Any, name: str) -> Iterator[str]:
    """Yield a field of what one task pushed, or of what each of several pushed."""
    for record in [pulled] if isinstance(pulled, Mapping) else pulled or ():
        if isinstance(record, Mapping) and isinstance(text := record.get(name), str) and text:
            yield text
