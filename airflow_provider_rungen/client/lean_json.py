"""Large JSON, reduced while it arrives: bulky values become ``null``, in short steps. No I/O.

A parser such as ``msgspec`` is faster, but needs the whole answer in memory, and many polls are in flight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

#: The fields that a lean answer does without.
DROPPED = frozenset(("result", "request", "input", "workflow"))
# Bytes that one step reduces.
_STEP = 16 * 1024
_IN_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_STRING = rb'"' + _IN_STRING + rb'"'
_SCALAR = rb'[^ \t\r\n"\[\]{},:]++'
_TOKEN = re.compile(_STRING + rb"|[\[\]{},:]|[ \t\r\n]++|" + _SCALAR, re.DOTALL)
_REST_OF_STRING = re.compile(_IN_STRING, re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
_BRACKETS_AND_STRINGS = re.compile(rb"[\[\]{}]|" + _STRING, re.DOTALL)
_UP_TO_HALF_A_STRING = re.compile(rb'(?:[^"]++|' + _STRING + rb")*+", re.DOTALL)
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class TooLongError(ValueError):
    """More of a body would have to be kept than is allowed."""


class _DroppedValue:
    """
    Finds the end of an array, an object or a string that arrives in pieces.

    :param first: its first byte.
    """

    def __init__(self, first: bytes) -> None:
        self._depth = int(first != b'"')
        self._in_string = first == b'"'
        self._is_escaped = False  # the last byte was a backslash

    def end_in(self, data: bytes, at: int) -> int | None:
        """Return where in ``data``, from ``at`` on, the value ends, or ``None`` if it continues after it."""
        while at < len(data):
            at = self._pass_string(data, at) if self._in_string else self._pass_brackets(data, at)
            if not self._depth and not self._in_string:
                return at
        return None

    def _pass_string(self, data: bytes, at: int) -> int:
        found = _REST_OF_STRING.match(data, at + self._is_escaped)
        end = len(data) if found is None else found.end()
        self._is_escaped = data[end:] == b"\\"
        self._in_string = data[end : end + 1] != b'"'
        return end + 1

    def _pass_brackets(self, data: bytes, at: int) -> int:
        found = _UP_TO_HALF_A_STRING.match(data, at)
        end = at if found is None else found.end()
        brackets = _unpaired(_STRINGS.sub(b"", data[at:end]))
        closing = brackets.count(b"]")
        if closing < self._depth:
            self._depth += len(brackets) - 2 * closing
            self._in_string = end < len(data)
            return end + 1
        for token in _BRACKETS_AND_STRINGS.finditer(data, at, end):
            self._depth += (token[0] in b"[{") - (token[0] in b"]}")
            if not self._depth:
                return token.end()
        raise AssertionError("the value ends in this part")


def _unpaired(data: bytes) -> bytes:
    """Return the brackets of a text without strings, as square ones, and without pairs of them."""
    brackets = data.translate(_SQUARE, _NO_BRACKETS)
    for depth in (64, 1):
        pairs = b"[" * depth + b"]" * depth
        while pairs in brackets:
            brackets = brackets.replace(pairs, b"")
    return brackets


class LeanFilter:
    """
    Replaces the bulky fields of a JSON object, and of the object in its field ``data``, by ``null``.

    Everything else is kept byte for byte, so that what is not JSON stays invalid.

    :param max_kept: how many bytes may be kept.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._out = bytearray()
        self._rest = b""
        self._depth = 0  # of the brackets that are open
        self._level = 1  # the depth of the members that are looked at: 2 inside the field data
        self._last = b""  # the last token of a member
        self._key = ""  # the member whose value comes next
        self._dropped: _DroppedValue | None = None

    def feed(self, data: bytes) -> Iterator[None]:
        """
        Add more of the body, in steps.

        :param data: more of the body.
        :raises TooLongError: too much of it would have to be kept.
        """
        for start in range(0, len(data), _STEP):
            if start:
                yield
            self._rest += data[start : start + _STEP]
            self._read()
            if len(self._out) + len(self._rest) > self._max_kept:
                raise TooLongError

    def finish(self) -> bytes:
        """Return the reduced body."""
        return bytes(self._out) + self._rest

    def _read(self) -> None:
        data, keep_from, at = self._rest, 0, 0
        while at < len(data):
            if self._dropped is not None:
                end = self._dropped.end_in(data, at)
                at = keep_from = len(data) if end is None else end
                self._dropped = self._dropped if end is None else None
                continue
            token = _TOKEN.match(data, at)
            text = b'"' if token is None else token[0]  # half a string has only begun
            if self._key in DROPPED and text[0] not in b",:]} \t\r\n":
                if token is not None and token.end() == len(data) and text[0] not in b'"[{':
                    break  # a number or word that may go on
                self._out += data[keep_from:at] + b"null"
                if token is None or text in (b"[", b"{"):
                    self._dropped, at = _DroppedValue(text), at + 1
                else:
                    at = token.end()
                keep_from, self._key = at, ""
            elif token is None:
                break
            else:
                self._note(text)
                at = token.end()
        self._out += data[keep_from:at]
        self._rest = data[at:]

    def _note(self, token: bytes) -> None:
        """Note a token that is kept."""
        if token in (b"[", b"{"):
            self._depth += 1
            if token == b"{" and self._depth == 2 and self._key == "data":
                self._level = 2
            self._key = ""
        elif token in (b"]", b"}"):
            self._depth -= 1
            self._level = 1 if self._depth < 2 else self._level
        elif self._depth == self._level and not token.isspace():
            self._key = _name(self._last) if token == b":" else ""
            self._last = token


def _name(token: bytes) -> str:
    try:
        name = json.loads(token)
    except ValueError:
        return ""
    return name if isinstance(name, str) else ""
