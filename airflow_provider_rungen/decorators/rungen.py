"""The decorator ``@task.rungen``: a function gives the input, the task returns the result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)
from airflow_provider_rungen.execution.default_args import default_arg_names
from airflow_provider_rungen.execution.tolerance import checked_count
from airflow_provider_rungen.execution.waiting import raise_for_jobs
from airflow_provider_rungen.operators.batch import RunGenRunBatchOperator
from airflow_provider_rungen.operators.collect import RunGenCollectResultsOperator
from airflow_provider_rungen.schemas import checked

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context, TaskDecorator
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.exceptions import RunGenError
    from airflow_provider_rungen.execution.batch import Checkpoint, Inputs
    from airflow_provider_rungen.hooks.rungen import RunGenHook


class _RunGenDecoratedOperator(DecoratedOperator, RunGenRunBatchOperator):
    """
    Run the job, or the jobs, whose input a function returns, and return the result, or the list of them.

    Results are returned or stored as `RunGenCollectResultsOperator` does.

    The function is called once an attempt. What it returns is data, and no template; its arguments are
    templates. A dict is the input of one job, whose id is pushed under the XCom key ``job_id``, and which
    may not fail (``max_failed`` is for batches); what else `RunGenRunBatchOperator` takes is a batch.

    :param python_callable: the function.
    :param op_args: its arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    :param destination: the folder to store outputs in, as `RunGenCollectResultsOperator` does (templated).
    :param result_schema: the JSON Schema that every result has to fit.
    :param max_output_bytes: bytes of a file at most.
    :param max_outputs: files of a job at most.
    :param max_total_bytes: bytes of all files of a job at most; no limit when left out.
    :param max_xcom_bytes: bytes at most that are returned without ``destination``.
    :param kwargs: the parameters of `RunGenRunBatchOperator`.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *RunGenRunBatchOperator.template_fields,
        "destination",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RunGenRunBatchOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.rungen"
    # so that the UI shows the inputs
    overwrite_rtif_after_execution = True

    _is_single = False
    _collector: RunGenCollectResultsOperator | None = None

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        destination: Any = None,
        result_schema: Any = None,
        max_output_bytes: int = 1 << 30,
        max_outputs: int = 10_000,
        max_total_bytes: int | None = None,
        max_xcom_bytes: int = 1_000_000,
        **kwargs: Any,
    ) -> None:
        for name in ("inputs", "wait_for_completion", "end_from_trigger"):
            # Airflow 2 gives a mapped task those of default_args, which are for other tasks, too
            if kwargs.pop(name, None) is not None and name not in default_arg_names(kwargs):
                raise TypeError(
                    f"@task.rungen takes no {name}: the function gives the input, the task the result"
                )
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            inputs=SET_DURING_EXECUTION,
            # said here, so that default_args have no say
            wait_for_completion=True,
            end_from_trigger=False,
            **kwargs,
        )
        self.destination = destination
        self.result_schema = checked(result_schema, "result_schema")
        self.max_output_bytes = checked_count(max_output_bytes, "max_output_bytes")
        self.max_outputs = checked_count(max_outputs, "max_outputs")
        self.max_total_bytes = max_total_bytes
        if max_total_bytes is not None:
            checked_count(max_total_bytes, "max_total_bytes")
        self.max_xcom_bytes = checked_count(max_xcom_bytes, "max_xcom_bytes")

    def execute(self, context: Context) -> Any:
        """
        Call the function, run what it returns, and wait for it.

        :return: the result, or the list of results in the order of the inputs.
        """
        # not DecoratedOperator's: that of Airflow 3.0 pushes by a method that operators no longer have
        return RunGenRunBatchOperator.execute(self, context)

    def _given_inputs(self, context: Context) -> Any:
        self._prepare_collecting()
        context_merge(context, self.op_kwargs)
        given = self.python_callable(
            *self.op_args, **determine_kwargs(self.python_callable, self.op_args, context)
        )
        self._is_single = isinstance(given, Mapping)
        self.inputs = [given] if self._is_single else given
        return self.inputs

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """
        Go on after the wait in the triggerer.

        :return: the result, or the list of results in the order of the inputs.
        """
        ti = context["ti"]
        pushed = ti.xcom_pull(task_ids=ti.task_id, key="job_id", map_indexes=ti.map_index)
        self._is_single = pushed is not None
        return super().execute_complete(context, event)

    def _submit(
        self, context: Context, hook: RunGenHook, inputs: Inputs, kept: Checkpoint, **options: Any
    ) -> Any:
        refused = super()._submit(context, hook, inputs, kept, **options)
        if self._is_single and kept.job_ids:
            context["ti"].xcom_push(key="job_id", value=kept.job_ids[0])
        return refused

    def _finish(
        self,
        context: Context,
        app_id: str,
        ids: list[str | None],
        refused: Mapping[int, RunGenError],
        jobs: Sequence[Job],
    ) -> Any:
        """Give the results in place of the ids; of one job, its own error."""
        job_ids = [job_id for job_id in ids if job_id]
        if self._is_single:
            self.max_failed = 0  # that is for inputs among others
            for error in refused.values():
                raise error
        if self._is_single and job_ids:
            raise_for_jobs(jobs)
        else:
            super()._finish(context, app_id, ids, refused, jobs)
        self._over = set(job_ids)  # they are not to be canceled any more
        hook, collector = self._hook, self._collector or self._prepare_collecting()
        assert hook is not None  # noqa: S101 - for the type checker
        collector.max_failed = self.max_failed
        collector._told = self._done.failed_count if self._done else 0
        collector.job_id = job_ids[0] if self._is_single and job_ids else ids
        value = collector.collect(context, hook, app_id)
        self._done = collector._done
        return value

    def _prepare_collecting(self) -> RunGenCollectResultsOperator:
        """Find out before anything is paid for what would keep results from being collected."""
        self._collector = collector = RunGenCollectResultsOperator(
            task_id=self.task_id,
            job_id=[],
            destination=self.destination,
            result_schema=self.result_schema,
            max_concurrency=self.max_concurrency,
            max_output_bytes=self.max_output_bytes,
            max_outputs=self.max_outputs,
            max_total_bytes=self.max_total_bytes,
            max_xcom_bytes=self.max_xcom_bytes,
            outlets=self.outlets,
        )
        collector.checks_keys = self.multiple_outputs and self.destination is None
        collector.prepare()
        return collector


def rungen_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """
    Make a function a task that runs RunGen jobs: ``@task.rungen(app_id=…)``.

    :param python_callable: the function; it returns the input of a job (a dict), or a list of inputs.
    :param multiple_outputs: whether to push each key of a result as an XCom of its own, too.
    :param kwargs: the parameters of the operator: those of `RunGenRunBatchOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        # not to be told from the function's annotation: what it returns is not what the task returns
        multiple_outputs=bool(multiple_outputs),
        decorated_operator_class=_RunGenDecoratedOperator,
        **kwargs,
    )
