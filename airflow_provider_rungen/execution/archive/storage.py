"""Store the files of jobs in a folder of any file system. Each file appears atomically.

The methods of `Storage` block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, Self, TypeVar

from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.local_files import open_folder, opener_in, try_lock

T = TypeVar("T")
# Here a file appears once it is uploaded, and not before.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}
_DESTINATION_HINT = "Check destination, and that the worker may write to it"
_TEMPORARY_SUFFIX = ".part"
_CHUNK_BYTES = 1 << 20
# Stores answer "forbidden" for a missing file to those who must not list files.
_MISSING = (FileNotFoundError, IsADirectoryError, PermissionError)


class Storage:
    """
    A destination, with a folder for each job. A ``job_id`` of ``""`` is the destination itself.

    A file is written to a temporary place first: on a local file system beside its target, otherwise in this
    machine's folder for temporary files, from where it is uploaded. In a local destination, symbolic links
    are not followed.

    :param destination: a URI or an absolute path that `ObjectStoragePath` accepts, or one of these.
    :raises RunGenInputError: nothing can be stored there.
    """

    def __init__(self, destination: Any) -> None:
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        self._text = text = str(destination)
        try:
            if "://" not in text and not os.path.isabs(text):
                raise ValueError("it is neither a URI nor an absolute path")
            base = destination if isinstance(destination, ObjectStoragePath) else ObjectStoragePath(text)
            # not in a thread, because it may read a connection from Airflow
            self._fs: Any = base.fs
            self._root = str(base.path).rstrip("/")
            self._is_local = base.protocol in ("", "file", "local")
            if self._is_local:
                os.makedirs(base.path, exist_ok=True)
                if not os.access(base.path, os.W_OK):
                    raise PermissionError("it is not writable")
        except (OSError, ImportError, ValueError, AirflowNotFoundException) as error:
            reason = redact_error(error, text)
            # not chained, because the text of the cause would be logged unredacted
            raise RunGenInputError(
                clean_text(f"destination {text!r} cannot be used: {reason}"), hint=_DESTINATION_HINT
            ) from None
        self._is_object_store = base.protocol in _OBJECT_STORES
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if not self._is_local:
            self._temporary = tempfile.TemporaryDirectory(prefix="rungen-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def uri_of(self, job_id: str, name: str) -> str:
        """Return the URI of a file."""
        return _join(self._text.removesuffix("/"), job_id, name)

    # --- writing ---

    @contextlib.contextmanager
    def incoming(self, job_id: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open a temporary file, and return it with its path. It is removed unless `put` moves it."""
        with self._wrap_errors():
            if self._temporary is None:
                path = _temporary_name()
                with self._folder(job_id, create=True) as folder:
                    # not by tempfile, whose files only their owner may read
                    file = open(path, "xb", opener=opener_in(folder))  # noqa: SIM115 - closed below
                    try_lock(file)
            else:
                # stores derive the content type from the name
                path = f"{self._temporary.name}/{secrets.token_hex(8)}-{name}"
                file = open(path, "xb")  # noqa: SIM115 - closed below
        try:
            yield file, path
        finally:
            with contextlib.suppress(OSError):  # closing fails on a full disk
                file.close()
            with contextlib.suppress(OSError, RunGenOutputError):
                if self._temporary is None:
                    self.remove(job_id, [path])
                else:
                    os.unlink(path)

    def put(self, file: BinaryIO, path: str, job_id: str, name: str) -> None:
        """Move or upload an incoming file to its target."""
        target = self._path(job_id, name)
        with self._wrap_errors():
            file.flush()
            if self._is_local:
                with self._folder(job_id) as folder:
                    os.replace(path, name, src_dir_fd=folder, dst_dir_fd=folder)
            elif self._is_object_store:
                self._fs.put_file(path, target)
            else:
                partial = self._path(job_id, _temporary_name())
                self._fs.makedirs(self._path(job_id), exist_ok=True)
                try:
                    self._fs.put_file(path, partial)
                    self._fs.mv(partial, target)
                except BaseException:
                    with contextlib.suppress(Exception):
                        self._fs.rm_file(partial)
                    raise

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Store a small file."""
        with self.incoming(job_id, name) as (file, path):
            with self._wrap_errors():
                file.write(content)
            self.put(file, path, job_id, name)

    def remove(self, job_id: str, names: Collection[str]) -> None:
        """Remove the files that exist."""
        with self._wrap_errors():
            if self._is_local:
                with self._folder(job_id) as folder:
                    for name in names:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
            elif names:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm([self._path(job_id, name) for name in names])

    def remove_leftovers(self, job_id: str) -> None:
        """Remove the temporary files of killed attempts, but not those that another attempt has locked."""
        if self._is_local:
            names = [name for name in self.sizes(job_id, ".") if name.endswith(_TEMPORARY_SUFFIX)]
            if unlocked := [name for name in names if self._read(job_id, name, try_lock)]:
                self.remove(job_id, unlocked)

    # --- reading ---

    def read(self, job_id: str, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, or ``None`` if it is missing or larger than ``max_bytes``."""
        content = self._read(job_id, name, lambda file: file.read(max_bytes + 1))
        return content if content is not None and len(content) <= max_bytes else None

    def read_all(self, job_id: str, names: Collection[str], max_bytes: int) -> list[bytes]:
        """Return the contents of those of many small files that can be read."""
        if self._is_local:
            contents = [self.read(job_id, name, max_bytes) for name in names]
            return [content for content in contents if content is not None]
        with self._wrap_errors():
            # concurrently, where the file system can
            return list(self._fs.cat([self._path(job_id, name) for name in names], on_error="omit").values())

    def digest(self, job_id: str, name: str, size: int) -> str | None:
        """Return the SHA-256 of a file, or ``None`` if it is missing or has another size."""

        def read(file: BinaryIO) -> str | None:
            count, digest = 0, hashlib.sha256()
            while count <= size and (chunk := file.read(_CHUNK_BYTES)):
                count += len(chunk)
                digest.update(chunk)
            return digest.hexdigest() if count == size else None

        return self._read(job_id, name, read)

    def sizes(self, job_id: str, prefix: str) -> dict[str, int]:
        """Return the sizes of a job's files whose name begins with a prefix."""
        path = self._path(job_id)
        with self._wrap_errors():
            try:
                self._fs.invalidate_cache(path)
                files = [entry for entry in self._fs.ls(path, detail=True) if entry["type"] == "file"]
            except _MISSING:
                return {}
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] or 0 for entry in files}
        return {name: size for name, size in sizes.items() if name.startswith(prefix)}

    def _read(self, job_id: str, name: str, read: Callable[[BinaryIO], T]) -> T | None:
        with self._wrap_errors():
            try:
                if not self._is_local:
                    with self._fs.open(self._path(job_id, name), "rb") as file:
                        return read(file)
                with self._folder(job_id) as folder, open(name, "rb", opener=opener_in(folder)) as local:
                    return read(local)
            except _MISSING:
                return None

    # --- paths and errors ---

    def _path(self, job_id: str, name: str = "") -> str:
        return _join(self._root, job_id, name)

    def _folder(self, job_id: str, *, create: bool = False) -> contextlib.AbstractContextManager[int]:
        # the destination itself may be a link, which the dot follows
        return open_folder(self._path(job_id or "."), create=create)

    @contextlib.contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Convert the errors of storage libraries, which may be of any type."""
        try:
            yield
        except RunGenOutputError:
            raise
        except Exception as error:
            reason = clean_text(redact_error(error, self._text), 200)
            # not chained, because the text of the cause would be logged unredacted
            raise RunGenOutputError(
                f"the destination cannot be used: {type(error).__name__}: {reason}".removesuffix(": "),
                hint=_DESTINATION_HINT,
            ) from None


def _join(root: str, *parts: str) -> str:
    return "/".join([root, *filter(None, parts)])


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
