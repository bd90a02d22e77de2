"""Serves a ``Service`` over HTTP on the loopback interface, in a thread or in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from aiohttp import web

from airflow_provider_rungen.emulator.environment import EMULATORS, including, variable
from airflow_provider_rungen.emulator.messages import Reply
from airflow_provider_rungen.emulator.service import Service

_HANG_SECONDS = 120.0
_CHUNK = 64 * 1024


class Emulator:
    """
    A service with an address.

    :param service: the service; by default a new one with ``options``.
    :param port: the port to listen on; 0 selects a free one, see ``url`` after the start.
    :param options: arguments of ``Service``, such as ``job_seconds=0.05``.
    """

    def __init__(self, service: Service | None = None, *, port: int = 0, **options: Any) -> None:
        self.port = port
        self.service = service or Service(**options)
        self.drip_seconds = 1.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def service(self) -> Service:
        """The service. It can be replaced while the emulator runs."""
        return self._service

    @service.setter
    def service(self, service: Service) -> None:
        self._service = service
        service.outputs_url = self.url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def airflow_connection(self, **extra: Any) -> str:
        """
        Return the value of ``AIRFLOW_CONN_RUNGEN_DEFAULT``.

        :param extra: more fields of the connection's extra.
        """
        return json.dumps(
            {
                "conn_type": "rungen",
                "password": self.service.api_key,
                "host": self.url,
                "extra": {"app_id": self.service.app_id, **extra},
            }
        )

    @contextlib.contextmanager
    def connection(
        self,
        conn_id: str = "rungen_default",
        *,
        team_id: str | None = None,
        app_id: str | None = None,
        **extra: Any,
    ) -> Iterator[str]:
        """
        Point an Airflow connection at the emulator for a ``with`` block, and yield its id.

        It is in the environment variable ``AIRFLOW_CONN_…``, which other processes that start meanwhile
        inherit. In the block, no secrets backend is asked for it, and a hook whose connection leads anywhere
        but to an emulator raises an error.

        :param conn_id: the connection.
        :param team_id: the team to work in. Its apps are its own.
        :param app_id: the connection's app. It is added if there is none, with as many workers as the
            default apps have. The default app when left out; for a team ``{default app}-{team_id}``.
        :param extra: more fields of the connection's extra.
        :raises ValueError: the app is another team's.
        """
        if app_id is None:
            app_id = self.service.app_id + (f"-{team_id}" if team_id else "")
        team = {"team_id": team_id} if team_id else {}
        connection = self.airflow_connection(app_id=app_id, **team, **extra)
        with (
            self.service.connected(app_id, team_id),
            variable(f"AIRFLOW_CONN_{conn_id.upper()}", connection),
            variable(EMULATORS, including(self.url)),
        ):
            yield conn_id

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """
        Serve from a new thread, and return when it answers requests.

        :raises RuntimeError: it is running already.
        """
        if self._thread is not None:
            raise RuntimeError("the emulator is running already")
        started = threading.Event()
        failure: list[BaseException] = []

        def serve() -> None:
            try:
                asyncio.run(self.serve(started.set))
            except BaseException as error:
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=serve, name="rungen-emulator", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            self._thread = None
            raise failure[0]
        return self

    def stop(self) -> None:
        """Stop serving, and end requests that hang."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join()

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve in the foreground until SIGINT or SIGTERM."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._stop_soon)
            await self.serve(started)

        asyncio.run(main())

    def _stop_soon(self) -> None:
        if self._stopping is not None:
            self._stopping.set()

    async def serve(self, started: Callable[[], None] = lambda: None) -> None:
        """
        Serve in this event loop until stopped.

        :param started: called when requests are answered.
        """
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        http = _Counted(self._answer, handler_cancellation=True, access_log=None)
        http.emulator = self
        listener = await self._loop.create_server(http, "127.0.0.1", self.port, backlog=1024)
        try:
            self.port = listener.sockets[0].getsockname()[1]
            self.service.outputs_url = self.url
            started()
            await self._stopping.wait()
        finally:
            listener.close()
            await http.shutdown(timeout=0.5)
            await listener.wait_closed()

    def handle_request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        """
        Answer a request in process, so that the emulator is a transport of the hook. It needs no start.

        :raises ConnectionRefusedError: the URL is not the emulator's.
        :raises OSError: a fault lets the answer be lost.
        """
        if not url.startswith(f"{self.url}/"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        reply = self.service.handle(method, url.removeprefix(self.url), headers, body or b"")
        if reply.fault in ("hang", "drip", "drip_headers"):
            raise TimeoutError
        if reply.fault in ("reset", "truncate"):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return reply

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        # request.read() would refuse more than 1 MiB
        body = await request.content.read() if request.body_exists else b""
        reply = self.service.handle(request.method, request.raw_path, dict(request.headers), body)
        if reply.fault is None:
            return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
        return await self._answer_with_fault(request, reply)

    async def _answer_with_fault(self, request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
        if reply.fault in ("reset", "hang"):
            if reply.fault == "hang":
                await self._pause(_HANG_SECONDS)
            _reset(request)
            return web.Response()
        if reply.fault == "drip_headers":
            await self._drip_headers(request)
            return web.Response()
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        if reply.fault != "stream":
            response.content_length = len(reply.body)
        await response.prepare(request)
        if reply.fault == "truncate":
            await response.write(reply.body[: len(reply.body) // 2])
            if request.transport is not None:
                request.transport.close()
        step = 1 if reply.fault == "drip" else _CHUNK
        for start in range(0, 0 if reply.fault == "truncate" else len(reply.body), step):
            await response.write(reply.body[start : start + step])
            if reply.fault == "drip" and await self._pause(self.drip_seconds):
                break
        return response

    async def _drip_headers(self, request: web.BaseRequest) -> None:
        """Send headers without end, a byte at a time, until the client closes the connection."""
        transport = request.transport
        line = b"HTTP/1.1 200 OK\r\nX-Padding: "
        while transport is not None and not transport.is_closing():
            transport.write(line[:1])
            line = line[1:] or b"x"
            if await self._pause(self.drip_seconds):
                break
        _reset(request)

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether the emulator was stopped meanwhile."""
        assert self._stopping is not None  # noqa: S101 - for the type checker
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


class _Counted(web.Server):
    """Counts the connections of the service."""

    emulator: Emulator

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        self.emulator.service.connection(+1)
        super().connection_made(handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        self.emulator.service.connection(-1)
        super().connection_lost(handler, exc)


def _reset(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is None:
        return
    # with a linger time of zero, closing sends RST instead of FIN
    transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    transport.abort()
