"""Finds the files of a table: a single one, those of a folder, or those that a pattern matches."""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.execution.archive.local_files import open_regular

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
# With these errors, another attempt would fail likewise.
_PERMANENT = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(gzip.BadGzipFile, zlib.error, EOFError, ImportError, NotImplementedError, ValueError),
)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WILDCARD = re.compile(r"[*?[]")
_SCHEME_AND_CONNECTION = re.compile(r"[^/]+://(?:[^/]*@)?")


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
        with self._open(is_parquet) as file:
            if is_parquet or not self.path.lower().endswith(".gz"):
                yield file
            else:
                with gzip.GzipFile(fileobj=file) as decompressed:
                    yield decompressed

    def _open(self, is_parquet: bool) -> Any:
        if self.is_local:
            return open(self.path, "rb", opener=open_regular)
        # what a cache reads ahead in one column is discarded when another one is read
        return self.fs.open(self.path, "rb", **({"cache_type": "none"} if is_parquet else {}))


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
    except RunGenError:
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


def single_file(source: Any, format: str | None = None) -> SourceFile:
    """Return the file that a URI or path names, whether it exists or not."""
    from airflow_provider_rungen._airflow import ObjectStoragePath

    base = source if isinstance(source, ObjectStoragePath) else ObjectStoragePath(str(source))
    path, is_local = str(base.path), base.protocol in ("", "file", "local")
    return SourceFile(str(source), base.fs, path, format or _format_of(path) or "jsonl", is_local)


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

    text = str(source)
    with wrap_errors(name, text):
        single = single_file(source, format)
        fs, path = single.fs, single.path
        # another task may have written there after this process listed it
        fs.invalidate_cache()
        is_folder = text.endswith("/")
        written_path = str(ObjectStoragePath(written).path).lstrip("/") if written else None
        if path.lstrip("/") == written_path:
            raise RunGenInputError(f"The task would write to the {name} that it reads: {clean_text(text)}")
        if not is_folder and fs.isfile(path):
            return [single]
        if wildcard := _WILDCARD.search(path):
            root, paths = path[: wildcard.start()].rpartition("/")[0], _matching(fs, path)
        else:
            root, paths = path, fs.find(path)
            if not (is_folder or paths or fs.isdir(path)):
                return [single]  # it is missing, and opening it has the best error
        prefix = _SCHEME_AND_CONNECTION.match(text)
        found = [
            replace(
                single,
                uri=(prefix[0] if prefix else "") + (each if single.is_local else each.lstrip("/")),
                path=each,
                format=kind,
                partition=_partition(each, root),
            )
            for each in sorted(paths)
            if _is_visible(each, root)
            and each.lstrip("/") != written_path
            and (kind := format or _format_of(each) or "")
        ]
    if not found:
        raise RunGenInputError(
            f"Could not read {name}: no file of rows in {clean_text(text)}",
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


def _names_below(path: str, root: str) -> list[str]:
    return path.strip("/").removeprefix(root.strip("/")).split("/")


def _is_visible(path: str, root: str) -> bool:
    """Return whether no name below the folder marks what is temporary or about the table."""
    return not any(name.startswith((".", "_")) for name in _names_below(path, root))


def _partition(path: str, root: str) -> dict[str, str | None]:
    """Return the columns in the names of the folders between a file and the folder: ``dt=2026-01-31``."""
    pairs = (name.partition("=") for name in _names_below(path, root)[:-1])
    return {
        unquote(column): None if value == _HIVE_NULL else unquote(value)
        for column, equals, value in pairs
        if equals and column
    }


def _format_of(path: str) -> str | None:
    path = path.lower()
    decompressed = path.removesuffix(".gz")
    for suffix, found in _FORMATS.items():
        if decompressed.endswith(suffix):
            return None if found == "parquet" and decompressed != path else found
    return None
