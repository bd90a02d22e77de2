"""Store the files of jobs in a folder of any file system. Each file appears atomically.

A file is missing only if the store says so, while it answers for the folder around it. Anything else is an
outage, and raises: credentials, clocks, a bucket or mount that is gone, a listed file that cannot be read.

The methods of `Storage` block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Self

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.folder import File, Folder
from airflow_provider_rungen.execution.archive.local_files import opener_in, try_lock
from airflow_provider_rungen.execution.archive.many_files import BATCH, check_unlisted, read_listed
from airflow_provider_rungen.execution.archive.threads import batches, run_concurrently

_TEMPORARY_SUFFIX = ".part"
# Seconds in which a file that was not uploaded as a whole is removed.
_CLEANUP_TIME = 1.0
# Where a store is tried. In the destination itself, a listing would have all its jobs.
_PROBE_FOLDER = ".rungen"


class Storage(Folder):
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
        folder, name = probe = _PROBE_FOLDER if self.is_object_store else "", _temporary_name()
        content, step = name.encode(), "write"
        try:
            if self.is_local and create:
                with self.wrap_errors():
                    os.makedirs(self.root or "/", exist_ok=True)
            self.write_all({probe: content})
            try:
                step = "list"
                sizes = self.list_folder(folder)
                step = "read"
                listed = {probe: sizes[name]} if name in sizes else {}
                if list(read_listed(self, listed)) != [{probe: content}]:
                    raise self.error(f"{self.uri_of(*probe)} was written, but cannot be read")
                step = "remove"
            finally:
                self.remove(folder, [name])
        except RunGenOutputError as error:
            message = f"{error.message} (could not {step} a small file)"
            raise RunGenInputError(message, hint=error.hint, retryable=error.retryable) from None

    def __enter__(self) -> Self:
        if not self.is_local:
            self._temporary = tempfile.TemporaryDirectory(prefix="rungen-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    # --- writing ---

    @contextlib.contextmanager
    def incoming(self, job_id: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open a temporary file, and return it with its path. It is removed unless `put` moves it."""
        with self.wrap_errors():
            if self._temporary is None:
                path = _temporary_name()
                with self.folder_of(job_id, create=True) as folder:
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
        with self.wrap_errors():
            file.flush()
            if self.is_local:
                with self.folder_of(job_id) as folder:
                    os.replace(path, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                self._upload(lambda place: self.fs.put_file(path, place), job_id, name)

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Store a small file."""
        with self.incoming(job_id, name) as (file, path):
            with self.wrap_errors():
                file.write(content)
            self.put(file, path, job_id, name)

    def write_all(self, files: Mapping[File, bytes]) -> None:
        """Store many small files, concurrently. Each appears atomically."""
        if self.is_local:
            run_concurrently(lambda file: self.write(*file, files[file]), files)
        elif self.is_object_store:
            with self.wrap_errors():
                for batch in batches(files, BATCH):
                    self.fs.pipe({self.path_of(*file): files[file] for file in batch})
        else:

            def write(file: File) -> None:
                with self.wrap_errors():
                    self._upload(lambda place: self.fs.pipe_file(place, files[file]), *file)

            run_concurrently(write, files)

    def _upload(self, send: Callable[[str], None], job_id: str, name: str) -> None:
        """Upload a file to its target, or to a temporary place if it would be visible meanwhile."""
        target = self.path_of(job_id, name)
        if self.is_object_store:
            send(target)
            return
        partial = self.path_of(job_id, _temporary_name())
        self.fs.makedirs(self.path_of(job_id), exist_ok=True)
        try:
            send(partial)
            self.fs.mv(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):  # a kill may have ended a call that hung
                begin(self.fs.rm_file, partial).result(_CLEANUP_TIME)
            raise

    def remove(self, job_id: str, names: Collection[str]) -> None:
        """Remove the files that exist."""
        with self.wrap_errors():
            if self.is_local:
                with contextlib.suppress(FileNotFoundError), self.folder_of(job_id) as folder:
                    for name in names:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
            elif names:
                paths = [self.path_of(job_id, name) for name in names]
                with contextlib.suppress(FileNotFoundError):
                    if len(paths) == 1 and "s3" in self.fs.protocol:
                        # old MinIO and others refuse DeleteObjects for want of a Content-MD5
                        self.fs.rm_file(paths[0])
                    else:
                        self.fs.rm(paths)

    def remove_leftovers(self, job_id: str) -> None:
        """Remove the temporary files of killed attempts, but not those that another attempt has locked."""
        if self.is_local:
            hidden = [name for name in self.list_folder(job_id) if name.startswith(".")]
            names = [name for name in hidden if name.endswith(_TEMPORARY_SUFFIX)]
            self.remove(job_id, [name for name in names if self.read_with(job_id, name, try_lock)])

    def confirm_missing(self, files: Iterable[File]) -> None:
        """
        Check that files that cannot be found are missing, since the place answers for what it has.

        :raises RunGenOutputError: the place is gone, or has no folder any more, or it lists one of the files.
        """
        if not self.folders():
            uri = clean_text(redact(self.text), 200)
            raise RunGenOutputError(
                f"the {self.name} has no files any more, though some are remembered: {uri}",
                hint="Check that it is mounted on this worker. If the files were removed on purpose, set "
                "refresh=True for one run",
            )
        if not self.is_local:
            check_unlisted(self, files)


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
