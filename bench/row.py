"""A row of the table: a figure, what it is compared with, and its target."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bench.watching import AT_ONCE

_WHY = {
    f"requests {AT_ONCE}": "The counters tell how many jobs have ended, not which. When jobs end in another "
    "order than they were submitted in, the ended ones have to be sought among all that wait.",
    f"cpu {AT_ONCE}": "It follows the number of requests.",
    "import operator": "What is left are the package's own modules, of which an operator needs half, each "
    "read and run once.",
    "memory": "For a waiting job there is, beside the trigger, what the shared poll loop knows of it; and "
    "the package is imported, with all that it imports.",
    "gap 20 MB": "The answer is joined, searched for the key and decoded in one go.",
    "gap numbers": "Most of it is Python's JSON decoder, which does not let go before it is done; joining "
    "the answer, searching it for the key and freeing it come on top. Polling each job is blocked for less "
    "in some rounds, which is not explained.",
    "one job": "Most of it is Airflow's own: the run is scheduled and a worker is started before there is a "
    "job.",
    "one job to the end": "It starts one worker, but a trigger does not fire in the first 6 s, as Airflow "
    "may lose a task whose trigger does.",
}


@dataclass(frozen=True)
class Row:
    """
    A row of the table.

    :param is_reached: whether the target is met; ``None`` without a target or a measurement.
    """

    name: str
    what: str
    figure: str
    beside: str
    aim: str
    is_reached: bool | None
    why: str = ""

    def verdict(self) -> str:
        if self.is_reached is None:
            return "–"
        return "reached" if self.is_reached else "**not reached**"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_row(name: str, what: str, figure: str, beside: str, aim: tuple[str, bool]) -> Row:
    """Return a row; ``aim`` is its target, and whether it is met."""
    words, is_reached = aim
    return Row(name, what, figure, beside, words, is_reached, "" if is_reached else _WHY.get(name, ""))
