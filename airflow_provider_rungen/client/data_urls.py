"""Read data URLs: files that a result contains as base64 text. No I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

# Without its content, so that a long text that is no data URL is not read.
_HEAD = re.compile(
    r"data:([\w.+-]{1,60}/[\w.+-]{1,60})(?:;[\w.+-]{1,60}=[\w.+-]{0,60}){0,5};base64,",
    re.ASCII | re.IGNORECASE,
)
_CONTENT = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_CHUNK_CHARS = 256 * 1024
_SUFFIXES = {
    "application/json": ".json",
    "application/pdf": ".pdf",
    "audio/flac": ".flac",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "image/avif": ".avif",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/webp": ".webp",
    "text/plain": ".txt",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
}


def is_data_url(text: str) -> bool:
    """Return whether a text is a data URL as a whole, with base64 that can be decoded."""
    head = _HEAD.match(text)
    return (
        head is not None
        and (len(text) - head.end()) % 4 == 0
        and _CONTENT.fullmatch(text, head.end()) is not None
    )


def content_type_of(url: str) -> str | None:
    """Return the content type that a data URL claims, or ``None`` for another URL."""
    head = _HEAD.match(url)
    return None if head is None else head[1].lower()


def file_name_of(content_type: str) -> str:
    """Return the name of a file that has none."""
    return "output" + _SUFFIXES.get(content_type, "")


def decoded_size(url: str) -> int:
    """Return how many bytes a data URL has."""
    return (len(url) - _content_start(url)) // 4 * 3 - url.count("=", -2)


def decoded_chunks(url: str) -> Iterator[bytes]:
    """Yield the bytes of a data URL in small parts."""
    for start in range(_content_start(url), len(url), _CHUNK_CHARS):
        yield base64.b64decode(url[start : start + _CHUNK_CHARS])


def _content_start(url: str) -> int:
    head = _HEAD.match(url)
    return len(url) if head is None else head.end()
