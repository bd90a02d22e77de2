"""Serve what a task stored: its outputs and its results, and nothing else. No file runs a script."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

from starlette.responses import StreamingResponse

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.pages.airflow_db import Place
from airflow_provider_rungen.pages.results_file import READERS, Filter, read_rows
from airflow_provider_rungen.pages.threads import run_within

#: The headers of all answers.
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: The policy of an answer that runs nothing.
NOTHING = "sandbox; default-src 'none'"
# Seconds to open a file, and to read a part of it.
_OPEN_TIME = 4.5
_READ_TIME = 30.0
# Seconds to look for rows, until it is seen whether somebody still waits for them.
_FIND_TIME = 1.0
_CHUNK_BYTES = 256 << 10
_HEAD_BYTES = 512
# The outputs of a store. What is beside them, such as records, is of other tasks, too.
_OUTPUT = re.compile(r"files/[0-9a-f]{2}/[^/.\0][^/\0]*")
_DOWNLOAD = "application/octet-stream"
_LOCAL = ("", "file", "local")
# What files that may be shown in place begin with. The brand of an ISO container follows "ftyp".
_SIGNATURES = [
    (re.compile(pattern, re.DOTALL), media_type)
    for pattern, media_type in (
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF.{4}WEBP", "image/webp"),
        (rb"RIFF.{4}WAVE", "audio/wav"),
        (rb"OggS", "audio/ogg"),
        (rb"fLaC", "audio/flac"),
        # with a tag, or a frame header of layer 3
        (rb"ID3|\xff[\xe2\xe3\xea\xeb\xf2\xf3\xfa\xfb][^\xf0-\xff]", "audio/mpeg"),
        (rb"\x1aE\xdf\xa3", "video/webm"),
        (rb".{4}ftyp(avi[fs]|(mif1|miaf|msf1).{4,48}avif)", "image/avif"),
        (rb".{4}ftypM4[AB] ", "audio/mp4"),
        (rb".{4}ftyp(?!mif1|miaf|msf1|heic|heix|qt  )", "video/mp4"),
    )
]


def detect(head: bytes, name: str = "") -> str:
    """
    Return the content type to serve a file with. A model's output may be anything, whatever it is called.

    :param head: its first bytes. They prove a raster image, audio or video.
    :param name: its name. With ``.txt`` it is plain text, if it looks like that.
    """
    for signature, media_type in _SIGNATURES:
        if signature.match(head):
            return media_type
    is_text = name.lower().endswith(".txt") and b"\0" not in head
    return "text/plain; charset=utf-8" if is_text else _DOWNLOAD


def store_of(uri: str) -> str:
    """Return the part of a URI or path that hangs as a whole: a bucket, or what may be a mount."""
    scheme, _, rest = uri.rpartition("://")
    return "/".join([scheme, *rest.strip("/").split("/")[: 2 if scheme in _LOCAL else 1]])


def is_output(path: str) -> bool:
    """Return whether a path below a destination is that of an output."""
    return _OUTPUT.fullmatch(path) is not None


async def send_output(destination: str, path: str, asked: str) -> StreamingResponse:
    """
    Send an output, or a range of it.

    :param path: its path below the destination: see `is_output`.
    :param asked: the header ``Range`` of the request.
    :raises FileNotFoundError: it is not there.
    """
    folder, _, name = path.rpartition("/")
    return await _send(OpenFile, destination, folder, name, asked)


async def send_results(place: Place, which: Filter) -> StreamingResponse:
    """Send a results file as a download, or some of its rows. The same errors as with `send_output`."""
    root, folder, name = folder_of(place)
    if not name.lower().endswith(tuple(READERS)):
        raise FileNotFoundError(name)
    if any(which):
        return await _send(FoundRows, root, folder, name, which)
    return await _send(OpenFile, root, folder, name, "")


def folder_of(place: Place) -> tuple[str, str, str]:
    """Return the storage of a file, its folder in that, and its name. What is below is behind no link."""
    if not place.path:
        root, slash, name = place.root.rpartition("/")
        return root + slash, "", name
    folder, _, name = place.path.rpartition("/")
    return place.root, folder, name


async def _send(
    opened: Callable[..., OpenFile | FoundRows], uri: str, folder: str, name: str, asked: str | Filter
) -> StreamingResponse:
    store = f"files of {store_of(uri)}"
    file = await run_within(_OPEN_TIME, store, opened, uri, folder, name, asked)

    async def parts() -> AsyncIterator[bytes]:
        try:
            while (part := await run_within(_READ_TIME, store, file.read)) is not None:
                if part:
                    yield part
        finally:
            file.close()

    return StreamingResponse(parts(), file.status, headers=file.headers)


class OpenFile:
    """
    A file that is sent in parts.

    :param uri: the storage.
    :param asked: the header ``Range`` of the request.
    :raises RunGenError: the storage cannot be used.
    :raises OSError: the file cannot be read.
    """

    def __init__(self, uri: str, folder: str, name: str, asked: str = "") -> None:
        self._stack = contextlib.ExitStack()
        try:
            opened: Any = Storage(uri, read_only=True).opened(folder, name)
            self._file = self._stack.enter_context(opened)
            size = self._file.seek(0, 2)
            self._file.seek(0)
            head = self._file.read(_HEAD_BYTES)
            part = requested_range(asked, size)
            start, stop = part or (0, size)
            self._file.seek(start)
        except BaseException:
            self._stack.close()
            raise
        media_type = detect(head, name)
        self._unsent = stop - start
        self.status = 206 if part else 200
        self.headers = {
            **SAFE,
            "Content-Type": media_type,
            "Content-Disposition": attachment(name) if media_type == _DOWNLOAD else "inline",
            "Content-Security-Policy": NOTHING,
            "Cache-Control": "private, max-age=600",
            "Accept-Ranges": "bytes",
            "Content-Length": str(stop - start),
            **({"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if part else {}),
        }

    def read(self) -> bytes | None:
        """Return the next part; ``None`` at the end."""
        chunk: bytes = self._file.read(min(_CHUNK_BYTES, self._unsent))
        self._unsent -= len(chunk)
        return chunk or None

    def close(self) -> None:
        """Close it, without waiting for a read that hangs."""
        begin(self._stack.close)


class FoundRows:
    """
    The rows of a results file that a filter lets through: as CSV if the file is, otherwise as JSON Lines.

    :raises RunGenError: the storage cannot be used.
    :raises OSError: the file cannot be read.
    """

    status = 200

    def __init__(self, uri: str, folder: str, name: str, which: Filter) -> None:
        self._stack = contextlib.ExitStack()
        self._is_csv = name.lower().endswith(".csv")
        try:
            opened: Any = Storage(uri, "results", read_only=True).opened(folder, name)
            self._rows = read_rows(self._stack.enter_context(opened), name, 0, which)
        except BaseException:
            self._stack.close()
            raise
        self._columns: list[str] = []
        found = f"{name.rpartition('.')[0]}-found.{'csv' if self._is_csv else 'jsonl'}"
        self.headers = {
            **SAFE,
            "Content-Type": _DOWNLOAD,
            "Content-Disposition": attachment(found),
            "Content-Security-Policy": NOTHING,
            "Cache-Control": "no-store",
        }

    def read(self) -> bytes | None:
        """Return the next part, which is empty if nothing was found for a second; ``None`` at the end."""
        text, until = io.StringIO(), time.monotonic() + _FIND_TIME
        for _, row in self._rows:
            if row is not None:
                self._write(text, row)
            if text.tell() >= _CHUNK_BYTES or time.monotonic() > until:
                return text.getvalue().encode()
        return text.getvalue().encode() or None

    def _write(self, text: io.StringIO, row: dict[str, Any]) -> None:
        if not self._is_csv:
            text.write(json.dumps(row, default=str) + "\n")
            return
        writer = csv.writer(text)
        if not self._columns:
            self._columns = [*row]
            writer.writerow(self._columns)
        writer.writerow([row.get(name) for name in self._columns])

    def close(self) -> None:
        """Close the file, without waiting for a read that hangs."""
        begin(self._stack.close)


def requested_range(header: str, size: int) -> tuple[int, int] | None:
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
