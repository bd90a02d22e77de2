"""The decorator ``@task.rungen_table``: a function makes the input of a row, the task writes a table."""

from __future__ import annotations

import functools
import inspect
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
            # Airflow checks that the call gives the function all of its arguments
            python_callable=_without_row(python_callable),
            op_args=op_args,
            op_kwargs=op_kwargs,
            **kwargs,
        )
        self.python_callable = python_callable

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Run what is not paid for yet, wait for it, store the outputs, and write the results table.

        :return: see `RunGenRunTableOperator.execute`.
        """
        # not DecoratedOperator's, which calls the function and returns what it returns
        return RunGenRunTableOperator.execute(self, context)

    def _row_function(self, context: Context) -> Callable[[dict[str, Any]], Any]:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, ({}, *self.op_args), context)
        return lambda row: self.python_callable(row, *self.op_args, **kwargs)


def _without_row(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Return a function with the same parameters but the first.

    :raises TypeError: it has no parameter for the row.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise TypeError("the function of @task.rungen_table needs a first argument: the row")

    @functools.wraps(function)
    def stand_in(*args: Any, **kwargs: Any) -> None:
        """Have the signature."""

    stand_in.__signature__ = signature.replace(parameters=parameters[1:])  # type: ignore[attr-defined]
    return stand_in


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
