"""Store the files of jobs in a folder of any file system. Each file appears atomically.

A file is missing only if the store says so, while it answers for the place around it. Anything else is an
outage, and raises: credentials, clocks, a bucket or mount that is gone, a listed file that cannot be read.

The methods of `Storage` block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Self, TypeAlias, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.local_files import open_folder, opener_in, try_lock
from airflow_provider_rungen.execution.archive.place import Place
from airflow_provider_rungen.execution.archive.threads import batches, batches_by_size, run_concurrently

T = TypeVar("T")
#: The folder of a file and its name. The folder of a file directly in the destination is empty.
File: TypeAlias = tuple[str, str]
_TEMPORARY_SUFFIX = ".part"
_CHUNK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
# So many requests are handed to a file system at once, which sends them concurrently.
_BATCH = 1000
# So many bytes of small files are in memory at a time. As objects, JSON takes several times as much.
_BATCH_BYTES = 8 << 20
# Not PermissionError: s3fs also raises it for expired credentials, a wrong clock and the like.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Seconds in which a file that was not uploaded as a whole is removed.
_CLEANUP_TIME = 1.0
# Where a store is tried. In the destination itself, a listing would have all its jobs.
_PROBE_FOLDER = ".rungen"


class Storage(Place):
    """
    A destination, with a folder for each job. A ``job_id`` of ``""`` is the destination itself.

    A file is written to a temporary place first: on a local file system beside its target, otherwise in this
    machine's folder for temporary files, from where it is uploaded. In a local destination, symbolic links
    are not followed.

    :param uri: a URI or an absolute path that `ObjectStoragePath` accepts, or one of these.
    :param name: the parameter it was passed as, for errors.
    :param read_only: whether it is only read.
    :raises RunGenInputError: there can be no such place.
    """

    def __init__(self, uri: Any, name: str = "destination", *, read_only: bool = False) -> None:
        super().__init__(uri, name, read_only=read_only)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self, *, create: bool = True) -> Self:
        """
        Write, list, read and remove a small file, to find out what is not allowed before it costs something.

        :param create: whether to create a missing local folder. It may be a mount that is missing.
        :raises RunGenInputError: it cannot be used. A retry may help.
        """
        # a kill is not to wait until the file is removed
        begin(self._probe, create).result()
        return self

    def _probe(self, create: bool) -> None:
        folder, name = probe = _PROBE_FOLDER if self._is_object_store else "", _temporary_name()
        content, step = name.encode(), "write"
        try:
            if self._is_local and create:
                with self._wrap_errors():
                    os.makedirs(self._root or "/", exist_ok=True)
            self.write_all({probe: content})
            try:
                step = "list"
                listed = self.sizes(folder, name)
                step = "read"
                contents = list(self.read_all({(folder, each): size for each, size in listed.items()}))
                if contents != [{probe: content}]:
                    raise self._error(f"{self.uri_of(*probe)} was written, but cannot be read")
                step = "remove"
            finally:
                self.remove(folder, [name])
        except RunGenOutputError as error:
            message = f"{error.message} (could not {step} a small file)"
            raise RunGenInputError(message, hint=error.hint, retryable=error.retryable) from None

    def __enter__(self) -> Self:
        if not self._is_local:
            self._temporary = tempfile.TemporaryDirectory(prefix="rungen-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

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
        with self._wrap_errors():
            file.flush()
            if self._is_local:
                with self._folder(job_id) as folder:
                    os.replace(path, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                self._upload(lambda place: self._fs.put_file(path, place), job_id, name)

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Store a small file."""
        with self.incoming(job_id, name) as (file, path):
            with self._wrap_errors():
                file.write(content)
            self.put(file, path, job_id, name)

    def write_all(self, files: Mapping[File, bytes]) -> None:
        """Store many small files, concurrently. Each appears atomically."""
        if self._is_local:
            run_concurrently(lambda file: self.write(*file, files[file]), files)
        elif self._is_object_store:
            with self._wrap_errors():
                for batch in batches(files, _BATCH):
                    self._fs.pipe({self._path(*file): files[file] for file in batch})
        else:

            def write(file: File) -> None:
                with self._wrap_errors():
                    self._upload(lambda place: self._fs.pipe_file(place, files[file]), *file)

            run_concurrently(write, files)

    def _upload(self, send: Callable[[str], None], job_id: str, name: str) -> None:
        """Upload a file to its target, or to a temporary place if it would be visible meanwhile."""
        target = self._path(job_id, name)
        if self._is_object_store:
            send(target)
            return
        partial = self._path(job_id, _temporary_name())
        self._fs.makedirs(self._path(job_id), exist_ok=True)
        try:
            send(partial)
            self._fs.mv(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):  # a kill may have ended a call that hung
                begin(self._fs.rm_file, partial).result(_CLEANUP_TIME)
            raise

    def remove(self, job_id: str, names: Collection[str]) -> None:
        """Remove the files that exist."""
        with self._wrap_errors():
            if self._is_local:
                with self._folder(job_id) as folder:
                    for name in names:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
            elif names:
                paths = [self._path(job_id, name) for name in names]
                with contextlib.suppress(FileNotFoundError):
                    if len(paths) == 1 and "s3" in self._fs.protocol:
                        # old MinIO and others refuse DeleteObjects for want of a Content-MD5
                        self._fs.rm_file(paths[0])
                    else:
                        self._fs.rm(paths)

    def remove_leftovers(self, job_id: str) -> None:
        """Remove the temporary files of killed attempts, but not those that another attempt has locked."""
        if self._is_local:
            names = [name for name in self.sizes(job_id, ".") if name.endswith(_TEMPORARY_SUFFIX)]
            if unlocked := [name for name in names if self.read_with(job_id, name, try_lock)]:
                self.remove(job_id, unlocked)

    # --- reading ---

    def read(self, job_id: str, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, or ``None`` if it is missing or larger than ``max_bytes``."""

        def read(file: BinaryIO) -> bytes:
            # most files are small, and Python allocates as much as it is asked to read
            first = min(_SMALL_BYTES, max_bytes + 1)
            head = file.read(first)
            return head if len(head) < first else head + file.read(max_bytes + 1 - first)

        content = self.read_with(job_id, name, read)
        return content if content is not None and len(content) <= max_bytes else None

    def read_all(self, sizes: Mapping[File, int]) -> Iterator[dict[File, bytes]]:
        """
        Yield the contents of many files that are there, some megabytes at a time.

        :param sizes: their sizes, as they were listed.
        :raises RunGenOutputError: one cannot be read as a whole, unless it was removed meanwhile.
        """
        for batch in batches_by_size(sizes, _BATCH, _BATCH_BYTES):
            contents = dict(zip(batch, self._read_batch(batch, sizes), strict=True))
            if gone := [file for file, content in contents.items() if content is None]:
                self._check_unlisted(gone)
            found = {file: content for file, content in contents.items() if content is not None}
            # one that was replaced meanwhile is rarely shorter, and then a retry reads it
            for file, content in found.items():
                if len(content) < sizes[file]:
                    raise self._error(f"only a part of {self.uri_of(*file)} could be read")
            yield found

    def _read_batch(self, files: Sequence[File], sizes: Mapping[File, int]) -> list[bytes | None]:
        if self._is_local:

            def read(file: File) -> bytes | None:
                return _unless_link(self.read, *file, max(sizes[file], _BATCH_BYTES))

            return run_concurrently(read, files)
        # a store refuses to read from the first byte of nothing on
        full = [file for file in files if sizes[file] or not self._is_object_store]
        with self._wrap_errors():
            # concurrently, where the file system can; from a byte on, s3fs does not ask for the size before
            contents = self._fs.cat_ranges([self._path(*file) for file in full], 0, None, on_error="return")
            for content in contents:
                if isinstance(content, BaseException) and not isinstance(content, _MISSING):
                    raise content
        read_contents = dict(zip(full, contents, strict=True))
        found = (read_contents.get(file, b"") for file in files)
        return [content if isinstance(content, bytes) else None for content in found]

    def confirm_missing(self, files: Iterable[File]) -> None:
        """
        Check that files that cannot be found are missing, since the place answers for what it has.

        :raises RunGenOutputError: the place is gone, or has no folder any more, or it lists one of the files.
        """
        if not self.folders():
            uri = clean_text(redact(self._text), 200)
            raise RunGenOutputError(
                f"the {self._name} has no files any more, though some are remembered: {uri}",
                hint="Check that it is mounted on this worker. If the files were removed on purpose, set "
                "refresh=True for one run",
            )
        if not self._is_local:
            self._check_unlisted(files)

    def _check_unlisted(self, files: Iterable[File]) -> None:
        files = list(files)
        listed = self.list_all({folder for folder, _ in files})
        if unread := [file for file in files if file in listed]:
            raise self._error(f"{self.uri_of(*unread[0])} is listed, but cannot be read")

    def digest(self, job_id: str, name: str, size: int) -> str | None:
        """Return the SHA-256 of a file, or ``None`` if it is missing or has another size."""

        def read(file: BinaryIO) -> str | None:
            count, digest = 0, hashlib.sha256()
            while count <= size and (chunk := file.read(_CHUNK_BYTES)):
                count += len(chunk)
                digest.update(chunk)
            return digest.hexdigest() if count == size else None

        return self.read_with(job_id, name, read)

    def sizes(self, job_id: str, prefix: str) -> dict[str, int]:
        """Return the sizes of a job's files whose name begins with a prefix."""
        with self._wrap_errors():
            try:
                sizes = self._list(job_id)
            except _MISSING:
                return {}
        return {name: size for name, size in sizes.items() if name.startswith(prefix)}

    def sizes_of(self, files: Iterable[File]) -> dict[File, int]:
        """Return the sizes of those of many files that exist, concurrently."""
        files = list(files)
        if not self._is_local:
            for folder in {folder for folder, _ in files}:
                self._fs.invalidate_cache(self._path(folder))
        sizes = run_concurrently(lambda file: _unless_link(self._size, *file), files)
        return {file: size for file, size in zip(files, sizes, strict=True) if size is not None}

    def list_all(self, folders: Collection[str]) -> dict[File, int]:
        """
        Return the sizes of all files in many folders, concurrently. A folder may be missing.

        :raises RunGenOutputError: the place, or a folder that it has, cannot be listed.
        """

        def sizes(folder: str) -> dict[str, int]:
            with self._wrap_errors():
                try:
                    return self._list(folder)
                except FileNotFoundError:
                    if not self._is_local and folder in self._folders():
                        raise
            return {}

        with self._wrap_errors():
            existing = self._folders()
        if not self._is_local:
            # because a store needs several requests to find that a folder is missing
            folders = [folder for folder in folders if folder in existing]
        listed = zip(folders, run_concurrently(sizes, folders), strict=True)
        return {(folder, name): size for folder, names in listed for name, size in names.items()}

    def folders(self) -> set[str]:
        """Return the names of all folders in the place, apart from hidden ones. The place may be missing."""
        with self._wrap_errors(), contextlib.suppress(FileNotFoundError):
            return self._folders()
        return set()

    def _folders(self) -> set[str]:
        if self._is_local:
            with self._folder("") as number, os.scandir(number) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        else:
            root = self._path("")
            self._fs.invalidate_cache(root)
            listed = self._fs.ls(root, detail=True)
            paths = (entry["name"].rstrip("/") for entry in listed if entry["type"] == "directory")
            names = [path.rpartition("/")[2] for path in paths]
        return {name for name in names if not name.startswith(".")}

    def _list(self, folder: str) -> dict[str, int]:
        path = self._path(folder)
        if self._is_local:
            sizes = {}
            with self._folder(folder) as number, os.scandir(number) as entries:
                for entry in entries:
                    # others rename their temporary files meanwhile: that is no missing folder
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
            return sizes
        self._fs.invalidate_cache(path)
        listed = [entry for entry in self._fs.ls(path, detail=True) if entry["type"] == "file"]
        return {entry["name"].rpartition("/")[2]: entry["size"] or 0 for entry in listed}

    def _size(self, folder: str, name: str) -> int | None:
        with self._wrap_errors():
            try:
                if self._is_local:
                    with self._folder(folder) as number:
                        status = os.stat(name, dir_fd=number, follow_symlinks=False)
                    return status.st_size if stat.S_ISREG(status.st_mode) else None
                info = self._fs.info(self._path(folder, name))
            except _MISSING:
                return None
        return info["size"] if info["type"] == "file" else None

    def read_with(self, job_id: str, name: str, read: Callable[[BinaryIO], T]) -> T | None:
        """Return what a function reads in a file, or ``None`` if it is missing."""
        with self._wrap_errors(), contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self.opened(job_id, name))
            except _MISSING:
                return None
            # what was opened is there, whatever goes wrong from here on
            return read(file)

    @contextlib.contextmanager
    def opened(self, job_id: str, name: str) -> Iterator[BinaryIO]:
        """Open a file to read it. What goes wrong is an error of the storage's own library."""
        if self._is_local:
            with self._folder(job_id) as folder, open(name, "rb", opener=opener_in(folder)) as local:
                yield local
        else:
            with self._fs.open(self._path(job_id, name), "rb") as file:
                yield file

    # --- paths ---

    def _path(self, folder: str, name: str = "") -> str:
        return "/".join((self._root, *filter(None, (folder, name))))

    def _folder(self, folder: str, *, create: bool = False) -> contextlib.AbstractContextManager[int]:
        # the destination itself may be a symbolic link, which the dot follows
        return open_folder(self._path(folder or "."), create=create)


def _unless_link(read: Callable[..., T], *args: Any) -> T | None:
    """Call a function, and return ``None`` if it meets a symbolic link."""
    try:
        return read(*args)
    except RunGenOutputError as error:
        if error.retryable:
            raise
        return None


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
