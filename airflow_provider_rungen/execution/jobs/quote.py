"""What a task run is about to buy: what the plan of a table reports, and what ``max_jobs`` limits."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.money import to_cost, to_limit
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenLimitError
from airflow_provider_rungen.execution.jobs.plans import read_plan

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price
    from airflow_provider_rungen.execution.jobs.plans import Plan
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

_CENTS = Decimal("0.0001")


class Quote:
    """
    What jobs of an attempt are expected to cost, after the look-up in its ledger.

    :param jobs: how many jobs.
    :param price: the declared price of a worker.
    """

    def __init__(self, run: Runner, jobs: int, price: Price | None) -> None:
        #: How long they run together; 0 if that is not known.
        self.seconds = round(jobs * run.ledger.seconds_per_job(), 3) if jobs else 0
        self.price = price

    @property
    def cost(self) -> Decimal:
        """What the jobs cost, without idle time; 0 if that is not known."""
        return self.price.cost(Decimal(str(self.seconds)), _CENTS) if self.price else Decimal()

    def __str__(self) -> str:
        """Return what is known, as the end of a list."""
        time = f", about {format_duration(self.seconds)} of GPU" if self.seconds else ""
        return f"{time}, {self.cost:,.2f} {self.price.currency}" if time and self.price else time


class Limits:
    """
    What a task run may buy at most. See the parameters of the operators.

    :param run: the attempt, which begins.
    :param is_before: see `Runner.find_price`.
    :raises RunGenInputError: a limit is invalid, or cannot be compared with the price.
    """

    def __init__(self, run: Runner, *, is_before: bool = False) -> None:
        self._run = run
        self._max_jobs = to_limit(run.options.max_jobs, "max_jobs")
        self._max_cost = max_cost = to_cost(run.options.max_cost, "max_cost")
        has_limit = not (self._max_jobs is None and max_cost is None)
        self._price = price = run.find_price(is_before=is_before) if has_limit else None
        if max_cost is not None and (price is None or price.currency != max_cost.currency):
            problem = "there is no price" if price is None else f"the price is {price}"
            raise RunGenInputError(
                f"max_cost={max_cost} cannot be checked: {problem}; nothing was sent",
                hint=f"Declare one in {max_cost.currency}: scaled_app(price=…), or price of the connection",
            )

    def check(self, plan: Plan, new: int) -> int | None:
        """
        Check what an attempt is about to buy, and what this task run has bought, before anything is sent.

        :param plan: what it has read.
        :param new: how many jobs it is about to buy.
        :return: how many jobs it may buy; ``None`` without a limit.
        :raises RunGenLimitError: it is more than a limit.
        """
        run, most, max_cost = self._run, self._max_jobs, self._max_cost
        if most is None and max_cost is None:
            return None
        bought = run.task_log.bought
        exceeded: dict[str, object] = {}
        if most is not None and bought + new > most:
            exceeded["max_jobs"] = most
        # if nothing is new, jobs of other runs may still fail
        jobs = max(bought + new, 1)
        quote = Quote(run, jobs if exceeded or max_cost else 0, self._price)
        if max_cost and new and not quote.seconds:
            log.warning(
                "Not checked: max_cost=%s, since it is unknown how long jobs of app %s run. %s",
                *(max_cost, run.app_id),
                f"Only max_jobs={most} counts" if most else "Set max_jobs, too",
            )
        elif max_cost and quote.cost:
            if quote.cost > max_cost.amount:
                exceeded["max_cost"] = max_cost
            affordable = int(max_cost.amount * jobs / quote.cost)
            most = affordable if most is None else min(most, affordable)
        if not new or not exceeded:
            return None if most is None else max(most - bought, new)
        before = f" after {bought:,} submissions of earlier attempts" if bought else ""
        limits = ", ".join(f"{name}={limit}" for name, limit in exceeded.items())
        raised = " and ".join(exceeded)
        advice = f"Did the rows, to_input or the model change? If not, raise {raised}, and clear the task"
        raise RunGenLimitError(
            f"Refused: {new:,} of {plan.count:,} rows are new{before}{quote}; {limits}. "
            f"Nothing{' more' if bought else ''} was sent",
            hint=run.advice.clear_hint(advice),
        )


def plan_jobs(run: Runner) -> int:
    """
    Return how many jobs a run would wait for, and push what these cost. It submits nothing.

    :param run: the run, which is not executed.
    :raises RunGenLimitError: it would buy more than a limit.
    """
    with run.attempt(), run.opened():
        limits = Limits(run, is_before=True)
        run.ledger.open(create=False)
        source = run.make_source()
        plan = read_plan(run.app_id, source, run.ledger.key_of)
        run.link_to(run.app_id)
        jobs = new = sum(row.needs_job for row in plan.rows())
        if (found := run.ledger.look_up(plan)) is not None:
            jobs -= len(found.stored) + len(found.in_state("failed"))
            new -= len(found.settled)
        quote = Quote(run, jobs, run.find_price(is_before=True))
        # no None, which XComArg takes for a value that was not pushed
        value = {
            "rows": plan.count,
            "jobs": jobs,
            "reused": run.ledger.reused_count,
            "skipped": source.without_job["skipped"],
            "seconds": quote.seconds,
            "cost": float(quote.cost),
            "currency": quote.price.currency if quote.price else "",
        }
        run.ti.xcom_push(key="plan", value=value)
        log.info("%d rows: %d jobs to run%s", plan.count, jobs, quote)
        limits.check(plan, new)
        return jobs
