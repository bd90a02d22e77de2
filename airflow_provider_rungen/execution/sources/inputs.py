"""Where inputs come from: a dict, or many of them. For the rows of a table, see `sources/table_rows.py`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.runs.plan import PlannedRow

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.table.reader import Rows
    from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

#: Returns the digest of an input, in hexadecimal digits.
KeyOf = Callable[[Mapping[str, Any]], str]
# Two of a billion inputs share 16 bytes of their digest with a probability of 10^-21.
_DIGEST_BYTES = 16
# The places of no more inputs are looked up: XCom names as many failures.
_MAX_PLACES = 1000


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

    def places(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Return the ``file`` and ``line`` of inputs that are in files, by number."""
        return {}


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


@dataclass
class ManyInputs(Source):
    """
    The inputs of a batch.

    :param source: what `open_rows` reads.
    :param schema: what every input has to fit.
    :param limit: how many of them to take; all if left out.
    :param shares_equal: whether equal inputs share one job.
    """

    source: Any
    schema: Schema | None = None
    _: KW_ONLY
    limit: int | None = None
    shares_equal: bool = False

    def read(self, key_of: KeyOf) -> Iterator[tuple[PlannedRow, Any]]:
        rows = self._open()
        numbers: dict[bytes, int] = {}
        self.uris = [redact(rows.uri)] if rows.uri else []
        for number, item in enumerate(islice(rows, self.limit)):
            job_input = self._checked(item, number, rows)
            digest = key_of(job_input)
            first = first_equal(numbers, digest, number) if self.shares_equal else None
            yield PlannedRow(digest=digest, first=first), job_input

    def places(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Return the ``file`` and ``line`` of inputs. The files are read again, up to the last of them."""
        from airflow_provider_rungen.execution.table.reader import is_path

        wanted = set(islice(sorted(numbers), _MAX_PLACES))
        if not wanted or not is_path(self.source):
            return {}
        try:
            rows = self._open()
            numbered = zip(range(max(wanted) + 1), rows, strict=False)
            return {number: rows.position for number, _ in numbered if number in wanted}
        except RunGenError as error:
            log.warning("Could not find the lines of the inputs that failed: %s", error.message)
            return {}

    def _open(self) -> Rows:
        from airflow_provider_rungen.execution.table.reader import open_rows

        return open_rows(self.source)

    def _checked(self, item: Any, number: int, rows: Rows) -> Any:
        """Return an input as JSON has it."""
        name = f"inputs[{number}]" if rows.uri is None else f"{clean_text(rows.uri)}: inputs[{number}]"
        try:
            if not isinstance(item, dict):
                raise RunGenInputError(f"{name} is a {type(item).__name__}, not an object; nothing was sent")
            job_input = json.loads(codec.encode(item, name))
            if self.schema is not None:
                self.schema.check_input(job_input, name)
        except RunGenInputError as error:
            if rows.uri is not None:
                error.add_hint(f"It is {rows.place}")
            raise
        return job_input
