"""What a task run may buy at most, and what that is expected to cost."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.money import to_cost, to_limit
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenLimitError

if TYPE_CHECKING:
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
