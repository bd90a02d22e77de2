"""A folder of any file system, as `ObjectStoragePath` opens it: what is there, and one file at a time."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias, TypeVar

from airflow_provider_rungen.client.redaction import redact, redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.local_files import open_folder, opener_in
from airflow_provider_rungen.execution.archive.threads import run_concurrently

T = TypeVar("T")
#: The folder of a file and its name. The folder of a file directly in the destination is empty.
File: TypeAlias = tuple[str, str]
#: How a file that is missing shows. Not PermissionError: s3fs also raises it for expired credentials, a wrong
#: clock and the like.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_SMALL_BYTES = 1 << 16
# Here a file appears once it is uploaded, and not before.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}


class Folder:
    """
    A folder of any file system. In a local one, symbolic links are not followed.

    A file is missing only if the store says so. Anything else is an outage, and raises.

    :param uri: a URI or an absolute path that `ObjectStoragePath` accepts, or one of these.
    :param name: the parameter it was passed as, for errors.
    :param read_only: whether it is only read.
    :raises RunGenInputError: there can be no such place.
    """

    def __init__(self, uri: Any, name: str = "destination", *, read_only: bool = False) -> None:
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        self.text = text = str(uri)
        self.name = name
        access = "read" if read_only else "write to"
        self.hint = f"Check {name}, and that the worker may {access} it"
        try:
            if "://" not in text and not os.path.isabs(text):
                raise ValueError("it is neither a URI nor an absolute path")
            base = uri if isinstance(uri, ObjectStoragePath) else ObjectStoragePath(text)
            # not in a thread, because it may read a connection from Airflow
            self.fs: Any = base.fs
            self.root = str(base.path).rstrip("/")
            self.is_local = base.protocol in ("", "file", "local")
        except (OSError, ImportError, TypeError, ValueError, AirflowNotFoundException) as error:
            reason = redact_error(error, text)
            # not chained, because the text of the cause would be logged unredacted
            raise RunGenInputError(
                clean_text(f"{name} {text!r} cannot be used: {reason}"), hint=self.hint
            ) from None
        self.is_object_store = base.protocol in _OBJECT_STORES

    def uri_of(self, folder: str, name: str) -> str:
        """Return the URI of a file."""
        return "/".join((self.text.removesuffix("/"), *filter(None, (folder, name))))

    @contextlib.contextmanager
    def wrap_errors(self) -> Iterator[None]:
        """Convert the errors of storage libraries, which may be of any type."""
        from airflow_provider_rungen._airflow import AirflowException, AirflowNotFoundException

        try:
            yield
        except RunGenOutputError:
            raise
        except Exception as error:
            # Airflow's signal handler raises one when it kills a task
            if isinstance(error, AirflowException) and not isinstance(error, AirflowNotFoundException):
                raise
            reason = clean_text(redact_error(error, self.text), 200)
            # not chained, because the text of the cause would be logged unredacted
            raise self.error(f"{type(error).__name__}: {reason}".removesuffix(": ")) from None

    def error(self, reason: str) -> RunGenOutputError:
        return RunGenOutputError(f"the {self.name} cannot be used: {redact(reason)}", hint=self.hint)

    # --- paths ---

    def path_of(self, folder: str, name: str = "") -> str:
        return "/".join((self.root, *filter(None, (folder, name))))

    def folder_of(self, folder: str, *, create: bool = False) -> contextlib.AbstractContextManager[int]:
        # the destination itself may be a symbolic link, which the dot follows
        first, *below = (folder or ".").split("/")
        return open_folder(self.path_of(first), *below, create=create)

    # --- what is there ---

    def list_folder(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files in a folder: none if it, or the place, cannot be found."""
        with self.wrap_errors(), contextlib.suppress(*MISSING):
            return self._list(folder)
        return {}

    def sizes_of(self, files: Iterable[File]) -> dict[File, int]:
        """Return the sizes of those of many files that exist, concurrently."""
        files = list(files)
        if not self.is_local:
            for folder in {folder for folder, _ in files}:
                self.fs.invalidate_cache(self.path_of(folder))
        sizes = run_concurrently(self._size_unless_link, files)
        return {file: size for file, size in zip(files, sizes, strict=True) if size is not None}

    def list_all(self, folders: Collection[str]) -> dict[File, int]:
        """
        Return the sizes of all files in many folders, concurrently. A folder may be missing.

        :raises RunGenOutputError: the place, or a folder that it has, cannot be listed.
        """

        def sizes(folder: str) -> dict[str, int]:
            with self.wrap_errors():
                try:
                    return self._list(folder)
                except FileNotFoundError:
                    if not self.is_local and folder in self._folders():
                        raise
            return {}

        with self.wrap_errors():
            existing = self._folders()
        if not self.is_local:
            # because a store needs several requests to find that a folder is missing
            folders = [folder for folder in folders if folder in existing]
        listed = zip(folders, run_concurrently(sizes, folders), strict=True)
        return {(folder, name): size for folder, names in listed for name, size in names.items()}

    def folders(self) -> set[str]:
        """Return the names of all folders in the place, apart from hidden ones. The place may be missing."""
        with self.wrap_errors(), contextlib.suppress(FileNotFoundError):
            return self._folders()
        return set()

    def _folders(self) -> set[str]:
        if self.is_local:
            with self.folder_of("") as number, os.scandir(number) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        else:
            root = self.path_of("")
            self.fs.invalidate_cache(root)
            listed = self.fs.ls(root, detail=True)
            paths = (entry["name"].rstrip("/") for entry in listed if entry["type"] == "directory")
            names = [path.rpartition("/")[2] for path in paths]
        return {name for name in names if not name.startswith(".")}

    def _list(self, folder: str) -> dict[str, int]:
        path = self.path_of(folder)
        if self.is_local:
            sizes = {}
            with self.folder_of(folder) as number, os.scandir(number) as entries:
                for entry in entries:
                    # others rename their temporary files meanwhile: that is no missing folder
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
            return sizes
        self.fs.invalidate_cache(path)
        listed = [entry for entry in self.fs.ls(path, detail=True) if entry["type"] == "file"]
        return {entry["name"].rpartition("/")[2]: entry["size"] or 0 for entry in listed}

    def _size_unless_link(self, file: File) -> int | None:
        try:
            return self._size(*file)
        except RunGenOutputError as error:
            if error.retryable:
                raise
            return None

    def _size(self, folder: str, name: str) -> int | None:
        with self.wrap_errors():
            try:
                if self.is_local:
                    with self.folder_of(folder) as number:
                        status = os.stat(name, dir_fd=number, follow_symlinks=False)
                    return status.st_size if stat.S_ISREG(status.st_mode) else None
                info = self.fs.info(self.path_of(folder, name))
            except MISSING:
                return None
        return info["size"] if info["type"] == "file" else None

    # --- one file ---

    def read(self, job_id: str, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, or ``None`` if it is missing or larger than ``max_bytes``."""
        content = self.read_most(job_id, name, max_bytes)
        return content if content is not None and len(content) <= max_bytes else None

    def read_most(self, job_id: str, name: str, max_bytes: int | None) -> bytes | None:
        """Return the content of a file; of one that is larger than ``max_bytes``, so many and one more."""
        return self.read_with(job_id, name, lambda file: _read_most(file, max_bytes))

    def read_with(self, job_id: str, name: str, read: Callable[[BinaryIO], T]) -> T | None:
        """Return what a function reads in a file, or ``None`` if it is missing."""
        with self.wrap_errors(), contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self.opened(job_id, name))
            except MISSING:
                return None
            # what was opened is there, whatever goes wrong from here on
            return read(file)

    @contextlib.contextmanager
    def opened(self, job_id: str, name: str) -> Iterator[BinaryIO]:
        """Open a file to read it. What goes wrong is an error of the storage's own library."""
        if self.is_local:
            with self.folder_of(job_id) as folder, open(name, "rb", opener=opener_in(folder)) as local:
                yield local
        else:
            with self.fs.open(self.path_of(job_id, name), "rb") as file:
                yield file


def _read_most(file: BinaryIO, max_bytes: int | None) -> bytes:
    if max_bytes is None:
        return file.read()
    # most files are small, and Python allocates as much as it is asked to read
    first = min(_SMALL_BYTES, max_bytes + 1)
    head = file.read(first)
    return head if len(head) < first else head + file.read(max_bytes + 1 - first)
