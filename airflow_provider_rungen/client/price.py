"""What a worker costs, as a user declares it: ``1.20 USD/h``. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

#: The pattern of an amount and its currency.
AMOUNT = r"(\d{1,9}(?:\.\d{1,9})?) *([A-Z]{3})"
_PRICE = re.compile(AMOUNT + r" */ *(h|min|s)")
_UNITS = {"h": 3600, "min": 60, "s": 1}


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

    def cost(self, worker_seconds: Decimal, digits: Decimal) -> Decimal:
        """Return what these seconds of workers cost, with as many digits as a number has."""
        return (worker_seconds * self.amount / _UNITS[self.unit]).quantize(digits)


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
