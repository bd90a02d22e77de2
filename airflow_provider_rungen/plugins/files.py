"""Send a stored file, or a part of it. Its first bytes decide whether a browser shows it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from urllib.parse import quote

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.pages.output_kinds import HEAD_BYTES, detect
from airflow_provider_rungen.plugins.stored import StoredFile

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
            "Content-Disposition": disposition(file.name, "attachment" if kind == "download" else "inline"),
            "Content-Security-Policy": NOTHING,
            "Cache-Control": "private, max-age=600",
            "Accept-Ranges": "bytes",
            "Content-Length": str(stop - start),
            **({"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"} if part else {}),
        }

    def read(self) -> bytes:
        """Return the next part, and nothing at the end. Never more than the manifest says."""
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

    Players of video ask so (RFC 9110, section 14). Several ranges at once are sent as the whole file.
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


def disposition(name: str, kind: str) -> str:
    """Return how a browser takes a file, whose name may come from anybody."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
