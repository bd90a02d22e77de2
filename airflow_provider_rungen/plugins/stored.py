"""Read what a task stored: manifests and their files. The functions block, in bounded memory."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote

from airflow_provider_rungen.client.daemon_threads import batches, begin
from airflow_provider_rungen.execution.archive.storage import File, Storage
from airflow_provider_rungen.execution.archive.stored_jobs import (
    MANIFEST,
    StoredJob,
    files_of,
    parse_manifest,
)
from airflow_provider_rungen.pages.output_kinds import HEAD_BYTES, detect
from airflow_provider_rungen.plugins.limits import CACHE, FRESH, MAX_VALUES, TooSlowError, count_values

# Of the manifests of one page together.
_MAX_BYTES = 16 << 20
# All files are read up to this size at once. Larger ones are read few at a time.
_SMALL_BYTES = 64 << 10
_FEW = 4
# A value counts as so many bytes, since it takes more memory than its text.
_BYTES_OF_VALUE = 20
_BYTES_OF_FILE = 300
_LOCAL = ("", "file", "local")


class BoundedStorage:
    """
    A storage that is read up to a number of bytes, and for a number of seconds.

    :param uri: the storage, as the task pushed it.
    :param max_bytes: of all files together.
    :param within: seconds that reading may take.
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
        :raises TooSlowError: the time has passed.
        """
        self._check_time()
        return self.storage.list_folder(folder)

    def read(self, files: Sequence[File]) -> dict[File, bytes | None]:
        """
        Return the JSON in those of some files that exist; ``None`` for one that is too large for the page.

        :raises RunGenError: the storage cannot be read.
        :raises TooSlowError: the time has passed.
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


def read_manifests(
    destination: str, app_id: str, job_ids: Sequence[str], within: float
) -> dict[str, StoredJob | None]:
    """
    Return the manifests of jobs whose outputs are all stored.

    :param destination: the folder, as the task pushed it.
    :param within: seconds that it may take.
    :return: by job; ``None`` for a manifest that is too large for the page.
    :raises RunGenError: the storage cannot be read.
    :raises TooSlowError: they were not read in time.
    """
    bounded = BoundedStorage(destination, _MAX_BYTES, within)
    contents = bounded.read([(job_id, MANIFEST) for job_id in job_ids])
    found: dict[str, StoredJob | None] = {}
    for (job_id, _), content in contents.items():
        manifest = None if content is None else parse_manifest(content, app_id, job_id)
        if manifest is None or files_of(bounded.storage, manifest) is not None:
            found[job_id] = manifest
    return found


class StoredFile(NamedTuple):
    """
    A file that a manifest names.

    :param name: its name in the folder of its job.
    :param claimed_type: its content type, according to the host that served it.
    """

    name: str
    size: int
    claimed_type: str


def stored_files(manifest: StoredJob, start: int = 0, stop: int | None = None) -> list[StoredFile]:
    """Return the files of a manifest, or some of them, in the order of its outputs."""
    return [
        StoredFile(entry["uri"].rpartition("/")[2], entry["size"], entry["content_type"] or "")
        for entry in islice(manifest.outputs, start, stop)
    ]


def find_files(destination: str, app_id: str, job_id: str, within: float) -> Sequence[StoredFile]:
    """
    Return the files of a job; none if no manifest names them. See `read_manifests`.

    :raises RunGenError: the storage cannot be read.
    :raises TooSlowError: the manifest was not read in time.
    """
    key = "files", destination, app_id, job_id
    files: Sequence[StoredFile] | None = CACHE.get(key)  # a browser asks for many files of a job
    if files is None:
        manifest = read_manifests(destination, app_id, [job_id], within).get(job_id)
        files = [] if manifest is None else stored_files(manifest)
        CACHE.put(key, files, FRESH, _BYTES_OF_FILE * (1 + len(files)))
    return files


def store_of(uri: str) -> str:
    """Return the part of a URI or path that hangs as a whole: a bucket, or what may be a mount."""
    scheme, _, rest = uri.rpartition("://")
    return "/".join([scheme, *rest.strip("/").split("/")[: 2 if scheme in _LOCAL else 1]]) if uri else ""


#: The headers of all answers.
SAFE: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: The policy of an answer that runs nothing.
NOTHING = "sandbox; default-src 'none'"
_CHUNK_BYTES = 256 * 1024


class OpenFile:
    """
    A file that is sent in chunks.

    :param job_id: the job of the file.
    :param asked: the header ``Range`` of the request.
    :raises RunGenError: the destination cannot be used.
    :raises OSError: the file cannot be read.
    """

    def __init__(self, destination: str, job_id: str, file: StoredFile, asked: str = "") -> None:
        part = _requested_range(asked, file.size)
        start, stop = part or (0, file.size)
        self._stack = contextlib.ExitStack()
        try:
            opened = Storage(destination, read_only=True).opened(job_id, file.name)
            self._opened = self._stack.enter_context(opened)
            head = self._opened.read(HEAD_BYTES)
            if start:
                self._opened.seek(start)
        except BaseException:
            self._stack.close()
            raise
        kind, media_type = detect(head, file.claimed_type, is_whole=len(head) >= file.size)
        self._head = b"" if start else head
        self._unsent = stop - start
        self.status = 206 if part else 200
        self.headers = {
            **SAFE,
            "Content-Type": f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type,
            # without a name, since its page has a better one
            "Content-Disposition": "attachment" if kind == "download" else "inline",
            "Content-Security-Policy": NOTHING,
            "Cache-Control": "private, max-age=600",
            "Accept-Ranges": "bytes",
            "Content-Length": str(stop - start),
            **({"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"} if part else {}),
        }

    def read(self) -> bytes:
        """Return the next part; empty at the end. It sends no more bytes than the manifest says."""
        chunk = self._head or self._opened.read(_CHUNK_BYTES)
        self._head, chunk = b"", chunk[: self._unsent]
        self._unsent -= len(chunk)
        return chunk

    def close(self) -> None:
        """Close it, without waiting for a read that hangs."""
        begin(self._stack.close)


def _requested_range(header: str, size: int) -> tuple[int, int] | None:
    """
    Return the first byte and the one after the last that a ``Range`` asks for; ``None`` for the whole file.

    Video players send it (RFC 9110, section 14). The answer to several ranges at once is the whole file.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.replace(" ", ""))
    first, last = found.groups() if found else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    elif last:
        start, stop = max(0, size - int(last)), size
    else:
        return None
    return (start, stop) if start < stop else None


def attachment(name: str) -> str:
    """Return the ``Content-Disposition`` of a download, whose name is untrusted."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
