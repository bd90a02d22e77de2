"""What is not in storage yet: what has to be saved at once, and what may wait for more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from enum import IntEnum

from airflow_provider_rungen.runs.part_files import PART_ROWS


class Change(IntEnum):
    """How much a change costs if it is lost. The greater counts."""

    #: A request: the service knows how a job ended, and the destination what is stored.
    OUTCOME = 0
    #: Whether there may be a job: a second submission, or a retry that stops for fear of one.
    INTENT = 1
    #: A job: nobody else knows its id. It keeps its slot until the id is saved.
    ID = 2


class Unsaved:
    """The inputs whose rows have changed since they were saved, by part."""

    def __init__(self) -> None:
        self._parts: defaultdict[int, dict[int, Change]] = defaultdict(dict)

    def note(self, number: int, change: Change) -> None:
        """Note a change of a row."""
        part = self._parts[number // PART_ROWS]
        part[number] = max(change, part.get(number, change))

    def note_saved(self, part: int, is_current: Callable[[int], bool]) -> None:
        """
        Note that a part was saved.

        :param is_current: returns whether a row has not changed since it was read for that.
        """
        changes = self._parts.pop(part, {})
        if left := {number: change for number, change in changes.items() if not is_current(number)}:
            self._parts[part] = left

    @property
    def parts(self) -> list[int]:
        """All parts with changes."""
        return sorted(self._parts)

    @property
    def ids(self) -> int:
        """How many jobs a kill would lose now."""
        return len(self.numbers(Change.ID))

    def numbers(self, change: Change) -> list[int]:
        """Return the inputs with a change like this."""
        changes = (part.items() for part in self._parts.values())
        return [number for part in changes for number, each in part if each is change]

    @property
    def due(self) -> list[int]:
        """The parts to save now: for the sake of one change, or because half of their rows have changed."""
        return [
            number
            for number, changes in sorted(self._parts.items())
            if max(changes.values()) > Change.OUTCOME or 2 * len(changes) >= PART_ROWS
        ]
