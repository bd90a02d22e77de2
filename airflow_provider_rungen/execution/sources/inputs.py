"""Where the input of a single job comes from. For the rows of a table, see `sources/table_rows.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.runs.plan import PlannedRow

if TYPE_CHECKING:
    from airflow_provider_rungen.schemas import Schema

#: Returns the digest of an input, in hexadecimal digits.
KeyOf = Callable[[Mapping[str, Any]], str]
# Two of a billion inputs share 16 bytes of their digest with a probability of 10^-21.
_DIGEST_BYTES = 16


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
    #: Whether there is one input, and the error of its job is that of the task.
    is_single = False

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


def first_equal(numbers: dict[bytes, int], digest: str, number: int) -> int | None:
    """
    Return the number of an earlier input with the same digest, if there is one.

    :param numbers: the first input with each digest so far. A million take 150 MB.
    """
    first = numbers.setdefault(bytes.fromhex(digest)[:_DIGEST_BYTES], number)
    return None if first == number else first


@dataclass
class OneInput(Source):
    """
    The input of a single job.

    :param job_input: a dict.
    :param schema: returns what it has to fit. A retry, which has a job, does not need it.
    """

    job_input: Any
    schema: Callable[[], Schema | None] = lambda: None
    is_single = True

    def read(self, key_of: KeyOf) -> Iterator[tuple[PlannedRow, Any]]:
        job_input = self._as_sent()
        yield PlannedRow(digest=key_of(job_input)), job_input

    def _as_sent(self) -> Any:
        return json.loads(codec.encode_input(self.job_input))

    def check(self, max_failed: float | str) -> None:
        if (schema := self.schema()) is not None:
            schema.check_input(self._as_sent())
