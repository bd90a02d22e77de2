"""Download outputs as streams, from hosts that are not trusted.

An output host gets no key and no cookie. It must not lead into a private network, nor send more than is
allowed. Import this module where it is used: it imports aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from airflow_provider_rungen import __version__
from airflow_provider_rungen.client.address_policy import is_local_name, is_loopback, literal, may_be_reached
from airflow_provider_rungen.client.answers import describe_cause, retry_after
from airflow_provider_rungen.client.bodies import Decoder, UnknownEncodingError
from airflow_provider_rungen.client.flow import Response
from airflow_provider_rungen.client.outages import is_of_one_file
from airflow_provider_rungen.client.output_urls import (
    MAX_CONTENT_TYPE_CHARS,
    content_type_of,
    is_data_url,
    mismatch,
)
from airflow_provider_rungen.client.senders import resolver
from airflow_provider_rungen.client.settings import Settings, environment_ca, tls_context
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConnectionError,
    RunGenInputError,
    RunGenOutputError,
    RunGenResponseError,
)

MAX_REDIRECTS = 5
# A slower download is given up, once the read timeout has passed.
MIN_BYTES_PER_SECOND = 1024
# Seconds to resolve a name that a proxy resolves as well.
LOOKUP_TIMEOUT = 3.0
_CHUNK_BYTES = 256 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
# How a storage says that a URL has expired: by its code, or by its message.
_EXPIRED = re.compile(rb"<Code>Expired\w*</Code>|<Message>[^<]*\bexpired\b")
# The encoding of an upload, which some stores still name after they have removed it.
_REMOVED_ENCODINGS = ("aws-chunked",)
_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"airflow-provider-rungen/{__version__}",
}


class RejectedUrlError(RunGenInputError):
    """A URL must not be requested."""


class RefusedError(RunGenResponseError):
    """The host of an output, or a proxy before it, answers with something other than the file."""

    default_hint = ""
    #: Whether it says that the URL has expired.
    is_expired = False


@dataclass(frozen=True, slots=True)
class Download:
    """What was downloaded: its size in bytes, hexadecimal digest, and type according to the host."""

    size: int
    sha256: str
    content_type: str | None


class Downloader:
    """
    Download files on separate connections. Create, use and close it in one event loop.

    :param settings: how the service is reached; its key is not sent.
    :param max_bytes: the bytes that a file may have.
    :param at_once: how many connections may be open.
    """

    def __init__(self, settings: Settings, *, max_bytes: int, at_once: int) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._service_addresses: list[str] = []
        tls = _tls(settings.verify)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )

        def session(names: aiohttp.abc.AbstractResolver | None) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=at_once, ssl=tls, resolver=names),
                timeout=timeout,
                auto_decompress=False,
            )

        # the proxy itself may be in a private network
        self._direct, self._proxied = session(resolver(self.check)), session(None)

    async def fetch(self, url: str, file: BinaryIO) -> Download:
        """
        Download a file into another one, whose contents it replaces. A data URL is decoded.

        :raises RunGenConnectionError: the file did not arrive, or not all of it.
        :raises RunGenAPIError: its host has a problem that may pass: 408, 429, 5xx.
        :raises RefusedError: its host answers with something else.
        :raises RejectedUrlError: it must not be downloaded from there.
        :raises RunGenOutputError: it is too large, or cannot be written.
        """
        if is_data_url(url):
            content = url.partition(",")[2]
            self._check_size(len(content) // 4 * 3 - content.count("=", -2))
            return await self._save(_decoded_data(content), file, content_type_of(url))
        source: URL | None = None
        location = url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                target = parse_url(location, source)
                outcome = await self._request(target, file)
            except RejectedUrlError as error:
                if source is None:
                    raise
                raise RefusedError(f"{host_of(source)} redirected it, but {error.message}") from None
            except (aiohttp.ClientError, OSError, ValueError, EOFError, zlib.error) as error:
                reason = describe_cause(error)
            else:
                if isinstance(outcome, Download):
                    if other := mismatch(url, outcome.size, outcome.content_type):
                        raise RefusedError(f"{host_of(target)} sent {other}")
                    return outcome
                source, location = target, outcome
                continue
            # raised here, so that the library's error, which holds the URL, is not its context
            raise RunGenConnectionError(
                f"the download from {host_of(target)} failed ({reason})",
                hint="Check that the worker can reach that host, or try again later",
            )
        raise RefusedError(f"it is redirected more than {MAX_REDIRECTS} times")

    async def _request(self, target: URL, file: BinaryIO) -> Download | str:
        """Download a file, or return the location that it is redirected to."""
        settings = self._settings
        proxy = settings.proxy_for(str(target.with_query(None)))
        async with asyncio.timeout(settings.connect_timeout + settings.read_timeout):
            await self._check_host(target.raw_host or "", is_proxied=proxy is not None)
            session = self._direct if proxy is None else self._proxied
            answer = await session.get(target, headers=_HEADERS, allow_redirects=False, proxy=proxy)
        async with answer:
            if answer.status in _REDIRECTS and (location := answer.headers.get("Location")):
                return location
            if answer.status != 200:
                raise await _error_of(target, answer)
            self._check_size(answer.content_length or 0)
            content_type = clean_text(answer.headers.get("Content-Type", ""), MAX_CONTENT_TYPE_CHARS)
            return await self._save(_decoded_chunks(answer), file, content_type or None)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise RunGenOutputError(f"the file has over {self._max_bytes:,} bytes", retryable=False)

    async def _save(self, chunks: AsyncIterator[bytes], file: BinaryIO, content_type: str | None) -> Download:
        size, digest, begun_at = 0, hashlib.sha256(), time.monotonic()
        with _disk_errors():
            file.seek(0)
            file.truncate()
        async for chunk in chunks:
            size += len(chunk)
            self._check_size(size)
            if time.monotonic() - begun_at > self._settings.read_timeout + size / MIN_BYTES_PER_SECOND:
                raise TimeoutError(f"less than {MIN_BYTES_PER_SECOND} bytes a second")
            digest.update(chunk)
            with _disk_errors():
                file.write(chunk)
        return Download(size, digest.hexdigest(), content_type)

    async def _check_host(self, host: str, *, is_proxied: bool) -> None:
        """Check a host that is an address, or resolved by a proxy. The resolver checks all other names."""
        address = "127.0.0.1" if is_local_name(host) else literal(host)
        addresses = [] if address is None else [address]
        if address is None and is_proxied:
            # a name that only the proxy can resolve is left to it
            with contextlib.suppress(OSError, UnicodeError):
                async with asyncio.timeout(LOOKUP_TIMEOUT):
                    addresses = await _resolve(host)
        for each in addresses:
            await self.check(host, each)

    async def check(self, host: str, address: str) -> None:
        """
        Check an address before it is connected to.

        :raises RejectedUrlError: it is in a private network that the service is not part of.
        """
        if may_be_reached(address, ()):
            return
        if not self._service_addresses:
            with contextlib.suppress(OSError, UnicodeError):
                self._service_addresses = await _resolve(urlsplit(self._settings.base_url).hostname or "")
        if not may_be_reached(address, self._service_addresses):
            raise RejectedUrlError(
                f"its host {clean_text(host, 100)} is in a private network that the service is not part of"
            )

    async def close(self) -> None:
        await self._direct.close()
        await self._proxied.close()


async def _decoded_chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the body in small decoded chunks. aiohttp's own decoding does not notice a missing end."""
    try:
        decoder = Decoder(
            answer.headers.get("Content-Encoding", ""), ignored=_REMOVED_ENCODINGS, step=_CHUNK_BYTES
        )
    except UnknownEncodingError as error:
        raise RefusedError(
            f"it has the encoding {clean_text(str(error), 20)}, which was not requested"
        ) from None
    async for data in answer.content.iter_chunked(_CHUNK_BYTES):
        for chunk in decoder.feed(data):
            yield chunk
            # data may decode to a thousand times its size: other tasks, and a kill, get their turn
            await asyncio.sleep(0)
    yield decoder.finish()


async def _decoded_data(text: str) -> AsyncIterator[bytes]:
    for start in range(0, len(text), _CHUNK_BYTES):
        yield base64.b64decode(text[start : start + _CHUNK_BYTES])
        await asyncio.sleep(0)


async def _resolve(host: str) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


async def _error_of(target: URL, answer: aiohttp.ClientResponse) -> RunGenAPIError | RefusedError:
    """Return the error of an answer without a file. It shows only the code, since the text may be signed."""
    body = await answer.content.read(4096)
    found = re.search(rb"<Code>(\w{1,60})</Code>", body)
    code = found[1].decode() if found else ""
    message = f"{host_of(target)} answered {answer.status} {code}".rstrip()
    if answer.status in (408, 429) or answer.status >= 500:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        wait = retry_after(Response(answer.status, headers, b""), time.time())
        return RunGenAPIError(message, status_code=answer.status, retry_after=wait)
    error = RefusedError(message)
    error.is_expired = answer.status >= 400 and _EXPIRED.search(body) is not None
    return error


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Report an error of the disk as one, and not as a failed download."""
    try:
        yield
    except OSError as error:
        failure = RunGenOutputError(f"it cannot be written to disk ({error.strerror})")
        failure.is_outage = not is_of_one_file(error)
        raise failure from None


def _tls(verify: bool | str) -> ssl.SSLContext | bool:
    """Trust the connection's CA bundle and the usual CAs: outputs may be elsewhere than the service."""
    if isinstance(verify, str):
        return tls_context(verify, with_default_cas=True)
    path = environment_ca() if verify else None
    return tls_context(path) if path else verify


def parse_url(text: str, source: URL | None) -> URL:
    """
    Return a URL that may be downloaded, as far as the URL alone shows it.

    :param text: the URL, or the ``Location`` header of a redirect.
    :param source: the URL that was redirected there, if any.
    :raises RejectedUrlError: it is invalid, not http or https, names no host, or must not be redirected to.
    """
    try:
        target = URL(text, encoded=True)
        if source is not None:
            target = source.join(target)
        _ = target.port
    except ValueError:
        raise RejectedUrlError("its URL cannot be parsed") from None
    if target.scheme not in ("http", "https"):
        raise RejectedUrlError(f"its URL is {clean_text(target.scheme, 20)}, not http or https")
    host = target.raw_host or ""
    # libraries disagree about hosts that look like an address and are not
    is_ambiguous = literal(host) is None and (":" in host or host.replace(".", "").isdigit())
    if not host or not host.isascii() or is_ambiguous:
        raise RejectedUrlError("its URL has no valid host")
    if source is not None and target.scheme != "https" and not is_loopback(host):
        raise RejectedUrlError(f"{host_of(target)} is reached over plain http, which is not followed")
    return target


def host_of(target: URL) -> str:
    """Return the host of a URL, for a message."""
    return clean_text(target.raw_host or "", 100)
