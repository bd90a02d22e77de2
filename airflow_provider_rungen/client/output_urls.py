"""Find the URLs of outputs in a result, name their files, and redact what is stored of a job. No I/O."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from airflow_provider_rungen.client.redaction import without_secrets, without_signatures
from airflow_provider_rungen.client.texts import clean_text

# How long the service keeps outputs.
OUTPUT_LIFETIME = timedelta(days=7)
# Of a file name without its number; many file systems allow 255 bytes.
MAX_NAME_BYTES = 120
# With its dot.
MAX_SUFFIX_BYTES = 17
# What is longer is text: hosts refuse URLs of half that length.
MAX_URL_CHARS = 16 * 1024
MAX_PLACE_CHARS = 300
MAX_CONTENT_TYPE_CHARS = 100
# Values below this level are stored as JSON text, so that every parser can read the manifest.
MAX_DEPTH = 200
# How much of the beginning and of the end of a long name is used.
_NAME_PART_CHARS = 500
# The host is bounded, because libraries normalize it in quadratic time.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?=\S)[^\s/?#]{0,1000}(?:[/?#]\S*)?")

# Without its content, so that a long text that is no data URL is not read.
_DATA_HEAD = re.compile(
    r"data:([\w.+-]{1,60}/[\w.+-]{1,60})(?:;[\w.+-]{1,60}=[\w.+-]{0,60}){0,5};base64,",
    re.ASCII | re.IGNORECASE,
)
_DATA_CONTENT = re.compile(r"[A-Za-z0-9+/]+={0,2}")
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
# Files that are never empty, and that no host sends as a page, or as the text of an error.
_MEDIA = {*_SUFFIXES.values()} - {".json", ".txt"} | {".bmp", ".glb", ".jpeg", ".m4a", ".mkv", ".mov", ".zip"}
_ERROR_TYPE = re.compile(r"text/html|(?:text|application)/(?:[\w.-]+\+)?(?:json|xml)")


@dataclass(frozen=True, slots=True)
class Output:
    """
    A file that a job made.

    :param at: the place of its URL in the result, such as ``result.images[0].image``.
    :param url: its address; whoever has it can read the file.
    :param name: the name of the file that it is stored as.
    """

    at: str
    url: str = field(repr=False)
    name: str


def find_outputs(result: Any, limit: int | None = None) -> list[Output]:
    """
    Find every text in a result that is a URL as a whole, or a data URL. One in several places is one output.

    White space around it does not count: a model may write a line feed after it.

    :param limit: how many outputs to find at most; ``None`` for all.
    """
    first: dict[str, str] = {}
    for at, url in find_urls(result):
        if len(first) == limit and url not in first:
            break
        first.setdefault(url, at)
    return [Output(at, url, f"{number}-{safe_name(url)}") for number, (url, at) in enumerate(first.items())]


def find_urls(result: Any) -> Iterator[tuple[str, str]]:
    """Yield the place and the URL of every text that is a URL, including repeated ones."""
    # an explicit stack, because a result may be nested deeper than Python recurses
    stack = [("result", result)] if _is_url_or_container(result) else []
    while stack:
        at, value = stack.pop()
        if isinstance(value, str):
            yield clean_text(at, MAX_PLACE_CHARS), value.strip()
            continue
        items = [*(value.items() if isinstance(value, Mapping) else enumerate(value))]
        # a place that grew with each level would take quadratic time
        is_long = len(at) > MAX_PLACE_CHARS
        stack += (
            (at if is_long else at + _step(key), item)
            for key, item in reversed(items)
            if _is_url_or_container(item)
        )


def _step(key: Any) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    key = str(key)
    return "." + (without_secrets(key) if len(key) <= MAX_PLACE_CHARS else clean_text(key, MAX_PLACE_CHARS))


def _is_url_or_container(value: Any) -> bool:
    if isinstance(value, str):
        text = value.strip()
        return (len(text) <= MAX_URL_CHARS and _URL.fullmatch(text) is not None) or is_data_url(text)
    return isinstance(value, Mapping | list)


def safe_name(url: str) -> str:
    """Return the file name in a URL, changed so that every file system accepts it as a name."""
    if (content_type := content_type_of(url)) is not None:
        return "output" + _SUFFIXES.get(content_type, "")
    try:
        path = unquote(urlsplit(url[:MAX_URL_CHARS]).path)
    except ValueError:
        path = ""
    name = re.split(r"[/\\]", path)[-1]
    if len(name) > 2 * _NAME_PART_CHARS:
        # before normalizing, which takes quadratic time on many Pythons
        name = name[:_NAME_PART_CHARS] + name[-_NAME_PART_CHARS:]
    name = unicodedata.normalize("NFC", name)
    name = "".join(char if char in "._-" or unicodedata.category(char)[0] in "LMN" else "_" for char in name)
    stem, dot, suffix = name.strip(".").rpartition(".")
    suffix = dot + suffix
    if not dot or len(suffix.encode()) > MAX_SUFFIX_BYTES:
        stem, suffix = stem + suffix, ""
    stem = stem.encode()[: MAX_NAME_BYTES - len(suffix.encode())].decode("utf-8", "ignore")
    return (stem + suffix).strip(".") or "output"


def mismatch(url: str, size: int, content_type: str | None) -> str:
    """Return what was sent in place of the picture, sound or the like that a URL names, if it is none."""
    suffix = "".join(safe_name(url).lower().rpartition(".")[1:])
    base_type = (content_type or "").partition(";")[0].strip().lower()
    is_error = _ERROR_TYPE.fullmatch(base_type) and not (suffix == ".svg" and base_type.endswith("xml"))
    if suffix not in _MEDIA or (size and not is_error):
        return ""
    return f"{base_type if size else 'no bytes'} in place of a {suffix} file"


def redact_value(value: Any, stored_uris: Mapping[str, str] | None = None) -> Any:
    """
    Return a copy of a value that can be stored: valid JSON of limited depth, without secrets in its URLs.

    :param stored_uris: by URL, the URI that replaces it.
    """
    uris = stored_uris or {}

    def copy(value: Any, depth: int) -> Any:
        if isinstance(value, str):
            is_url = _URL.fullmatch(text := value.strip()) is not None
            return uris.get(text) or (without_secrets if is_url else without_signatures)(value)
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        if not isinstance(value, Mapping | list):
            return value
        if depth == MAX_DEPTH:
            return without_secrets(_json_text(value))
        if isinstance(value, list):
            return [copy(item, depth + 1) for item in value]
        return {without_secrets(str(key)): copy(item, depth + 1) for key, item in value.items()}

    return copy(value, 0)


def _json_text(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:  # no service makes this, and no parser could read it
        return "nested too deeply to be stored"


def expiry_time(url: str, created_at: datetime | None) -> datetime | None:
    """
    Return when an output expires, or ``None`` if that is not known.

    :param url: its URL, whose signature may expire before the service deletes the output.
    :param created_at: when its job was created.
    """
    times = []
    with suppress(OverflowError):
        if created_at is not None:
            times.append(created_at + OUTPUT_LIFETIME)
    with suppress(KeyError, ValueError, OverflowError):
        query = parse_qs(urlsplit(url).query)
        signed_at = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")
        times.append(signed_at + timedelta(seconds=int(query["X-Amz-Expires"][0])))
    return min(times, default=None)


# --- data URLs: files that a result contains as base64 text ---


def is_data_url(text: str) -> bool:
    """Return whether a text is a data URL as a whole, with base64 that can be decoded."""
    head = _DATA_HEAD.match(text)
    return (
        head is not None
        and (len(text) - head.end()) % 4 == 0
        and _DATA_CONTENT.fullmatch(text, head.end()) is not None
    )


def content_type_of(url: str) -> str | None:
    """Return the content type that a data URL claims, or ``None`` for another URL."""
    head = _DATA_HEAD.match(url)
    return None if head is None else head[1].lower()
