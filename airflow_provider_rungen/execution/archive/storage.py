"""Stores the files of jobs below a folder of any file system, each whole or not at all.

What blocks is meant for threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, Self, TypeVar

from airflow_provider_rungen.client.models import clean_text
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError

T = TypeVar("T")
# Where a file shows only when it was sent whole.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}
_PART = ".part"
_CHUNK = 1 << 20
_NOT_THERE = (FileNotFoundError, IsADirectoryError, PermissionError)


class Storage:
    """
    A folder with a folder for each job.

    Files that come are first written to a temporary place: on a local file system beside the target, else in
    the folder for temporary files of this machine, from where they are uploaded. Below a local folder, no
    symbolic link is followed.

    :param destination: a URI or an absolute path that `ObjectStoragePath` can read, or one of these.
    :raises RunGenInputError: nothing can be stored there.
    """

    def __init__(self, destination: Any) -> None:
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        self._text = text = str(destination)
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
        except (OSError, ImportError, ValueError, AirflowNotFoundException) as error:
            reason = redact_error(error, text)
            # the cause would be in the log, with the text as it was
            raise RunGenInputError(clean_text(f"destination {text!r} cannot be used: {reason}")) from None
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

    # --- writing ---

    @contextlib.contextmanager
    def incoming(self, job_id: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open a file to be put in its place, or else to be gone in the end; give its path, too."""
        with self._wrap_errors():
            if self._temporary is None:
                path = f".{secrets.token_hex(8)}{_PART}"
                with self._folder(job_id, create=True) as folder:
                    # not by tempfile, whose files only their owner may read
                    file = open(path, "xb", opener=_opener(folder))  # noqa: SIM115 - closed below
                    _lock(file)
            else:
                # stores guess the content type by the name
                path = f"{self._temporary.name}/{secrets.token_hex(8)}-{name}"
                file = open(path, "xb")  # noqa: SIM115 - closed below
        try:
            yield file, path
        finally:
            with contextlib.suppress(OSError):  # on a full disk it fails again
                file.close()
            with contextlib.suppress(OSError, RunGenOutputError):
                if self._temporary is None:
                    with self._folder(job_id) as folder:
                        os.unlink(path, dir_fd=folder)
                else:
                    os.unlink(path)

    def put(self, file: BinaryIO, path: str, job_id: str, name: str) -> None:
        """Put an incoming file in its place."""
        target = self._path(job_id, name)
        with self._wrap_errors():
            file.flush()
            if self._is_local:
                with self._folder(job_id) as folder:
                    os.replace(path, name, src_dir_fd=folder, dst_dir_fd=folder)
            elif self._is_store:
                self._fs.put_file(path, target)
            else:
                part = self._path(job_id, f".{secrets.token_hex(8)}{_PART}")
                self._fs.makedirs(self._path(job_id), exist_ok=True)
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
            with self._wrap_errors():
                file.write(content)
            self.put(file, path, job_id, name)

    def remove(self, job_id: str, names: Collection[str]) -> None:
        """Remove files, as far as they are there."""
        if not names:
            return
        with self._wrap_errors():
            if self._is_local:
                with self._folder(job_id) as folder:
                    for name in names:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
            else:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm([self._path(job_id, name) for name in names])

    def tidy(self, job_id: str) -> None:
        """Remove what a killed attempt has left."""
        if self._is_local:
            left = [name for name in self.sizes(job_id, ".") if name.endswith(_PART)]
            # another attempt, of another run perhaps, may be at work on some
            self.remove(job_id, [name for name in left if self._opened(job_id, name, _lock) is not False])

    # --- reading ---

    def read(self, job_id: str, name: str, most: int) -> bytes | None:
        """Give what is in a file, if it is there and has no more than ``most`` bytes."""
        content = self._opened(job_id, name, lambda file: file.read(most + 1))
        return content if content is not None and len(content) <= most else None

    def digest(self, job_id: str, name: str, size: int) -> str | None:
        """Return the SHA-256 of a file, if it is there and has this size."""

        def read(file: Any) -> str | None:
            count, digest = 0, hashlib.sha256()
            while count <= size and (chunk := file.read(_CHUNK)):
                count += len(chunk)
                digest.update(chunk)
            return digest.hexdigest() if count == size else None

        return self._opened(job_id, name, read)

    def sizes(self, job_id: str, prefix: str) -> dict[str, int]:
        """Return the files of a job whose name begins so, with their sizes."""
        with self._wrap_errors():
            try:
                found = self._local_sizes(job_id) if self._is_local else self._remote_sizes(job_id)
            except _NOT_THERE:
                return {}
        return {name: size for name, size in found if name.startswith(prefix)}

    def _local_sizes(self, job_id: str) -> list[tuple[str, int]]:
        with self._folder(job_id) as folder, os.scandir(folder) as entries:
            return [
                (entry.name, entry.stat(follow_symlinks=False).st_size)
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            ]

    def _remote_sizes(self, job_id: str) -> list[tuple[str, int]]:
        self._fs.invalidate_cache(self._path(job_id))
        entries = self._fs.ls(self._path(job_id), detail=True)
        return [
            (entry["name"].rpartition("/")[2], entry["size"] or 0)
            for entry in entries
            if entry["type"] == "file"
        ]

    def read_all(self, job_id: str, names: Collection[str], most: int) -> list[bytes]:
        """Return what is in those of many small files that can be read."""
        if self._is_local:
            contents = [self.read(job_id, name, most) for name in names]
            return [content for content in contents if content is not None]
        with self._wrap_errors():
            # all at once, where the file system can
            found = self._fs.cat([self._path(job_id, name) for name in names], on_error="omit")
        return list(found.values()) if isinstance(found, dict) else [found]

    def _opened(self, job_id: str, name: str, read: Callable[[Any], T]) -> T | None:
        with self._wrap_errors():
            try:
                if not self._is_local:
                    with self._fs.open(self._path(job_id, name), "rb") as file:
                        return read(file)
                with self._folder(job_id) as folder, open(name, "rb", opener=_opener(folder)) as local:
                    return read(local)
            except _NOT_THERE:
                # stores say that it is forbidden to whom they may not tell that it is not there
                return None

    # --- places ---

    def _path(self, job_id: str, name: str = "") -> str:
        return f"{self._root}/{job_id}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _folder(self, job_id: str, *, create: bool = False) -> Iterator[int]:
        """Open the local folder of a job; a link in its place would lead to somebody else's files."""
        path = self._path(job_id)
        if create:
            os.makedirs(self._root, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _link_error(path) if os.path.islink(path) else error from None
        try:
            yield folder
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Describe what went wrong with the storage in own words: its libraries raise whatever they like."""
        try:
            yield
        except RunGenOutputError:
            raise
        except Exception as error:
            reason = clean_text(redact_error(error, self._text), 200) or type(error).__name__
            # the cause would be in the log, with the text as it was
            raise RunGenOutputError(
                f"the destination cannot be used: {type(error).__name__}: {reason}"
            ) from None


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed or its process ends; return ``False`` if somebody else has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        pass
    return True


def _opener(folder: int) -> Callable[[str, int], int]:
    """Return an opener of regular files in a folder that follows no symbolic link."""

    def opener(name: str, flags: int) -> int:
        try:
            # not blocking, since it may be a pipe
            number = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
        except OSError as error:
            raise _link_error(name) if error.errno == errno.ELOOP else error from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise IsADirectoryError(errno.EISDIR, "it is no file", name)
        return number

    return opener


def _link_error(path: str) -> RunGenOutputError:
    return RunGenOutputError(
        f"{clean_text(path, 200)} is a symbolic link, which is not followed",
        hint="Remove the link, or set destination to a folder that holds none",
        retryable=False,
    )
