"""
Send requests: a blocking sender (`requests`) and an asynchronous one (`aiohttp`).

Each library is imported when its sender is made, so that DAG files parse fast.
"""

from __future__ import annotations

import asyncio
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.bodies import CHUNK, ResponseBody
from airflow_provider_rungen.client.exchange import (
    CHECK_INTERVAL,
    FINAL_GRACE,
    AbandonedError,
    ExchangeThread,
    check_current,
)
from airflow_provider_rungen.client.failures import ExchangeState, connection_failed, proxy_failed, timed_out
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.lookups import look_up
from airflow_provider_rungen.client.settings import Settings, environment_ca, tls_context

if TYPE_CHECKING:
    import aiohttp
    import requests

MAX_IN_FLIGHT = 32


class RateLimiter:
    """
    Spreads requests over time.

    :param per_second: how many may begin in a second; ``None`` for any number.
    """

    def __init__(self, per_second: float | None) -> None:
        self._gap = 1 / per_second if per_second else 0.0
        self._next = 0.0

    def reserve(self) -> float:
        """Reserve the next slot, and return the seconds until it begins."""
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._gap
        return begin - now


class Sender:
    """
    Sends requests over one `requests.Session`, blocking.

    A thread performs each of them. The caller leaves it behind at the deadline, or when a signal comes.

    :param settings: how to reach the service.
    :param sleep: sleeps until a request may begin.
    :param is_interrupted: returns whether the caller has to end soon, so that a request in flight gets
        little time.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self._sleep = sleep
        self._is_interrupted = is_interrupted
        self._proxy = settings.proxy_for(settings.base_url)
        self._limiter = RateLimiter(settings.max_requests_per_second)
        self._session: requests.Session | None = None
        self._thread: ExchangeThread | None = None
        self._open()

    def _open(self) -> tuple[requests.Session, ExchangeThread]:
        """Return the session and its thread, new ones if the last exchange was abandoned."""
        if self._session is None or self._thread is None or self._thread.is_aborted:
            from airflow_provider_rungen.client.sessions import Session

            self._session = Session(self.settings)
            self._thread = ExchangeThread(self._session.close)
        return self._session, self._thread

    @property
    def session(self) -> requests.Session:
        """The session. It sends the API key."""
        return self._open()[0]

    def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer.

        :param request: the request.
        :raises RunGenConnectionError: there was no whole answer in time.
        :raises RunGenResponseError: the answer is too large, or encoded in an unknown way.
        """
        import requests
        from urllib3.exceptions import HTTPError

        if wait := self._limiter.reserve():
            self._sleep(wait)
        session, thread = self._open()
        limit = self.settings.time_limit(request)
        exchange = thread.start(partial(self._exchange, session, request, limit))
        try:
            return exchange.wait(limit, self._is_interrupted)
        except AbandonedError:
            failure = timed_out(request, limit, exchange, self._proxy)
        except (requests.RequestException, HTTPError, OSError, EOFError, zlib.error) as error:
            if isinstance(error, requests.exceptions.ProxyError) and not exchange.is_sent:
                failure = proxy_failed(request, error, self._proxy)
            else:
                failure = connection_failed(request, error, sent=exchange.is_sent, proxy=self._proxy)
        # raised out here, so that the library's error, which holds the headers, is not its context
        raise failure

    def _exchange(self, session: requests.Session, request: Request, limit: float) -> Response:
        settings = self.settings
        timeouts = [min(each, limit) for each in (settings.connect_timeout, settings.read_timeout)]
        with session.request(
            request.method,
            f"{settings.base_url}/{request.path}",
            data=request.body,
            headers=settings.headers_for(request),
            timeout=(max(0.001, timeouts[0]), max(0.001, timeouts[1])),
            verify=session.verify,
            allow_redirects=False,
            stream=True,
        ) as answer:
            encoding = answer.headers.get("Content-Encoding", "")
            body = ResponseBody(request, settings.check_size, answer.status_code, encoding)
            # urllib3 1 lacks read1, which returns what has arrived instead of waiting for all of it
            read = getattr(answer.raw, "read1", answer.raw.read)
            while not body.is_enough and (chunk := read(CHUNK, decode_content=False)):
                for _ in body.feed(chunk):
                    check_current()
            if not body.is_enough and answer.raw.length_remaining:  # urllib3 1 does not check
                raise EOFError("the end of the body is missing")
            return settings.response(answer.status_code, answer.headers, body.finish())

    def close(self) -> None:
        """Close the connections. The sender can be used again."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None


class AsyncSender:
    """
    Sends requests over one `aiohttp.ClientSession`. The event loop that uses it must make and close it.

    :param settings: how to reach the service.
    :param is_interrupted: returns whether the caller has to end soon, so that a request in flight gets
        little time.
    """

    def __init__(self, settings: Settings, *, is_interrupted: Callable[[], bool] | None = None) -> None:
        import aiohttp

        self.settings = settings
        self._is_interrupted = is_interrupted
        self._proxy = settings.proxy_for(settings.base_url)
        self._limiter = RateLimiter(settings.max_requests_per_second)
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._verify = (environment_ca() or True) if settings.verify is True else settings.verify
        # no headers here: aiohttp sends those of the session to a proxy, in the clear
        self.session: aiohttp.ClientSession = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=MAX_IN_FLIGHT, resolver=resolver()),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=settings.connect_timeout, sock_read=settings.read_timeout
            ),
            auto_decompress=False,
            trace_configs=[_tracing()],
        )

    async def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer.

        :param request: the request.
        :raises RunGenConnectionError: there was no whole answer in time.
        :raises RunGenResponseError: the answer is too large, or encoded in an unknown way.
        """
        import aiohttp

        async with self._in_flight:
            if wait := self._limiter.reserve():
                await asyncio.sleep(wait)
            limit, exchange = self.settings.time_limit(request), ExchangeState()
            scope = asyncio.timeout(limit)
            try:
                async with scope:
                    with self._shortened_if_interrupted(scope, exchange):
                        return await self._exchange(request, exchange)
            except (aiohttp.ClientError, OSError, ValueError, EOFError, zlib.error) as error:
                if scope.expired():
                    failure = timed_out(request, limit, exchange, self._proxy)
                elif isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
                    failure = proxy_failed(request, error, self._proxy)
                else:
                    failure = connection_failed(request, error, sent=exchange.is_sent, proxy=self._proxy)
            # raised out here, so that the library's error, which holds the headers, is not its context
            raise failure

    @contextmanager
    def _shortened_if_interrupted(self, scope: asyncio.Timeout, exchange: ExchangeState) -> Iterator[None]:
        is_interrupted = self._is_interrupted
        if is_interrupted is None:
            yield
            return
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def check() -> None:
            nonlocal timer
            if not is_interrupted():
                timer = loop.call_later(CHECK_INTERVAL, check)
                return
            exchange.is_interrupted = True
            end = loop.time() + (FINAL_GRACE if exchange.is_sent else 0.0)
            if not scope.expired():
                scope.reschedule(min(scope.when() or end, end))

        timer = loop.call_later(CHECK_INTERVAL, check)
        try:
            yield
        finally:
            timer.cancel()

    async def _exchange(self, request: Request, exchange: ExchangeState) -> Response:
        from yarl import URL

        settings, verify = self.settings, self._verify
        async with self.session.request(
            request.method,
            URL(f"{settings.base_url}/{request.path}", encoded=True),
            data=request.body,
            headers=settings.headers() | settings.headers_for(request),
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
        await self.session.close()


def _tracing() -> aiohttp.TraceConfig:
    """Return what notes that a request may have been sent."""
    import aiohttp

    async def connected(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.is_sent = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    tracing.on_connection_reuseconn.append(connected)
    return tracing


def resolver() -> aiohttp.abc.AbstractResolver:
    """Return a resolver for aiohttp whose look-ups nothing waits for in the end."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            return await look_up(host, port, family)

        async def close(self) -> None: ...

    return Resolver()
