"""Stores the files of jobs below a folder of any file system, each whole or not at all.

What blocks is meant for threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.models import clean_text

T = TypeVar("T")
# Where a file shows only when it was sent whole.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}
_PART = ".part"
_CHUNK = 1 << 20


class Storage:
    """
    A folder with a folder for each job.

    Files that come are first written to a temporary place: on a local file system beside the target, else in
    the folder for temporary files of this machine, from where they are uploaded.

    :param destination: a URI or an absolute path that `ObjectStoragePath` can read, or one of these.
    :raises RunGenInputError: nothing can be stored there.
    """

    def __init__(self, destination: Any) -> None:
        from airflow_provider_rungen._airflow import ObjectStoragePath

        text = str(destination)
        try:
            if "://" not in text and not os.path.isabs(text):
                raise ValueError("it is no URI, and no absolute path")
            is_path = isinstance(destination, ObjectStoragePath)
            base = destination if is_path else ObjectStoragePath(text)
            # looked up here, not in a thread: it may ask Airflow for a connection
            self._fs: Any = base.fs
            self._root = str(base.path).rstrip("/")
            self._prefix = f"{text.removesuffix('/')}/"
            self._is_local = base.protocol in ("", "file", "local")
            if self._is_local:
                os.makedirs(base.path, exist_ok=True)
                if not os.access(base.path, os.W_OK):
                    raise PermissionError("it may not be written to")
        except (OSError, ImportError, ValueError) as error:
            said = clean_text(f"destination {text!r} cannot be used: {error}")
            raise RunGenInputError(said) from error
        self._is_store = base.protocol in _OBJECT_STORES
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if not self._is_local:
            self._temporary = tempfile.TemporaryDirectory(prefix="rungen-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def uri_of(self, job_id: str, name: str) -> str:
        """Give the URI of a file."""
        return f"{self._prefix}{job_id}/{name}"

    @contextlib.contextmanager
    def incoming(self, job_id: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open a file to be put in its place, or else to be gone in the end; give its path, too."""
        if self._temporary is None:
            folder = f"{self._root}/{job_id}"
            path = f"{folder}/.{secrets.token_hex(8)}{_PART}"
        else:
            folder = self._temporary.name
            path = f"{folder}/{secrets.token_hex(8)}-{name}"  # stores guess the content type by the name
        with _telling():
            os.makedirs(folder, exist_ok=True)
            # not by tempfile, whose files only their owner may read
            file = open(path, "xb")  # noqa: SIM115 - closed below
        try:
            yield file, path
        finally:
            with contextlib.suppress(OSError):  # on a full disk it fails again
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(path)

    def put(self, file: BinaryIO, path: str, job_id: str, name: str) -> None:
        """Put an incoming file in its place."""
        folder = f"{self._root}/{job_id}"
        target = f"{folder}/{name}"
        with _telling():
            file.flush()
            if self._is_local:
                os.replace(path, target)
            elif self._is_store:
                self._fs.put_file(path, target)
            else:
                part = f"{folder}/.{secrets.token_hex(8)}{_PART}"
                self._fs.makedirs(folder, exist_ok=True)
                try:
                    self._fs.put_file(path, part)
                    self._fs.mv(part, target)
                except BaseException:
                    with contextlib.suppress(Exception):
                        self._fs.rm_file(part)
                    raise

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Store a small file."""
        with self.incoming(job_id, name) as (file, path):
            with _telling():
                file.write(content)
            self.put(file, path, job_id, name)

    def read(self, job_id: str, name: str, most: int) -> bytes | None:
        """Give what is in a file, if it is there and has no more than ``most`` bytes."""
        content = self._opened(job_id, name, lambda file: file.read(most + 1))
        return content if content is not None and len(content) <= most else None

    def digest(self, job_id: str, name: str) -> tuple[int, str] | None:
        """Give the size and the SHA-256 of a file, if it is there."""

        def read(file: Any) -> tuple[int, str]:
            size, digest = 0, hashlib.sha256()
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                digest.update(chunk)
            return size, digest.hexdigest()

        return self._opened(job_id, name, read)

    def tidy(self, job_id: str) -> None:
        """Remove what a killed attempt has left."""
        if self._is_local:
            with contextlib.suppress(OSError):
                for path in Path(f"{self._root}/{job_id}").glob(f".*{_PART}"):
                    path.unlink(missing_ok=True)

    def _opened(self, job_id: str, name: str, read: Callable[[Any], T]) -> T | None:
        try:
            with _telling(), self._fs.open(f"{self._root}/{job_id}/{name}", "rb") as file:
                return read(file)
        except RunGenOutputError as error:
            # stores say that it is forbidden to whom they may not tell that it is not there
            if isinstance(error.__cause__, FileNotFoundError | IsADirectoryError | PermissionError):
                return None
            raise


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Say in own words what went wrong with the storage, whose libraries raise whatever they like."""
    try:
        yield
    except Exception as error:
        said = clean_text(str(error), 200) or type(error).__name__
        raise RunGenOutputError(f"the destination cannot be used: {type(error).__name__}: {said}") from error
