"""Why a task failed, and what it costs, for its page."""

from __future__ import annotations

from decimal import Decimal

from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.plugins.rows import JobRows
from airflow_provider_rungen.plugins.task_record import FailureXCom, TaskRecord
from airflow_provider_rungen.runs.attempt_record import End

_LOST = "The last attempt did not record its end: it was killed, or its worker was lost."
_NO_REASON = "Airflow ended the task before it could say why: a user marked it, or its worker was lost."
_CENTS = Decimal("0.01")


def failure_of(task: TaskRecord, jobs: JobRows) -> FailureXCom | None:
    """Return why the last attempt that ended failed, if the task has not succeeded since."""
    pushed, attempt = task.failure, jobs.attempt
    if task.state != "failed":
        return None if task.is_successful else pushed
    if attempt and attempt.end is End.UNKNOWN and (pushed is None or pushed.try_number < attempt.try_number):
        return FailureXCom(try_number=attempt.try_number, error=_LOST)
    return pushed or FailureXCom(try_number=task.try_number, error=_NO_REASON)


def cost_of(task: TaskRecord) -> str:
    """Return what the jobs of a task cost at the declared price, as far as both are known."""
    try:
        price = parse_price(task.page.price)
        return f"{price.cost(Decimal(str(task.usage['execution_seconds'])), _CENTS)} {price.currency}"
    except (ValueError, ArithmeticError, KeyError):
        return ""
