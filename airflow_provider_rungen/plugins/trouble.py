"""Why a task failed, and what it costs, for its page."""

from __future__ import annotations

import time
from contextlib import suppress
from decimal import Decimal
from typing import Any

from airflow_provider_rungen.client.money import Cost, parse_price
from airflow_provider_rungen.client.workers import workers_of
from airflow_provider_rungen.execution.apps.block import read_scale_record
from airflow_provider_rungen.plugins.gather import Gathering
from airflow_provider_rungen.plugins.rows import PageRows
from airflow_provider_rungen.plugins.task_record import FailureXCom, TaskRecord
from airflow_provider_rungen.runs.attempt_record import End

_LOST = "The last attempt did not record its end: it was killed, or its worker was lost."
_NO_REASON = "Airflow ended the task before it could say why: a user marked it, or its worker was lost."
CENTS = Decimal("0.01")
#: The digits of the cost of a job, as in results tables.
JOB_DIGITS = Decimal("0.00000001")


def failure_of(task: TaskRecord, jobs: PageRows) -> FailureXCom | None:
    """Return why the last attempt that ended failed, if the task has not succeeded since."""
    pushed, attempt = task.failure, jobs.attempt
    if task.state != "failed":
        return None if task.is_successful else pushed
    if attempt and attempt.end is End.UNKNOWN and (pushed is None or pushed.try_number < attempt.try_number):
        return FailureXCom(try_number=attempt.try_number, error=_LOST)
    return pushed or FailureXCom(try_number=task.try_number, error=_NO_REASON)


async def billing_of(gathering: Gathering) -> dict[str, Any] | None:
    """Return what the app of a task costs that was scaled up for it, unless it is known to be down."""
    page, now = gathering.task.page, time.time()
    up, down = await gathering.task_of_run(page.up), await gathering.task_of_run(page.down)
    record = read_scale_record(up.scaled) if up else None
    if not (record and record.active_workers) or (down and down.bill.get("down_at")):
        return None
    app, changes = await gathering.app(), record.history.changes
    last = changes[-1][1] if changes else record.active_workers
    workers = None if app is None else workers_of(app)
    seconds = record.history.worker_seconds(now)
    return {
        "workers": workers,
        "last": last,
        "is_late": bool(down and (down.failure or down.bill)),
        "an_hour": cost(page.price, 3600 * (last if workers is None else workers)),
        "so_far": cost(page.price, seconds),
    }


def cost_of(task: TaskRecord) -> str:
    """Return what the jobs of a task cost at the declared price, as far as both are known."""
    return str(cost(task.page.price, task.usage.get("execution_seconds")) or "")


def cost(price: str, seconds: Any, digits: Decimal = CENTS) -> Cost | None:
    """Return what these seconds of a worker cost, if both are known."""
    with suppress(ValueError, ArithmeticError):
        known = parse_price(price)
        return Cost(known.cost(Decimal(str(seconds)), digits), known.currency)
    return None
