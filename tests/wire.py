"""What the tests of the senders share: a scripted server, and a sender."""

from __future__ import annotations

import contextlib
import pickle
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.senders import Sender
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.exceptions import RunGenConnectionError

KEY = "sk-0123456789-very-secret"
GET = Request("GET", "app", "list the apps")
POST = Request("POST", "app/a/run_async", "run a job of app a", b'{"input":{}}')
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Talk = Callable[[socket.socket], None]


def send(settings: Settings, request: Request) -> Response:
    """Send one request."""
    return send_each(settings, request)[0]


def send_each(settings: Settings, *requests: Request) -> list[Response]:
    """Send requests, over one connection where the server allows it."""
    sender = Sender(settings)
    try:
        return [sender(request) for request in requests]
    finally:
        sender.close()


def failure(settings: Settings, request: Request = POST, *, sent: bool, match: str = ".") -> str:
    """Send a request that gets no answer, and return all that a log could show of the error: no key."""
    with pytest.raises(RunGenConnectionError, match=match) as caught:
        send(settings, request)
    assert caught.value.sent is sent
    shown = everything_in(caught.value)
    assert KEY not in shown
    return shown


def everything_in(error: BaseException) -> str:
    """Return an error's texts and attributes, and those of every error behind it."""
    shown, chain = [pickle.dumps(error).decode("latin-1")], [error]
    for one in chain:
        shown += [str(one), repr(one), repr(one.args), repr(getattr(one, "__dict__", ""))]
        shown += traceback.format_exception(one)
        chain += [each for each in (one.__cause__, one.__context__) if each and each not in chain]
    return "\n".join(shown)


class Server:
    """A server that follows a script once per connection, and records what it received."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None, head: int = 0) -> None:
        self.talk = talk
        self.tls = tls
        self.head = head  # answer after so many bytes; without it, after a whole request
        self.heard: list[bytes] = []
        self.connections = 0
        self.closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self.tls:
                with self.tls.wrap_socket(connection, server_side=True) as wrapped:
                    self._open.append(wrapped)
                    self._hear(wrapped)
                    self.talk(wrapped)
                return
            self._hear(connection)
            self.talk(connection)
        self.closed.set()

    def _hear(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return
            data += piece
            if self.head and len(data) >= self.head:
                self.heard.append(data)
                return
        head, _, body = data.partition(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            while len(body) < int(length[1]):
                body += connection.recv(65536)
        self.heard.append(head + b"\r\n\r\n" + body)


class Connections:
    """The connections to the emulators of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = self.opened = self.most = 0
        made, lost = web.Server.connection_made, web.Server.connection_lost

        def count_made(server: web.Server, *given: Any) -> None:
            self.open, self.opened = self.open + 1, self.opened + 1
            self.most = max(self.most, self.open)
            made(server, *given)

        def count_lost(server: web.Server, *given: Any) -> None:
            self.open -= 1
            lost(server, *given)

        monkeypatch.setattr(web.Server, "connection_made", count_made)
        monkeypatch.setattr(web.Server, "connection_lost", count_lost)


def settings_for(url: str, **changes: Any) -> Settings:
    return replace(Settings(base_url=url, api_key=KEY, connect_timeout=0.7, read_timeout=0.5), **changes)
