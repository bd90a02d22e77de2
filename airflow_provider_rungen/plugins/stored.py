"""What a task stored: manifests and files. It blocks, in bounded memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from airflow_provider_rungen.execution.archive.manifests import MANIFEST, Manifest, parse_manifest
from airflow_provider_rungen.execution.archive.storage import File, Storage
from airflow_provider_rungen.execution.archive.stored_jobs import files_of
from airflow_provider_rungen.execution.archive.threads import batches
from airflow_provider_rungen.pages.output_kinds import HEAD_BYTES, detect
from airflow_provider_rungen.plugins.bounded import CACHE, FRESH, MAX_VALUES, count_values
from airflow_provider_rungen.plugins.threads import TooSlowError

# Of the manifests of one page together.
_MAX_BYTES = 16 << 20
# All files are read up to this size at once. Larger ones are read few at a time.
_SMALL_BYTES = 64 << 10
_FEW = 4
# A value counts as so many bytes, since it takes more memory than its text.
_BYTES_OF_VALUE = 20
_BYTES_OF_FILE = 300
CHUNK_BYTES = 256 * 1024
_LOCAL = ("", "file", "local")


class BoundedStorage:
    """
    A storage of which only so much is read, for so long.

    :param uri: the storage, as the task pushed it.
    :param max_bytes: of all files together.
    :param within: seconds. Whoever asked waits no longer.
    :raises RunGenError: it cannot be opened.
    """

    def __init__(self, uri: str, max_bytes: int, within: float) -> None:
        self.storage = Storage(uri, read_only=True)
        self._budget = max_bytes
        self._ends_at = time.monotonic() + within

    def list(self, folder: str) -> Collection[str]:
        """
        Return the names of the files in a folder.

        :raises RunGenError: the storage cannot be read.
        :raises TooSlowError: the time is over.
        """
        self._check_time()
        return self.storage.list_folder(folder)

    def read(self, files: Sequence[File]) -> dict[File, bytes | None]:
        """
        Return the JSON in those of some files that exist; ``None`` for one that is too large for the page.

        :raises RunGenError: the storage cannot be read.
        :raises TooSlowError: the time is over.
        """
        self._check_time()
        contents = self.storage.read_all(files, _SMALL_BYTES)
        large = [file for file, content in contents.items() if len(content) > _SMALL_BYTES]
        found = {file: self._take(content) for file, content in contents.items() if file not in large}
        for some in batches(large, _FEW):
            self._check_time()
            limit = max(0, self._budget // len(some))
            for file, content in self.storage.read_all(some, limit).items():
                found[file] = None if len(content) > limit else self._take(content)
        return found

    def _take(self, content: bytes) -> bytes | None:
        values = count_values(content)
        if values > MAX_VALUES:
            return None
        self._budget -= max(len(content), _BYTES_OF_VALUE * values)
        return content if self._budget >= 0 else None

    def _check_time(self) -> None:
        if time.monotonic() > self._ends_at:
            raise TooSlowError


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


class StoredOutputs:
    """
    The outputs of jobs in a destination.

    :param destination: the folder, as the task pushed it.
    :param app_id: the app of the jobs.
    :param within: seconds to read manifests in. Whoever asked waits no longer.
    :raises RunGenError: it cannot be opened.
    """

    def __init__(self, destination: str, app_id: str, within: float) -> None:
        self._bounded = BoundedStorage(destination, _MAX_BYTES, within)
        self.storage = self._bounded.storage
        self._app_id = app_id
        self._key = ("files", destination, app_id)

    def manifests(self, job_ids: Sequence[str]) -> dict[str, Manifest | None]:
        """
        Return the manifests of jobs whose outputs are all stored.

        :return: by job; ``None`` for a manifest that is too large for the page.
        :raises RunGenError: the storage cannot be read.
        :raises TooSlowError: they were not read in time.
        """
        contents = self._bounded.read([(job_id, MANIFEST) for job_id in job_ids])
        found: dict[str, Manifest | None] = {}
        for (job_id, _), content in contents.items():
            manifest = None if content is None else parse_manifest(content, self._app_id, job_id)
            if manifest is None or files_of(self.storage, job_id, manifest) is not None:
                found[job_id] = manifest
        return found

    def file(self, job_id: str, number: int) -> StoredFile | None:
        """
        Return a file of a job by its number, or ``None`` if no manifest names it.

        :raises RunGenError: the storage cannot be read.
        :raises TooSlowError: the manifest was not read in time.
        """
        key = (*self._key, job_id)
        files: Sequence[StoredFile] | None = CACHE.get(key)  # a browser asks for many files of a job
        if files is None:
            manifest = self.manifests([job_id]).get(job_id)
            files = [] if manifest is None else stored_files(manifest)
            CACHE.put(key, files, FRESH, _BYTES_OF_FILE * (1 + len(files)))
        return files[number] if number < len(files) else None


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

    :param storage: the destination.
    :param job_id: the job of the file.
    :param part: the first byte to send, and the one after the last.
    :raises RunGenError: it cannot be read.
    """

    def __init__(
        self, storage: Storage, job_id: str, file: StoredFile, part: tuple[int, int] | None = None
    ) -> None:
        start, stop = part or (0, file.size)
        self._stack = contextlib.ExitStack()
        try:
            self._opened = self._stack.enter_context(storage.opened(job_id, file.name))
            head = self._opened.read(HEAD_BYTES)
            if start:
                self._opened.seek(start)
        except BaseException:
            self._stack.close()
            raise
        self.kind, self.media_type = detect(head, file.claimed_type, is_whole=len(head) >= file.size)
        self._head = b"" if start else head
        self._unsent = stop - start

    def read(self) -> bytes:
        """Return the next part, and nothing at the end. Never more than the manifest says."""
        chunk = self._head or self._opened.read(CHUNK_BYTES)
        self._head, chunk = b"", chunk[: self._unsent]
        self._unsent -= len(chunk)
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
