"""Decode compressed bodies, and reduce large JSON, in short steps and bounded memory. No I/O."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator

CHUNK = 64 * 1024
# What lean readers of an answer do not need: the bulk of it.
DROPPED = frozenset(("result", "request", "input", "workflow"))
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_PLAIN = ("", "identity")
# A step of the reduction looks at so many bytes.
_STEP = 16 * 1024
_KEY = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# values as most of them are: short, and not nested
_SHORT = re.compile(rb'(?:"[^"\\]{0,1000}+"|[^\s"\[\]{},:]{1,100}+|\[[^"\[\]{}]{0,1000}+\])(?=[\s,}\]])')
_SCALAR = re.compile(rb'[^ \t\r\n"\[\]{},:]*+')
_SPACE = re.compile(rb"[ \t\r\n]*+")
_GAP = re.compile(rb"[ \t\r\n,]*+")
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_RUNS = re.compile(rb"\[+|\]+")
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))


class UnknownEncodingError(ValueError):
    """The body is encoded in a way that was not asked for."""


class TooLongError(ValueError):
    """More of a body would have to be kept than is allowed."""


class Decoder:
    """
    Undo a ``Content-Encoding``, with bounded output for each step.

    :param encoding: the header; gzip and deflate are known, and names in ``ignored`` mean nothing.
    :raises UnknownEncodingError: it is another one.
    """

    def __init__(self, encoding: str, *, ignored: tuple[str, ...] = (), step: int = CHUNK) -> None:
        names = (name.strip() for name in encoding.lower().split(","))
        self.encoding = ", ".join(name for name in names if name not in _PLAIN and name not in ignored)
        if self.encoding not in ("", "gzip", "x-gzip", "deflate"):
            raise UnknownEncodingError(self.encoding)
        self._step = step
        self._unzip: zlib._Decompress | None = None
        self._held = b""
        self._has_garbage = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        Yield the decoded bytes, at most ``step`` of them at a time, possibly none.

        :raises zlib.error: the data is not what its encoding says.
        """
        if not self.encoding:
            for start in range(0, len(data), self._step):
                yield data[start : start + self._step]
            return
        rest = self._held + data
        self._held = b""
        while rest and not self._has_garbage:
            if self._unzip is None:
                self._unzip = zlib.decompressobj(self._window(rest))
            elif self._unzip.eof:
                if len(rest) == 1 and rest == b"\x1f":  # half of what begins another member
                    self._held = rest
                    return
                if not rest.startswith(b"\x1f\x8b"):  # padding, which gzip ignores, too
                    self._has_garbage = True
                    return
                self._unzip = zlib.decompressobj(_GZIP_OR_ZLIB)
            yield self._unzip.decompress(rest, self._step)
            rest = self._unzip.unused_data or self._unzip.unconsumed_tail

    def finish(self) -> bytes:
        """
        Return what is left at the end of the body.

        :raises EOFError: the compressed end is missing.
        """
        if self._unzip is None:
            return b""
        rest = self._unzip.flush()
        if not self._unzip.eof:
            raise EOFError("the compressed end is missing")
        return rest

    def _window(self, data: bytes) -> int:
        # some servers send deflate without the wrapping of zlib
        is_raw = self.encoding == "deflate" and data[0] & 0x0F != 8 and not data.startswith(b"\x1f")
        return -zlib.MAX_WBITS if is_raw else _GZIP_OR_ZLIB


class _Nesting:
    """Where a scan of one value stands: its depth, whether in a string, whether right after a backslash."""

    __slots__ = ("depth", "in_string", "is_escaped")

    def __init__(self, depth: int = 0, *, in_string: bool = False, is_escaped: bool = False) -> None:
        self.depth = depth
        self.in_string = in_string
        self.is_escaped = is_escaped

    def copy(self) -> _Nesting:
        return _Nesting(self.depth, in_string=self.in_string, is_escaped=self.is_escaped)

    def skip(self, data: bytes) -> int | None:
        """Move on through ``data``; return where in it the value ends, or ``None`` where it does not."""
        start, stop = 0, 128  # most values are short
        before = self.copy()
        while not self._pass(data[start:stop]):
            if stop >= len(data):
                return None
            before = self.copy()
            start, stop = stop, stop * 16
        stop = min(stop, len(data))
        while stop - start > 1:  # the end is in this part: halve it
            middle = (start + stop) // 2
            half = before.copy()
            if half._pass(data[start:middle]):
                stop = middle
            else:
                start, before = middle, half
        return stop

    def _pass(self, data: bytes) -> bool:
        """Move on through ``data`` as a whole; tell whether the value ends somewhere in it."""
        data = self._without_escapes(data)
        # all that is left are brackets and quotes
        data = data.translate(_BRACKETS, _NO_STRUCTURE)
        if self.depth == 0:  # a string that is the value itself
            return b'"' in data
        # where two quotes meet, either nothing is between them or nothing is between two strings
        parts = data.replace(b'""', b"").split(b'"')
        outside = b"".join(parts[self.in_string :: 2])
        self.in_string ^= len(parts) % 2 == 0
        before = len(outside) + 1
        while outside and len(outside) < before:
            before = 3 * len(outside) // 4  # as long as it is worth it
            outside = outside.replace(b"[]", b"")
        return self._count(outside)

    def _without_escapes(self, data: bytes) -> bytes:
        if self.is_escaped and data:
            data, self.is_escaped = data[1:], False
        if b"\\" in data:
            data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
            self.is_escaped = data.endswith(b"\\")
        return data

    def _count(self, brackets: bytes) -> bool:
        closing = brackets.count(b"]")
        if closing < self.depth:
            self.depth += len(brackets) - 2 * closing
            return False
        for run in _RUNS.finditer(brackets):
            length = run.end() - run.start()
            self.depth += length if run[0][:1] == b"[" else -length
            if self.depth <= 0:
                return True
        return False


class LeanFilter:
    """
    Replace the bulky values of a large JSON object, and of the object under ``data`` in it, by ``null``.

    All else is kept byte for byte, so that what is no JSON stays none.

    :param most: how many bytes may be kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._out = bytearray()
        self._rest = b""
        self._levels: list[str] = []
        self._key = ""
        self._nesting: _Nesting | None = None
        self._is_kept = True
        self._next: Callable[[], bool] = self._begin

    def feed(self, data: bytes) -> Iterator[None]:
        """
        Take more of the body, in steps.

        :raises TooLongError: too much of it would have to be kept.
        """
        for start in range(0, len(data), _STEP):
            if start:
                yield
            self._rest += data[start : start + _STEP]
            while self._rest and self._next():
                pass
            if len(self._out) + len(self._rest) > self._most:
                raise TooLongError

    def finish(self) -> bytes:
        """Return the reduced text."""
        return bytes(self._out) + self._rest

    # --- states: each tells whether it can go on with what there is of the body ---

    def _begin(self) -> bool:
        end = _end(_BEGIN, self._rest, 0)
        if end == len(self._rest) or self._rest in (b"\xef", b"\xef\xbb"):  # half a byte order mark
            return False
        self._take(end)
        if self._rest[:1] == b"{":
            self._enter("top")
        else:
            self._next = self._as_it_is
        return True

    def _as_it_is(self) -> bool:
        self._take(len(self._rest))
        return False

    def _member(self) -> bool:
        """Take members of an object while they are short; a longer value is a state of its own."""
        data, at, keep_from = self._rest, 0, 0
        while True:
            at = _end(_GAP, data, at)
            key = _KEY.match(data, at)
            if key is None:
                return self._no_key(at, keep_from)
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

    def _no_key(self, at: int, keep_from: int) -> bool:
        first = self._rest[at : at + 1]
        if first == b'"' or not first:
            return self._wait(at, keep_from)
        if first != b"}":
            return self._give_up(at, keep_from)
        self._out += self._rest[keep_from : at + 1]
        self._rest = self._rest[at + 1 :]
        self._levels.pop()
        self._next = self._member if self._levels else self._as_it_is
        return True

    def _wait(self, at: int, keep_from: int) -> bool:
        self._out += self._rest[keep_from:at]
        self._rest = self._rest[at:]
        return False

    def _give_up(self, at: int, keep_from: int) -> bool:
        self._wait(at, keep_from)
        self._next = self._as_it_is
        return True

    def _value(self) -> bool:
        first = self._rest[:1]
        if first in (b",", b"}", b"]", b":"):
            return self._give_up(0, 0)
        if first == b"{" and self._key == "data" and len(self._levels) == 1:
            self._enter("data")
            return True
        self._is_kept = self._key not in DROPPED
        if not self._is_kept:
            self._out += b"null"
        self._nesting = None
        if first in (b"{", b"["):
            self._nesting = _Nesting(1)
        elif first == b'"':
            self._nesting = _Nesting(0, in_string=True)
        self._next = self._scalar if self._nesting is None else self._nested
        if self._nesting is not None:
            self._pass_over(1)
        return True

    def _nested(self) -> bool:
        assert self._nesting is not None  # noqa: S101 - for the type checker
        end = self._nesting.skip(self._rest)
        self._pass_over(len(self._rest) if end is None else end)
        if end is not None:
            self._next = self._member
        return end is not None

    def _scalar(self) -> bool:
        end = _end(_SCALAR, self._rest, 0)
        is_over = end < len(self._rest)
        self._pass_over(end)
        if is_over:
            self._next = self._member
        return is_over

    def _enter(self, level: str) -> None:
        self._take(1)
        self._levels.append(level)
        self._next = self._member

    def _take(self, count: int) -> None:
        self._out += self._rest[:count]
        self._rest = self._rest[count:]

    def _pass_over(self, count: int) -> None:
        if self._is_kept:
            self._out += self._rest[:count]
        self._rest = self._rest[count:]


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    match = pattern.match(data, at)
    return at if match is None else match.end()


def _text(key: bytes) -> str:
    if b"\\" not in key:
        return key[1:-1].decode("utf-8", "replace")
    try:
        return str(json.loads(key))
    except ValueError:
        return ""
