"""What an app cost while it was up, and what each row of its tables cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.texts import format_count, format_duration

if TYPE_CHECKING:
    from airflow_provider_rungen.results.rows import ResultRow

_MILLISECOND = Decimal("0.001")
# The digits of the column ``cost``.
_COST = Decimal("0.00000001")


@dataclass(frozen=True, slots=True)
class Bill:
    """
    What the workers of an app cost. Times are in seconds since 1970.

    :param app_id: the app.
    :param active_workers: the number of workers that it was scaled to.
    :param up_at: when it was scaled up.
    :param until: when it reported that it has no workers, or the time of the bill.
    :param is_final: whether it reported so.
    :param price: the declared price of a worker.
    """

    app_id: str
    active_workers: int
    up_at: float
    until: float
    is_final: bool
    price: Price | None

    @property
    def seconds(self) -> Decimal:
        """The number of workers times the seconds that the app was up."""
        return Decimal(self.active_workers * max(self.until - self.up_at, 0.0)).quantize(_MILLISECOND)

    @property
    def cost(self) -> Decimal | None:
        """What it costs at the declared price."""
        return None if self.price is None else self.price.cost(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the XCom ``usage`` of a teardown. ``down_at`` is ``None`` if the app may still be up."""
        return {
            "app_id": self.app_id,
            "active_workers": self.active_workers,
            "up_at": _time(self.up_at),
            "down_at": _time(self.until) if self.is_final else None,
            "seconds": float(self.seconds),
            "cost": None if self.cost is None else float(self.cost),
            "currency": self.price and self.price.currency,
        }

    def __str__(self) -> str:
        workers, up_for = format_count(self.active_workers, "worker"), self.until - self.up_at
        text = f"{workers} for {format_duration(up_for)} ({self.seconds:,.0f} worker seconds)"
        if self.cost is not None and self.price is not None:
            text += f", about {self.cost:.2f} {self.price.currency} (declared price)"
        return f"Bill of app {self.app_id}{'' if self.is_final else ' so far'}: {text}"

    def send_metrics(self) -> None:
        """Count what was paid for, through Airflow's metrics."""
        metrics.incr("bill.worker_seconds", round(self.seconds))
        if self.price is not None:
            metrics.incr(f"bill.cost.{self.price.currency.lower()}", round(1000 * (self.cost or 0)))


def add_costs(rows: Iterable[ResultRow], price: Price | None) -> Iterator[ResultRow]:
    """Yield rows with their costs, as far as it is known how long their jobs ran."""
    for row in rows:
        if price is not None and (seconds := row.seconds) is not None:
            row.cost = price.cost(seconds, _COST)
        yield row


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
