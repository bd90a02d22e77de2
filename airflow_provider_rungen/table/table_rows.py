"""The rows of a table: which get a job, which are skipped or refused, and what the results repeat."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import AirflowException
from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.results.rows import Status
from airflow_provider_rungen.results.writers import INT64, to_csv
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS, check_columns
from airflow_provider_rungen.table.inputs import FirstNumbers, KeyOf, PlannedRow, Source, first_equal
from airflow_provider_rungen.table.reader import Rows, open_rows
from airflow_provider_rungen.task.outcomes import max_failures

if TYPE_CHECKING:
    from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

# The types whose values are copied by no JSON.
_PLAIN = {str, int, float, bool, type(None)}
ToInput = Callable[[dict[str, Any]], Any]
# The type of a column whose values have these types; that of others is text.
_KINDS = {
    frozenset({bool}): "boolean",
    frozenset({int}): "integer",
    frozenset({float}): "number",
    frozenset({int, float}): "number",
}
# How many keys an error names.
_MAX_NAMED = 10


@dataclass
class TableRows(Source):
    """
    The rows of a table.

    :param table: what `open_rows` reads, or the summary of a task that wrote a results table.
    :param to_input: makes the input of a row, or ``None`` for a row without a job. Without it, the row is the
        input, or the ``input`` of a row of a results table.
    :param schema: what an input has to fit. A row that does not is refused.
    :param key: the columns that identify a row; its number does without any.
    :param columns: the other columns that the results repeat.
    :param written: the URIs of the tables that the task writes, which are not read.
    :param where: take only rows with one of these statuses, see `Status.named`; all if empty.
    :param limit: how many rows to take; all if left out.
    :param shares_equal: whether rows with equal inputs share one job.
    :param per_row: whether the key of a row is part of its digest.
    """

    table: Any
    to_input: ToInput | None = None
    schema: Schema | None = None
    _: KW_ONLY
    key: Sequence[str]
    columns: Sequence[str] = ()
    written: Collection[str] = ()
    where: Sequence[str] = ()
    limit: int | None = None
    shares_equal: bool = False
    per_row: bool = False

    def __post_init__(self) -> None:
        # the rows so far by their status, and why the first was refused
        self._counts: Counter[str] = Counter()
        self._first_refusal = ""
        self._left_out = 0
        self._statuses = Status.named(self.where)

    def read(self, key_of: KeyOf) -> Iterator[tuple[PlannedRow, Any]]:
        if unknown := self._statuses.difference(Status):
            raise RunGenInputError(f"where: {', '.join(sorted(unknown))} is none of {', '.join(Status)}")
        table = self.table.get("results", self.table) if isinstance(self.table, Mapping) else self.table
        rows = open_rows(table, written=self.written)
        with closing(rows):
            yield from self._read(rows, key_of)

    def _read(self, rows: Rows, key_of: KeyOf) -> Iterator[tuple[PlannedRow, Any]]:
        filtered = ["status"] if self.where else []
        names = tuple(dict.fromkeys([*self.key, *self.columns]))
        columns = _Columns(names, rows.column_types(), filtered)
        self.uris = [redact(rows.uri)] if rows.uri else []
        keys, numbers = _Keys(self.key), FirstNumbers()
        for number, row in enumerate(islice(self._wanted(rows, columns), self.limit)):
            place = rows.place
            if not isinstance(row, Mapping):
                raise RunGenInputError(f"{place} is a {type(row).__name__}, not an object; nothing was sent")
            # before the function, which may change what is in the row
            values = columns.take(row, place)
            keys.add(row, place)
            job_input = self._make_input(dict(row), place)
            why = self._refusal(job_input)
            status = Status.SKIPPED if job_input is None else Status.REFUSED if why else ""
            self._counts[status] += 1
            if status:
                yield PlannedRow(values, status=status, why=why), job_input
            else:
                name = [row.get(each) for each in self.key] or [number]
                digest = key_of(job_input, row=json.dumps(name)) if self.per_row else key_of(job_input)
                first = first_equal(numbers, digest, number) if self.shares_equal else None
                yield PlannedRow(values, digest, first=first), job_input
        # JSON Lines are often written without what is null
        columns.check([*(self.key if rows.uri else columns.names), *filtered])
        self.types = columns.types
        keys.check()
        self.without_job = {str(status): self._counts[status] for status in (Status.SKIPPED, Status.REFUSED)}
        log.log(
            logging.INFO if self.where or any(self.without_job.values()) else logging.DEBUG,
            "Read %d rows of %s: %d to run or reuse, %d skipped, %d refused%s",
            *(self._counts.total(), clean_text(rows.uri or "table"), self._counts[""]),
            *self.without_job.values(),
            f", {self._left_out} left out (where)" if self.where else "",
        )

    def _wanted(self, rows: Rows, columns: _Columns) -> Iterator[Any]:
        """Yield the rows that ``where`` allows."""
        for row in rows:
            if self.where and isinstance(row, Mapping):
                columns.note(row)
                if row.get("status") not in self._statuses:
                    self._left_out += 1
                    continue
            yield row

    def check(self, max_failed: float | str) -> None:
        refused, runnable = self._counts[Status.REFUSED], self._counts.total() - self._counts[Status.SKIPPED]
        if refused > (allowed := max_failures(max_failed, runnable)):
            raise RunGenInputError(
                f"The inputs of {refused} of {runnable} rows do not fit, "
                f"{allowed} may (max_failed): {self._first_refusal}; nothing was sent",
                hint="Correct the rows, to_input or input_schema, and clear the task",
            )

    def _make_input(self, row: dict[str, Any], place: str) -> Any:
        """Return the input of a row as JSON has it, or ``None`` for a row without a job."""
        try:
            job_input = (_own_input if self.to_input is None else self.to_input)(row)
        except AirflowException as error:  # the function decides how the task ends
            error.add_note(f"to_input raised this for {place}")
            raise
        except Exception as error:
            reason = clean_text(f"{type(error).__name__}: {error}")
            raise RunGenInputError(
                f"to_input failed for {place}: {reason}; nothing was sent",
                hint="Correct to_input, or the row, and clear the task",
                retryable=True,
            ) from error
        if job_input is None:
            return None
        if not isinstance(job_input, Mapping):
            kind = type(job_input).__name__
            raise RunGenInputError(
                f"to_input returned a {kind} for {place}, not a dict or None; nothing was sent"
            )
        return json.loads(codec.encode(job_input, f"the input of {place}"))

    def _refusal(self, job_input: Any) -> str:
        """Return why an input does not fit the schema. Other rows may be sent, so this is no error."""
        if self.schema is None or job_input is None:
            return ""
        try:
            self.schema.check_input(job_input)
        except RunGenInputError as error:
            reason = error.message.removesuffix("; nothing was sent")
            self._first_refusal = self._first_refusal or reason
            return reason
        return ""


def _own_input(row: dict[str, Any]) -> Any:
    """Return a row as an input, or the input that a row of a results table has."""
    if not FIXED_COLUMNS.keys() <= row.keys():
        return row
    own = row["input"]
    return json.loads(own) if own and isinstance(own, str) else own or None


class _Columns:
    """
    The columns that the results repeat.

    :param names: the key, and the others.
    :param types: the types of all columns, where the source has types.
    :param filtered: columns that only have to be there.
    :raises RunGenInputError: the source has no such column, or the results table has a fixed one of its name.
    """

    def __init__(
        self, names: Sequence[str], types: Mapping[str, str] | None, filtered: Sequence[str]
    ) -> None:
        self.names = names
        # the columns that no row had yet, and those of the last row
        self._absent = {*names, *filtered}
        self._last: Mapping[str, Any] | None = None
        if types is not None:
            self.note(types)
            self.check([*names, *filtered])
        self._types = {name: (types or {}).get(name, "text") for name in names}
        # the kinds of values: a type may be unknown, that of one file of several, or too small for a value
        self._kinds: dict[str, set[type]] = {name: set() for name in names if self._types[name] != "text"}
        check_columns(names, "column of the source")

    @property
    def types(self) -> dict[str, str]:
        """The type of each, as far as rows were taken."""
        return {name: self._type(name, declared) for name, declared in self._types.items()}

    def _type(self, name: str, declared: str) -> str:
        kinds = self._kinds.get(name, set()) - {type(None)}
        found = _KINDS.get(frozenset(kinds), "text") if kinds else declared or "text"
        return declared if (declared, found) == ("number", "integer") else found

    def take(self, row: Mapping[str, Any], place: str) -> Sequence[Any]:
        """Return a copy of the values of a row, as JSON has them."""
        self.note(row)
        for name, kinds in self._kinds.items():
            value = row.get(name)
            kinds.add(str if isinstance(value, int) and value not in INT64 else type(value))
        values: list[Any] = [row.get(name) for name in self.names]
        is_large = any(type(each) is int and each not in INT64 for each in values)
        if not is_large and _PLAIN.issuperset(map(type, values)):
            return values
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError) as error:
            columns = clean_text(", ".join(map(repr, self.names)), 200)
            raise RunGenInputError(
                f"{place} has a value in {columns} that JSON cannot express: {clean_text(str(error), 200)}; "
                "nothing was sent"
            ) from None
        copied: list[Any] = json.loads(text)
        return copied

    def check(self, required: Sequence[str]) -> None:
        """
        Check which columns there are.

        :raises RunGenInputError: no row had one that is required.
        """
        if self._last is None:  # of no rows, nothing is known
            return
        for name in sorted(self._absent):
            if name in required:
                raise RunGenInputError(
                    f"table has no column {name!r}, only {clean_text(', '.join(map(str, self._last)), 500)}; "
                    "nothing was sent"
                )
            log.warning("No row of the table has the column %r, so it is null", name)

    def note(self, row: Mapping[str, Any]) -> None:
        """Note which columns there are. A row may leave out what others have."""
        self._absent.difference_update(row)
        self._last = row


class _Keys:
    """The keys of all rows, which have to identify them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._numbers, self._count = FirstNumbers(), 0
        self._nulls: list[str] = []
        self._duplicates: list[str] = []

    def add(self, row: Mapping[str, Any], place: str) -> None:
        if not self._names:
            return
        key = [row.get(name) for name in self._names]
        if any(map(_is_null, key)):
            self._nulls.append(place)
            return
        # one key where the results are joined (1 and 1.0), or written as CSV (1.0 and "1.0")
        texts = map(json.dumps, product(*map(_key_texts, key)))
        digests = {hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts}
        self._count += 1
        if any(self._numbers.add(digest, self._count) != self._count for digest in digests):
            self._duplicates.append(clean_text(", ".join(map(str, key)), 100))

    def check(self) -> None:
        """
        Check them, after the last row.

        :raises RunGenInputError: one is null, or occurs more than once.
        """
        problems = []
        for keys, problem in ((self._nulls, "are null or empty"), (self._duplicates, "occur more than once")):
            if keys:
                named = ", ".join([*keys[:_MAX_NAMED], *["…"] * (len(keys) > _MAX_NAMED)])
                problems.append(f"{len(keys)} {problem} ({named})")
        if problems:
            raise RunGenInputError(
                f"key {', '.join(map(repr, self._names))} does not identify rows: {'; '.join(problems)}; "
                "nothing was sent",
                hint="Choose other columns as key, or remove these rows. 1 and '1' are one key",
            )


def _is_null(value: Any) -> bool:
    # pandas has NaN in place of null
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _key_texts(value: Any) -> list[str]:
    """Return the texts that a value has in a CSV file, where a number may be an integer or not."""
    if isinstance(value, str):
        return [to_csv(value)]
    numbers = [int(value)] if isinstance(value, float) and value.is_integer() else []
    return [json.dumps(each) for each in (*numbers, value)]
