"""What the rows of a results table cost: the seconds that their jobs ran, times the price of a worker."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.price import Price, parse_price
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.execution.costs.bill import read_decimal

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.table.results import ResultRow
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# The digits of the column ``cost``.
_COST = Decimal("0.00000001")


def add_costs(rows: Iterable[ResultRow], price: Price | None) -> Iterator[ResultRow]:
    """Yield rows with their costs, as far as it is known how long their jobs ran."""
    for row in rows:
        seconds = read_decimal(row.execution_seconds)
        if price is None or seconds is None:
            yield row
        else:
            yield replace(row, cost=(seconds * price.per_second).quantize(_COST))


def find_price(run: TaskRun[Any]) -> Price | None:
    """
    Return what a worker costs: the price of the ``scaled_app`` block around the task, or the connection's.

    It is not worth a failure.
    """
    try:
        dag = run.context.get("dag")
        downs: list[Any] = [task for task in dag.tasks if hasattr(task, "scale_up_task_id")] if dag else []
        for down in downs:
            if run.task.task_id in (*down.job_task_ids, *down.collect_task_ids) and down.price is not None:
                return parse_price(run.task.render_template(down.price, run.context))
        return run.hook.settings.price
    except Exception as error:
        if run.guard.is_killed:
            raise
        reason = clean_text(f"{type(error).__name__}: {error}", 200)
        log.warning("The results table has no costs: %s", reason)
        return None
