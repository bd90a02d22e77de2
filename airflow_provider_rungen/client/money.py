"""Prices, costs and limits, as a DAG names them or a template renders them. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from airflow_provider_rungen.exceptions import RunGenInputError

#: The pattern of an amount and its currency.
AMOUNT = r"(\d{1,9}(?:\.\d{1,9})?) *([A-Z]{3})"
_PRICE = re.compile(AMOUNT + r" */ *(h|min|s)")
_UNITS = {"h": 3600, "min": 60, "s": 1}
# The digits of a cost, unless somebody needs others.
_DIGITS = Decimal("0.0001")


@dataclass(frozen=True, slots=True)
class Price:
    """
    The declared price of one worker.

    :param amount: what a worker costs in the unit.
    :param currency: the currency, as in ISO 4217: three capital letters.
    :param unit: ``h``, ``min`` or ``s``.
    """

    amount: Decimal
    currency: str
    unit: str

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}/{self.unit}"

    def cost(self, worker_seconds: float | Decimal, digits: Decimal = _DIGITS) -> Decimal:
        """Return what these seconds of workers cost, with as many digits as a number has."""
        return (Decimal(str(worker_seconds)) * self.amount / _UNITS[self.unit]).quantize(digits)


def parse_price(text: str) -> Price:
    """
    Return the price that a text declares.

    :param text: an amount, a currency and a unit, such as ``1.20 USD/h``.
    :raises ValueError: the text is no such price.
    """
    found = _PRICE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ValueError("must be the price of one worker, such as 1.20 USD/h (or /min, or /s)")
    return Price(Decimal(found[1]), found[2], found[3])


_COST = re.compile(AMOUNT)
# What a template makes of a parameter that is not set.
_NO_LIMIT = (None, "None")


@dataclass(frozen=True, slots=True)
class Cost:
    """
    An amount of money.

    :param currency: the currency, as in ISO 4217: three capital letters.
    """

    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}"


def to_limit(value: Any, name: str) -> int | None:
    """
    Return a limit as a number; ``None`` if there is none.

    :param value: a number, its text, or ``None``, which a template renders as text, too.
    :param name: the parameter it was passed as, for the error.
    :raises RunGenInputError: it is no whole number, or less than 1.
    """
    if value in _NO_LIMIT:
        return None
    is_number = re.fullmatch(r" *\d{1,18} *", value) if isinstance(value, str) else type(value) is int
    if not is_number or int(value) < 1:
        raise RunGenInputError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)


def to_cost(value: Any, name: str) -> Cost | None:
    """
    Return a limit of money; ``None`` if there is none.

    :param value: an amount and a currency, such as ``20 USD``, or ``None``.
    :param name: the parameter it was passed as, for the error.
    :raises RunGenInputError: it is something else, or 0.
    """
    if value in _NO_LIMIT:
        return None
    found = _COST.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not Decimal(found[1]):
        raise RunGenInputError(
            f"{name} must be a positive amount with its currency, such as 20 USD, not {value!r}"
        )
    return Cost(Decimal(found[1]), found[2])
