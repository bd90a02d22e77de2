"""Converts the values of Arrow tables to those of JSON. The schema decides what there is to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.execution.table import arrow

#: A row, and its number: of the line where it begins, or of the row in a Parquet file, from 1.
NumberedRow: TypeAlias = tuple[int, Any]
# More than any prompt. A file without line ends, or with an open quotation mark, must not fill the memory.
MAX_ROW_BYTES = 16 << 20
LARGE_ROW_HINT = "Leave out the large values, for example by passing the URLs of files"
# Python objects take several times the memory of Arrow's, so few rows have them at a time.
ROWS_AT_A_TIME = 1024
# by their names, since older versions of pyarrow lack some of them
_TEXTS = {"string", "large_string", "string_view"}
_BYTES = ("binary", "large_binary", "fixed_size_binary")
_Convert: TypeAlias = Callable[[Any], Any]


class RowError(ValueError):
    """
    A row cannot be read.

    :param number: the row or line, from 1.
    :param reason: what is wrong with it, to follow its name.
    :param hint: what to do, if that is not obvious.
    """

    def __init__(self, number: int, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.number = number
        self.reason = reason
        self.hint = hint


class _UnfitError(ValueError):
    """JSON has no such values."""


def check_names(names: Sequence[str], number: int) -> None:
    """
    Check that every column has a name of its own.

    :param names: the names of the columns.
    :param number: the row or line that has them, for the error.
    :raises RowError: a name is missing or used twice.
    """
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if not name.strip():
            raise RowError(number, f"has no name for column {position}")
        if name in seen:
            raise RowError(number, f"has two columns named {clean_text(repr(name), 100)}")
        seen.add(name)


class RowConverter:
    """
    Converts batches of one schema to rows.

    :param schema: the Arrow schema.
    :raises RowError: a column has no name, or that of another.
    """

    def __init__(self, schema: Any) -> None:
        self._names = arrow.used_columns(schema)
        check_names(self._names, 0)
        kinds = [schema.field(name).type for name in self._names]
        self._columns = [
            (name, _target_type(kind), _converter(kind))
            for name, kind in zip(self._names, kinds, strict=True)
        ]

    def rows(self, batch: Any, count: int) -> Iterator[dict[str, Any]]:
        """
        Yield the rows of a batch.

        :param batch: the batch.
        :param count: how many rows came before it.
        """
        for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
            for part, before in self._parts(batch.slice(start, ROWS_AT_A_TIME), count + start):
                columns = [
                    _values(part.column(name), name, cast, convert, before)
                    for name, cast, convert in self._columns
                ]
                for row in zip(*columns, strict=True):
                    yield dict(zip(self._names, row, strict=True))

    def _parts(self, batch: Any, count: int) -> Iterator[tuple[Any, int]]:
        """Yield parts of a batch that are small enough to convert at a time, and how many rows are before."""
        sizes = {name: arrow.size_of(batch.column(name)) for name in self._names}
        if sum(sizes.values()) <= MAX_ROW_BYTES:
            yield batch, count
        elif batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from self._parts(batch.slice(0, half), count)
            yield from self._parts(batch.slice(half), count + half)
        else:
            name = max(sizes, key=lambda name: sizes[name])
            reason = f"has more than {MAX_ROW_BYTES >> 20} MiB, {sizes[name] >> 20} of them in column "
            raise RowError(count + 1, f"{reason}{clean_text(repr(name), 100)}", LARGE_ROW_HINT)


def _values(column: Any, name: str, cast: Any, convert: _Convert | None, count: int) -> list[Any]:
    """Return the values of a column. An error names the first row that has one."""
    try:
        if cast is not None:
            column = column.cast(cast, safe=False)
        if convert is None or (convert is _number and _is_finite(column)):
            values: list[Any] = column.to_pylist()
            return values
        return [None if value is None else convert(value) for value in column.to_pylist()]
    except (ValueError, OverflowError, ArithmeticError, LookupError) as error:
        if len(column) > 1:
            for index in range(len(column)):
                _values(column.slice(index, 1), name, cast, convert, count + index)
        column_name = f"column {clean_text(repr(name), 100)}"
        if isinstance(error, _UnfitError):
            reason = f"has {error} in {column_name}, which JSON cannot express"
        else:
            reason = f"has an unreadable value in {column_name}: {clean_text(str(error), 200)}"
        raise RowError(count + 1, reason) from None


def _is_finite(column: Any) -> bool:
    from pyarrow import compute

    # null if all values are null
    return compute.all(compute.is_finite(column)).as_py() is not False


def _number(value: float) -> float | None:
    if math.isinf(value):
        raise _UnfitError(str(value))
    return None if math.isnan(value) else value


def _duration(value: timedelta) -> str:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    seconds = f"{value.days * 86400 + value.seconds}.{value.microseconds:06}".rstrip("0").rstrip(".")
    return f"{sign}PT{seconds}S"


def _refuse(what: str) -> _Convert:
    def refuse(_: Any) -> Any:
        raise _UnfitError(what)

    return refuse


def _target_type(kind: Any) -> Any:
    """Return the type to cast a column to before its values become Python's, or ``None``."""
    target = arrow.in_microseconds(kind)
    return None if target == kind else target


def _converter(kind: Any) -> _Convert | None:
    """Return what converts a value of a type, or ``None`` if Python's value is JSON's."""
    types, kind = arrow.load_pyarrow().types, arrow.plain_type(kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _list_converter(_converter(kind.value_type))
    if types.is_struct(kind):
        return _struct_converter({field.name: _converter(field.type) for field in kind})
    if types.is_map(kind):
        key = arrow.plain_type(kind.key_type)
        if not (types.is_string(key) or types.is_large_string(key)):
            return _refuse("a map whose keys are not text")
        return _map_converter(_converter(kind.item_type))
    return _scalar_converter(types, kind)


def _scalar_converter(types: Any, kind: Any) -> _Convert | None:
    text = str(kind)
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or text in _TEXTS:
        return None
    if types.is_floating(kind):
        return _number
    if arrow.is_uuid(kind):
        return str
    return _text_converter(types, kind) or _refuse("bytes" if text.startswith(_BYTES) else f"a {text}")


def _text_converter(types: Any, kind: Any) -> _Convert | None:
    if types.is_decimal(kind):
        return lambda value: format(value, "f")
    if types.is_duration(kind):
        return _duration
    if types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind):
        return lambda value: value.isoformat()
    return None


def _list_converter(item: _Convert | None) -> _Convert | None:
    if item is None:
        return None
    return lambda values: [None if value is None else item(value) for value in values]


def _map_converter(item: _Convert | None) -> _Convert:
    if item is None:
        return dict
    return lambda pairs: {key: None if value is None else item(value) for key, value in pairs}


def _struct_converter(fields: dict[str, _Convert | None]) -> _Convert | None:
    todo = [(name, convert) for name, convert in fields.items() if convert is not None]
    if not todo:
        return None

    def convert_struct(value: dict[str, Any]) -> dict[str, Any]:
        for name, convert in todo:
            if value[name] is not None:
                value[name] = convert(value[name])
        return value

    return convert_struct
