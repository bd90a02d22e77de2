"""The decorator ``@task.rungen``: a function returns the input, the task returns the result."""

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
from airflow_provider_rungen.checks import default_arg_names, set_parameters
from airflow_provider_rungen.operators.batch import RunGenRunBatchOperator

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, TaskDecorator
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sinks.batch_result import Sink
    from airflow_provider_rungen.execution.sources.inputs import Source
    from airflow_provider_rungen.parameters import DecoratorArguments, SchemaSource


class RunGenDecoratedOperator(DecoratedOperator, RunGenRunBatchOperator):
    """
    Run the job, or the jobs, whose input a function returns, and return the result, or the list of them.

    Results are returned or stored as `RunGenCollectResultsOperator` does.

    The function is called once an attempt. Its arguments are templated. Its return value is not, because
    prompts may be untrusted. A dict is the input of one job, whose id is pushed under the XCom key
    ``job_id``, and which may not fail (``max_failed`` is for batches). What else `RunGenRunBatchOperator`
    takes as ``inputs`` is a batch, as is an object with ``__arrow_c_stream__``, such as a data frame.

    The other parameters are those of `RunGenRunBatchOperator`, without ``inputs``, ``wait_for_completion``
    and ``end_from_trigger``: the function returns the input, and the task the result.

    :param python_callable: the function.
    :param op_args: its arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    :param result_schema: the JSON Schema that every result has to fit.
    :param max_output_bytes: bytes of a file at most.
    :param max_xcom_bytes: bytes at most that are returned without ``destination``.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *RunGenRunBatchOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RunGenRunBatchOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.rungen"
    # so that the UI shows the inputs
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        result_schema: SchemaSource | None = None,
        max_output_bytes: int = 1 << 30,
        max_xcom_bytes: int = 1_000_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            **_without_inherited(kwargs),
            inputs=SET_DURING_EXECUTION,
            # the result is what ends the task, so it needs a worker, and there is always a wait
            wait_for_completion=True,
            end_from_trigger=False,
        )
        limits = {"max_output_bytes": max_output_bytes, "max_xcom_bytes": max_xcom_bytes}
        set_parameters(self, {"result_schema": result_schema, **limits})

    def execute(self, context: Context) -> Any:
        """
        Call the function, run what it returns, and wait for it.

        :return: the result, or the list of results in the order of the inputs.
        """
        # not DecoratedOperator's: that of Airflow 3.0 pushes by a method that operators no longer have
        return self._runner(context).execute(lambda: self._source_of(self._call(context)))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """
        Go on after the wait in the triggerer.

        :return: the result, or the list of results in the order of the inputs.
        """
        return self._runner(context).complete(event)

    def _call(self, context: Context) -> Any:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        given = self.python_callable(*self.op_args, **kwargs)
        self.inputs = _shown(given)
        return given

    def _source_of(self, given: Any) -> Source:
        from airflow_provider_rungen.execution.sources.inputs import OneInput
        from airflow_provider_rungen.schemas import Schema

        if isinstance(given, Mapping):
            return OneInput(given, lambda: Schema.of(self.input_schema, "input_schema"))
        return super()._source_of(given)

    def _sink(self, run: Runner) -> Sink:
        from airflow_provider_rungen.execution.sinks.result_sink import ResultSink

        return ResultSink(run, pushes_keys=self.multiple_outputs and self.destination is None)

    def _runner(self, context: Context) -> Runner:
        return self._runner_of(
            context,
            self._sink,
            folder=self.destination,
            # the function is called once an attempt, and may return something else the next time
            can_read_again=self.destination is not None,
        )


def _shown(given: Any) -> Any:
    """Return what the UI shows of the inputs."""
    if isinstance(given, Mapping):
        return [given]
    if hasattr(given, "__arrow_c_stream__"):
        # neither its text nor its length: with DuckDB, each runs the query
        return f"a table: {type(given).__name__}"
    return given


def _without_inherited(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the arguments without those of ``default_args`` that are for other tasks, which Airflow 2 gives a
    mapped task, too.

    :raises TypeError: one of them was given to this task.
    """
    arguments = dict(kwargs)
    for name in ("inputs", "wait_for_completion", "end_from_trigger"):
        if arguments.pop(name, None) is not None and name not in default_arg_names(kwargs):
            raise TypeError(
                f"@task.rungen takes no {name}: the function returns the input, and the task the result"
            )
    return arguments


def rungen_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,
    **kwargs: Unpack[DecoratorArguments],
) -> TaskDecorator:
    """
    Make a function a task that runs jobs: ``@task.rungen(app_id=…)``.

    :param python_callable: the function. It returns the input of a job (a dict), or the inputs of a batch.
    :param multiple_outputs: push each key of a result as an XCom of its own, too.
    :param kwargs: the parameters of `RunGenDecoratedOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        # not inferred from the function's annotation: what it returns is not what the task returns
        multiple_outputs=bool(multiple_outputs),
        decorated_operator_class=RunGenDecoratedOperator,
        **kwargs,
    )
