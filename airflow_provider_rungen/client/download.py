"""Downloads outputs as streams: from other hosts than the service's, which are trusted with nothing.

They get no key and no cookie, may not lead into a private network, and may not send more than is wanted.
Imported where it is used, since it imports aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from airflow_provider_rungen import __version__
from airflow_provider_rungen.client.address_policy import is_local_name, literal, may_be_reached
from airflow_provider_rungen.client.bodies import Decoder, UnknownEncodingError
from airflow_provider_rungen.client.codec import retry_after
from airflow_provider_rungen.client.flow import Response
from airflow_provider_rungen.client.models import clean_text
from airflow_provider_rungen.client.senders import describe_cause, resolver
from airflow_provider_rungen.client.settings import Settings, environment_ca, tls_context
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConnectionError,
    RunGenOutputError,
    RunGenResponseError,
)
from airflow_provider_rungen.execution.archive.manifests import LONGEST_TYPE

MOST_REDIRECTS = 5
# Bytes a second below which a download is given up, however long it goes on; the read timeout is on top.
SLOWEST = 1024
# Seconds to look up a name that a proxy is going to look up, too.
LOOKUP_TIME = 3.0
_CHUNK = 256 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
# That of an upload: stores take it off, and some go on naming it.
_STALE = ("aws-chunked",)
_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"airflow-provider-rungen/{__version__}",
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: bytes, digest in hexadecimal, and what the host says it is."""

    size: int
    sha256: str
    content_type: str | None


class Budget:
    """
    The bytes that the outputs of a job may have together.

    :param most: how many; ``None`` for any number.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken = 0
        #: Whether there were not enough.
        self.is_spent = False

    def take(self, size: int) -> None:
        """
        Take bytes for good.

        :raises RunGenOutputError: there are not enough.
        """
        if self._most is not None and self._taken + size > self._most:
            self.is_spent = True
            raise refused(f"the outputs of the job have more than {self._most} bytes (max_total_bytes)")
        self._taken += size

    @contextlib.contextmanager
    def lease(self) -> Iterator[Callable[[int], None]]:
        """Return what takes as many bytes as a file has so far; they come back if its download fails."""
        held = 0

        def grow_to(size: int) -> None:
            nonlocal held
            if size > held:
                self.take(size - held)
                held = size

        try:
            yield grow_to
        except BaseException:
            self._taken -= held
            raise


class Downloader:
    """
    Downloads files on connections of its own; made and closed inside the event loop that uses it.

    :param settings: how the service is reached; its key is not sent.
    :param max_bytes: the size over which a file is refused.
    :param at_once: how many connections there are at most.
    """

    def __init__(self, settings: Settings, *, max_bytes: int, at_once: int) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._own: list[str] = []
        tls = _tls(settings.verify)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )

        def session(resolver: AbstractResolver | None) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=at_once, ssl=tls, resolver=resolver),
                timeout=timeout,
                auto_decompress=False,
            )

        # the proxy itself may well be in a private network
        self._direct, self._proxied = session(_CheckedResolver(self)), session(None)

    async def fetch(self, url: str, file: BinaryIO, budget: Budget | None = None) -> Fetched:
        """
        Download a file into another, whose contents it replaces.

        :param budget: where its bytes are taken from.
        :raises RunGenConnectionError: the file did not come, or not all of it.
        :raises RunGenAPIError: its host refuses it.
        :raises RunGenOutputError: it may not be fetched from there, or is too large.
        """
        target = _read_url(url)
        for _ in range(MOST_REDIRECTS + 1):
            try:
                outcome = await self._try(target, file, budget or Budget(None))
            except (aiohttp.ClientError, OSError, ValueError, EOFError, zlib.error) as error:
                failure = RunGenConnectionError(
                    f"the file did not come whole from {_host(target)} ({describe_cause(error)})"
                )
            else:
                if isinstance(outcome, Fetched):
                    return outcome
                target = outcome
                continue
            # raised out here, so that the library's error, which holds the URL, is not its context
            raise failure
        raise refused(f"it is redirected more than {MOST_REDIRECTS} times")

    async def _try(self, target: URL, file: BinaryIO, budget: Budget) -> Fetched | URL:
        """Download a file, or give the URL that it is redirected to."""
        settings = self._settings
        proxy = settings.proxy_for(str(target.with_query(None)))
        async with asyncio.timeout(settings.connect_timeout + settings.read_timeout):
            await self._check_host(target, is_proxied=proxy is not None)
            session = self._direct if proxy is None else self._proxied
            answer = await session.get(target, headers=_HEADERS, allow_redirects=False, proxy=proxy)
        async with answer:
            if answer.status in _REDIRECTS:
                return _redirected(target, answer.headers.get("Location", ""))
            if answer.status != 200:
                raise await _refusal(target, answer)
            with budget.lease() as grow_to:
                return await self._read(answer, file, grow_to)

    async def _read(
        self, answer: aiohttp.ClientResponse, file: BinaryIO, grow_to: Callable[[int], None]
    ) -> Fetched:
        self._check_size(answer.content_length or 0)
        grow_to(answer.content_length or 0)
        size, digest = 0, hashlib.sha256()
        begun_at = time.monotonic()
        _write(file, None)
        async for chunk in _parts(answer):
            size += len(chunk)
            self._check_size(size)
            grow_to(size)
            if time.monotonic() - begun_at > self._settings.read_timeout + size / SLOWEST:
                raise TimeoutError("the file comes too slowly")
            digest.update(chunk)
            _write(file, chunk)
        content_type = answer.headers.get("Content-Type")
        return Fetched(
            size, digest.hexdigest(), clean_text(content_type, LONGEST_TYPE) if content_type else None
        )

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise refused(f"it has more than {self._max_bytes} bytes (max_output_bytes)")

    # --- where it may be fetched from ---

    async def _check_host(self, target: URL, *, is_proxied: bool) -> None:
        """Refuse a host that is an address; of a name, what is connected to is checked by the resolver."""
        host = target.raw_host or ""
        address = literal(host)
        if address is not None:
            await self.check(host, address)
        elif is_proxied and is_local_name(host):
            await self.check(host, "127.0.0.1")
        elif is_proxied:  # the proxy looks the name up; where that can be done here, too, it is checked
            try:
                async with asyncio.timeout(LOOKUP_TIME):
                    addresses = await _looked_up(host)
            except (OSError, UnicodeError):
                return
            for each in addresses:
                await self.check(host, each)

    async def check(self, host: str, address: str) -> None:
        """
        Check an address that is about to be connected to.

        :raises RunGenOutputError: it is in a private network that the service is not part of.
        """
        if may_be_reached(address, ()):
            return
        if not self._own:
            with contextlib.suppress(OSError, UnicodeError):
                self._own = await _looked_up(urlsplit(self._settings.base_url).hostname or "")
        if not may_be_reached(address, self._own):
            raise refused(
                f"its host {clean_text(host, 100)} is in a private network that the service is not part of"
            )

    async def close(self) -> None:
        await self._direct.close()
        await self._proxied.close()


class _CheckedResolver(AbstractResolver):
    """Looks names up; it is the addresses that were checked that are connected to."""

    def __init__(self, downloader: Downloader) -> None:
        self._downloader = downloader
        self._resolver = resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            await self._downloader.check(host, each["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


async def _parts(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Give the body in parts that are not large, decoded: aiohttp would not miss a compressed end."""
    try:
        decoder = Decoder(answer.headers.get("Content-Encoding", ""), ignored=_STALE, step=_CHUNK)
    except UnknownEncodingError as error:
        raise refused(
            f"it comes in the encoding {clean_text(str(error), 20)}, which was not asked for"
        ) from None
    async for chunk in answer.content.iter_chunked(_CHUNK):
        for part in decoder.feed(chunk):
            yield part
            # a chunk may unpack to a thousand times its size: other tasks, and a kill, have to get through
            await asyncio.sleep(0)
    yield decoder.finish()


async def _looked_up(host: str) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


def _read_url(url: str) -> URL:
    try:
        target = URL(url, encoded=True)
        _ = target.port
    except ValueError:
        raise refused("its URL cannot be read") from None
    if target.scheme.lower() not in ("http", "https"):
        raise refused(f"its URL is {clean_text(target.scheme, 20)}, not http or https")
    host = target.raw_host or ""
    # what looks like an address and is none, libraries read in different ways
    is_odd = literal(host) is None and (":" in host or host.replace(".", "").isdigit())
    if not host or not host.isascii() or is_odd:
        raise refused("its URL names no host that can be used")
    return target


def _redirected(target: URL, location: str) -> URL:
    """Give where a redirect leads, if it may be followed."""
    if not location:
        raise refused(f"{_host(target)} redirects it to nowhere")
    try:
        goal = _read_url(str(target.join(URL(location, encoded=True))))
    except ValueError:
        raise refused(f"{_host(target)} redirects it to a place that cannot be read") from None
    host = goal.raw_host or ""
    address = literal(host)
    is_loopback = is_local_name(host) if address is None else address.startswith("127.") or address == "::1"
    if goal.scheme.lower() != "https" and not is_loopback:
        raise refused(f"{_host(target)} redirects it to {_host(goal)} over plain http, which is not followed")
    return goal


async def _refusal(target: URL, answer: aiohttp.ClientResponse) -> RunGenAPIError | RunGenResponseError:
    """Give the error that a refusing answer means; of its text only the code, for the rest may be signed."""
    code = re.search(rb"<Code>(\w{1,60})</Code>", await answer.content.read(4096))
    said = f" {code[1].decode()}" if code else ""
    message = f"{_host(target)} answers {answer.status}{said}"
    if answer.status < 300:
        return RunGenResponseError(message)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    wait = retry_after(Response(answer.status, headers, b""), time.time())
    # S3 says so of a URL that was signed with credentials that have ended
    status = 403 if said == " ExpiredToken" else answer.status
    return RunGenAPIError(message, status_code=status, retry_after=wait)


def _host(target: URL) -> str:
    return clean_text(target.raw_host or "nowhere", 100)


def _write(file: BinaryIO, chunk: bytes | None) -> None:
    """Write to a file, or empty it; what goes wrong there is no fault of the network."""
    try:
        if chunk is None:
            file.seek(0)
            file.truncate()
        else:
            file.write(chunk)
    except OSError as error:
        raise RunGenOutputError(f"it cannot be written to disk ({error.strerror})") from None


def refused(reason: str) -> RunGenOutputError:
    """Give the error that says that an output cannot be landed, today or tomorrow."""
    return RunGenOutputError(reason, retryable=False)


def _tls(verify: bool | str) -> ssl.SSLContext | bool:
    """
    Trust what the connection trusts.

    Its own CA bundle is that of a proxy, or of a service that is hosted privately: outputs may be somewhere
    else, so the usual CAs are trusted, too.
    """
    if isinstance(verify, str):
        context = tls_context(verify)
        context.load_default_certs()
        return context
    path = environment_ca() if verify else None
    return tls_context(path) if path else verify
