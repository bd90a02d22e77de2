"""The decorator ``@task.rungen_table``: a function makes the input of a row, the task writes a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import (
    DecoratedOperator,
    _TaskDecorator,
    context_merge,
    determine_kwargs,
)
from airflow_provider_rungen.operators.table import RunGenRunTableOperator

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.parameters import TableDecoratorArguments


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
            # Airflow checks that the function takes these arguments. The first stands for the row
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

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Run what is not paid for yet, wait for it, store the outputs, and write the results table.

        :return: see `RunGenRunTableOperator.execute`.
        """
        # not DecoratedOperator's, which calls the function and returns what it returns
        return RunGenRunTableOperator.execute(self, context)


class RunGenPlanTableDecoratedOperator(_RowFunction, RunGenRunTableOperator):
    """Return how many jobs `RunGenTableDecoratedOperator` would run; see `RunGenPlanTableOperator`."""

    custom_operator_name = "@task.rungen_table.plan"

    def execute(self, context: Context) -> int:  # type: ignore[override]  # it returns a number, not a summary
        """
        Read the table, and look its inputs up in the ledger.

        :return: see `RunGenPlanTableOperator.execute`.
        """
        return self._plan(context)


class TableTask(_TaskDecorator[..., Any, Any]):
    """What ``@task.rungen_table`` makes of a function."""

    if TYPE_CHECKING:

        def override(self, **kwargs: Any) -> TableTask: ...

    @property
    def plan(self) -> TableTask:
        """
        The task ``{task_id}_plan``, which returns how many jobs this one would run.

        It is called, mapped and overridden in the same way: ``photos.plan("outdoor")``.
        """
        plan = self.override(task_id=f"{self.kwargs['task_id']}_plan", outlets=None)
        plan.operator_class = RunGenPlanTableDecoratedOperator
        return plan


def rungen_table_task(
    **kwargs: Unpack[TableDecoratorArguments],
) -> Callable[[Callable[..., Any]], TableTask]:
    """
    Make a function the ``to_input`` of a task: ``@task.rungen_table(table=…, key=…, destination=…)``.

    The function takes a row, and returns the input of a job, or ``None`` to skip the row.

    :param kwargs: the parameters of `RunGenRunTableOperator`, and of every task.
    """

    def decorate(function: Callable[..., Any]) -> TableTask:
        return TableTask(
            function=function,
            multiple_outputs=False,
            operator_class=RunGenTableDecoratedOperator,
            # each function adds its name
            kwargs=dict(kwargs),
        )

    return decorate
