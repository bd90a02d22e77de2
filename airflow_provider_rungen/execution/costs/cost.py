"""What the jobs of a results table cost: their share of the bill of ``scaled_app``, or the time they ran."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.price import Price, parse_price
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.client.worker_history import see_app
from airflow_provider_rungen.execution.costs.bill import BILL_KEY, Bill, JobUsage, read_decimal, read_usage
from airflow_provider_rungen.execution.costs.scale_state import KEY, LEFT_KEY, read_history, read_scale_record

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sinks.collector import CollectingTask
    from airflow_provider_rungen.execution.table.results import ResultRow

log = logging.getLogger(__name__)

# The digits of the column ``cost``.
_COST = Decimal("0.00000001")


class JobCosts:
    """
    Shares an amount among jobs, by the seconds that they ran.

    :param amount: what they cost together; ``None`` if it is not known.
    :param seconds: what all jobs ran that share it.
    """

    def __init__(self, amount: Decimal | None, seconds: Decimal) -> None:
        self._amount = amount
        self._seconds = seconds
        # what the jobs so far ran and cost: the shares add up to the amount, however they are rounded
        self._shared_seconds = self._shared = Decimal()
        self._charged: set[str] = set()

    def charge(self, rows: Iterable[ResultRow]) -> Iterator[ResultRow]:
        """Yield rows with their costs. Of the rows that share a job, the first one has its cost."""
        for row in rows:
            yield row if self._amount is None else replace(row, cost=self._cost(row, self._amount))

    def _cost(self, row: ResultRow, amount: Decimal) -> Decimal | None:
        if row.job_id is None or row.reused or row.job_id in self._charged:
            return Decimal().quantize(_COST)
        seconds = read_decimal(row.execution_seconds)
        if seconds is None or not self._seconds:  # if all jobs took 0 s, the service does not measure them
            return None
        self._charged.add(row.job_id)
        self._shared_seconds += seconds
        shared = self._shared
        self._shared = (amount * self._shared_seconds / self._seconds).quantize(_COST)
        return self._shared - shared


def find_job_costs(
    run: CollectingTask, app_id: str, seconds: Decimal, *, is_collecting: bool = False
) -> JobCosts:
    """
    Find out what the jobs of a table cost. It is not worth a failure.

    :param run: the attempt.
    :param app_id: the app.
    :param seconds: what the jobs ran that are not reused.
    :param is_collecting: whether other tasks ran the jobs.
    """
    try:
        dag = run.context.get("dag")
        downs = [task for task in dag.tasks if hasattr(task, "scale_up_task_id")] if dag else []
        if (costs := _share_of_block(run, downs, app_id, seconds)) is not None:
            return costs
        if is_collecting and (costs := _share_of_final_bill(run, downs, app_id, seconds)) is not None:
            return costs
        price = run.hook.settings.price
        return JobCosts(None if price is None else seconds * price.per_second, seconds)
    except Exception as error:
        if run.guard.is_killed:
            raise
        reason = clean_text(f"{type(error).__name__}: {error}", 200)
        log.warning("The results table has no costs: %s", reason)
        return JobCosts(None, seconds)


def _share_of_block(
    run: CollectingTask, downs: Sequence[Any], app_id: str, seconds: Decimal
) -> JobCosts | None:
    """Share the bill so far of the ``scaled_app`` block around the task; ``None`` if there is none."""
    task_id = run.task.task_id
    for down in downs:
        runners, collectors = down.job_task_ids, down.collect_task_ids
        if task_id not in (*runners, *collectors):
            continue
        price = run.hook.settings.price
        if down.price is not None:
            price = parse_price(run.task.render_template(down.price, run.context))
        amount = None if price is None else _bill_so_far(run, down, app_id, price)
        if amount is None:
            return None
        own = {task_id: JobUsage(0, seconds)}
        block = read_usage(run.ti, runners, collectors, runners_of=down.runners_of, known=own)
        return JobCosts(amount, (block and block.busy_seconds) or seconds)
    return None


def _bill_so_far(run: CollectingTask, down: Any, app_id: str, price: Price) -> Decimal | None:
    up = run.context["dag"].task_dict[down.scale_up_task_id]
    pushed, now = _pull(run, up, KEY), time.time()
    record = read_scale_record(pushed)
    if record is None:
        return price.cost(Decimal()) if _pull(run, up, LEFT_KEY) == app_id else None
    if record.app_id != app_id:
        return None
    with run.opened():
        app = run.hook.perform(see_app(app_id))
    history = read_history(pushed).seen(app, now, record)
    return Bill(app_id, history, now, is_final=False, price=price).cost


def _share_of_final_bill(
    run: CollectingTask, downs: Sequence[Any], app_id: str, seconds: Decimal
) -> JobCosts | None:
    """Share the bill of the only block before the task; ``None`` if there is none, or more."""
    before = run.task.get_flat_relative_ids(upstream=True)
    pulled = [_pull(run, down, BILL_KEY) for down in downs if down.task_id in before]
    bills = [bill for bill in pulled if isinstance(bill, Mapping) and bill.get("app_id") == app_id]
    if len(bills) != 1:
        return None
    amount, busy = (read_decimal(bills[0].get(name)) for name in ("cost", "busy_seconds"))
    return None if amount is None else JobCosts(amount, max(seconds, busy or seconds))


def _pull(run: CollectingTask, task: Any, key: str) -> Any:
    """Return what a task of the run has pushed, at this task's index if they are in a mapped group."""
    index = -1 if task.get_closest_mapped_task_group() is None else run.ti.map_index
    return run.ti.xcom_pull(task_ids=task.task_id, key=key, map_indexes=index)
