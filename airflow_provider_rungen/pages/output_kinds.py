"""
Decide which files may be shown in place. No I/O.

A model's output may be anything, whatever its claimed type. Only plain text is shown, and a raster image,
audio or video that its first bytes prove. All other files are downloads: they may run a script, as SVG, HTML
and PDF can.
"""

from __future__ import annotations

import re
from typing import cast

from airflow_provider_rungen.pages.models import OutputKind

#: How many bytes of a file `detect` needs.
HEAD_BYTES = 512
_DOWNLOAD = "application/octet-stream"
_TEXT = "text/plain"
# The content types that may be shown, by the suffixes of their files.
_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "txt": _TEXT,
}
# What files of these types begin with. The brand of an ISO container follows "ftyp".
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


def detect(head: bytes, claimed_type: str = "", *, is_whole: bool = True) -> tuple[OutputKind, str]:
    """
    Return how to show a file, and the content type to serve it with.

    :param head: its first `HEAD_BYTES` bytes.
    :param claimed_type: what the host or the manifest calls it. Only plain text needs the claim.
    :param is_whole: whether ``head`` is the whole file, so that a cut character at its end is an error.
    """
    found = (media_type for signature, media_type in _SIGNATURES if signature.match(head))
    media_type = next(found, "")
    if not media_type and _base_type(claimed_type) == _TEXT and _is_text(head, is_whole=is_whole):
        media_type = _TEXT
    return _kind(media_type), media_type or _DOWNLOAD


def guess(name: str, claimed_type: str = "") -> OutputKind:
    """
    Return how to show a file whose content is not read.

    It does not decide how the file is served. An ``<img>`` runs no script, whatever the file is.

    :param name: its name. A suffix decides.
    :param claimed_type: what the host calls it, for a name without a suffix.
    """
    _, dot, suffix = name.rpartition(".")
    return _kind(_TYPES.get(suffix.lower(), "") if dot else _base_type(claimed_type))


def _kind(media_type: str) -> OutputKind:
    is_shown = media_type in _TYPES.values()
    return cast(OutputKind, media_type.partition("/")[0]) if is_shown else "download"


def _base_type(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def _is_text(head: bytes, *, is_whole: bool) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return not is_whole and error.end == len(head) and error.reason == "unexpected end of data"
    return True
