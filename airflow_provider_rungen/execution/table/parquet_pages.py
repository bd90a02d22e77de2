"""
Watches the pages of a Parquet file while pyarrow reads it, so that no row makes it take all memory.

A page says how large it is before it is decompressed. The footer says so for whole columns only, and a few
bytes of a dictionary's page may become a column of any size.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from airflow_provider_rungen.execution.table.values import MAX_ROW_BYTES

_DICTIONARY_PAGE, _DATA_PAGE_V2 = 2, 3
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY = 6, 7
# Of a value in a list, whatever its type: its levels, and its place in an array.
_LEAST_BYTES = 16
# Of a batch. If the longest text is no longer than all texts of a dictionary, it is not measured.
_SMALL_BATCH_BYTES = 1 << 19
_MAX_HEADER_BYTES = 16 << 20
_MAX_INT = 2**31 - 1
_SIZE = struct.Struct("<I")


class TooLargeError(Exception):
    """
    What is to be read needs too much memory.

    :param column: the column.
    :param size: how much, in bytes.
    :param limit: how much it may be.
    :param rows: how many rows to read at a time instead, or 0 if it is too large anyway.
    :param number: the number of the column if it may fit once it is read as a dictionary.
    """

    def __init__(self, column: str, size: int, limit: int, rows: int = 0, number: int | None = None) -> None:
        super().__init__(f"column {column!r} needs {size} bytes")
        self.column = column
        self.size = size
        self.limit = limit
        self.rows = rows
        self.number = number


@dataclass(slots=True)
class _Chunk:
    """A column of a row group: what it is, and how far it is read."""

    column: str
    number: int | None
    start: int
    end: int
    codec: str
    is_text: bool
    is_nested: bool
    is_category: bool
    is_compact: bool
    width: int
    at: int = 0
    rest: bytes = b""
    skip: int = 0
    held: int = 0
    longest: int = 0
    dictionary: bytearray | None = None
    dictionary_bytes: int = 0


class WatchedFile:
    """
    A file that pyarrow reads, a row group at a time. Each read of a column continues its last one.

    :param file: the file.
    :param max_bytes: of all pages that are decompressed at a time.
    """

    def __init__(self, file: Any, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._chunks: list[_Chunk] = []
        self._rows = 1
        self._opened = self._held = self._longest = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        data: bytes = self._file.read(size)
        if self._chunks:
            self._watch(at, data)
        elif data.endswith((b"PAR1", b"PARE")) and len(data) >= 8:
            footer = int.from_bytes(data[-8:-4], "little")
            if footer > self._max_bytes // 16:
                raise ValueError(f"its footer has {footer >> 20} MiB")
        return data

    def begin(self, table: Any, group: int, rows: int, compact: Sequence[int] = ()) -> None:
        """
        Begin to read a row group.

        :param table: the `ParquetFile`.
        :param rows: how many rows are read at a time.
        :param compact: the numbers of the columns whose values are read as a dictionary.
        """
        metadata = table.metadata.row_group(group)
        chunks = sorted(
            (
                _make_chunk(metadata.column(number), table, number, compact)
                for number in range(metadata.num_columns)
            ),
            key=lambda chunk: chunk.start,
        )
        if any(first.end > second.start for first, second in pairwise(chunks)):
            raise ValueError("its columns overlap")
        self._chunks, self._rows = chunks, min(rows, metadata.num_rows)
        self._opened = self._held = self._longest = 0
        for chunk in chunks:
            self._expect(chunk, chunk.width)

    def begin_batch(self) -> None:
        """Forget the pages of the batch before, except for those that may be in use."""
        self._opened = 0

    def _watch(self, at: int, data: bytes) -> None:
        chunk = self._chunks[max(0, bisect_right(self._chunks, at, key=lambda chunk: chunk.start) - 1)]
        if at == chunk.start:
            chunk.at, chunk.rest, chunk.skip = at, b"", 0
        if at != chunk.at + len(chunk.rest):
            raise ValueError(f"column {chunk.column!r} is not where it should be")
        data, chunk.rest, at = chunk.rest + data, b"", 0
        while at < len(data):
            if chunk.skip:
                step = self._skip(chunk, data, at)
            elif chunk.at < chunk.end:
                try:
                    header, end = _read_struct(data, at)
                except IndexError:  # the rest of it is read next
                    chunk.rest = data[at:]
                    if len(chunk.rest) > _MAX_HEADER_BYTES:
                        raise ValueError(f"column {chunk.column!r} has a broken page") from None
                    return
                self._open(chunk, header)
                step = end - at
            else:
                step = len(data) - at
            at += step
            chunk.at += step

    def _skip(self, chunk: _Chunk, data: bytes, at: int) -> int:
        """Return how many bytes there are of a page. A dictionary is looked into at its end."""
        step = min(chunk.skip, len(data) - at)
        chunk.skip -= step
        if chunk.dictionary is not None:
            chunk.dictionary += data[at : at + step]
            if not chunk.skip:
                longest, chunk.dictionary = _longest(chunk), None
                if longest > MAX_ROW_BYTES:
                    raise TooLargeError(chunk.column, longest, MAX_ROW_BYTES)
                self._expect(chunk, longest)
        return step

    def _open(self, chunk: _Chunk, header: dict[int, Any]) -> None:
        is_second = header.get(1) == _DATA_PAGE_V2
        details = header.get(8 if is_second else 5) or {}
        numbers = [header.get(2), header.get(3), details.get(1, 0)]
        if not all(type(number) is int and 0 <= number <= _MAX_INT for number in numbers):
            raise ValueError(f"column {chunk.column!r} has a broken page")
        unpacked, chunk.skip, values = (int(number) for number in numbers)
        if header.get(1) == _DICTIONARY_PAGE:
            size = self._open_dictionary(chunk, unpacked)
        else:
            size = self._open_data(chunk, unpacked, values, details.get(4 if is_second else 2))
        self._opened += size
        if (needed := max(self._opened, self._held)) > self._max_bytes:
            is_alone = max(size, self._held) > self._max_bytes
            rows = 0 if is_alone else max(1, self._rows // 16)
            is_guess = size > max(2 * unpacked, chunk.skip, values * _LEAST_BYTES)
            number = chunk.number if is_guess else None
            raise TooLargeError(chunk.column, needed, self._max_bytes, rows, number)

    def _open_dictionary(self, chunk: _Chunk, unpacked: int) -> int:
        """Return how many bytes a dictionary takes."""
        chunk.dictionary_bytes = unpacked
        if chunk.is_text and (unpacked * self._rows > _SMALL_BATCH_BYTES or chunk.is_nested):
            # one without bytes has no end at which to look into it
            chunk.dictionary = bytearray() if chunk.skip else None
        elif chunk.is_text:
            self._expect(chunk, unpacked)
        size = max(2 * unpacked, chunk.skip)  # the page, and its values
        self._held += size
        return size

    def _open_data(self, chunk: _Chunk, unpacked: int, values: int, encoding: Any) -> int:
        """Return how many bytes the values of a page take, as far as one batch may have them."""
        size = max(unpacked, chunk.skip)
        if encoding == _DELTA_BYTE_ARRAY:  # each value may repeat all of the one before
            self._expect(chunk, unpacked)
        if encoding in (_DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY):  # lengths are decoded at once
            size += values * 8
        is_index = chunk.is_compact and encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY)
        # arrow collects all values of a category, and each batch has a copy of them
        self._held += (size if is_index or not chunk.is_compact else 3 * size) - chunk.held
        chunk.held = 0 if chunk.is_category else size
        if not chunk.is_nested:
            return size
        # one row may have all values, and each may be the longest where the page does not have it itself
        is_whole = encoding in (_PLAIN, _DELTA_LENGTH_BYTE_ARRAY)
        longest = 0 if is_whole or is_index else chunk.longest
        return max(size, values * max(longest, _LEAST_BYTES))

    @property
    def _batch_bytes(self) -> int:
        return self._max_bytes if self._rows == 1 else self._max_bytes // 8

    def _expect(self, chunk: _Chunk, longest: int) -> None:
        """Take note of the longest value that any row may have."""
        if longest > chunk.longest:
            if not chunk.is_nested:
                self._longest += longest - chunk.longest
            chunk.longest = longest
        if (size := self._longest * self._rows) > self._batch_bytes:
            rows = max(1, self._max_bytes // 8 // self._longest)
            raise TooLargeError(chunk.column, size, self._batch_bytes, rows)


def _make_chunk(column: Any, table: Any, number: int, compact: Sequence[int]) -> _Chunk:
    kind, arrow_schema = table.schema.column(number), table.schema_arrow
    start, root = column.data_page_offset, column.path_in_schema.partition(".")[0]
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    is_nested, is_compact = kind.max_repetition_level > 0, number in compact
    can_be_compact = is_nested and not is_compact and kind.logical_type.type == "STRING"
    return _Chunk(
        column=column.path_in_schema,
        number=number if can_be_compact else None,
        start=start,
        end=start + column.total_compressed_size,
        codec=column.compression,
        is_text=column.physical_type == "BYTE_ARRAY",
        is_nested=is_nested,
        is_category=root in arrow_schema.names and "dictionary<" in str(arrow_schema.field(root).type),
        is_compact=is_compact,
        width=kind.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0,
    )


def _longest(chunk: _Chunk) -> int:
    """Return the length of the longest text of a dictionary, or that of the whole if it cannot be read."""
    import pyarrow as pa

    data: Any = chunk.dictionary
    if chunk.codec != "UNCOMPRESSED":
        try:
            data = pa.Codec(chunk.codec.lower()).decompress(data, chunk.dictionary_bytes)
        except (pa.ArrowException, OSError, ValueError):
            return min(chunk.dictionary_bytes, MAX_ROW_BYTES)
    at, longest, size_at = 0, 0, _SIZE.unpack_from
    with contextlib.suppress(struct.error):  # at the end
        while True:
            (size,) = size_at(data, at)
            longest = max(longest, size)
            at += size + 4
    return longest


# --- Thrift's compact protocol, as far as the headers of pages use it ---


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """
    Return the fields of a structure by number, and where it ends.

    :raises IndexError: it is not whole.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            at += 1
        elif kind in (4, 5, 6):
            fields[number], at = _read_integer(data, at)
        elif kind == 7:
            at += 8
        elif kind == 8:
            size, at = _read_varint(data, at)
            at += size
        elif kind == 12:
            fields[number], at = _read_struct(data, at)
        else:
            raise ValueError("a page has a field of another type")
    return fields, at + 1


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        if (shift := shift + 7) > 63:
            raise ValueError("a page has a number that is too large")
