"""The declared price of a worker."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_rungen.client.money import Price, parse_price


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("1.20 USD/h", Price(Decimal("1.20"), "USD", "h")),
        (" 0.02EUR / min", Price(Decimal("0.02"), "EUR", "min")),
        ("0.00031 USD/s", Price(Decimal("0.00031"), "USD", "s")),
        ("0 USD/h", Price(Decimal(0), "USD", "h")),
    ],
)
def test_a_price_is_an_amount_a_currency_and_a_unit(text: str, price: Price) -> None:
    assert parse_price(text) == price
    assert parse_price(str(price)) == price


NO_PRICES: list[Any] = [
    *("", "1.20", "1,20 USD/h", "1.20 usd/h", "$1.20/h", "1.20 $/h", "1.20 USD/d", "1e3 USD/h"),
    *("NaN USD/h", "USD/h", "-1 USD/h", 1.2, None, {}, True),
]


@pytest.mark.parametrize("text", NO_PRICES)
def test_what_is_no_price(text: Any) -> None:
    with pytest.raises(ValueError, match=r"must be the price of one worker, such as 1\.20 USD/h"):
        parse_price(text)


def test_the_cost_of_worker_seconds() -> None:
    costs = {"1.20 USD/h": "0.4800", "0.02 USD/min": "0.4800", "0.00031 USD/s": "0.4464", "1 JPY/h": "0.4000"}
    for text, cost in costs.items():
        assert str(parse_price(text).cost(Decimal(1440), Decimal("0.0001"))) == cost
