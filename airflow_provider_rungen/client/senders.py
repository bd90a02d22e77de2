"""Send requests: a blocking sender (`requests`), and an asynchronous one (`aiohttp`).

Both libraries are imported when a sender is made, so that DAG files parse fast.
"""

from __future__ import annotations

import asyncio
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.bodies import (
    CHUNK,
    Decoder,
    LeanFilter,
    TooLongError,
    UnknownEncodingError,
)
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.exchange import (
    LAST_ANSWER,
    SLICE,
    LateError,
    Line,
    check_wanted,
    in_daemon_thread,
)
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.models import clean_text
from airflow_provider_rungen.client.settings import Settings, environment_ca, tls_context
from airflow_provider_rungen.exceptions import RunGenConnectionError, RunGenResponseError

if TYPE_CHECKING:
    import aiohttp
    import requests

MAX_IN_FLIGHT = 32
# A body up to this size is given whole to those that ask for a lean one, too.
SMALL = 64 * 1024
# What may be kept of a larger one, and of the body of a refusal.
MOST_KEPT = 256 * 1024


class RateLimiter:
    """Spreads requests so that no more than so many begin in a second."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 1 / per_second if per_second else 0.0
        self._next = 0.0

    def turn(self) -> float:
        """Take a turn, and give the seconds until it comes."""
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._gap
        return begin - now


class _Body:
    """The body of one answer: decoded, bounded and, where it may be, reduced, in steps as it comes."""

    def __init__(self, request: Request, settings: Settings, status: int, encoding: str) -> None:
        self._request = request
        self._settings = settings
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
            self.is_enough = True  # the status of a refusal says enough
            if not self._is_refusal:
                raise RunGenResponseError(
                    f"Could not {request.purpose}: RunGen's answer is encoded as "
                    f"{clean_text(str(error), 50)}, which was not asked for"
                ) from None

    def feed(self, data: bytes) -> Iterator[None]:
        """
        Take more of the body, in steps.

        :raises RunGenResponseError: it is too large.
        :raises zlib.error: it is not encoded as it says.
        """
        for number, piece in enumerate(self._decoder.feed(data)):
            if number:
                yield
            yield from self._take(piece)
            if self.is_enough:
                return

    def finish(self) -> list[bytes]:
        """
        Return what is to be kept of the body.

        :raises EOFError: the compressed end is missing.
        """
        if self.is_enough:
            return self._chunks
        for _ in self._take(self._decoder.finish()):
            pass
        return self._chunks if self._filter is None else [self._filter.finish()]

    def _take(self, piece: bytes) -> Iterator[None]:
        self._size += len(piece)
        self._settings.check_size(self._size, self._request)
        if self._is_refusal:
            self._chunks.append(piece[: max(0, MOST_KEPT - self._size + len(piece))])
            self.is_enough = self._size >= MOST_KEPT
        elif self._request.is_lean and self._size > SMALL:
            if self._filter is None:
                self._filter = LeanFilter(MOST_KEPT)
                piece = b"".join([*self._chunks, piece])
                self._chunks.clear()
            try:
                yield from self._filter.feed(piece)
            except TooLongError:
                raise _too_bulky(self._request) from None
        else:
            self._chunks.append(piece)


class Sender:
    """
    Sends requests over one `requests.Session`, blocking.

    Each is performed by a thread of its own, which the caller leaves behind when the time is over, or when a
    signal comes.

    :param settings: how to reach the service.
    :param pause: sleeps, where requests come too fast.
    :param is_interrupted: tells that the caller is to end soon: a request under way gets little time then.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        pause: Callable[[float], None] = time.sleep,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self._pause = pause
        self._is_interrupted = is_interrupted
        self._pace = RateLimiter(settings.max_requests_per_second)
        self._session: requests.Session | None = None
        self._line: Line | None = None
        self._reach()

    def _reach(self) -> tuple[requests.Session, Line]:
        """Return the session and its line, made anew where the last exchange was abandoned."""
        if self._session is None or self._line is None or self._line.is_cut:
            from airflow_provider_rungen.client.sessions import Session

            self._session = Session(self.settings)
            self._line = Line(self._session.close)
        return self._session, self._line

    @property
    def session(self) -> requests.Session:
        """The session; it carries the API key."""
        return self._reach()[0]

    def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer.

        :raises RunGenConnectionError: there was no whole answer in time.
        :raises RunGenResponseError: the answer is too large.
        """
        import requests
        from urllib3.exceptions import HTTPError

        if wait := self._pace.turn():
            self._pause(wait)
        session, line = self._reach()
        limit = self.settings.limit_of(request)
        exchange = line.begin(partial(self._send, session, request, limit))
        try:
            return exchange.wait(limit, self._is_interrupted)
        except LateError as late:
            failure = _late(request, limit, late)
        except (requests.RequestException, HTTPError, OSError, EOFError, zlib.error) as error:
            failure = _unreachable(request, error, sent=exchange.is_sent)
        # raised out here, so that the library's error, which holds the headers, is not its context
        raise failure

    def _send(self, session: requests.Session, request: Request, limit: float) -> Response:
        settings = self.settings
        with session.request(
            request.method,
            f"{settings.base_url}/{request.path}",
            data=request.body,
            headers=settings.headers_for(request),
            timeout=(
                max(0.001, min(settings.connect_timeout, limit)),
                max(0.001, min(settings.read_timeout, limit)),
            ),
            verify=session.verify,
            allow_redirects=False,
            stream=True,
        ) as answer:
            body = _Body(request, settings, answer.status_code, answer.headers.get("Content-Encoding", ""))
            # urllib3 1 has no read1, which returns what is there instead of waiting for all of it
            read = getattr(answer.raw, "read1", answer.raw.read)
            while not body.is_enough and (chunk := read(CHUNK, decode_content=False)):
                for _ in body.feed(chunk):
                    check_wanted()
            if not body.is_enough and answer.raw.length_remaining:  # urllib3 1 does not mind
                raise EOFError("the end of the body is missing")
            return settings.response(answer.status_code, answer.headers, body.finish())

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


class _Progress:
    """How far an exchange of the asynchronous sender has come."""

    def __init__(self) -> None:
        self.is_sent = False
        self.is_interrupted = False


class AsyncSender:
    """
    Sends requests over one `aiohttp.ClientSession`; made and closed inside the event loop that uses it.

    :param settings: how to reach the service.
    :param is_interrupted: tells that the caller is to end soon: a request under way gets little time then.
    """

    def __init__(self, settings: Settings, *, is_interrupted: Callable[[], bool] | None = None) -> None:
        import aiohttp

        self.settings = settings
        self._is_interrupted = is_interrupted
        self._proxy = settings.proxy_for(settings.base_url)
        self._pace = RateLimiter(settings.max_requests_per_second)
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        verify = settings.verify
        if verify is True:
            verify = environment_ca() or True
        # no headers here: aiohttp sends those of the session to a proxy, in the clear
        self.session: aiohttp.ClientSession = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(
                limit=MAX_IN_FLIGHT,
                ssl=tls_context(verify) if isinstance(verify, str) else verify,
                resolver=resolver(),
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=settings.connect_timeout, sock_read=settings.read_timeout
            ),
            auto_decompress=False,
            trace_configs=[_tracing()],
        )

    async def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer.

        :raises RunGenConnectionError: there was no whole answer in time.
        :raises RunGenResponseError: the answer is too large.
        """
        async with self._in_flight:
            if wait := self._pace.turn():
                await asyncio.sleep(wait)
            return await self._exchange(request)

    async def _exchange(self, request: Request) -> Response:
        import aiohttp

        limit, progress = self.settings.limit_of(request), _Progress()
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                with self._attending(scope, progress):
                    return await self._send(request, progress)
        except (aiohttp.ClientError, OSError, ValueError, EOFError, zlib.error) as error:
            if scope.expired():
                failure = _late(request, limit, progress)
            else:
                failure = _unreachable(request, error, sent=progress.is_sent)
        # raised out here, so that the library's error, which holds the headers, is not its context
        raise failure

    @contextmanager
    def _attending(self, scope: asyncio.Timeout, progress: _Progress) -> Iterator[None]:
        """End a request soon when the caller is interrupted."""
        is_interrupted = self._is_interrupted
        if is_interrupted is None:
            yield
            return
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def look() -> None:
            if not is_interrupted():
                timers[:] = [loop.call_later(SLICE, look)]
                return
            progress.is_interrupted = True
            end = loop.time() + (LAST_ANSWER if progress.is_sent else 0.0)
            if not scope.expired():
                scope.reschedule(min(scope.when() or end, end))

        timers.append(loop.call_later(SLICE, look))
        try:
            yield
        finally:
            timers[0].cancel()

    async def _send(self, request: Request, progress: _Progress) -> Response:
        from yarl import URL

        settings = self.settings
        async with self.session.request(
            request.method,
            URL(f"{settings.base_url}/{request.path}", encoded=True),
            data=request.body,
            headers=settings.headers() | settings.headers_for(request),
            allow_redirects=False,
            proxy=self._proxy,
            trace_request_ctx=progress,
        ) as answer:
            body = _Body(request, settings, answer.status, _encoding(answer.headers))
            async for chunk in answer.content.iter_chunked(CHUNK):
                for _ in body.feed(chunk):
                    await asyncio.sleep(0)
                if body.is_enough:
                    break
            return settings.response(answer.status, answer.headers, body.finish())

    async def close(self) -> None:
        await self.session.close()


def _tracing() -> aiohttp.TraceConfig:
    """Take note of the moment from which on a request may have been sent."""
    import aiohttp

    async def connected(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.is_sent = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    tracing.on_connection_reuseconn.append(connected)
    return tracing


def resolver() -> aiohttp.abc.AbstractResolver:
    """Return a resolver whose look-ups the end of an event loop does not wait for."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            infos = await in_daemon_thread(
                lambda: socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
                )
            )
            return [_resolved(host, *info) for info in infos]

        async def close(self) -> None: ...

    return Resolver()


def _resolved(name: str, family: int, _: int, proto: int, __: str, address: Any) -> Any:
    host, port, *scope = address
    if len(scope) == 2 and scope[1]:  # an IPv6 address that is of this link only
        host = f"{host}%{scope[1]}"
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return {
        "hostname": name,
        "host": host,
        "port": port,
        "family": family,
        "proto": proto,
        "flags": flags,
    }


def _encoding(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Encoding", "")


def _too_bulky(request: Request) -> RunGenResponseError:
    message = f"Could not {request.purpose}: RunGen's answer has over {MOST_KEPT} bytes beside its result"
    return RunGenResponseError(message, hint="", retryable=False)


def _late(request: Request, limit: float, late: LateError | _Progress) -> RunGenConnectionError:
    sent = late.sent if isinstance(late, LateError) else late.is_sent
    what = "RunGen did not answer in whole" if sent else "RunGen could not be reached"
    when = "before the task had to end" if late.is_interrupted else f"within {format_duration(limit)}"
    return RunGenConnectionError(f"Could not {request.purpose}: {what} {when}", sent=sent)


def _unreachable(request: Request, error: BaseException, *, sent: bool) -> RunGenConnectionError:
    """Describe in own words what went wrong: those of the libraries may hold a URL or a proxy's password."""
    root = _root(error)
    if isinstance(root, UnicodeError):  # the host's name cannot even be looked up
        sent = False
    what = (
        "lost the connection to RunGen before the whole answer came"
        if sent
        else "RunGen could not be reached"
    )
    return RunGenConnectionError(f"Could not {request.purpose}: {what} ({describe_cause(error)})", sent=sent)


def describe_cause(error: BaseException) -> str:
    """Name what is at the root of a library's error; its text may hold a URL or a proxy's password."""
    root = _root(error)
    return root.strerror if isinstance(root, OSError) and root.strerror else type(root).__name__


def _root(error: BaseException) -> BaseException:
    for _ in range(8):
        if isinstance(error, TimeoutError):  # asyncio's comes from the cancellation by which it is made
            break
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__ or _first(error.args)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def _first(args: tuple[Any, ...]) -> Any:
    return args[0] if args else None
