"""The headers of answers. A page runs nothing but its own script, and a file nothing at all. No I/O."""

from __future__ import annotations

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


def of_file(name: str, media_type: str, *, is_inline: bool) -> dict[str, str]:
    """
    Return the headers of a stored file.

    :param name: its name, which a stranger may have chosen.
    :param media_type: its content type, as its first bytes prove it.
    :param is_inline: whether it may be shown in place.
    """
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    disposition = "inline" if is_inline else "attachment"
    return {
        **_SAFE,
        "Content-Type": f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type,
        "Content-Disposition": f"{disposition}; filename=\"{plain}\"; filename*=UTF-8''{encoded}",
        "Content-Security-Policy": _NOTHING,
        "Cache-Control": "private, max-age=600",
    }
