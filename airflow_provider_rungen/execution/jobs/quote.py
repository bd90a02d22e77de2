"""What a task run is about to buy: what the plan of a table reports, and what ``max_jobs`` limits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import TYPE_CHECKING, Self

from airflow_provider_rungen.client.money import Cost, to_cost, to_limit
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenLimitError
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.runs.plan import input_digest

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

_CENTS = Decimal("0.0001")


@dataclass(frozen=True)
class Quote:
    """
    What a number of jobs is expected to cost.

    :param seconds: how long they run together; 0 if that is not known.
    :param price: the declared price of a worker.
    """

    seconds: float
    price: Price | None

    @classmethod
    def of(cls, run: Runner, jobs: int, price: Price | None) -> Self:
        """
        Return the quote of jobs of an attempt, after the look-up in its ledger.

        A job is expected to run as long as the mean of the inputs that are stored, otherwise of the jobs of
        earlier attempts, otherwise of up to 100 jobs of the app in the ledger.
        """
        return cls(round(jobs * _seconds_per_job(run), 3) if jobs else 0, price)

    @property
    def cost(self) -> Decimal:
        """What the jobs cost, without idle time; 0 if that is not known."""
        return self.price.cost(Decimal(str(self.seconds)), _CENTS) if self.price else Decimal()

    def __str__(self) -> str:
        """Return what is known, as the end of a list."""
        time = f", about {format_duration(self.seconds)} of GPU" if self.seconds else ""
        return f"{time}, {self.cost:,.2f} {self.price.currency}" if time and self.price else time


def _seconds_per_job(run: Runner) -> float:
    known = run.ledger.stored_seconds
    totals = run.task_log.jobs.totals()
    if not known and totals.timed:
        return totals.seconds / totals.timed
    known = known or run.ledger.sample()
    return fmean(known) if known else 0


@dataclass(frozen=True)
class Limits:
    """
    What a task run may buy at most. See the parameters of the operators.

    :param price: the declared price of a worker.
    """

    max_jobs: int | None
    max_cost: Cost | None
    price: Price | None

    @classmethod
    def of(cls, run: Runner) -> Self:
        """
        Return the limits of an attempt that begins.

        :raises RunGenInputError: one is invalid, or cannot be compared with the price.
        """
        max_jobs = to_limit(run.options.max_jobs, "max_jobs")
        max_cost = to_cost(run.options.max_cost, "max_cost")
        price = None if max_jobs is None and max_cost is None else run.find_price()
        if max_cost is not None and (price is None or price.currency != max_cost.currency):
            problem = "there is no price" if price is None else f"the price is {price}"
            raise RunGenInputError(
                f"max_cost={max_cost} cannot be checked: {problem}; nothing was sent",
                hint=f"Declare one in {max_cost.currency}: scaled_app(price=…), or price of the connection",
            )
        return cls(max_jobs, max_cost, price)

    def check(self, run: Runner) -> int | None:
        """
        Check what an attempt is about to buy, and what this task run has bought, before anything is sent.

        :return: how many jobs it may buy; ``None`` without a limit.
        :raises RunGenLimitError: it is more than a limit.
        """
        if self.max_jobs is None and self.max_cost is None:
            return None
        new, bought = run.ledger.new_count, run.task_log.bought
        exceeded: dict[str, object] = {}
        if self.max_jobs is not None and bought + new > self.max_jobs:
            exceeded["max_jobs"] = self.max_jobs
        most = self.max_jobs
        # if nothing is new, jobs of other runs may still fail
        jobs = max(bought + new, 1)
        quote = Quote.of(run, jobs if exceeded or self.max_cost else 0, self.price)
        if self.max_cost and new and not quote.seconds:
            log.warning(
                "Not checked: max_cost=%s, since it is unknown how long jobs of app %s run. %s",
                *(self.max_cost, run.app_id),
                f"Only max_jobs={self.max_jobs} counts" if self.max_jobs else "Set max_jobs, too",
            )
        elif self.max_cost and quote.cost:
            if quote.cost > self.max_cost.amount:
                exceeded["max_cost"] = self.max_cost
            affordable = int(self.max_cost.amount * jobs / quote.cost)
            most = affordable if most is None else min(most, affordable)
        if not new or not exceeded:
            return None if most is None else max(most - bought, new)
        plan = run.task_log.plan
        # a table has columns: those of its key
        rows, source = ("rows", "to_input") if plan.manifest.columns else ("inputs", "the inputs")
        before = f" after {bought:,} submissions of earlier attempts" if bought else ""
        limits = ", ".join(f"{name}={limit}" for name, limit in exceeded.items())
        raise RunGenLimitError(
            f"Refused: {new:,} of {plan.count:,} {rows} are new{before}{quote}; {limits}. "
            f"Nothing{' more' if bought else ''} was sent",
            hint=f"Did {source} or the model change? If not, raise {' and '.join(exceeded)}, "
            "and clear the task",
        )


def plan_jobs(run: Runner) -> int:
    """
    Return how many jobs a run would wait for, and push what these cost. It submits nothing.

    :param run: the run, which is not executed.
    """
    with run.attempt(), run.opened():
        book, _ = run.ledger.open(create=False)
        source = run.make_source()
        digest_of = input_digest if book is None else book.key
        plan = Plan.of_source(run.app_id, source.read(digest_of), lambda: run.report.about(source))
        run.link_to(run.app_id)
        jobs = sum(row.needs_job for row in plan.rows())
        if book is not None:
            found = run.ledger.look_up(book, plan)
            jobs -= len(found.stored) + len(found.in_state("failed"))
        quote = Quote.of(run, jobs, run.find_price(is_before=True))
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
        return jobs
