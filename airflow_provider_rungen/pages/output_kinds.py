"""
Decide which files may be shown in place. No I/O.

A model's output may be anything, whatever it claims to be. Only what its first bytes prove to be a raster
image, audio or video is shown, and plain text. What could run a script, such as SVG, HTML and PDF, and what
is unknown is a download.
"""

from __future__ import annotations

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
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)
# What follows the first eight bytes of containers.
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
_ISO_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"M4A ", b"M4B "), "audio/mp4"),
    **dict.fromkeys((b"heic", b"heix", b"qt  "), ""),
}


def detect(head: bytes, claimed_type: str = "", *, is_whole: bool = True) -> tuple[OutputKind, str]:
    """
    Return how to show a file, and the content type to serve it with.

    :param head: its first `HEAD_BYTES` bytes.
    :param claimed_type: what the host or the manifest calls it. Only plain text needs the claim.
    :param is_whole: whether ``head`` is the whole file, so that a cut character at its end is an error.
    """
    media_type = _sniff(head)
    if not media_type and _base_type(claimed_type) == _TEXT and _is_text(head, is_whole=is_whole):
        media_type = _TEXT
    return _kind(media_type), media_type or _DOWNLOAD


def guess(name: str, claimed_type: str = "") -> OutputKind:
    """
    Return how to show a file whose content cannot be looked at.

    It does not decide how the file is served. An ``<img>`` runs nothing, whatever the file holds.

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


def _sniff(head: bytes) -> str:
    """Return the content type that the first bytes prove, or nothing."""
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return media_type
    brand = head[8:12]
    if head[:4] == b"RIFF":
        return _RIFF.get(brand, "")
    if head[4:8] == b"ftyp":
        if brand in (b"mif1", b"miaf", b"msf1"):
            return "image/avif" if b"avif" in head[16:64] else ""
        return _ISO_BRANDS.get(brand, "video/mp4")
    # MPEG audio without a tag: a frame header of layer 3
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] & 0xF0 != 0xF0:
        return "audio/mpeg"
    return ""


def _is_text(head: bytes, *, is_whole: bool) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return not is_whole and error.end == len(head) and error.reason == "unexpected end of data"
    return True
