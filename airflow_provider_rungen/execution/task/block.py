"""The ``scaled_app`` block that a task is of, and what a worker costs there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.money import Price, parse_price
from airflow_provider_rungen.client.texts import clean_text

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)


def teardowns(context: Context) -> list[Any]:
    """Return the teardowns of all blocks of the DAG."""
    dag = context.get("dag")
    return [task for task in dag.tasks if hasattr(task, "scale_up_task_id")] if dag else []


def block_of(context: Context, task_id: str) -> Any:
    """Return the teardown of the block that a task is of; ``None`` outside of one."""
    for down in teardowns(context):
        if task_id in {down.task_id, down.scale_up_task_id, *down.jobs_of}:
            return down
    return None


def find_price(run: TaskRun[Any], *, is_before: bool = False) -> Price | None:
    """
    Return what a worker costs: the price of the ``scaled_app`` block of the task, or the connection's.

    It is not worth a failure.

    :param is_before: whether the price of a block that comes after the task counts, too.
    """
    try:
        task = run.task
        for down in teardowns(run.context):
            tasks = {down.task_id, down.scale_up_task_id, *down.jobs_of}
            is_of_task = task.task_id in tasks or (
                is_before and down.task_id in task.get_flat_relative_ids(upstream=False)
            )
            if down.price is not None and is_of_task:
                return parse_price(task.render_template(down.price, run.context))
        return run.hook.settings.price
    except Exception as error:
        if run.guard.is_killed:
            raise
        reason = clean_text(f"{type(error).__name__}: {error}", 200)
        log.warning("No costs without a price: %s", reason)
        return None
