"""Arrow's types: which columns a schema has, and which types its values have as JSON."""

from __future__ import annotations

import contextlib
from typing import Any

from airflow_provider_rungen.exceptions import RunGenInputError


def load_pyarrow() -> Any:
    """
    Return pyarrow.

    :raises RunGenInputError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise RunGenInputError(
            "Could not read a table: pyarrow is not installed",
            hint="Install it with: pip install 'airflow-provider-rungen[tables]'",
        ) from None
    return pyarrow


def used_columns(schema: Any) -> list[str]:
    """Return the names of the columns, without those that pandas adds for an index without a name."""
    return [name for name in schema.names if not name.startswith("__index_level_")]


def column_types(schema: Any) -> dict[str, str]:
    """Return the type of each column as JSON has it: everything but numbers and booleans is text."""
    types = load_pyarrow().types

    def word(kind: Any) -> str:
        kind = plain_type(kind)
        if types.is_boolean(kind):
            return "boolean"
        if types.is_integer(kind):
            return "integer"
        return "number" if types.is_floating(kind) else "text"

    return {name: word(schema.field(name).type) for name in used_columns(schema)}


def plain_type(kind: Any) -> Any:
    """Return the type of the values of an encoded or extended type."""
    pa = load_pyarrow()
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and not is_uuid(kind):
        return plain_type(kind.storage_type)
    return kind


def is_uuid(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def in_microseconds(kind: Any) -> Any:
    """
    Return a type with microseconds in place of nanoseconds, or the same type.

    Python has no nanoseconds: without pandas it is an error to read them, with pandas their text has more
    digits.
    """
    pa = load_pyarrow()
    types, plain = pa.types, plain_type(kind)
    if plain != kind:  # a cast would decode it, which not every type can
        return kind if (wanted := in_microseconds(plain)) == plain else wanted
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", tz=kind.tz)
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return _nested_in_microseconds(pa, kind)


def _nested_in_microseconds(pa: Any, kind: Any) -> Any:
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([field.with_type(in_microseconds(field.type)) for field in kind])
    if types.is_map(kind):
        key, item = in_microseconds(kind.key_type), in_microseconds(kind.item_type)
        return kind if (key, item) == (kind.key_type, kind.item_type) else pa.map_(key, item)
    is_large, is_fixed = types.is_large_list(kind), types.is_fixed_size_list(kind)
    if not (types.is_list(kind) or is_large or is_fixed):
        return kind
    item = in_microseconds(kind.value_type)
    if item == kind.value_type:  # a new type would give the items another name
        return kind
    if is_fixed:
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if is_large else pa.list_(item)


def size_of(column: Any) -> int:
    """Return how many bytes the values of a column have, also where they are stored once."""
    pa = load_pyarrow()
    if not pa.types.is_dictionary(column.type):
        with contextlib.suppress(pa.ArrowException):  # older versions know some types only as a whole
            is_shared = any(word in str(column.type) for word in ("_view", "dictionary<"))
            return _size_of_parts(pa, column) if is_shared else int(column.nbytes)
        return 0
    from pyarrow import compute

    try:
        lengths = compute.binary_length(column.dictionary)
    except pa.ArrowNotImplementedError:  # they are no texts
        return int(column.indices.nbytes)
    return compute.sum(lengths.take(column.indices)).as_py() or 0


def _size_of_parts(pa: Any, column: Any) -> int:
    """Return the size of a column with views or dictionaries, of which Arrow counts each text once."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return size_of(column.storage)
    if kind.num_fields:
        parts = column.flatten()  # of a struct its columns, of lists their values
        return sum(map(size_of, parts if pa.types.is_struct(kind) else [parts]))
    plain = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}[str(kind)]
    return int(column.cast(plain).nbytes)
