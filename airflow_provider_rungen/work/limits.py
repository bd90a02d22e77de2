"""What a task run may buy at most, and what that is expected to cost."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.money import to_cost, to_limit
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenLimitError

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import App
    from airflow_provider_rungen.client.money import Price

log = logging.getLogger(__name__)


class Quote:
    """
    What jobs are expected to cost.

    :param jobs: how many jobs.
    :param seconds_per_job: how long one runs; 0 if that is not known.
    :param price: the declared price of a worker.
    """

    def __init__(self, jobs: int, seconds_per_job: float, price: Price | None) -> None:
        self.jobs, self.seconds_per_job = jobs, seconds_per_job
        #: How long they run together; 0 if that is not known.
        self.seconds = round(jobs * seconds_per_job, 3)
        self.price = price

    @property
    def cost(self) -> Decimal:
        """What the jobs cost, without idle time; 0 if that is not known."""
        return self.price.cost(self.seconds) if self.price else Decimal()

    def __str__(self) -> str:
        """Return what is known, as the end of a list."""
        time = f", about {format_duration(self.seconds)} of GPU" if self.seconds else ""
        return f"{time}, {self.cost:,.2f} {self.price.currency}" if time and self.price else time


def plan_workers(new: Quote, app: App, before: int, finish_in: float) -> tuple[int, str]:
    """
    Return the fewest workers with which new jobs end in time, and a sentence that says why.

    :param new: the jobs to buy.
    :param app: their app, whose jobs start first come, first served.
    :param before: how many jobs are open, as far as the task knows. The app's own count is preferred.
    :param finish_in: seconds that they may take.
    """
    rows, each = format_count(new.jobs, "new row", ","), new.seconds_per_job
    if not each:
        return 1, f"{rows}, for an unknown time each: 1 worker. finish_in counts once jobs have completed."
    queued = before if app.pending_jobs is None else app.pending_jobs
    jobs = new.jobs + queued
    workers = math.ceil(jobs / max(int(finish_in / each), 1))
    takes = each * math.ceil(jobs / max(workers, 1))
    cost = f", {new.cost:,.2f} {new.price.currency} whatever their number" if new.price else ""
    text = (
        f"{rows}, about {format_duration(each)} each: {format_count(workers, 'worker', ',')} "
        f"finish{'es' if workers == 1 else ''} in {format_duration(takes)}{cost}."
    )
    if queued:
        share = format_duration(each * queued / workers)
        text += f" {format_count(queued, 'job', ',')} in the queue before them take {share} of it."
    if not app.has_status("RUNNING"):
        text += f" The start of the app ({app.status or 'no status'}) comes on top."
    if takes > finish_in:
        text += f" finish_in={format_duration(finish_in)} cannot be met: one job takes longer."
    return workers, text


class Limits:
    """
    What a task run may buy. See the parameters of the table.

    :param max_jobs: how many jobs, retries included.
    :param max_cost: what they may cost.
    :param price: the declared price of a worker.
    :raises RunGenInputError: a limit is invalid, or cannot be compared with the price.
    """

    def __init__(self, max_jobs: Any, max_cost: Any, price: Price | None) -> None:
        self._max_jobs, self._max_cost = to_limit(max_jobs, "max_jobs"), to_cost(max_cost, "max_cost")
        self._price = price
        if self._max_cost is not None and (price is None or price.currency != self._max_cost.currency):
            problem = "there is no price" if price is None else f"the price is {price}"
            raise RunGenInputError(
                f"max_cost={max_cost} cannot be checked: {problem}; nothing was sent",
                hint=f"Declare one in {self._max_cost.currency}: the price of the connection",
            )

    @property
    def has_any(self) -> bool:
        """Whether ``max_jobs`` is set."""
        return self._max_jobs is not None

    def check(self, rows: int, new: int, bought: int, seconds_per_job: float) -> int | None:
        """
        Check what an attempt is about to buy, and what this task run has bought, before anything is sent.

        :param rows: how many rows there are.
        :param new: how many jobs it is about to buy.
        :param bought: how many this run has bought.
        :param seconds_per_job: how long a job runs; 0 if that is not known.
        :return: how many jobs it may buy; ``None`` without a limit.
        :raises RunGenLimitError: it is more than a limit.
        """
        most, max_cost = self._max_jobs, self._max_cost
        exceeded: dict[str, object] = {}
        if most is not None and bought + new > most:
            exceeded["max_jobs"] = most
        quote = Quote(jobs := max(bought + new, 1), seconds_per_job, self._price)
        if max_cost and new and not quote.seconds:
            log.warning(
                "Not checked: max_cost=%s, since it is unknown how long jobs of the app run. %s",
                *(max_cost, f"Only max_jobs={most} counts" if most else "Set max_jobs, too"),
            )
        elif max_cost and quote.cost:
            if quote.cost > max_cost.amount:
                exceeded["max_cost"] = max_cost
            affordable = int(max_cost.amount * jobs / quote.cost)
            most = affordable if most is None else min(most, affordable)
        if not new or not exceeded:
            return None if most is None else max(most - bought, 0)
        before = f" after {bought:,} that this run has bought" if bought else ""
        limits = ", ".join(f"{name}={limit}" for name, limit in exceeded.items())
        raise RunGenLimitError(
            f"Refused: {new:,} of {rows:,} rows are new{before}{quote}; {limits}. "
            f"Nothing{' more' if bought else ''} was sent",
            hint=f"Did the rows, to_input or the model change? If not, raise {' and '.join(exceeded)}, and "
            "clear the task",
        )
