"""The decorator ``@task.rungen_table``: a function makes the input of a row, the task writes a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)
from airflow_provider_rungen.operators.table import RunGenRunTableOperator

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, TaskDecorator
    from airflow_provider_rungen.parameters import TableDecoratorArguments


class RunGenTableDecoratedOperator(DecoratedOperator, RunGenRunTableOperator):
    """
    Run a job for each row of a table, as `RunGenRunTableOperator` does, with a function as ``to_input``.

    :param python_callable: the function. Its first argument is the row (a dict).
    :param op_args: its further arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *RunGenRunTableOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = dict(DecoratedOperator.template_fields_renderers)
    custom_operator_name = "@task.rungen_table"

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
            # Airflow checks that the function takes these arguments. The first stands for the row
            op_args=(None, *(op_args or ())),
            op_kwargs=op_kwargs,
            **kwargs,
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Run what is not paid for yet, wait for it, store the outputs, and write the results table.

        :return: see `RunGenRunTableOperator.execute`.
        """
        # not DecoratedOperator's, which calls the function and returns what it returns
        return RunGenRunTableOperator.execute(self, context)

    def _row_function(self, context: Context) -> Callable[[dict[str, Any]], Any]:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        _, *op_args = self.op_args
        return lambda row: self.python_callable(row, *op_args, **kwargs)


def rungen_table_task(
    python_callable: Callable[..., Any] | None = None,
    **kwargs: Unpack[TableDecoratorArguments],
) -> TaskDecorator:
    """
    Make a function the ``to_input`` of a task: ``@task.rungen_table(table=…, key=…, destination=…)``.

    :param python_callable: the function. It takes a row, and returns the input of a job, or ``None`` to skip
        the row.
    :param kwargs: the parameters of `RunGenRunTableOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=False,
        decorated_operator_class=RunGenTableDecoratedOperator,
        **kwargs,
    )
