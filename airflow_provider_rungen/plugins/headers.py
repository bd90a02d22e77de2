"""The headers of answers. A page runs nothing but its own script, and a file nothing at all. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

_SAFE: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NOTHING = "sandbox; default-src 'none'"
# Airflow shows pages in frames of its own.
_PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self' data:",
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'self'",
    )
)
PAGE = {**_SAFE, "Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"}
DATA = {**_SAFE, "Content-Security-Policy": _NOTHING, "Cache-Control": "no-store"}
NOTICE = DATA
ASSET = {**_SAFE, "Cache-Control": "public, max-age=86400"}


def requested_range(header: str, size: int) -> tuple[int, int] | None:
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


def of_file(
    name: str, media_type: str, *, is_inline: bool, size: int, part: tuple[int, int] | None
) -> dict[str, str]:
    """
    Return the headers of a stored file.

    :param name: its name, which a stranger may have chosen.
    :param media_type: its content type, as its first bytes prove it.
    :param is_inline: whether it may be shown in place.
    :param part: the range of it that is sent, if not the whole.
    """
    start, stop = part or (0, size)
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    disposition = "inline" if is_inline else "attachment"
    return {
        **_SAFE,
        "Content-Type": f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type,
        "Content-Disposition": f"{disposition}; filename=\"{plain}\"; filename*=UTF-8''{encoded}",
        "Content-Security-Policy": _NOTHING,
        "Cache-Control": "private, max-age=600",
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - start),
        **({"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if part else {}),
    }
