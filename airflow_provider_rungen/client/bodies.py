"""The body of an answer: decompressed, bounded and, where it may be, reduced while it arrives. No I/O."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator

from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenResponseError

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


class LeanFilter:
    """
    Replaces the bulky fields of a JSON object, and of the object in its field ``data``, by ``null``.

    Everything else is kept byte for byte, so that what is not JSON stays invalid.

    :param max_kept: how many bytes may be kept.
    :param request: what the body answers.
    """

    def __init__(self, max_kept: int, request: Request) -> None:
        self._max_kept = max_kept
        self._request = request
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
        :raises RunGenResponseError: too much of it would have to be kept.
        """
        for start in range(0, len(data), _STEP):
            if start:
                yield
            self._rest += data[start : start + _STEP]
            self._read()
            if len(self._out) + len(self._rest) > self._max_kept:
                message = self._request.failure(
                    f"the answer has over {self._max_kept} bytes beside its result"
                )
                raise RunGenResponseError(message, hint="", retryable=False)

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


CHUNK = 64 * 1024
# A body up to this size is never reduced.
SMALL = 64 * 1024
# How many bytes of a reduced body, or of the body of a refusal, are kept at most.
MAX_KEPT = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS


class UnknownEncodingError(ValueError):
    """The ``Content-Encoding`` of a body is not one that was asked for."""


class Decoder:
    """
    Decompresses a body, with bounded output for each step.

    :param encoding: its ``Content-Encoding``: gzip or none.
    :param ignored: names in the header that mean nothing.
    :param step: how many bytes one step yields at most.
    :raises UnknownEncodingError: it is another encoding.
    """

    def __init__(self, encoding: str, *, ignored: tuple[str, ...] = (), step: int = CHUNK) -> None:
        names = (name.strip() for name in encoding.lower().split(","))
        self.encoding = ", ".join(name for name in names if name not in ("", "identity", *ignored))
        if self.encoding not in ("", "gzip", "x-gzip"):
            raise UnknownEncodingError(self.encoding)
        self._step = step
        self._unzip: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        Yield the decompressed bytes in pieces, which may be empty.

        :param data: more of the body.
        :raises zlib.error: the data does not match the encoding.
        """
        if not self.encoding:
            for start in range(0, len(data), self._step):
                yield data[start : start + self._step]
            return
        while data:
            if self._unzip is None or self._unzip.eof:
                if self._unzip is not None and not data.startswith(b"\x1f"):
                    return  # no other gzip member, but padding, which gzip ignores, too
                self._unzip = zlib.decompressobj(_GZIP)
            yield self._unzip.decompress(data, self._step)
            data = self._unzip.unused_data or self._unzip.unconsumed_tail

    def finish(self) -> bytes:
        """
        Return the last decompressed bytes.

        :raises EOFError: the end of the body is missing.
        """
        if self._unzip is None:
            return b""
        rest = self._unzip.flush()
        if not self._unzip.eof:
            raise EOFError("the compressed end is missing")
        return rest


class ResponseBody:
    """
    Collects the body of an answer as it arrives.

    :param request: what it answers.
    :param check_size: raises an error for a size that is too large.
    :param status: the status of the answer.
    :param encoding: its ``Content-Encoding``.
    :raises RunGenResponseError: it has an encoding that was not asked for.
    """

    def __init__(
        self, request: Request, check_size: Callable[[int, Request], None], status: int, encoding: str
    ) -> None:
        self._request = request
        self._check_size = check_size
        self._is_refusal = not 200 <= status < 300
        self._chunks: list[bytes] = []
        self._size = 0
        self._filter: LeanFilter | None = None
        #: Whether no more of the body is needed.
        self.is_enough = False
        try:
            self._decoder = Decoder(encoding)
        except UnknownEncodingError as error:
            if not self._is_refusal:
                reason = f"the answer is encoded as {clean_text(str(error), 50)}, which was not asked for"
                raise RunGenResponseError(request.failure(reason)) from None
            self._decoder = Decoder("")
            self.is_enough = True  # the status is

    def feed(self, data: bytes) -> Iterator[None]:
        """
        Add more of the body, in steps.

        :param data: more of the body.
        :raises RunGenResponseError: it is too large.
        :raises zlib.error: the data does not match the encoding.
        """
        for number, piece in enumerate(self._decoder.feed(data)):
            if number:
                yield
            yield from self._add(piece)
            if self.is_enough:
                return

    def finish(self) -> list[bytes]:
        """
        Return the body, in pieces.

        :raises EOFError: the compressed end is missing.
        """
        if self.is_enough:
            return self._chunks
        for _ in self._add(self._decoder.finish()):
            pass
        return self._chunks if self._filter is None else [self._filter.finish()]

    def _add(self, piece: bytes) -> Iterator[None]:
        self._size += len(piece)
        self._check_size(self._size, self._request)
        if self._is_refusal:
            self._chunks.append(piece[: max(0, MAX_KEPT - self._size + len(piece))])
            self.is_enough = self._size >= MAX_KEPT
        elif self._request.is_lean and self._size > SMALL:
            if self._filter is None:
                self._filter = LeanFilter(MAX_KEPT, self._request)
                piece = b"".join([*self._chunks, piece])
                self._chunks.clear()
            yield from self._filter.feed(piece)
        else:
            self._chunks.append(piece)
