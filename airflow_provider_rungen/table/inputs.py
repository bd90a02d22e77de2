"""What every source of rows has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

#: Returns the digest of an input, in hexadecimal digits. With ``row``, each row has one of its own.
KeyOf = Callable[..., str]
# Two of a billion inputs share 16 bytes of their digest with a probability of 10^-21.
_DIGEST_BYTES = 16
_NUMBER_BYTES = 6
_ENTRY_BYTES = _DIGEST_BYTES - 2 + _NUMBER_BYTES


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """
    A row of the source.

    :param values: its key, and the columns that the results repeat.
    :param digest: the key of its input; empty if it gets no job.
    :param status: why it gets none, as a status of the results.
    :param why: the same in a sentence.
    :param first: the first row with an equal input, whose job it shares; ``None`` if it has a job of its own.
    """

    values: Sequence[Any] = ()
    digest: str = ""
    status: str = ""
    why: str = ""
    first: int | None = None

    @property
    def needs_job(self) -> bool:
        """Whether its input is submitted."""
        return bool(self.digest) and self.first is None

    @property
    def has_input(self) -> bool:
        """Whether it has an input, which may be refused."""
        return bool(self.digest or self.why)


class Source:
    """
    The rows of a task. After a deferral the plan has them, and the source is not read again.

    The attributes are complete when `read` is exhausted.
    """

    #: The types of the values of a row, by column.
    types: Mapping[str, str] = MappingProxyType({})
    #: The URIs of the files that were read, without secrets.
    uris: Sequence[str] = ()
    #: How many rows get no job: see `xcom_keys`.
    without_job: Mapping[str, int] = MappingProxyType({})

    def read(self, key_of: KeyOf) -> Iterator[tuple[PlannedRow, Any]]:
        """
        Yield each row with its input, or with ``None``.

        :raises RunGenInputError: the source cannot be read, or a row cannot be used.
        """
        raise NotImplementedError

    def check(self, max_failed: float | str) -> None:
        """
        Check, after `read`, whether an input, or too many rows, cannot be sent.

        :param max_failed: how many may fail: a number, or a share below 1.
        :raises RunGenInputError: it cannot be sent, or these are more.
        """


class FirstNumbers:
    """The number with which each digest came first. A million take 35 MB, of which a dictionary takes 150."""

    def __init__(self) -> None:
        # by the first two bytes of a digest: the next ones, and the number, one entry after the other
        self._entries: dict[bytes, bytearray] = {}

    def add(self, digest: bytes, number: int) -> int:
        """Add a digest of 16 bytes or more, and return its first number, which may be this one."""
        entries = self._entries.setdefault(digest[:2], bytearray())
        rest, at = digest[2:_DIGEST_BYTES], -1
        while (at := entries.find(rest, at + 1)) >= 0:
            if at % _ENTRY_BYTES == 0:
                return int.from_bytes(entries[at + len(rest) : at + _ENTRY_BYTES])
        entries += rest + number.to_bytes(_NUMBER_BYTES)
        return number


def first_equal(numbers: FirstNumbers, digest: str, number: int) -> int | None:
    """
    Return the number of an earlier input with the same digest, if there is one.

    :param numbers: the first input with each digest so far.
    """
    first = numbers.add(bytes.fromhex(digest), number)
    return None if first == number else first
