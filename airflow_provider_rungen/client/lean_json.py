"""Large JSON, reduced while it arrives: bulky values become ``null``, in short steps. No I/O.

A parser such as ``msgspec`` is faster, but needs the whole answer in memory, and many polls are in flight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

#: The fields that a lean answer does without.
DROPPED = frozenset(("result", "request", "input", "workflow"))
# Bytes that one step reduces.
_STEP = 16 * 1024
# Bytes of a value that are skipped at once: few at first, since most values are short.
_FIRST_BLOCK, _BLOCK = 128, 4096
_KEY = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# most values are short, and not nested
_SHORT = re.compile(rb'(?:"[^"\\]{0,1000}+"|[^\s"\[\]{},:]{1,100}+|\[[^"\[\]{}]{0,1000}+\])(?=[\s,}\]])')
_SCALAR = re.compile(rb'[^ \t\r\n"\[\]{},:]*+')
_SPACE = re.compile(rb"[ \t\r\n]*+")
_GAP = re.compile(rb"[ \t\r\n,]*+")
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_TOKEN = re.compile(rb'[\[\]{}"]|\\["\\]?')
_RUN = re.compile(rb"\[+|\]+")
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURAL = bytes(set(range(256)) - set(b'[]{}"'))


class TooLongError(ValueError):
    """More of a body would have to be kept than is allowed."""


class _ValueScanner:
    """
    Finds the end of an array, an object or a string that arrives in pieces.

    :param first: its first byte.
    """

    def __init__(self, first: bytes) -> None:
        self._to_pass = len(first)
        self._depth = int(first != b'"')
        self._in_string = first == b'"'
        self._is_escaped = False  # the last byte was a backslash

    def end_in(self, data: bytes) -> int | None:
        """Return where in ``data`` the value ends, or ``None`` if it continues after it."""
        start, size = self._to_pass, _FIRST_BLOCK
        self._to_pass = 0
        while block := data[start : start + size]:
            if not self._skip(block) and (end := self._walk(block)) is not None:
                return start + end
            start, size = start + size, _BLOCK
        return None

    def _skip(self, block: bytes) -> bool:
        """Move past a block at once; return ``False`` and do nothing if the value may end in it."""
        rest = block[1:] if self._is_escaped else block
        if has_escapes := b"\\" in rest:
            rest = rest.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = rest.translate(_BRACKETS, _NOT_STRUCTURAL).split(b'"')
        if not self._depth and len(parts) > 1:  # the value is a string, which ends here
            return False
        brackets = b"".join(parts[self._in_string :: 2])  # those outside of strings
        depth = self._depth
        for run in _RUN.finditer(brackets.replace(b"[]", b"").replace(b"[]", b"")):
            depth += len(run[0]) if run[0][:1] == b"[" else -len(run[0])
            if depth <= 0:
                return False
        self._depth = depth
        self._in_string ^= len(parts) % 2 == 0
        self._is_escaped = has_escapes and rest.endswith(b"\\")
        return True

    def _walk(self, block: bytes) -> int | None:
        """Move through a block token by token; return where in it the value ends, if it does."""
        for token in _TOKEN.finditer(block, int(self._is_escaped)):
            char = token[0]
            if char == b'"':
                self._in_string = not self._in_string
            elif self._in_string or char.startswith(b"\\"):
                continue
            else:
                self._depth += 1 if char in b"[{" else -1
            if not self._depth and not self._in_string:
                return token.end()
        tail = block[int(self._is_escaped) :]
        self._is_escaped = (len(tail) - len(tail.rstrip(b"\\"))) % 2 == 1
        return None


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
        self._level = 0  # 1 inside the object, 2 inside its field data
        self._key = ""
        self._is_kept = True
        self._end_of_value: Callable[[bytes], int | None] = _end_of_scalar
        self._next: Callable[[], bool] = self._begin

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
            while self._rest and self._next():
                pass
            if len(self._out) + len(self._rest) > self._max_kept:
                raise TooLongError

    def finish(self) -> bytes:
        """Return the reduced body."""
        return bytes(self._out) + self._rest

    # --- states: each returns whether to continue with what has arrived ---

    def _begin(self) -> bool:
        end = _end(_BEGIN, self._rest, 0)
        if end == len(self._rest) or self._rest in (b"\xef", b"\xef\xbb"):  # half a byte order mark
            return False
        self._keep(end)
        if self._rest[:1] == b"{":
            self._enter()
        else:
            self._next = self._keep_everything
        return True

    def _keep_everything(self) -> bool:
        self._keep(len(self._rest))
        return False

    def _members(self) -> bool:
        """Read members of an object while their values are short; a longer value is a state of its own."""
        data, at, keep_from = self._rest, 0, 0
        while True:
            at = _end(_GAP, data, at)
            key = _KEY.match(data, at)
            if key is None:
                return self._without_key(at, keep_from)
            value_at = _end(_SPACE, data, key.end())
            if value_at == len(data):
                return self._wait(at, keep_from)
            if data[value_at : value_at + 1] != b":":
                return self._give_up(value_at, keep_from)
            value_at = _end(_SPACE, data, value_at + 1)
            if value_at == len(data):
                return self._wait(at, keep_from)
            self._key = _text(key[0])
            value = _SHORT.match(data, value_at)
            if value is None:
                self._out += data[keep_from:value_at]
                self._rest = data[value_at:]
                self._next = self._value
                return True
            if self._key in DROPPED:
                self._out += data[keep_from:value_at] + b"null"
                keep_from = value.end()
            at = value.end()

    def _without_key(self, at: int, keep_from: int) -> bool:
        first = self._rest[at : at + 1]
        if first == b'"' or not first:
            return self._wait(at, keep_from)
        if first != b"}":
            return self._give_up(at, keep_from)
        self._wait(at + 1, keep_from)
        self._level -= 1
        self._next = self._members if self._level else self._keep_everything
        return True

    def _wait(self, at: int, keep_from: int) -> bool:
        self._out += self._rest[keep_from:at]
        self._rest = self._rest[at:]
        return False

    def _give_up(self, at: int, keep_from: int) -> bool:
        self._wait(at, keep_from)
        self._next = self._keep_everything
        return True

    def _value(self) -> bool:
        first = self._rest[:1]
        if first in (b",", b"}", b"]", b":"):
            return self._give_up(0, 0)
        if first == b"{" and self._key == "data" and self._level == 1:
            self._enter()
            return True
        self._is_kept = self._key not in DROPPED
        if not self._is_kept:
            self._out += b"null"
        self._end_of_value = _ValueScanner(first).end_in if first in (b"{", b"[", b'"') else _end_of_scalar
        self._next = self._rest_of_value
        return True

    def _rest_of_value(self) -> bool:
        found = self._end_of_value(self._rest)
        end = len(self._rest) if found is None else found
        if self._is_kept:
            self._out += self._rest[:end]
        self._rest = self._rest[end:]
        if found is None:
            return False
        self._next = self._members
        return True

    def _enter(self) -> None:
        self._keep(1)
        self._level += 1
        self._next = self._members

    def _keep(self, count: int) -> None:
        self._wait(count, 0)


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    match = pattern.match(data, at)
    return at if match is None else match.end()


def _end_of_scalar(data: bytes) -> int | None:
    end = _end(_SCALAR, data, 0)
    return end if end < len(data) else None


def _text(key: bytes) -> str:
    if b"\\" not in key:
        return key[1:-1].decode("utf-8", "replace")
    try:
        return str(json.loads(key))
    except ValueError:
        return ""
