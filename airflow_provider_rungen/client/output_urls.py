"""Finds the URLs of outputs in a result, and what can be kept of it: names, places, no secrets. No I/O."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from airflow_provider_rungen.client.models import clean_text
from airflow_provider_rungen.client.redaction import without_secrets

# How long the service keeps outputs.
LIFETIME = timedelta(days=7)
# Bytes of a file's name at most, without its number; many file systems take 255.
LONGEST_NAME = 120
LONGEST_SUFFIX = 16
# Characters of a URL at most; what is longer is text. Hosts refuse URLs of half that length.
LONGEST_URL = 16 * 1024
# Characters of the place of a URL in a result.
LONGEST_PLACE = 300
# Levels of nesting that are kept; what is below is kept as JSON text, so that every parser can read it.
DEEPEST = 200
# Characters of a name that are looked at, from its beginning and from its end.
_NAME_PART = 500
# With a host of some length: libraries normalize it, which takes quadratic time.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?=\S)[^\s/?#]{0,1000}(?:[/?#]\S*)?")
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


def outputs_of(result: Any, limit: int | None = None) -> list[Output]:
    """
    Find every text in a result that is a URL as a whole; the same in several places is one output.

    :param limit: how many outputs to find at most.
    """
    first: dict[str, str] = {}
    for at, url in urls_of(result):
        if len(first) == limit and url not in first:
            break
        first.setdefault(url, at)
    return [Output(at, url, f"{number}-{safe_name(url)}") for number, (url, at) in enumerate(first.items())]


def urls_of(result: Any) -> Iterator[tuple[str, str]]:
    """Give every URL, the same in several places, too, with its place."""
    # a stack of its own: a result may be nested deeper than Python recurses
    stack = [iter([("result", result)] if _is_of_interest(result) else [])]
    while stack:
        for at, value in stack[-1]:
            if isinstance(value, str):
                yield clean_text(at, LONGEST_PLACE), value
            else:
                stack.append(_below(at, value))
                break
        else:
            stack.pop()


def _below(at: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Return what may hold a URL, or is one, one level below a value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _is_of_interest(item):
                # one that grew with each level would take quadratic time
                yield at if len(at) > LONGEST_PLACE else f"{at}.{_step(str(key))}", item
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if _is_of_interest(item):
                yield at if len(at) > LONGEST_PLACE else f"{at}[{index}]", item


def _step(key: str) -> str:
    return without_secrets(key) if len(key) <= LONGEST_PLACE else clean_text(key, LONGEST_PLACE)


def _is_of_interest(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_URL and _URL.fullmatch(value) is not None
    return isinstance(value, Mapping | list)


def safe_name(url: str) -> str:
    """Give the name of the file that a URL is of, as one that every file system takes for a name."""
    try:
        path = unquote(urlsplit(url[:LONGEST_URL]).path)
    except ValueError:
        path = ""
    name = re.split(r"[/\\]", path)[-1]
    if len(name) > 2 * _NAME_PART:
        # cut first: normalizing takes quadratic time on many Pythons
        name = name[:_NAME_PART] + name[-_NAME_PART:]
    name = unicodedata.normalize("NFC", name)
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
    Return a copy of a result that can be kept: valid JSON of some depth, in which no URL has a secret.

    :param stored: what is to stand in place of a URL.
    """
    return _mapped(result, lambda text: stored.get(text) or without_secrets(text))


def kept(value: Any) -> Any:
    """Return a copy of a value that can be kept: valid JSON of some depth, in which no URL has a secret."""
    return _mapped(value, without_secrets)


def _mapped(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if not isinstance(value, Mapping | list):
        return value
    if depth == DEEPEST:
        return without_secrets(_json_text(value))
    if isinstance(value, list):
        return [_mapped(item, change, depth + 1) for item in value]
    return {without_secrets(str(key)): _mapped(item, change, depth + 1) for key, item in value.items()}


class _Token(str):
    """JSON text, as it stands between values."""

    __slots__ = ()


def _json_text(value: Any) -> str:
    """Return the JSON text of a value that may be nested deeper than the standard library recurses."""
    parts: list[str] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            pairs = [[_Token(f", {json.dumps(str(key))}: "), each] for key, each in item.items()]
            if pairs:
                pairs[0][0] = _Token(pairs[0][0][2:])
            stack += reversed([_Token("{"), *(token for pair in pairs for token in pair), _Token("}")])
        elif isinstance(item, list):
            tokens = [token for each in item for token in (_Token(", "), each)]
            stack += reversed([_Token("["), *tokens[1:], _Token("]")])
        else:
            parts.append(item if isinstance(item, _Token) else json.dumps(item))
    return "".join(parts)


def expiry_times(url: str, created_at: datetime | None) -> list[datetime]:
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
