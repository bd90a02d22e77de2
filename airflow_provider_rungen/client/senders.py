"""
Send requests over HTTP: in an event loop, or blocking.

aiohttp is imported when a sender is made, so that DAG files parse fast.
"""

from __future__ import annotations

import asyncio
import io
import queue
import socket
import threading
import time
import weakref
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.answers import ExchangeState, connection_failed, proxy_failed, timed_out
from airflow_provider_rungen.client.bodies import CHUNK, ResponseBody
from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.settings import Settings, tls_context
from airflow_provider_rungen.exceptions import RunGenConnectionError

if TYPE_CHECKING:
    import aiohttp

MAX_IN_FLIGHT = 32
# Bytes of a body that are sent in pieces, so that other requests go on meanwhile.
_LARGE_BODY = 1 << 20
# Seconds between two checks whether the caller is interrupted.
CHECK_INTERVAL = 0.1
# Seconds after which a connection is not used for another submission. Servers close idle ones after two
# seconds or more, and the fate of what is sent at that moment is unknown.
_MAX_IDLE = 1.0
# Seconds that a request in flight may take once its caller is interrupted.
FINAL_GRACE = 1.0
# Seconds that a request of a killed task may take.
KILL_REQUEST_TIMEOUT = 15.0


class AsyncSender:
    """
    Sends requests with `aiohttp`. The event loop that uses it must make and close it.

    :param settings: how to reach the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._proxy = settings.proxy_for(settings.base_url)
        self._gap = 1 / (settings.max_requests_per_second or inf)
        self._next_begin = 0.0
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._verify = settings.trusted()
        self._session, self._submissions = _open_session(settings), _open_session(settings, _MAX_IDLE)

    async def __call__(self, request: Request, is_interrupted: Callable[[], bool] | None = None) -> Response:
        """
        Send a request and read the whole answer.

        :param request: the request.
        :param is_interrupted: returns whether the caller has to end soon, so that a request in flight gets
            little time.
        :raises RunGenConnectionError: there was no whole answer in time.
        :raises RunGenResponseError: the answer is too large, or encoded in an unknown way.
        """
        import aiohttp

        async with self._in_flight:
            limit, exchange, scope = self.settings.time_limit(request), ExchangeState(), asyncio.timeout(None)
            watch = is_interrupted and asyncio.ensure_future(_end_soon(scope, exchange, is_interrupted))
            try:
                async with scope:
                    await asyncio.sleep(self._reserve())
                    _end_within(limit, scope)
                    return await self._exchange(request, exchange)
            except (aiohttp.ClientError, OSError, ValueError, EOFError, zlib.error) as error:
                if scope.expired():
                    failure = timed_out(request, limit, exchange, self._proxy)
                elif isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
                    failure = proxy_failed(request, error, self._proxy)
                else:
                    failure = connection_failed(request, error, sent=exchange.is_sent, proxy=self._proxy)
            finally:
                if watch:
                    watch.cancel()
            # raised out here, so that the library's error, which holds the headers, is not its context
            raise failure

    def _reserve(self) -> float:
        """Reserve the next moment at which a request may begin, and return the seconds until then."""
        now = time.monotonic()
        begin = max(now, self._next_begin)
        self._next_begin = begin + self._gap
        return begin - now

    async def _exchange(self, request: Request, exchange: ExchangeState) -> Response:
        from yarl import URL

        settings, verify = self.settings, self._verify
        async with (self._submissions if request.method == "POST" else self._session).request(
            request.method,
            URL(f"{settings.base_url}/{request.path}", encoded=True),
            data=_payload(request.body),
            headers=settings.headers(request),
            allow_redirects=False,
            proxy=self._proxy,
            ssl=tls_context(verify) if isinstance(verify, str) else verify,
            trace_request_ctx=exchange,
        ) as answer:
            encoding = answer.headers.get("Content-Encoding", "")
            body = ResponseBody(request, settings.check_size, answer.status, encoding)
            async for chunk in answer.content.iter_chunked(CHUNK):
                for _ in body.feed(chunk):
                    await asyncio.sleep(0)
                if body.is_enough:
                    break
            return settings.response(answer.status, answer.headers, body.finish())

    async def close(self) -> None:
        """Close the connections."""
        try:
            await self._session.close()
        finally:
            await self._submissions.close()


def _open_session(settings: Settings, max_idle: float = 15.0) -> aiohttp.ClientSession:
    """
    Return a session.

    :param max_idle: seconds after which a connection is not used again.
    """
    import aiohttp

    # no headers here: aiohttp sends those of the session to a proxy, in the clear
    session = aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=MAX_IN_FLIGHT, keepalive_timeout=max_idle, resolver=resolver()),
        timeout=aiohttp.ClientTimeout(
            total=None, connect=settings.connect_timeout, sock_read=settings.read_timeout
        ),
        auto_decompress=False,
        trace_configs=[_tracing()],
    )
    # aiohttp would send a request again by itself, and a deletion would seem to be refused
    session._retry_connection = False
    return session


async def _end_soon(
    scope: asyncio.Timeout, exchange: ExchangeState, is_interrupted: Callable[[], bool]
) -> None:
    """Shorten the time of an exchange once its caller is interrupted."""
    await asyncio.sleep(CHECK_INTERVAL)
    while not is_interrupted():  # noqa: ASYNC110 - it may depend on the thread
        await asyncio.sleep(CHECK_INTERVAL)
    exchange.is_interrupted = True
    _end_within(FINAL_GRACE if exchange.is_sent else 0.0, scope)


def _end_within(seconds: float, scope: asyncio.Timeout) -> None:
    """End a scope after some seconds, unless it ends before."""
    if not scope.expired():
        end = asyncio.get_running_loop().time() + seconds
        scope.reschedule(min(scope.when() or end, end))


class Sender:
    """
    Sends requests, blocking, through an `AsyncSender` in the event loop of a daemon thread.

    So a signal can end the call at any time, and the limit of a request holds whatever a server does. Callers
    share no lock with the thread, since signal handlers may raise in the main thread at any time.

    :param settings: how to reach the service.
    :param is_interrupted: returns whether the caller has to end soon, so that a request in flight gets
        little time.
    """

    def __init__(self, settings: Settings, *, is_interrupted: Callable[[], bool] = lambda: False) -> None:
        self.settings = settings
        self._is_interrupted = is_interrupted
        self._thread: threading.Thread | None = None

    def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer, as `AsyncSender` does.

        :param request: the request. An error that a signal handler raises cancels it.
        :raises RunGenConnectionError: there was no whole answer in time, or another thread has closed the
            connections.
        :raises RunGenResponseError: the answer is too large, or encoded in an unknown way.
        """
        if self._thread is None or not self._thread.is_alive():  # no thread survives a fork
            self._open(request)
        thread, loop, sender = self._thread, self._loop, self._async_sender
        tasks: list[asyncio.Task[Response]] = []
        done: queue.SimpleQueue[asyncio.Task[Response]] = queue.SimpleQueue()
        ends_soon = False

        def begin() -> None:
            tasks.append(asyncio.ensure_future(sender(request, lambda: ends_soon)))
            tasks[0].add_done_callback(done.put)

        try:
            _call_in(loop, begin)
            while thread is not None and thread.is_alive():
                with suppress(queue.Empty):
                    return done.get(timeout=CHECK_INTERVAL).result()
                ends_soon = self._is_interrupted()  # asked here, since it may depend on the thread
        except asyncio.CancelledError:
            pass  # by the end of the event loop
        except BaseException:
            _call_in(loop, lambda: [task.cancel() for task in tasks])
            raise
        raise RunGenConnectionError(request.failure("the connection was closed meanwhile"))

    def _open(self, request: Request) -> None:
        import aiohttp  # noqa: F401 - here, since the first request would wait for it in the loop

        opened: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, AsyncSender, asyncio.Event]]
        opened = queue.SimpleQueue()
        work = _keep_open(self.settings, opened)  # no method: the thread ends when nobody has this object
        thread = threading.Thread(target=asyncio.run, args=(work,), name="rungen-sender", daemon=True)
        thread.start()
        while thread.is_alive() or not opened.empty():
            with suppress(queue.Empty):
                self._loop, self._async_sender, stop = opened.get(timeout=CHECK_INTERVAL)
                break
        else:  # too many files are open, or there is no memory
            raise RunGenConnectionError(request.failure("no connection could be opened"))
        self._end_thread = weakref.finalize(self, _call_in, self._loop, stop.set)
        self._end_thread.atexit = False
        self._thread = thread  # at last, since a signal handler may raise before

    def close(self) -> None:
        """Close the connections. The sender can be used again."""
        if self._thread is not None:
            self._end_thread()
            self._thread = None


async def _keep_open(settings: Settings, opened: queue.SimpleQueue[Any]) -> None:
    sender, stop = AsyncSender(settings), asyncio.Event()
    opened.put((asyncio.get_running_loop(), sender, stop))
    try:
        await stop.wait()
    finally:
        await sender.close()


def _call_in(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(work)


def _tracing() -> aiohttp.TraceConfig:
    """Return what notes that a request may have been sent."""
    import aiohttp

    async def connected(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.is_sent = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    tracing.on_connection_reuseconn.append(connected)
    return tracing


def resolver(check: Callable[[str, str], Awaitable[None]] | None = None) -> aiohttp.abc.AbstractResolver:
    """
    Return a resolver for aiohttp whose look-ups neither a loop nor the process waits for at its end.

    :param check: called with the host and each of its addresses. Its error forbids to connect.
    """
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            infos = await in_daemon_thread(
                socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
            )
            if check is not None:
                for *_, address in infos:
                    await check(host, str(address[0]))
            numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=int(address[1]),
                    family=found,
                    proto=protocol,
                    flags=numeric,
                )
                for found, _, protocol, _, address in infos
            ]

        async def close(self) -> None: ...

    return Resolver()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """Return what aiohttp sends of a body: it sends a large one in pieces only if it comes as a file."""
    return body if body is None or len(body) < _LARGE_BODY else io.BytesIO(body)
