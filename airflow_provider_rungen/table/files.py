"""Finds the files of a table, reads those of text as a stream, and has what all formats have in common."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote

from airflow_provider_rungen.client.outages import may_pass
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.outputs.local_files import open_regular

#: A row, and its number: of the line where it begins, or of the row in an Arrow table, from 1.
NumberedRow: TypeAlias = tuple[int, Any]
#: The types of the columns, and the rows. A type is empty if it is that of the values; ``None`` in place of
#: the types if each row has its own columns.
TableContent: TypeAlias = tuple[dict[str, str] | None, Iterable[NumberedRow]]
# More than any prompt. A file without line ends, or with an open quotation mark, must not fill the memory.
MAX_ROW_BYTES = 16 << 20
LARGE_ROW_HINT = "Leave out the large values, for example by passing the URLs of files"
_CHUNK_BYTES = 1 << 16
_FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "jsonl"),
    **dict.fromkeys((".csv", ".csv.gz"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WILDCARD = re.compile(r"[*?[]")
_SCHEME_AND_CONNECTION = re.compile(r"(?:[^/]+://(?:[^/]*@)?)?")


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


def check_names(names: Sequence[str], number: int) -> None:
    """
    Check that every column has a name, and that no two have the same.

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


@dataclass(frozen=True)
class SourceFile:
    """
    A file of rows.

    :param uri: its URI, which may be signed.
    :param fs: its file system.
    :param path: its path there.
    :param format: ``jsonl``, ``csv`` or ``parquet``.
    :param is_local: whether its path is one of this machine.
    :param partition: the columns that are in the names of its folders, as Hive writes them.
    """

    uri: str
    fs: Any
    path: str
    format: str
    is_local: bool
    partition: Mapping[str, str | None] = field(default_factory=dict)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """Open the file, decompressed."""
        is_parquet = self.format == "parquet"
        # what a cache reads ahead in one column is discarded when another one is read
        options = {"cache_type": "none"} if is_parquet else {}
        with contextlib.ExitStack() as stack:
            if self.is_local:
                file: Any = stack.enter_context(open(self.path, "rb", opener=open_regular))
            else:
                file = stack.enter_context(self.fs.open(self.path, "rb", **options))
            is_compressed = self.path.lower().endswith(".gz") and not is_parquet
            yield stack.enter_context(gzip.GzipFile(fileobj=file)) if is_compressed else file


@contextlib.contextmanager
def wrap_errors(name: str, uri: str, position: Callable[[], str] = str) -> Iterator[None]:
    """
    Convert the errors of storage and table libraries, which may be of any type.

    :param name: what is read, such as ``table``.
    :param uri: the source.
    :param position: returns how far it was read, such as " after row 3".
    """
    from airflow_provider_rungen._airflow import AirflowException, AirflowNotFoundException

    try:
        yield
    except (RunGenError, RowError):
        raise
    except Exception as error:
        # Airflow's signal handler raises one when it kills a task
        if isinstance(error, AirflowException) and not isinstance(error, AirflowNotFoundException):
            raise
        reason = redact_error(error, uri) or type(error).__name__
        # from None: the library's own text may hold the URI, and would be in the log, too
        raise RunGenInputError(
            f"Could not read {name} from {clean_text(f'{uri}{position()}: {reason}')}",
            retryable=may_pass(error),
        ) from None


def path_of(uri: Any) -> str:
    """Return the path of a file, which is the same for each way to write its URI."""
    from airflow_provider_rungen._airflow import ObjectStoragePath

    path = uri if isinstance(uri, ObjectStoragePath) else ObjectStoragePath(str(uri))
    return _normal_path(str(path.path), is_local=path.protocol in ("", "file", "local"))


def _normal_path(path: str, *, is_local: bool) -> str:
    return os.path.realpath(path) if is_local else path.lstrip("/")


def find_files(source: Any, name: str, written: Collection[str] = ()) -> list[SourceFile]:
    """
    Return the files of a source, in the order of their paths.

    :param source: the URI or path of a file, of a folder, or with wildcards.
    :param name: what is read, such as ``table``.
    :param written: the URIs of files that the task writes, and does not read as part of a folder.
    :raises RunGenInputError: there are none, the only one is in ``written``, or the storage cannot be read.
    """
    from airflow_provider_rungen._airflow import ObjectStoragePath

    uri = str(source)
    with wrap_errors(name, uri):
        base = source if isinstance(source, ObjectStoragePath) else ObjectStoragePath(uri)
        fs, path, is_local = base.fs, str(base.path), base.protocol in ("", "file", "local")
        kind = _format_of(path)
        single = SourceFile(uri, fs, path, kind, is_local)
        # another task may have written there after this process listed it
        fs.invalidate_cache()
        normalize = partial(_normal_path, is_local=is_local)
        written_paths = {path_of(each) for each in written}
        if normalize(path) in written_paths:
            raise RunGenInputError(f"The task would write to the {name} that it reads: {clean_text(uri)}")
        is_folder = uri.endswith("/")
        if kind and not is_folder and fs.isfile(path):
            return [single]
        if wildcard := _WILDCARD.search(path):
            root, paths = path[: wildcard.start()].rpartition("/")[0], _matching(fs, path)
        else:
            root, paths = path, fs.find(path)
            if kind and not (is_folder or paths or fs.isdir(path)):
                return [single]  # it is missing, and opening it has the best error
        prefix = _SCHEME_AND_CONNECTION.match(uri)[0]  # type: ignore[index]  # it matches any text
        found = []
        for each in sorted(paths):
            names = each.strip("/").removeprefix(root.strip("/")).split("/")
            kind = _format_of(each)
            # names of temporary files, and of those about the table
            is_hidden = any(part.startswith((".", "_")) for part in names)
            if kind and not is_hidden and normalize(each) not in written_paths:
                shown = prefix + (each if is_local else each.lstrip("/"))
                found.append(SourceFile(shown, fs, each, kind, is_local, _partition(names[:-1])))
    if not found:
        raise RunGenInputError(
            f"Could not read {name}: no file of rows in {clean_text(uri)}",
            hint=f"Files end in {', '.join(_FORMATS)}; a function as table reads others. "
            "Names that begin with a dot or an underscore are skipped",
        )
    return found


def _matching(fs: Any, pattern: str) -> Iterable[str]:
    """Return the files that a pattern matches, and those in the folders that it matches."""
    paths: set[str] = set()
    for path, info in fs.glob(pattern, detail=True).items():
        paths |= {path} if info["type"] == "file" else set(fs.find(path))
    return paths


def _partition(folders: Iterable[str]) -> dict[str, str | None]:
    """Return the columns in the names of folders: ``dt=2026-01-31``."""
    pairs = (name.partition("=") for name in folders)
    return {
        unquote(column): None if value == _HIVE_NULL else unquote(value)
        for column, equals, value in pairs
        if equals and column
    }


def _format_of(path: str) -> str:
    return next((kind for suffix, kind in _FORMATS.items() if path.lower().endswith(suffix)), "")


# --- text ---


def read_json_lines(file: Any) -> TableContent:
    """Return the values of a JSON Lines file. Blank lines are skipped."""

    def rows() -> Iterator[NumberedRow]:
        for number, line in _lines(file):
            if text := line.strip():
                try:
                    yield number, json.loads(text)
                except (ValueError, RecursionError):
                    raise RowError(number, "is not JSON") from None

    return None, rows()


def read_csv(file: Any) -> TableContent:
    """Return the rows of a CSV file with a header. All values are text. Blank lines are skipped."""
    records = _csv_records(file)
    number, header = next(records, (1, []))
    check_names(header, number)

    def rows() -> Iterator[NumberedRow]:
        for number, values in records:
            if len(values) != len(header):
                raise RowError(number, f"has {len(values)} values, but the header has {len(header)}")
            yield number, dict(zip(header, values, strict=True))

    return dict.fromkeys(header, "text"), rows()


def _csv_records(file: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the header of a CSV file, and each row, with the number of the line where it begins."""
    # for the whole process, so never lower than it was
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    number, size = 1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line_number, line in _lines(file):
            if "\0" in line:  # text of another encoding, or no text
                raise RowError(line_number, "has a NUL character")
            size += len(line) + 1
            if size > MAX_ROW_BYTES + 1:
                raise _too_large(number)
            yield f"{line}\n"

    reader = csv.reader(lines(), strict=True)
    try:
        for values in reader:
            if values:
                yield number, values
            number, size = reader.line_num + 1, 0
    except csv.Error as error:
        raise RowError(number, f"is not CSV: {error}") from None


def _too_large(number: int) -> RowError:
    return RowError(number, f"has more than {MAX_ROW_BYTES >> 20} MiB", LARGE_ROW_HINT)


def _lines(file: Any) -> Iterator[tuple[int, str]]:
    """
    Yield the lines of a file, and their numbers, without line ends.

    Only line feeds end a line, since texts may hold the other separators that Python knows.
    """
    for number, line in enumerate(_byte_lines(file), 1):
        try:
            text = (line if number > 1 else line.removeprefix(codecs.BOM_UTF8)).decode()
        except UnicodeDecodeError:
            raise RowError(number, "is not UTF-8") from None
        yield number, text


def _byte_lines(file: Any) -> Iterator[bytes]:
    # not by readline(), which the files of some file systems lack, or have in pure Python
    parts: list[bytes] = []
    size = number = 0
    while chunk := file.read(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            number += len(others)
            parts, size = [others[-1]], len(others[-1])
        if size > MAX_ROW_BYTES:
            raise _too_large(number + 1)
    if size:
        yield b"".join(parts)
