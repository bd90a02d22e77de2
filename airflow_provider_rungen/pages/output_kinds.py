"""
Decide which files may be shown in place. No I/O.

A model's output may be anything, whatever it claims to be. Only what its first bytes prove to be a raster
image, audio or video is shown, and plain text. What could run a script, such as SVG, HTML and PDF, and what
is unknown is a download.
"""

from __future__ import annotations

from airflow_provider_rungen.pages.models import OutputKind

#: How many bytes of a file `detect` needs.
HEAD_BYTES = 512
_DOWNLOAD = "application/octet-stream"
_TEXT = "text/plain"
# The content types that may be shown, and what each is called in other places.
_SHOWN: dict[str, OutputKind] = {
    "image/png": "image",
    "image/jpeg": "image",
    "image/webp": "image",
    "image/gif": "image",
    "image/avif": "image",
    "audio/mpeg": "audio",
    "audio/wav": "audio",
    "audio/ogg": "audio",
    "audio/flac": "audio",
    "audio/mp4": "audio",
    "video/mp4": "video",
    "video/webm": "video",
    _TEXT: "text",
}
_SUFFIXES = {
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
    kind = _SHOWN.get(media_type, "download")
    return kind, media_type or _DOWNLOAD


def guess(name: str, claimed_type: str = "") -> tuple[OutputKind, str]:
    """
    Return how to show a file whose content cannot be looked at, and its content type.

    Use it only for a page that a browser opens without a server of ours. An ``<img>`` runs nothing, whatever
    the file holds.

    :param name: its name. A suffix that is known decides.
    :param claimed_type: what the host calls it, for a name without a suffix.
    """
    _, dot, suffix = name.rpartition(".")
    media_type = _SUFFIXES.get(suffix.lower(), _DOWNLOAD) if dot else _base_type(claimed_type)
    return _SHOWN.get(media_type, "download"), media_type or _DOWNLOAD


def _base_type(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def _sniff(head: bytes) -> str:
    """Return the content type that the first bytes prove, or nothing."""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _sniff_iso(head)
    # MPEG audio without a tag: a frame header of layer 3
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] & 0xF0 != 0xF0:
        return "audio/mpeg"
    return ""


def _sniff_iso(head: bytes) -> str:
    brand = head[8:12]
    if brand in (b"avif", b"avis"):
        return "image/avif"
    if brand in (b"M4A ", b"M4B "):
        return "audio/mp4"
    if brand in (b"mif1", b"miaf", b"msf1"):
        return "image/avif" if b"avif" in head[16:64] else ""
    if brand in (b"heic", b"heix", b"qt  "):
        return ""
    return "video/mp4"


def _is_text(head: bytes, *, is_whole: bool) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return not is_whole and error.end == len(head) and error.reason == "unexpected end of data"
    return True


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)
