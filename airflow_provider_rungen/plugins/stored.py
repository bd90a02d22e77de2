"""What a task stored: manifests and files. It blocks, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

from airflow_provider_rungen.execution.archive.manifests import MANIFEST, Manifest, parse_manifest
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import files_of
from airflow_provider_rungen.execution.archive.threads import run_concurrently
from airflow_provider_rungen.pages.models import OutputFile
from airflow_provider_rungen.pages.output_kinds import HEAD_BYTES, detect, guess
from airflow_provider_rungen.plugins.bounded_json import (
    MAX_VALUES,
    TooComplexError,
    count_values,
    parse_bounded,
)
from airflow_provider_rungen.plugins.cache import LASTING, Cache
from airflow_provider_rungen.plugins.pools import TooSlowError

# Of one manifest. A larger one is not shown.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# Of those of one page together. A value counts as so many bytes, since it takes more memory than its text.
_MAX_PAGE_OF_MANIFESTS = 4 * MAX_MANIFEST_BYTES
_BYTES_OF_VALUE = 20
CHUNK_BYTES = 256 * 1024
_LOCAL = ("", "file", "local")
# By the bytes of their manifests. In memory they take no more.
_known_files = Cache(max_size=4 * MAX_MANIFEST_BYTES)
_parsing = threading.Lock()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """
    A file that a manifest names.

    :param name: its name in the folder of its job.
    :param claimed_type: its content type, as whoever served it called it.
    """

    name: str
    size: int
    claimed_type: str

    def view(self, href: str) -> OutputFile:
        """Return how a page shows it. Its first bytes decide when it is served."""
        kind = guess(self.name, self.claimed_type)
        return OutputFile(name=self.name, href=href, kind=kind, size=self.size)


class StoredOutputs:
    """
    The outputs of jobs in a destination.

    :param destination: the folder, as the task pushed it.
    :param app_id: the app of the jobs.
    :raises RunGenError: it cannot be opened.
    """

    def __init__(self, destination: str, app_id: str) -> None:
        self._storage = Storage(destination, read_only=True)
        self._destination = destination
        self._app_id = app_id

    def manifests(self, job_ids: Sequence[str], within: float) -> dict[str, Manifest | None]:
        """
        Return the manifests of jobs whose outputs are all stored.

        :param within: seconds. Whoever asked waits no longer.
        :return: by job; ``None`` for a manifest that is too large for the page.
        :raises RunGenError: the storage cannot be read.
        :raises TooSlowError: they were not read in time.
        """
        budget, ends_at = _Budget(), time.monotonic() + within

        def manifest(job_id: str) -> Manifest | None:
            if time.monotonic() > ends_at:
                raise TooSlowError
            content = self._storage.read_with(job_id, MANIFEST, partial(budget.read, job_id))
            try:
                return None if content is None else self._parse(job_id, content)
            except TooComplexError:
                budget.left_out.add(job_id)
                return None

        found = zip(job_ids, run_concurrently(manifest, job_ids), strict=True)
        return {job_id: each for job_id, each in found if each is not None or job_id in budget.left_out}

    def _parse(self, job_id: str, content: bytes) -> Manifest | None:
        manifest = parse_manifest(content, self._app_id, job_id, parse=parse_bounded)
        return None if files_of(self._storage, job_id, manifest) is None else manifest

    def file(self, job_id: str, number: int) -> StoredFile | None:
        """Return a file of a job by its number, or ``None`` if no manifest names it."""
        files = self._storage.read_with(job_id, MANIFEST, partial(self._files, job_id)) or ()
        return files[number] if 0 <= number < len(files) else None

    def _files(self, job_id: str, opened: BinaryIO) -> Sequence[StoredFile]:
        """Return the files that a manifest names. It is parsed once for all of them."""
        key = (self._destination, self._app_id, job_id, _version(opened))
        files: Sequence[StoredFile] | None = _known_files.get(key)
        if files is not None:
            return files
        content = opened.read(MAX_MANIFEST_BYTES + 1)
        with _parsing:  # a browser asks for several files at once
            files = _known_files.get(key)
            if files is None:
                manifest = None
                with contextlib.suppress(TooComplexError):
                    manifest = self._parse(job_id, content) if len(content) <= MAX_MANIFEST_BYTES else None
                files = () if manifest is None else stored_files(manifest)
                if key[-1] is not None:
                    _known_files.put(key, files, LASTING, size=len(content))
        return files

    @contextlib.contextmanager
    def opened(self, job_id: str, file: StoredFile) -> Iterator[BinaryIO]:
        with self._storage.opened(job_id, file.name) as opened:
            yield opened


class _Budget:
    """What the manifests of one page may take together."""

    def __init__(self) -> None:
        self._left = _MAX_PAGE_OF_MANIFESTS
        self._lock = threading.Lock()
        #: The jobs whose manifests are too large.
        self.left_out: set[str] = set()

    def read(self, job_id: str, opened: BinaryIO) -> bytes | None:
        """Return a manifest, or ``None`` if it is too large."""
        content = opened.read(CHUNK_BYTES)
        with self._lock:
            limit = min(self._left, MAX_MANIFEST_BYTES)
            if len(content) == CHUNK_BYTES <= limit:
                content += opened.read(limit + 1 - CHUNK_BYTES)
            values = count_values(content)
            # one that is too complex is not parsed
            self._left -= max(len(content), _BYTES_OF_VALUE * values if values <= MAX_VALUES else 0)
        if len(content) <= limit:
            return content
        self.left_out.add(job_id)
        return None


def _version(opened: BinaryIO) -> Any:
    """Return what changes with the content of an opened file, or ``None`` if its file system has no such."""
    if details := getattr(opened, "details", None):  # of fsspec: time and ETag among them
        return str(details)
    with contextlib.suppress(OSError):
        status = os.fstat(opened.fileno())
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def stored_files(manifest: Manifest, start: int = 0, stop: int | None = None) -> list[StoredFile]:
    """Return the files of a manifest, or some of them, in the order of its outputs."""
    return [
        StoredFile(
            name=entry["uri"].rpartition("/")[2],
            size=entry["size"],
            claimed_type=entry["content_type"] or "",
        )
        for entry in islice(manifest.entries.values(), start, stop)
    ]


class OpenFile:
    """
    A file that is sent in chunks.

    :param part: the first byte to send, and the one after the last.
    :raises RunGenError: it cannot be read.
    """

    def __init__(
        self, outputs: StoredOutputs, job_id: str, file: StoredFile, part: tuple[int, int] | None = None
    ) -> None:
        start, stop = part or (0, file.size)
        self._stack = contextlib.ExitStack()
        try:
            self._opened = self._stack.enter_context(outputs.opened(job_id, file))
            head = self._opened.read(HEAD_BYTES)
            if start:
                self._opened.seek(start)
        except BaseException:
            self._stack.close()
            raise
        self.kind, self.media_type = detect(head, file.claimed_type, is_whole=len(head) >= file.size)
        self._head = b"" if start else head
        self._left = stop - start

    def read(self) -> bytes:
        """Return the next part, and nothing at the end. Never more than the manifest says."""
        chunk = self._head or self._opened.read(CHUNK_BYTES)
        self._head, chunk = b"", chunk[: self._left]
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        """Close it, without waiting for a read that hangs."""
        threading.Thread(target=self._close, name="rungen-close", daemon=True).start()

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            self._stack.close()


def store_of(uri: str) -> str:
    """Return what of a URI or path hangs or answers as a whole: a bucket, or what may be a mount."""
    scheme, _, rest = uri.rpartition("://")
    return "/".join([scheme, *rest.strip("/").split("/")[: 2 if scheme in _LOCAL else 1]]) if uri else ""
