"""A proxy before an S3 server that answers some requests with a fault, and records all of them."""

from __future__ import annotations

import http.client
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

# Seconds after which a request that hangs is dropped.
_HANG = 10.0
_ERROR = "<?xml version='1.0'?><Error><Code>{0}</Code><Message>{0}, as the test wants it</Message></Error>"
_NOT_FORWARDED = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


@dataclass(frozen=True, slots=True)
class S3Request:
    """
    A request to S3.

    :param operation: ``GET``, ``HEAD``, ``PUT``, ``DELETE``, or ``LIST`` and ``BULK_DELETE``.
    :param key: the key, the first of many, or what the keys begin with that are listed.
    """

    operation: str
    key: str


@dataclass(frozen=True, slots=True)
class S3Fault:
    """
    What is answered in place of the server.

    :param status: the status.
    :param code: the code of S3's error.
    """

    status: int
    code: str


#: The server's own answer, without the second half of its body.
CUT = S3Fault(200, "cut")
#: No answer.
HANG = S3Fault(0, "hang")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Keep quiet: clients give up, and close their connections."""


class FaultyS3:
    """
    The proxy.

    :param upstream: host and port of the server.
    """

    def __init__(self, upstream: str) -> None:
        #: Returns the fault that a request meets, if any.
        self.find_fault: Callable[[S3Request], S3Fault | None] = lambda _: None
        self.requests: list[S3Request] = []
        self.upstream = upstream
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """Answer everything as the server does, and forget what was asked."""
        self.find_fault = lambda _: None
        self.requests.clear()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyS3
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = _parse(self.command, self.path, body)
        self.proxy.requests.append(request)
        fault = self.proxy.find_fault(request)
        if fault is None or (fault == CUT and self.command not in {"GET", "POST"}):
            self._answer(*self._forward(body))
        elif fault == HANG:
            self.proxy.released.wait(_HANG)
            self.close_connection = True
        elif fault != CUT:
            content = _ERROR.format(fault.code).encode()
            headers = [("Content-Type", "application/xml")]
            self._answer(fault.status, headers, content, length=len(content))
        else:
            status, headers, content = self._forward(body)
            self._answer(status, headers, content[: len(content) // 2], length=len(content))
            self.close_connection = True

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            # moto answers "100 Continue" itself
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            if self.command == "HEAD":
                self.length = answer.getheader("Content-Length")
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        shown = getattr(self, "length", None) if is_head and length is None else length
        self.send_header("Content-Length", str(len(content) if shown is None else shown))
        self.end_headers()
        if not is_head:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)


def _parse(method: str, target: str, body: bytes) -> S3Request:
    url = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
    _, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
    if method == "GET" and not key:
        return S3Request("LIST", query.get("prefix", [""])[0])
    if method == "POST" and "delete" in query:
        return S3Request("BULK_DELETE", body.decode().partition("<Key>")[2].partition("</Key>")[0])
    return S3Request(method, key)
