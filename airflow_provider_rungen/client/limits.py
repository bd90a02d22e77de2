"""Limits of what a task reads and buys, as a DAG names them or a template renders them. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from airflow_provider_rungen.client.price import AMOUNT
from airflow_provider_rungen.exceptions import RunGenInputError

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
