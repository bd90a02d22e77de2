"""Finds the URLs of outputs in a result, and what can be kept of it: names, places, no secrets. No I/O."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from airflow_provider_rungen.models import clean_text
from airflow_provider_rungen.redaction import without_secrets

# How long the service keeps outputs.
LIFETIME = timedelta(days=7)
# Bytes of a file's name at most, without its number; many file systems take 255.
LONGEST_NAME = 120
LONGEST_SUFFIX = 16
# Levels of nesting at most: to walk through them, and to write them, takes a frame each.
DEEPEST = 200
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_SIGNED = (("X-Amz-Date", "X-Amz-Expires"), ("X-Goog-Date", "X-Goog-Expires"))


@dataclass(frozen=True, slots=True)
class Output:
    """
    A file that a job made.

    :param at: the place of its URL in the result, such as ``result.images[0].image``.
    :param url: where it is; whoever has it can read the file.
    :param name: what to store it as.
    """

    at: str
    url: str = field(repr=False)
    name: str


def outputs_of(result: Any) -> list[Output]:
    """Find every text in a result that is a URL as a whole; the same in several places is one output."""
    first: dict[str, str] = {}
    for at, url in urls_of(result):
        first.setdefault(url, at)
    return [Output(at, url, f"{number}-{safe_name(url)}") for number, (url, at) in enumerate(first.items())]


def urls_of(result: Any) -> Iterator[tuple[str, str]]:
    """Give every URL, the same in several places, too, with its place."""
    return ((clean_text(at, 300), url) for at, url in _urls(result, "result"))


def _urls(value: Any, at: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    _check_depth(depth)
    if isinstance(value, str):
        if _URL.fullmatch(value):
            yield at, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _urls(item, f"{at}.{without_secrets(str(key))}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _urls(item, f"{at}[{index}]", depth + 1)


def _check_depth(depth: int) -> None:
    """Come before Python's own limit, which depends on where it is called from."""
    if depth > DEEPEST:
        raise RecursionError(f"nested deeper than {DEEPEST} levels")


def safe_name(url: str) -> str:
    """Give the name of the file that a URL is of, as one that every file system takes for a name."""
    try:
        path = unquote(urlsplit(url).path)
    except ValueError:
        path = ""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", path)[-1])
    name = "".join(char if _is_plain(char) else "_" for char in name).strip(".")
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode()) > LONGEST_SUFFIX:
        stem, dot, suffix = name, "", ""
    stem = _cut(stem, LONGEST_NAME - len((dot + suffix).encode()))
    return (stem + dot + suffix).strip(".") or "output"


def _is_plain(char: str) -> bool:
    return char in "._-" or unicodedata.category(char)[0] in "LMN"


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode("utf-8", "ignore")


def replaced(result: Any, stored: Mapping[str, str]) -> Any:
    """
    Give a copy of a result that can be kept.

    :param stored: what is to stand in place of a URL.
    """
    return _mapped(result, lambda text: stored.get(text) or without_secrets(text))


def kept(value: Any) -> Any:
    """Give a copy of a value in which no URL has a query string or a password."""
    return _mapped(value, without_secrets)


def _mapped(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    _check_depth(depth)
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {without_secrets(str(key)): _mapped(item, change, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change, depth + 1) for item in value]
    return value


def ends_of(url: str, created_at: datetime | None) -> list[datetime]:
    """Tell when an output ends, the first first: its URL may say it, and the service keeps none longer."""
    ends = []
    try:
        if created_at is not None:
            ends.append(created_at + LIFETIME)
        query = parse_qs(urlsplit(url).query)
        for date, seconds in _SIGNED:
            if date in query and seconds in query:
                begun = datetime.strptime(query[date][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                ends.append(begun + timedelta(seconds=int(query[seconds][0])))
    except (ValueError, OverflowError):
        pass
    return sorted(ends)
