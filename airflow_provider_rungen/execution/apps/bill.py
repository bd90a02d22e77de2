"""What a ``scaled_app`` block, and each row of its tables, cost."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.client.workers import WorkerHistory
from airflow_provider_rungen.execution.task.xcom_keys import USAGE_KEY

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.table.result_rows import ResultRow

_SOURCE = "declared price"
_MILLISECOND = Decimal("0.001")
# The digits of a share and of a cost in a bill, and of the column ``cost``.
_PLACES = Decimal("0.0001")
_COST = Decimal("0.00000001")


@dataclass(frozen=True, slots=True)
class Bill:
    """
    What the workers of an app cost while a block had them.

    :param app_id: the app.
    :param history: the workers that it had.
    :param until: the time (seconds since 1970) of the bill.
    :param is_final: whether the app was scaled down.
    :param jobs: how many jobs the tasks of the block report, if they do.
    :param busy_seconds: how long these ran, where the service reports it.
    :param price: the declared price of a worker.
    """

    app_id: str
    history: WorkerHistory
    until: float
    is_final: bool
    jobs: int | None
    busy_seconds: Decimal | None
    price: Price | None

    @property
    def worker_seconds(self) -> Decimal:
        """The number of workers times the seconds that the app had it."""
        return Decimal(self.history.worker_seconds(self.until)).quantize(_MILLISECOND)

    @property
    def utilization(self) -> Decimal | None:
        """The share of the paid time in which jobs of the block ran."""
        busy, paid = self.busy_seconds, self.worker_seconds
        return None if busy is None or not paid else (busy / paid).quantize(_PLACES)

    @property
    def cost(self) -> Decimal | None:
        """What it costs at the declared price."""
        return None if self.price is None else self.price.cost(self.worker_seconds, _PLACES)

    def to_json(self) -> dict[str, Any]:
        """Return the bill as plain data: decimals and times are text."""
        price = self.price
        return {
            "app_id": self.app_id,
            "worker_seconds": str(self.worker_seconds),
            "busy_seconds": _text(self.busy_seconds),
            "utilization": _text(self.utilization),
            "jobs": self.jobs,
            "up_at": _time(self.history.up_at),
            "down_at": _time(self.history.down_at) if self.is_final else None,
            "price": _text(price),
            "cost": _text(self.cost),
            "currency": price and price.currency,
            "source": price and _SOURCE,
        }

    def __str__(self) -> str:
        """Return the bill as one line for people."""
        numbers = {workers for _, workers in self.history.changes if workers}
        parts = ["no workers"]
        if numbers:
            workers = f"{'' if len(numbers) == 1 else 'up to '}{format_count(max(numbers), 'worker')}"
            up_for = format_duration(self.history.seconds_up(self.until))
            parts = [f"{workers} for {up_for} ({self.worker_seconds:,.0f} worker seconds)"]
        if self.utilization is not None:
            parts.append(f"{self.utilization:.0%} busy with {self.jobs} jobs".replace("%", " %"))
        if (cost := self.cost) is not None and self.price is not None:
            amount = f"about {cost:.2f}" if cost >= Decimal("0.005") or not cost else "less than 0.01"
            parts.append(f"{amount} {self.price.currency} ({_SOURCE})")
        return f"Bill of app {self.app_id}{'' if self.is_final else ' so far'}: {', '.join(parts)}"

    def send_metrics(self) -> None:
        """Count what was paid for, through Airflow's metrics."""
        metrics.incr("bill.worker_seconds", round(self.worker_seconds))
        metrics.incr("bill.busy_seconds", round(self.busy_seconds or 0))
        if self.price is not None:
            metrics.incr(f"bill.cost.{self.price.currency.lower()}", round(1000 * (self.cost or 0)))


def read_usage(ti: Any, jobs_of: Mapping[str, Sequence[str]]) -> tuple[int | None, Decimal | None]:
    """
    Return how many jobs the tasks of a block report, and how long these ran, as far as they do.

    :param jobs_of: for each task that runs, collects or waits for jobs, the tasks that run them.
    """
    jobs, seconds, reused = (defaultdict[str, Decimal](Decimal) for _ in range(3))
    for task_id in jobs_of:
        for report in _pull_reports(ti, task_id):
            jobs[task_id] += Decimal(report["jobs"])
            reused[task_id] += Decimal(report.get("reused", 0))
            if (ran := report["execution_seconds"]) is not None:
                seconds[task_id] += Decimal(str(ran))
    if not jobs:
        return None, None
    own = {task_id: (jobs[task_id], seconds[task_id]) for task_id in [*jobs] if task_id in seconds}
    for task_id, count in jobs.items():  # who waits for jobs does not know which were reused
        for each in jobs_of[task_id]:
            if each == task_id or not (theirs := min(reused[each], jobs[task_id])):
                continue
            if task_id in seconds:  # they are taken to have run like those that were bought
                bought, ran = own.get(each, (Decimal(), Decimal()))
                mean = ran / bought if bought else own[task_id][1] / count
                seconds[task_id] = max(seconds[task_id] - theirs * mean, Decimal())
            jobs[task_id] -= theirs
    known = [task_id for task_id, count in reused.items() if count]
    count, busy = _count_once(jobs, jobs_of, known), _count_once(seconds, jobs_of, known)
    # a task without jobs knows nothing about those of others
    is_known = busy or (seconds and not count)
    return int(count), busy.quantize(_MILLISECOND) if is_known else None


def _count_once(
    reported: Mapping[str, Decimal], jobs_of: Mapping[str, Sequence[str]], known: Collection[str]
) -> Decimal:
    """
    Return the sum of what tasks report. Of what several report about the same jobs, the most counts.

    :param known: the tasks whose own report counts, whatever others say.
    """
    counts: dict[str, Decimal] = defaultdict(Decimal)
    # first those that are about the jobs of one task
    for task_id in sorted(reported, key=lambda each: len(jobs_of[each])):
        settled = {each for each in known if each in reported and each != task_id}
        first = next((each for each in jobs_of[task_id] if each not in settled), None)
        if first is not None:
            of_others = sum(counts[each] for each in jobs_of[task_id] if each != first)
            counts[first] = max(counts[first], reported[task_id] - of_others)
    return sum(counts.values(), Decimal())


def _pull_reports(ti: Any, task_id: str) -> list[Mapping[str, Any]]:
    # in a mapped task group, of the same index only; elsewhere, all indexes of a mapped task
    index = {"map_indexes": ti.map_index} if ti.map_index is not None and ti.map_index >= 0 else {}
    pulled = ti.xcom_pull(task_ids=[task_id], key=USAGE_KEY, **index)
    # the first releases of Airflow 3.0 unpack the only one
    reports = [pulled] if isinstance(pulled, Mapping | str) else pulled or []
    # that of a task which ended in the triggerer may be text
    reports = [json.loads(report) if isinstance(report, str) else report for report in reports]
    return [report for report in reports if isinstance(report, Mapping)]


# --- rows ---


def add_costs(rows: Iterable[ResultRow], price: Price | None) -> Iterator[ResultRow]:
    """Yield rows with their costs, as far as it is known how long their jobs ran."""
    for row in rows:
        seconds = row.execution_seconds
        if price is None or seconds is None:
            yield row
        else:
            yield replace(row, cost=price.cost(Decimal(str(seconds)), _COST))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
