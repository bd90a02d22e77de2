"""The decorators: a function returns the input of ``@task.rungen``, or makes that of a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    _TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)
from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.operators.job import RunGenRunJobOperator
from airflow_provider_rungen.operators.table import RunGenRunTableOperator

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context, TaskDecorator
    from airflow_provider_rungen.parameters import Destination, OutputSource
    from airflow_provider_rungen.work.single import JobRun


# The parameters that a job has not.
_OF_RESULT = ("output_type", "destination")


class RunGenDecoratedOperator(DecoratedOperator, RunGenRunJobOperator):
    """
    Run the job whose input a function returns, and return its result.

    The result is returned. With a ``destination``, its files are stored, and the task returns ``job_id``,
    ``outputs`` (the files, each with ``uri``, ``size``, ``sha256`` and ``content_type``) and ``result``,
    which has the URIs of the files. A result of over 64 KB is a file, too, at ``result_uri``.

    The function is called once an attempt. Its arguments are templated. Its return value, a dict, is not,
    because prompts may be untrusted. For many inputs, use `RunGenRunTableOperator`.

    The other parameters are those of `RunGenRunJobOperator`, without ``input`` and
    ``wait_for_completion``: the function returns the input, and the task the result.

    :param python_callable: the function.
    :param op_args: its arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    :param output_type: what the result has to be: a class that pydantic knows, or a JSON Schema. If it is
        an object or an array, a text is parsed as JSON, also in a Markdown code fence.
    :param destination: the folder to store outputs in: a URI such as ``s3://conn_id@bucket/prefix``, an
        absolute path, or an ``ObjectStoragePath`` (templated).
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *RunGenRunJobOperator.template_fields,
        "destination",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RunGenRunJobOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.rungen"
    # so that the UI shows the input
    overwrite_rtif_after_execution = True
    max_failed = 0

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        output_type: OutputSource | None = None,
        destination: Destination | None = None,
        **kwargs: Any,
    ) -> None:
        given = locals()
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            **kwargs,
            input=SET_DURING_EXECUTION,
            # the result is what ends the task, so it needs a worker, and there is always a wait
            wait_for_completion=True,
        )
        set_parameters(self, {name: given[name] for name in _OF_RESULT})

    def execute(self, context: Context) -> Any:
        """Call the function, run what it returns, and wait for it."""
        # not DecoratedOperator's, which returns what the function returns
        return self.ended(lambda: self._begin(context).execute())

    def _call(self, context: Context) -> Mapping[str, Any]:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        given = self.python_callable(*self.op_args, **kwargs)
        if not isinstance(given, Mapping):
            raise RunGenInputError(
                f"The function returned a {type(given).__name__}, not the input of a job (a dict); nothing "
                "was sent",
                hint="For many inputs, use RunGenRunTableOperator",
            )
        self.input = given
        return given

    def _make_run(self, context: Context) -> JobRun:
        from airflow_provider_rungen.work.single import JobRun
        from airflow_provider_rungen.work.single_value import JobResult

        pushes_keys = self.multiple_outputs and self.destination is None
        return JobRun(self, context, lambda: self._call(context), partial(JobResult, pushes_keys=pushes_keys))


def rungen_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> TaskDecorator:
    """
    Make a function a task that runs a job: ``@task.rungen(app_id=…)``.

    :param python_callable: the function. It returns the input of the job (a dict).
    :param multiple_outputs: push each key of the result as an XCom of its own, too.
    :param kwargs: the parameters of `RunGenDecoratedOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        # not inferred from the annotation of the function, which does not return what the task returns
        multiple_outputs=bool(multiple_outputs),
        decorated_operator_class=RunGenDecoratedOperator,
        **kwargs,
    )


class _RowFunction(DecoratedOperator):
    """
    A task with a function as ``to_input``.

    :param python_callable: the function. Its first argument is the row (a dict).
    :param op_args: its further arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *RunGenRunTableOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = dict(DecoratedOperator.template_fields_renderers)

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            # Airflow checks these arguments against the signature of the function. The first is the row
            op_args=(None, *(op_args or ())),
            op_kwargs=op_kwargs,
            **kwargs,
        )

    def _row_function(self, context: Context) -> Callable[[dict[str, Any]], Any]:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        _, *op_args = self.op_args
        return lambda row: self.python_callable(row, *op_args, **kwargs)


class RunGenTableDecoratedOperator(_RowFunction, RunGenRunTableOperator):
    """Run a job for each row of a table: `RunGenRunTableOperator` with a function as ``to_input``."""

    custom_operator_name = "@task.rungen_table"

    def execute(self, context: Context) -> Any:
        """Run what is not paid for yet, wait for it, store the outputs, and write the results table."""
        # not DecoratedOperator's, which calls the function and returns what it returns
        return self.ended(lambda: self._begin(context).execute())


def rungen_table_task(**kwargs: Any) -> Callable[[Callable[..., Any]], _TaskDecorator[..., Any, Any]]:
    """
    Make a function the ``to_input`` of a task: ``@task.rungen_table(table=…, key=…, destination=…)``.

    The function takes a row, and returns the input of a job, or ``None`` to skip the row.

    :param kwargs: the parameters of `RunGenRunTableOperator`, and of every task.
    """

    def decorate(function: Callable[..., Any]) -> _TaskDecorator[..., Any, Any]:
        return _TaskDecorator(
            function=function,
            multiple_outputs=False,
            operator_class=RunGenTableDecoratedOperator,
            # a copy, since each function adds its name
            kwargs=dict(kwargs),
        )

    return decorate
