"""Finds the files of a table: a single one, those of a folder, or those that a pattern matches."""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.execution.archive.files import open_regular
from airflow_provider_rungen.execution.table.formats import RowError

_FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "jsonl"),
    **dict.fromkeys((".csv", ".csv.gz"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
# With these errors, another attempt would fail likewise.
_PERMANENT = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(gzip.BadGzipFile, zlib.error, EOFError, ImportError, NotImplementedError, ValueError),
)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WILDCARD = re.compile(r"[*?[]")
_SCHEME_AND_CONNECTION = re.compile(r"(?:[^/]+://(?:[^/]*@)?)?")


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

    :param name: what is read, such as ``inputs``.
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
            retryable=not isinstance(error, (*_PERMANENT, AirflowNotFoundException)),
        ) from None


def find_files(source: Any, format: str | None, name: str, written: str = "") -> list[SourceFile]:
    """
    Return the files of a source, in the order of their paths.

    :param source: the URI or path of a file, of a folder, or with wildcards.
    :param format: the format of the files, if it is not that of their suffix.
    :param name: what is read, such as ``inputs``.
    :param written: the URI of a file that the task writes, and does not read as part of a folder.
    :raises RunGenInputError: there are none, the only one is ``written``, or the storage cannot be read.
    """
    from airflow_provider_rungen._airflow import ObjectStoragePath

    uri = str(source)
    with wrap_errors(name, uri):
        base = source if isinstance(source, ObjectStoragePath) else ObjectStoragePath(uri)
        fs, path, is_local = base.fs, str(base.path), base.protocol in ("", "file", "local")
        single = SourceFile(uri, fs, path, format or _format_of(path) or "jsonl", is_local)
        # another task may have written there after this process listed it
        fs.invalidate_cache()
        written_path = str(ObjectStoragePath(written).path).lstrip("/") if written else None
        if path.lstrip("/") == written_path:
            raise RunGenInputError(f"The task would write to the {name} that it reads: {clean_text(uri)}")
        is_folder = uri.endswith("/")
        if not is_folder and fs.isfile(path):
            return [single]
        if wildcard := _WILDCARD.search(path):
            root, paths = path[: wildcard.start()].rpartition("/")[0], _matching(fs, path)
        else:
            root, paths = path, fs.find(path)
            if not (is_folder or paths or fs.isdir(path)):
                return [single]  # it is missing, and opening it has the best error
        prefix = _SCHEME_AND_CONNECTION.match(uri)[0]  # type: ignore[index]  # it matches any text
        found = []
        for each in sorted(paths):
            names = each.strip("/").removeprefix(root.strip("/")).split("/")
            kind = format or _format_of(each)
            # names of temporary files, and of those about the table
            is_hidden = any(part.startswith((".", "_")) for part in names)
            if kind and not is_hidden and each.lstrip("/") != written_path:
                shown = prefix + (each if is_local else each.lstrip("/"))
                found.append(SourceFile(shown, fs, each, kind, is_local, _partition(names[:-1])))
    if not found:
        raise RunGenInputError(
            f"Could not read {name}: no file of rows in {clean_text(uri)}",
            hint=f"Files end in {', '.join(_FORMATS)} unless format is set. "
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


def _format_of(path: str) -> str | None:
    return next((kind for suffix, kind in _FORMATS.items() if path.lower().endswith(suffix)), None)
