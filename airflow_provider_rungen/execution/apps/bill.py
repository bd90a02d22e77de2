"""What a ``scaled_app`` block, and each row of its tables, cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.client.workers import WorkerHistory

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
    :param price: the declared price of a worker.
    """

    app_id: str
    history: WorkerHistory
    until: float
    is_final: bool
    price: Price | None

    @property
    def worker_seconds(self) -> Decimal:
        """The number of workers times the seconds that the app had it."""
        return Decimal(self.history.worker_seconds(self.until)).quantize(_MILLISECOND)

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
        if (cost := self.cost) is not None and self.price is not None:
            amount = f"about {cost:.2f}" if cost >= Decimal("0.005") or not cost else "less than 0.01"
            parts.append(f"{amount} {self.price.currency} ({_SOURCE})")
        return f"Bill of app {self.app_id}{'' if self.is_final else ' so far'}: {', '.join(parts)}"

    def send_metrics(self) -> None:
        """Count what was paid for, through Airflow's metrics."""
        metrics.incr("bill.worker_seconds", round(self.worker_seconds))
        if self.price is not None:
            metrics.incr(f"bill.cost.{self.price.currency.lower()}", round(1000 * (self.cost or 0)))


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
