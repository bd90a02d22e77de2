"""The rows of a table as one attempt reads them: which get a job, and what the results table repeats."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen._airflow import AirflowException
from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.spool import Spool
from airflow_provider_rungen.execution.table.results import Status

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.table.reader import Rows
    from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

# How many keys an error names.
MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """
    A row of the source.

    :param values: its key, and the columns that are carried over.
    :param status: ``skipped`` or ``refused``; ``None`` if it has an input.
    :param error: why it was refused.
    """

    values: Mapping[str, Any]
    status: Status | None = None
    error: str | None = None


class TablePlan:
    """
    The rows of a table, in order.

    :param key: the columns that identify a row.
    :param columns: the other columns to carry over.
    :param types: the types of all these columns, where the source has types.
    """

    def __init__(self, key: Sequence[str], columns: Sequence[str], types: Mapping[str, str] | None) -> None:
        self._key = key
        self._names = tuple(dict.fromkeys([*key, *columns]))
        # those that no row had yet, and the columns of the rows before
        self._absent = set(self._names)
        self._seen: dict[str, None] = {}
        if types is not None:
            self._note_columns(types)
            self._check_columns(self._names)
        #: The type of each column that is repeated.
        self.types = {name: (types or {}).get(name, "text") for name in self._names}
        self.refused_count = self.skipped_count = 0
        #: Why the first of the refused rows was refused.
        self.first_refusal = ""
        #: The URI of the source, unless it is a list.
        self.sources: list[str] = []
        self._spool = Spool()
        self._keys: set[bytes] = set()
        self._duplicates = _Keys("occur more than once")
        self._nulls = _Keys("are null or empty")

    def __len__(self) -> int:
        return len(self._spool)

    def numbered(self) -> Iterator[tuple[PlannedRow, int | None]]:
        """Yield the rows, each with the number of its input, or ``None`` if it has none."""
        number = 0
        for values, status, error in self._spool:
            row = PlannedRow(dict(zip(self._names, values, strict=True)), status and Status(status), error)
            yield row, number if status is None else None
            number += status is None

    def add(self, values: Sequence[Any], status: Status | None, error: str | None) -> None:
        """Add a row: its key, and the columns that are carried over."""
        self._add(json.dumps(values), status, error)

    def _add(self, values_text: str, status: Status | None, error: str | None) -> None:
        self.skipped_count += status is Status.SKIPPED
        if status is Status.REFUSED:
            self.refused_count += 1
            self.first_refusal = self.first_refusal or error or ""
        self._spool.append_text(f"[{values_text},{json.dumps(status)},{json.dumps(error)}]".encode())

    # --- a deferral ---

    def header(self) -> dict[str, Any]:
        """Return what `restored` makes a plan of; the rows are added to it."""
        return {"columns": self._names, "types": self.types, "sources": self.sources}

    @classmethod
    def restored(cls, header: Mapping[str, Any]) -> Self:
        """Return the plan of an attempt that was deferred, without its rows."""
        self = cls(header["columns"], (), header["types"])
        self.sources = list(header["sources"])
        return self

    # --- reading ---

    def inputs(
        self, rows: Rows, to_input: Callable[[dict[str, Any]], Any] | None, schema: Schema | None
    ) -> Iterator[Any]:
        """
        Read the rows, and yield the input of each that gets a job.

        :raises RunGenInputError: a row cannot be read, or ``to_input`` raised; the message names the row.
        """
        self.sources = [rows.uri] if rows.uri else []
        for row in rows:
            if not isinstance(row, Mapping):
                raise RunGenInputError(
                    f"{rows.place} is a {type(row).__name__}, not an object; nothing was sent"
                )
            # before the function, which may change what is in the row
            self._note_columns(row)
            values_text = self._text(row, self._names, rows.place)
            self._check_key(row, rows.place)
            job_input = dict(row) if to_input is None else _call(to_input, dict(row), rows.place)
            if job_input is None:
                self._add(values_text, Status.SKIPPED, None)
                continue
            error = _misfit(job_input, rows.place, schema)
            self._add(values_text, None if error is None else Status.REFUSED, error)
            if error is None:
                yield job_input
        if len(self):
            # JSON Lines are often written without what is null
            self._check_columns(self._key if rows.uri else self._names)
            for name in sorted(self._absent):
                log.warning("No row of the table has the column %r, so it is null", name)
        self._check_keys()

    def _note_columns(self, names: Mapping[str, Any]) -> None:
        if self._absent:  # a row may leave out what others have
            self._absent.difference_update(names)
            self._seen |= dict.fromkeys(map(str, names))

    def _check_columns(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._absent:
                raise RunGenInputError(
                    f"table has no column {name!r}, only {clean_text(', '.join(self._seen), 500)}; "
                    "nothing was sent"
                )

    def _check_key(self, row: Mapping[str, Any], place: str) -> None:
        key = [row.get(name) for name in self._key]
        if any(map(_is_null, key)):
            self._nulls.add(place)
            return
        # one key where the results are joined (1 and 1.0), or written as CSV (1.0 and "1.0")
        texts = map(json.dumps, product(*map(_key_texts, key)))
        digests = {hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts}
        if not digests.isdisjoint(self._keys):
            self._duplicates.add(clean_text(", ".join(map(str, key)), 100))
        self._keys |= digests

    @staticmethod
    def _text(row: Mapping[str, Any], names: Sequence[str], place: str) -> str:
        """Return the values of columns as JSON."""
        try:
            return json.dumps([row.get(name) for name in names])
        except (TypeError, ValueError, RecursionError) as error:
            columns = clean_text(", ".join(map(repr, names)), 200)
            raise RunGenInputError(
                f"{place} has a value in {columns} that JSON cannot express: {clean_text(str(error), 200)}; "
                "nothing was sent"
            ) from None

    def _check_keys(self) -> None:
        self._keys.clear()
        if problems := [str(each) for each in (self._nulls, self._duplicates) if each.count]:
            raise RunGenInputError(
                f"key {', '.join(map(repr, self._key))} does not identify rows: {'; '.join(problems)}; "
                "nothing was sent",
                hint="Choose other columns as key, or remove these rows. 1 and '1' are one key",
            )


class _Keys:
    """Keys that are wrong, of which the first few are named."""

    def __init__(self, problem: str) -> None:
        self.count = 0
        self._problem = problem
        self._named: list[str] = []

    def add(self, key: str) -> None:
        self.count += 1
        if len(self._named) < MAX_NAMED:
            self._named.append(key)

    def __str__(self) -> str:
        more = f" and {self.count - MAX_NAMED} more" if self.count > MAX_NAMED else ""
        return f"{self.count} {self._problem} ({', '.join(self._named)}{more})"


def _is_null(value: Any) -> bool:
    # pandas has NaN in place of null
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _key_texts(value: Any) -> tuple[str, ...]:
    """Return the texts that a value has in a CSV file, where a number may be an integer or not."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, float) and value.is_integer():
        return json.dumps(int(value)), json.dumps(value)
    return (json.dumps(value),)


def _call(
    to_input: Callable[[dict[str, Any]], Any], row: dict[str, Any], place: str
) -> dict[str, Any] | None:
    try:
        job_input = to_input(row)
    except AirflowException as error:  # the function decides how the task ends
        error.add_note(f"to_input raised this for {place}")
        raise
    except Exception as error:
        reason = clean_text(f"{type(error).__name__}: {error}")
        raise RunGenInputError(
            f"to_input failed for {place}: {reason}; nothing was sent", retryable=True
        ) from error
    if job_input is not None and not isinstance(job_input, Mapping):
        kind = type(job_input).__name__
        raise RunGenInputError(
            f"to_input returned a {kind} for {place}, not a dict or None; nothing was sent"
        )
    return None if job_input is None else dict(job_input)


def _misfit(job_input: Mapping[str, Any], place: str, schema: Schema | None) -> str | None:
    """Return why an input does not fit the schema."""
    text = codec.encode(job_input, f"the input of {place}")
    if schema is None:
        return None
    try:
        schema.check_input(json.loads(text))
    except RunGenInputError as error:
        # the other rows may be sent
        return error.message.removesuffix("; nothing was sent")
    return None
