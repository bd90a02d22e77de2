"""What all operators and sensors of the provider have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.parse import quote

from airflow_provider_rungen._airflow import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseOperator,
    XComArg,
    conf,
)
from airflow_provider_rungen.checks import (
    check_names,
    check_parameters,
    default_arg_names,
    naming,
    parameter_names,
)
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.links import RunGenAppLink, RunGenJobLink, RunGenResultsLink
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.rows import SqlRows

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_rungen._airflow import BaseOperatorLink, Context
    from airflow_provider_rungen.parameters import OperatorArguments
    from airflow_provider_rungen.task.run import TaskRun

T = TypeVar("T")

# Airflow's own timeout of a deferral names no cause, so it is later than ours.
DEFERRAL_GRACE = timedelta(minutes=10)
DEFAULT_DEFERRABLE: bool = conf.getboolean("operators", "default_deferrable", fallback=False)
# The template fields of operators that run many jobs.
LIMITS = ("limit", "max_jobs", "max_cost")
APP_LINKS = (RunGenResultsLink(), RunGenAppLink())
JOB_LINKS = (RunGenResultsLink(), RunGenJobLink(), RunGenAppLink())


class RunGenBaseOperator(BaseOperator):
    """A task that uses RunGen. What it does is in a `TaskRun`, made for each attempt."""

    template_fields: Sequence[str] = ("app_id", "rungen_conn_id")
    operator_extra_links: Collection[BaseOperatorLink] = APP_LINKS
    ui_color = "#e8e4ff"

    _run: TaskRun[Any] | None = None
    # a kill may come before there is a run, for example while Airflow renders the templates
    _is_killed = False

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a parameter: see `set_parameters`."""

    def __init__(self, **kwargs: Any) -> None:
        owner = getattr(self, "custom_operator_name", type(self).__name__)
        check_names(kwargs, parameter_names(type(self)), owner)
        super().__init__(**kwargs)

    if not TYPE_CHECKING:  # Airflow has an attribute in this place

        @classmethod
        def partial(cls, **kwargs: Any) -> Any:
            """Check the parameters that a mapped task has before it is expanded."""
            airflow = next(base for base in cls.__mro__ if base.__module__.startswith("airflow."))
            given = {name: kwargs[name] for name in kwargs.keys() - parameter_names(airflow)}
            check_parameters(cls, kwargs.get("task_id"), given)
            return super().partial(**kwargs)

    def execute(self, context: Context) -> Any:
        """Do what the operator is for, and return what its class describes."""
        return self.ended(lambda: self._begin(context).execute())

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a wait in the triggerer."""
        return self.ended(lambda: self._begin(context).complete(event))

    def ended(self, work: Callable[[], T]) -> T:
        """
        Do the work of an attempt, and return its value.

        A known error is logged as what failed and what to do, and raised from here: Airflow logs all frames
        of an error, and all frames of its cause. Only a function of the user's is one.
        """
        from airflow_provider_rungen.task.kill import TaskKilledError
        from airflow_provider_rungen.task.outcomes import log_failure

        try:
            return self.done(work())
        except (RunGenError, AirflowFailException, AirflowSensorTimeout, TaskKilledError) as error:
            failure = error
        if not isinstance(failure, TaskKilledError):  # the kill was logged
            log_failure(failure)
        raise failure.with_traceback(None) from failure.__cause__

    def done(self, value: T) -> T:
        """Note that the task has done what it is for, and return its value."""
        if self._run is not None:
            self._run.is_done = True
        return value

    def _make_run(self, context: Context) -> TaskRun[Any]:
        raise NotImplementedError

    def _begin(self, context: Context) -> Any:
        """Return a new run, which is the one that a kill ends."""
        from airflow_provider_rungen.task.outcomes import fail_without_retry

        with fail_without_retry():
            run = self._make_run(context)
        if self._run is not None:
            run.links = self._run.links
        self._run = run
        if self._is_killed:  # while its modules were imported
            with run.guard.working():
                run.guard.kill()
        return run

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral. If Airflow ended it without an event, clean up first."""
        if next_method == "__fail__":
            reason = str((next_kwargs or {}).get("error") or "unknown")
            self.ended(lambda: self._begin(context).fail_deferral(reason))
        return super().resume_execution(next_method, next_kwargs, context)

    @property
    def links(self) -> dict[str, str]:
        """The links that this attempt pushed, by XCom key."""
        return {} if self._run is None else self._run.links

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render templates. Those of a query are rendered in a copy, since tasks may share it."""
        if isinstance(content, Path) and not hasattr(content, "protocol"):
            content = str(content)  # Airflow 3.1 takes its `resolve` for that of a task's output
        if isinstance(content, SqlRows):
            content = replace(content)
        return super().render_template(content, *args, **kwargs)

    @property
    def all_job_sources(self) -> Sequence[str]:
        """The tasks that ran the jobs which this one waits for, collects or cancels, also if it is mapped."""
        if not is_job_consumer(self):
            return ()
        # one task of an `expand` has ids in place of outputs
        definition = getattr(self.get_dag(), "task_dict", {}).get(self.task_id, self)
        return cast("Sequence[str]", self.job_sources) or job_sources_of(definition)

    def on_kill(self) -> None:
        """Cancel or undo what the task began, and end it."""
        self._is_killed = True
        if self._run is not None:
            self._run.kill()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the run, which belongs to this process."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # as Airflow leaves it
        return {**state, "_run": None}

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return what was read and stored; ``None`` where OpenLineage's provider is not installed."""
        from airflow_provider_rungen.task.report import lineage_of

        return lineage_of(None, "") if self._run is None else self._run.lineage()

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the app, and what its jobs used; ``None`` where OpenLineage's provider is not installed."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def defer_for_jobs(self, arguments: dict[str, Any], seconds: float) -> NoReturn:
        """
        Go on in the triggerer, which waits for jobs.

        :param arguments: those of `RunGenJobTrigger`.
        :param seconds: how long that may take.
        """
        from airflow_provider_rungen.triggers import RunGenJobTrigger

        self._defer_to(RunGenJobTrigger(**arguments), seconds)

    def defer_for_app(self, arguments: dict[str, Any], seconds: float) -> NoReturn:
        """
        Go on in the triggerer, which waits for an app.

        :param arguments: those of `RunGenAppTrigger`.
        :param seconds: how long that may take.
        """
        from airflow_provider_rungen.triggers import RunGenAppTrigger

        self._defer_to(RunGenAppTrigger(**arguments), seconds)

    def _defer_to(self, trigger: Any, seconds: float) -> NoReturn:
        timeout = timedelta(seconds=max(seconds, 0)) + DEFERRAL_GRACE
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)


def check_deferrable(task: RunGenBaseOperator, kwargs: OperatorArguments) -> None:
    """
    Refuse a deferral without a wait, unless it comes from ``default_args`` or Airflow's configuration.

    :raises RunGenInputError: ``deferrable`` has no effect.
    """
    if task.wait_for_completion or not task.deferrable or DEFAULT_DEFERRABLE:
        return
    if "deferrable" not in default_arg_names(kwargs):
        with naming(type(task), task.task_id):
            raise ValueError(
                "deferrable=True has no effect without a wait: set wait_for_completion=True to wait in the "
                "triggerer, or leave deferrable out"
            )


def results_uri(task: RunGenBaseOperator, ti: Any) -> str:
    """
    Return the URI of the results table of a task with a destination.

    :raises AirflowFailException: each of the tasks of an ``expand`` would write it: its name has no template.
    """
    if task.results is None:
        index = "" if ti.map_index in (None, -1) else f".{ti.map_index}"
        name = f"{ti.dag_id}.{ti.task_id}/{quote(ti.run_id, safe=':+')}{index}.jsonl"
        return f"{str(task.destination).removesuffix('/')}/results/{name}"
    definition = getattr(task.get_dag(), "task_dict", {}).get(task.task_id)
    constant = getattr(definition, "partial_kwargs", {}).get("results")
    if ti.map_index >= 0 and isinstance(constant, str) and "{" not in constant:
        raise AirflowFailException(
            "results: each of the mapped tasks would replace the table of the others. Write "
            "{{ ti.map_index }} in its name, or leave it out"
        )
    return str(task.results)


def find_job_sources(*values: Any) -> list[str]:
    """Return the ids of this provider's tasks whose ``.output`` is in values."""
    tasks = (task for value in values for task, _ in XComArg.iter_xcom_references(value))
    return list(dict.fromkeys(task.task_id for task in tasks if is_of_provider(task)))


def is_of_provider(task: Any) -> bool:
    """Return whether a task of a DAG, mapped or not, is of this provider."""
    return issubclass(class_of(task), RunGenBaseOperator)


def is_job_consumer(task: Any) -> bool:
    """Return whether a task of a DAG, mapped or not, only waits for, collects or cancels jobs of others."""
    return hasattr(class_of(task), "job_sources")


def class_of(task: Any) -> Any:
    """Return the class of a task. A mapped one names it."""
    return getattr(task, "operator_class", type(task))


def job_sources_of(task: Any) -> Sequence[str]:
    """Return the tasks of this provider that run the jobs of a task of a DAG, mapped or not."""
    if not hasattr(task, "iter_mapped_dependencies"):
        return cast("Sequence[str]", task.job_sources)
    return find_job_sources(task.partial_kwargs.get("job_id"), task.expand_input)


def follow_job_sources(task: RunGenBaseOperator, context: Context) -> None:
    """
    Set the app and the connection, unless the task names them, to those of the tasks that ran its jobs.

    :raises AirflowFailException: the jobs are of several apps.
    """
    from airflow_provider_rungen.task.outcomes import fail_without_retry

    sources = task.all_job_sources
    if not sources:
        return
    ti: Any = context["ti"]
    with fail_without_retry():
        if task.app_id is None:
            task.app_id = _pull(ti, sources, "app", "app_id")
        if task.rungen_conn_id == DEFAULT_CONN_ID:
            task.rungen_conn_id = _pull(ti, sources, "connection", "rungen_conn_id") or DEFAULT_CONN_ID


def labels_of(task: RunGenBaseOperator, context: Context) -> dict[str, str]:
    """Return the labels that the tasks have pushed which ran the jobs of a task, by job."""
    from airflow_provider_rungen.task.xcom_keys import LABEL_KEY

    found: dict[str, str] = {}
    for source in task.all_job_sources:
        for labels in _records(context["ti"].xcom_pull(task_ids=source, key=LABEL_KEY)):
            found |= labels
    return found


def _pull(ti: Any, sources: Iterable[str], name: str, parameter: str) -> str | None:
    """
    Return the app or the connection that the sources pushed.

    If the tasks of a mapped source differ, only the one with the map index of this task counts.

    :param name: a key of the XCom: see `xcom_keys`.
    :param parameter: the parameter to set if they differ.
    """
    from airflow_provider_rungen.exceptions import RunGenInputError
    from airflow_provider_rungen.task.xcom_keys import PAGE_KEY

    found: set[str] = set()
    for source in sources:
        values = set(_texts(ti.xcom_pull(task_ids=source, key=PAGE_KEY), name))
        if len(values) > 1 and ti.map_index >= 0:
            values = set(_texts(ti.xcom_pull(task_ids=source, key=PAGE_KEY, map_indexes=ti.map_index), name))
        found |= values
    if len(found) > 1:
        raise RunGenInputError(
            f"job_id names jobs of several apps or connections ({', '.join(sorted(found))})",
            hint=f"Use one task for each, or set {parameter}",
        )
    return next(iter(found), None)


def _texts(pulled: Any, name: str) -> Iterator[str]:
    """Yield a field of what one task pushed, or of what each of several pushed."""
    for record in _records(pulled):
        if isinstance(text := record.get(name), str) and text:
            yield text


def _records(pulled: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what one task pushed, or what each of several pushed."""
    records = [pulled] if isinstance(pulled, Mapping) else pulled or ()
    return (each for each in records if isinstance(each, Mapping))
