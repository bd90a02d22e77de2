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
_PLAIN = rb'[^"\[\]{}]++|' + _STRING
_FLAT = rb"[\[{](?:" + _PLAIN + rb")*+[\]}]"  # faster than a step for each bracket
_UP_TO_BRACKET_OR_HALF_STRING = re.compile(rb"(?:" + _PLAIN + rb"|" + _FLAT + rb")*+", re.DOTALL)
_RUN = re.compile(rb'"|[\[{]++|[\]}]++')


class TooLongError(ValueError):
    """More of a body would have to be kept than is allowed."""


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
        self._dropped_depth = 0  # of the brackets that are open in a dropped value
        self._in_dropped_string = False

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
            if self._dropped_depth or self._in_dropped_string:
                end = self._skip(data, at)
                if end == at:
                    break
                at = keep_from = end
                continue
            token = _TOKEN.match(data, at)
            text = b'"' if token is None else token[0]  # half a string has only begun
            if self._key in DROPPED and text[0] not in b",:]} \t\r\n":
                if token is not None and token.end() == len(data) and text[0] not in b'"[{':
                    break  # a number or word that may go on
                self._out += data[keep_from:at] + b"null"
                self._dropped_depth = int(text in (b"[", b"{"))
                self._in_dropped_string = token is None
                at = keep_from = at + 1 if token is None else token.end()
                self._key = ""
            elif token is None:
                break
            else:
                self._note(text)
                at = token.end()
        self._out += data[keep_from:at]
        self._rest = data[at:]

    def _skip(self, data: bytes, at: int) -> int:
        """Return the end of a dropped value, or of as much of it as can be skipped: not half an escape."""
        while at < len(data):
            pattern = _REST_OF_STRING if self._in_dropped_string else _UP_TO_BRACKET_OR_HALF_STRING
            if found := pattern.match(data, at):
                at = found.end()
            run = _RUN.match(data, at)
            if run is None:
                break
            if run[0] == b'"':
                self._in_dropped_string = not self._in_dropped_string
                at += 1
            elif run[0][:1] in (b"[", b"{"):
                self._dropped_depth += len(run[0])
                at = run.end()
            else:
                closed = min(len(run[0]), self._dropped_depth)
                self._dropped_depth -= closed
                at += closed
            if not self._dropped_depth and not self._in_dropped_string:
                break
        return at

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
