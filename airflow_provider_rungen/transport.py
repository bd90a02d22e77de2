"""Performs flows: a blocking driver and sender (`requests`), an asynchronous driver and sender (`aiohttp`).

The only room that talks HTTP. Both libraries are imported when a sender is made, so that DAG files parse
fast.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from airflow_provider_rungen import __version__
from airflow_provider_rungen.api import PENDING, Flow, Pending, Request, Response, Sleep, T, Together
from airflow_provider_rungen.exceptions import (
    RunGenConfigError,
    RunGenConnectionError,
    RunGenError,
    RunGenResponseError,
)

if TYPE_CHECKING:
    import aiohttp
    import requests

log = logging.getLogger(__name__)

Send = Callable[[Request], Response]
AsyncSend = Callable[[Request], Awaitable[Response]]
Item = TypeVar("Item")
MAX_IN_FLIGHT = 32
# How many of them may be slow ones that nobody waits for any more.
MAX_STRAGGLERS = 16
_CHUNK = 64 * 1024
_SHORTEST_SECRET = 8
_TLS_NEVER_BEGAN = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "HANDSHAKE")


@dataclass(frozen=True, slots=True)
class Settings:
    """
    How to reach the service.

    :param base_url: scheme, host, port and path prefix, without a slash at the end.
    :param api_key: sent as ``x-api-key``.
    :param team_id: sent as ``x-team-id``, where given.
    :param user_id: sent as ``X-Authenticated-User-Id`` on cancel, where given.
    :param connect_timeout: seconds to make a connection.
    :param read_timeout: seconds for the whole answer, once connected.
    :param verify: whether to verify TLS, or the path of a CA bundle.
    :param proxy: the URL of a proxy.
    :param max_response_bytes: the size over which an answer is refused.
    :param max_requests_per_second: how many requests a sender begins in a second at most.
    :param app_url: where people look at an app, with ``{app_id}`` in it; the API address when left out.
    :param job_url: where people look at a job, with ``{app_id}`` and ``{job_id}`` in it; likewise.
    """

    base_url: str
    api_key: str = field(repr=False)
    team_id: str | None = None
    user_id: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    max_response_bytes: int = 32 * 1024 * 1024
    max_requests_per_second: float | None = None
    app_url: str | None = None
    job_url: str | None = None

    def headers(self) -> dict[str, str]:
        """Give the headers every request carries."""
        headers = {
            "Accept": "application/json",
            "User-Agent": f"airflow-provider-rungen/{__version__}",
            "x-api-key": self.api_key,
        }
        return headers | ({"x-team-id": self.team_id} if self.team_id else {})

    def headers_for(self, request: Request) -> dict[str, str]:
        """Give the headers of this request alone."""
        headers = {} if request.body is None else {"Content-Type": "application/json"}
        return headers | (
            {"X-Authenticated-User-Id": self.user_id} if request.as_user and self.user_id else {}
        )

    def proxy_for(self, url: str) -> str | None:
        """Give the proxy for a URL, if there is one: that of the connection, or of the environment."""
        # aiohttp's trust_env would send ~/.netrc, too
        return self.proxy or proxy_of_environment(url)

    def response(self, status: int, headers: Mapping[str, str], chunks: list[bytes]) -> Response:
        """Make the response; a service that repeats the key in its answer does not get it into our logs."""
        body = b"".join(chunks)
        if len(self.api_key) >= _SHORTEST_SECRET:
            body = body.replace(self.api_key.encode(), b"***")
        return Response(status, {name.lower(): value for name, value in headers.items()}, body)

    def check_size(self, size: int, request: Request) -> None:
        """
        Refuse an answer that is too large.

        :raises RunGenResponseError: it is larger than ``max_response_bytes``.
        """
        if size > self.max_response_bytes:
            failure = RunGenResponseError(
                f"Could not {request.purpose}: RunGen's answer is over {self.max_response_bytes} bytes; "
                "raise max_response_bytes in the connection's extra if that is right"
            )
            failure.hopeless = True
            raise failure


def drive(
    flow: Flow[T],
    send: Send,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> T:
    """Perform a flow, blocking."""
    step: Callable[[Any], Request | Sleep | Together[Any]] = flow.send
    value: Any = None
    while True:
        try:
            action = step(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a generator's value is typed by its own annotation
        try:
            if isinstance(action, Sleep):
                if action.seconds > 0:
                    sleep(action.seconds)
                value = clock()
            elif isinstance(action, Together):
                value = [_outcome(each, send, sleep, clock) for each in action.flows]
            else:
                value = send(action)
            step = flow.send
        except RunGenError as error:
            step, value = flow.throw, error


def _outcome(
    flow: Flow[T], send: Send, sleep: Callable[[float], None], clock: Callable[[], float]
) -> T | RunGenError:
    try:
        return drive(flow, send, sleep, clock)
    except RunGenError as error:
        return error


async def adrive(
    flow: Flow[T],
    send: AsyncSend,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
    stragglers: set[asyncio.Task[Any]] | None = None,
) -> T:
    """
    Perform a flow in an event loop.

    :param stragglers: takes the flows that go on by themselves (`Together.patience`), for the caller to
        cancel in the end; without it none goes on.
    """
    step: Callable[[Any], Request | Sleep | Together[Any]] = flow.send
    value: Any = None
    while True:
        try:
            action = step(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a generator's value is typed by its own annotation
        try:
            if isinstance(action, Sleep):
                if action.seconds > 0:
                    await sleep(action.seconds)
                value = clock()
            elif isinstance(action, Together):
                each = [_aoutcome(flow, send, sleep, clock) for flow in action.flows]
                value = await _gather(each, action.patience, stragglers)
            else:
                value = await send(action)
            step = flow.send
        except RunGenError as error:
            step, value = flow.throw, error


async def _aoutcome(
    flow: Flow[T], send: AsyncSend, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float]
) -> T | RunGenError:
    try:
        return await adrive(flow, send, sleep, clock)
    except RunGenError as error:
        return error


async def _gather(
    flows: Sequence[Coroutine[Any, Any, T | RunGenError]],
    patience: float | None,
    stragglers: set[asyncio.Task[Any]] | None,
) -> list[T | RunGenError | Pending]:
    tasks = [asyncio.ensure_future(each) for each in flows]
    slow: set[asyncio.Task[T | RunGenError]] = set()
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        if stragglers is not None:
            slow.update([task for task in tasks if not task.done()][: MAX_STRAGGLERS - len(stragglers)])
        return [task.result() if task.done() else PENDING for task in tasks]
    finally:
        for task in tasks:
            if task not in slow and not task.cancel() and not task.cancelled():
                task.exception()  # of several, one is raised
        if stragglers is not None:
            for task in slow:
                stragglers.add(task)
                task.add_done_callback(stragglers.discard)
                task.add_done_callback(_log_failure)


def _log_failure(straggler: asyncio.Task[Any]) -> None:
    if not straggler.cancelled() and (error := straggler.exception()):
        log.error("A request that took long ended with an error", exc_info=error)


async def side_by_side(
    work: Callable[[Item], Awaitable[None]], items: Collection[Item], at_once: int = MAX_IN_FLIGHT
) -> None:
    """Do so many at a time as may be in flight; to begin thousands at once would hold up the event loop."""
    rest = iter(items)

    async def go_on() -> None:
        for item in rest:
            await work(item)

    workers = [asyncio.ensure_future(go_on()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()


class _Pace:
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


class Sender:
    """Sends requests over one `requests.Session`, blocking."""

    def __init__(self, settings: Settings) -> None:
        import requests
        from requests.cookies import RequestsCookieJar

        class NoCookies(RequestsCookieJar):
            def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> None: ...

        class Session(requests.Session):
            def get_redirect_target(self, resp: requests.Response) -> None:
                """Keep requests from preparing a redirect, for which it reads the whole body first."""

        self.settings = settings
        self.session: requests.Session = Session()
        self.session.headers.update(settings.headers())
        self.session.cookies = NoCookies()
        self.session.verify = settings.verify
        self.session.auth = lambda request: request  # or ~/.netrc would be sent
        self._pace = _Pace(settings.max_requests_per_second)
        self._proxies = {"http": settings.proxy, "https": settings.proxy} if settings.proxy else None

    def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer.

        :raises RunGenConnectionError: there was no whole answer.
        :raises RunGenResponseError: the answer is too large.
        """
        import requests
        from urllib3.exceptions import HTTPError

        if wait := self._pace.turn():
            time.sleep(wait)
        try:
            return self._send(request)
        except (requests.RequestException, HTTPError, OSError) as error:
            failure = _unreachable(request, error, sent=_requests_sent(error))
        # raised out here, so that the library's error, which holds the headers, is not its context
        raise failure

    def _send(self, request: Request) -> Response:
        settings = self.settings
        with self.session.request(
            request.method,
            f"{settings.base_url}/{request.path}",
            data=request.body,
            headers=settings.headers_for(request),
            timeout=(settings.connect_timeout, settings.read_timeout),
            # both again, or the environment would overrule the session
            verify=settings.verify,
            proxies=self._proxies,
            allow_redirects=False,
            stream=True,
        ) as answer:
            give_up_at = time.monotonic() + settings.read_timeout
            chunks: list[bytes] = []
            size = 0
            # urllib3 1 has no read1, which returns what is there instead of waiting for all of it
            read = getattr(answer.raw, "read1", answer.raw.read)
            while chunk := read(_CHUNK, decode_content=True):
                chunks.append(chunk)
                size += len(chunk)
                settings.check_size(size, request)
                if time.monotonic() > give_up_at:
                    raise TimeoutError("the answer took too long")
            return settings.response(answer.status_code, answer.headers, chunks)

    def close(self) -> None:
        self.session.close()


class AsyncSender:
    """Sends requests over one `aiohttp.ClientSession`; made and closed inside the event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        import aiohttp

        self.settings = settings
        self._proxy = settings.proxy_for(settings.base_url)
        self._pace = _Pace(settings.max_requests_per_second)
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        verify = settings.verify
        if verify is True:
            verify = environment_ca() or True
        # no headers here: aiohttp sends those of the session to a proxy, in the clear
        self.session: aiohttp.ClientSession = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(
                limit=MAX_IN_FLIGHT, ssl=tls_context(verify) if isinstance(verify, str) else verify
            ),
            timeout=aiohttp.ClientTimeout(
                total=settings.connect_timeout + settings.read_timeout,
                connect=settings.connect_timeout,
                sock_read=settings.read_timeout,
            ),
        )

    async def __call__(self, request: Request) -> Response:
        """
        Send a request and read the whole answer.

        :raises RunGenConnectionError: there was no whole answer.
        :raises RunGenResponseError: the answer is too large.
        """
        import aiohttp

        try:
            async with self._in_flight:
                if wait := self._pace.turn():
                    await asyncio.sleep(wait)
                return await self._send(request)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            never_made = (
                aiohttp.ClientConnectorError,
                aiohttp.ClientHttpProxyError,
                aiohttp.ConnectionTimeoutError,
            )
            failure = _unreachable(request, error, sent=not isinstance(error, never_made))
        # raised out here, so that the library's error, which holds the headers, is not its context
        raise failure

    async def _send(self, request: Request) -> Response:
        from yarl import URL

        settings = self.settings
        async with self.session.request(
            request.method,
            URL(f"{settings.base_url}/{request.path}", encoded=True),
            data=request.body,
            headers=settings.headers() | settings.headers_for(request),
            allow_redirects=False,
            proxy=self._proxy,
        ) as answer:
            chunks: list[bytes] = []
            size = 0
            async for chunk in answer.content.iter_any():
                chunks.append(chunk)
                size += len(chunk)
                settings.check_size(size, request)
            return settings.response(answer.status, answer.headers, chunks)

    async def close(self) -> None:
        await self.session.close()


def proxy_of_environment(url: str) -> str | None:
    """Give the proxy that the environment names for a URL, as `requests` reads it, which is not imported."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    host = parts.hostname or ""
    if proxy_bypass(host) or proxy_bypass(parts.netloc):
        return None
    if any(_is_in(host, each.strip()) for each in proxies.get("no", "").split(",") if "/" in each):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_in(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def environment_ca() -> str | None:
    """Give the path of the CAs that the environment names, as requests does."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")


def tls_context(path: str) -> ssl.SSLContext:
    """
    Give a context that trusts the CA bundle, or the folder of CAs, at ``path``.

    :raises RunGenConfigError: it is none.
    """
    try:
        if os.path.isdir(path):
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError:
        raise RunGenConfigError(f"verify: {path} is no CA bundle that can be read") from None


def _requests_sent(error: Exception) -> bool:
    """Tell whether the request may have reached the service: not if the connection was never made."""
    import requests
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError, SSLError

    if isinstance(error, (requests.ConnectTimeout, requests.exceptions.InvalidURL)):
        return False
    reason = getattr(_first(error.args), "reason", None)
    if isinstance(reason, SSLError):
        return not any(word in str(reason) for word in _TLS_NEVER_BEGAN)
    return not isinstance(reason, (NewConnectionError, ConnectTimeoutError, ProxyError))


def _unreachable(request: Request, error: BaseException, *, sent: bool) -> RunGenConnectionError:
    """Say in own words what went wrong: those of the libraries may hold a URL or a proxy's password."""
    root = _root(error)
    if isinstance(root, UnicodeError):  # the host's name cannot even be looked up
        sent = False
    what = (
        "lost the connection to RunGen before the whole answer came"
        if sent
        else "RunGen could not be reached"
    )
    return RunGenConnectionError(f"Could not {request.purpose}: {what} ({reason_of(error)})", sent=sent)


def reason_of(error: BaseException) -> str:
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
