"""Serves a ``Service`` over HTTP on the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Self

from aiohttp import web

from rungen_emulator.faults import hang
from rungen_emulator.messages import Reply
from rungen_emulator.service import Service

# While it is set, hooks reach the emulators that it names, and nothing else.
EMULATORS = "RUNGEN_EMULATOR"
# How long a request that hangs holds up the end.
_SECONDS_TO_END = 0.1


class Emulator:
    """
    A service with an address.

    :param service: the service; by default a new one with ``options``.
    :param port: the port to listen on; 0 selects a free one, see ``url`` after the start.
    :param options: arguments of ``Service``, such as ``job_seconds=0.05``.
    """

    def __init__(self, service: Service | None = None, *, port: int = 0, **options: Any) -> None:
        self.port = port
        #: The service. It can be replaced while the emulator runs.
        self.service = service or Service(**options)
        self._stop: Callable[[], object] | None = None

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
        self.service.connect(app_id, team_id)
        with (
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
        :raises OSError: the port is taken.
        """
        if self._stop is not None:
            raise RuntimeError("the emulator is running already")
        started: Future[Callable[[], object]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="rungen-emulator", daemon=True
        )
        self._thread.start()
        self._stop = started.result()
        return self

    def stop(self) -> None:
        """Stop serving, and end requests that hang."""
        if self._stop is not None:
            self._stop()
            self._thread.join()
            self._stop = None

    async def _serve(self, started: Future[Callable[[], object]]) -> None:
        """Serve until the function is called that ``started`` returns."""
        end = asyncio.Event()
        server = web.Server(self.answer, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_SECONDS_TO_END)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port, backlog=1024).start()
        except OSError as error:
            started.set_exception(error)
        else:
            self.port = runner.addresses[0][1]
            started.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, end.set))
            await end.wait()
        await runner.cleanup()

    def handle_request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        """
        Answer a request in process, without a connection. The emulator needs no start.

        :raises ConnectionRefusedError: the URL is not the emulator's.
        :raises OSError: a fault lets the answer be lost.
        """
        if not url.startswith(f"{self.url}/"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        reply = self._handle(method, url.removeprefix(self.url), headers, body or b"")
        if reply.send is hang:
            raise TimeoutError
        if reply.send is not None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return reply

    def _handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.service.outputs_url = self.url
        return self.service.handle(method, path, headers, body)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request over HTTP."""
        # request.read() would refuse more than 1 MiB
        body = await request.content.read() if request.body_exists else b""
        reply = self._handle(request.method, request.raw_path, request.headers, body)
        if reply.send is not None:
            sent = await reply.send(request, reply)
            # that of an old aiohttp is false
            return web.Response() if sent is None else sent
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


# --- tasks of this process, and of processes that it starts ---


def including(url: str) -> str:
    """Return a value of `EMULATORS` with one more emulator."""
    return " ".join(dict.fromkeys(f"{os.environ.get(EMULATORS, '')} {url}".split()))


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a ``with`` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
