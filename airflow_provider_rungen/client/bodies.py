"""The body of an answer: decompressed, bounded and, where it may be, reduced while it arrives. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.client.lean_json import LeanFilter, TooLongError
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenResponseError

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
            self._decoder = Decoder("")
            self.is_enough = True  # the status of a refusal is enough
            if not self._is_refusal:
                raise RunGenResponseError(
                    request.failure(
                        f"the answer is encoded as {clean_text(str(error), 50)}, which was not asked for"
                    )
                ) from None

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
                self._filter = LeanFilter(MAX_KEPT)
                piece = b"".join([*self._chunks, piece])
                self._chunks.clear()
            try:
                yield from self._filter.feed(piece)
            except TooLongError:
                message = self._request.failure(f"the answer has over {MAX_KEPT} bytes beside its result")
                raise RunGenResponseError(message, hint="", retryable=False) from None
        else:
            self._chunks.append(piece)
