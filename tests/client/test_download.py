"""Downloads over real HTTP: what the other host is sent, where they may lead, and what a fault becomes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY

from airflow_provider_rungen.client import download
from airflow_provider_rungen.client.download import (
    Download,
    Downloader,
    RefusedError,
    RejectedUrlError,
)
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConnectionError,
    RunGenError,
    RunGenOutputError,
)

BODY = b"picture " * 5000
HERE = "http://127.0.0.1:1"
AWAY = "https://api.rungen.invalid"


class Host:
    """A host that answers with the given bytes, and keeps what it was sent."""

    def __init__(self, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[str] = []
        self.answer: Callable[[str], bytes | Iterator[bytes]] = lambda path: ok(BODY)
        self._listener = listener

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(65536)
                self.requests.append(head.decode())
                answer = self.answer(head.split()[1].decode())
                for part in [answer] if isinstance(answer, bytes) else answer:
                    sock.sendall(part)


@pytest.fixture
def host() -> Iterator[Host]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Host(listener)
        thread = threading.Thread(target=host.serve, daemon=True)
        thread.start()
        yield host
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def response(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def ok(body: bytes, *headers: str) -> bytes:
    return response("200 OK", "Content-Type: image/png", *headers, body=body)


def fetch(
    url: str, service: str = HERE, *, max_bytes: int = 10**6, **options: Any
) -> tuple[Download | RunGenError, bytes]:
    """Download a URL; return the outcome, and what was written."""
    settings = replace(Settings(service, KEY, team_id="team", user_id="user", read_timeout=5.0), **options)
    file = io.BytesIO(b"what a failed attempt has left" * 9999)

    async def run() -> Download | RunGenError:
        downloader = Downloader(settings, max_bytes=max_bytes, at_once=2)
        try:
            return await downloader.fetch(url, file)
        except RunGenError as error:
            return error
        finally:
            await downloader.close()

    return asyncio.run(run()), file.getvalue()


def rejection(url: str, service: str = HERE, **options: Any) -> str:
    """Return why a URL is never requested."""
    outcome, _ = fetch(url, service, **options)
    assert type(outcome) is RejectedUrlError
    assert not outcome.retryable
    return str(outcome)


def refusal(url: str) -> str:
    """Return how a host refuses a file, which it may not do the next time."""
    outcome, _ = fetch(url)
    assert type(outcome) is RefusedError
    assert outcome.retryable
    return str(outcome)


def too_large(url: str, max_bytes: int) -> str:
    """Return how a file is refused for its size."""
    outcome, _ = fetch(url, max_bytes=max_bytes)
    assert type(outcome) is RunGenOutputError
    assert not outcome.retryable
    return str(outcome)


def test_a_file_is_fetched_with_its_digest(host: Host) -> None:
    outcome, written = fetch(f"{host.url}/a%2Fb?X-Amz-Signature=a%2Fb%3D+c")
    assert outcome == Download(len(BODY), hashlib.sha256(BODY).hexdigest(), "image/png")
    assert written == BODY
    assert host.requests[0].startswith("GET /a%2Fb?X-Amz-Signature=a%2Fb%3D+c HTTP/1.1\r\n")


def test_nothing_of_the_connection_is_sent(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    hops = iter([response("302 Found", "Set-Cookie: a=b; Path=/", f"Location: {host.url}/2"), ok(BODY)])
    host.answer = lambda path: next(hops)
    outcome, _ = fetch(f"{host.url}/1", service=f"{host.url}")
    assert isinstance(outcome, Download)
    for request in host.requests:
        names = {line.partition(":")[0].lower() for line in request.split("\r\n")[1:] if line}
        assert names <= {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert KEY not in request


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:100]) + gzip.compress(BODY[100:])),
        ("identity", BODY),
        ("aws-chunked", BODY),
        ("GZIP, aws-chunked", gzip.compress(BODY)),
    ],
)
def test_what_is_compressed_on_the_way_is_what_it_was(host: Host, encoding: str, body: bytes) -> None:
    host.answer = lambda path: ok(body, f"Content-Encoding: {encoding}")
    assert fetch(host.url)[1] == BODY


def test_a_file_that_is_large_once_decoded_does_not_hold_up_the_event_loop(host: Host) -> None:
    host.answer = lambda path: ok(gzip.compress(bytes(50_000_000)), "Content-Encoding: gzip")
    counts: list[int] = []

    class File(io.BytesIO):
        def write(self, data: Any) -> int:
            counts[-1] += 1
            return super().write(data)

    async def count_writes_of_each_turn() -> None:
        while True:
            counts.append(0)
            await asyncio.sleep(0)

    async def run() -> Download:
        downloader = Downloader(Settings(HERE, KEY), max_bytes=10**8, at_once=1)
        counter = asyncio.ensure_future(count_writes_of_each_turn())
        try:
            return await downloader.fetch(host.url, File())
        finally:
            counter.cancel()
            await downloader.close()

    assert asyncio.run(run()).size == 50_000_000
    assert sum(counts) > 100
    assert max(counts) <= 2


def test_an_encoding_that_is_not_known_is_refused(host: Host) -> None:
    host.answer = lambda path: ok(BODY, "Content-Encoding: gzip, br")
    assert "encoding gzip, br" in refusal(host.url)


@pytest.mark.parametrize("path", ["/", "/0.txt", "/0.csv?x=.png"])
def test_an_empty_file_is_one(host: Host, path: str) -> None:
    host.answer = lambda path: response("200 OK")
    outcome, written = fetch(host.url + path)
    assert outcome == Download(0, hashlib.sha256().hexdigest(), None)
    assert written == b""


PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    ("name", "content_type", "body", "is_file"),
    [
        ("a.png", "text/html", PAGE, False),
        ("a%2FB.JPEG?X-Amz-Signature=s3cret", "Text/HTML; charset=utf-8", PAGE, False),
        ("a.mp4", "application/json", b'{"error": "no"}', False),
        ("a.wav", "audio/wav", b"", False),
        *(("a.png", content_type, BODY, True) for content_type in ("binary/octet-stream", "text/plain", "")),
        *((name, "text/html", PAGE, True) for name in ("a.html", "a", "png", "a.png.txt", "a?x=a.png")),
        ("a.json", "application/json", b"{}", True),
    ],
)
@pytest.mark.parametrize("is_redirected", [False, True])
def test_a_page_in_place_of_a_picture_is_a_refusal(  # noqa: PLR0917 - parameters
    host: Host, name: str, content_type: str, body: bytes, is_file: bool, is_redirected: bool
) -> None:
    answers = iter(
        [response("302 Found", "Location: /login")] * is_redirected
        + [response("200 OK", f"Content-Type: {content_type}", body=body)]
    )
    host.answer = lambda path: next(answers)
    outcome, _ = fetch(f"{host.url}/{name}")
    assert isinstance(outcome, Download if is_file else RefusedError)
    if isinstance(outcome, RefusedError):
        assert outcome.retryable
        assert re.fullmatch(r"127\.0\.0\.1 sent (text/html|application/json|no bytes) in .*", str(outcome))


# --- too large ----------------------------------------------------------------------------------------------


def test_a_file_may_have_the_size_it_may_have(host: Host) -> None:
    assert isinstance(fetch(host.url, max_bytes=len(BODY))[0], Download)


def test_a_file_that_announces_too_many_bytes_is_not_read(host: Host) -> None:
    host.answer = lambda path: b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"
    assert "over 1000 bytes (max_output_bytes)" in too_large(host.url, 1000)


@pytest.mark.parametrize("encoding", ["plain", "gzip"])
def test_what_turns_out_too_large_is_read_no_further(host: Host, encoding: str) -> None:
    sent = 0
    part = bytes(1 << 20)

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
        yield b"Content-Encoding: gzip\r\n\r\n" if encoding == "gzip" else b"\r\n"
        for _ in range(1000):
            sent += 1
            yield gzip.compress(part) if encoding == "gzip" else part

    host.answer = lambda path: endless()
    assert "max_output_bytes" in too_large(host.url, 5 << 20)
    assert sent < 200 or encoding == "gzip"


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        ok(BODY)[:-1],
        ok(BODY)[:20],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        ok(gzip.compress(BODY)[:-20], "Content-Encoding: gzip"),
        ok(gzip.compress(BODY)[:-8] + bytes(8), "Content-Encoding: gzip"),
    ],
    ids=["nothing", "garbage", "short", "half a head", "half a chunk", "short gzip", "wrong gzip"],
)
def test_what_does_not_come_whole_may_come_the_next_time(host: Host, answer: bytes) -> None:
    host.answer = lambda path: answer
    outcome, _ = fetch(f"{host.url}/x?secret=1")
    assert type(outcome) is RunGenConnectionError
    assert outcome.retryable
    assert "127.0.0.1" in str(outcome)
    assert "secret" not in repr((outcome, outcome.__cause__, outcome.__context__))


def test_a_host_that_is_not_there_may_be_the_next_time(free_port: int) -> None:
    for url in (f"http://127.0.0.1:{free_port}/x?secret=1", "https://storage.invalid/x?secret=1"):
        outcome, _ = fetch(url)
        assert type(outcome) is RunGenConnectionError
        assert "secret" not in str(outcome)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_file_that_comes_too_slowly_is_given_up(host: Host, part: str) -> None:
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if part == "body" else b"X: ")
        while not over.wait(0.05):
            yield b"x"

    host.answer = lambda path: drip()
    try:
        outcome, _ = fetch(host.url, read_timeout=0.4, connect_timeout=0.2)
    finally:
        over.set()
    assert type(outcome) is RunGenConnectionError
    assert "TimeoutError" in str(outcome)


def test_a_file_that_takes_long_but_comes_is_waited_for(host: Host) -> None:
    pause = threading.Event()

    def steady() -> Iterator[bytes]:
        yield ok(bytes(8000))[:-8000]
        for _ in range(8):
            pause.wait(0.1)
            yield bytes(1000)

    host.answer = lambda path: steady()
    outcome, _ = fetch(host.url, read_timeout=0.3)
    assert isinstance(outcome, Download)


REFUSALS = (202, 204, 206, 300, 302, 304, 400, 403, 404, 407, 409, 410, 413, 421, 425, 451)


@pytest.mark.parametrize("status", [*REFUSALS, 408, 429, 500, 503])
def test_no_answer_of_a_host_is_final_or_shows_what_is_signed(host: Host, status: int) -> None:
    body = b"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>s3cret</StringToSign></Error>"
    if status in {204, 304}:
        body = b""
    host.answer = lambda path: response(f"{status} No", "Retry-After: 7", body=body)
    outcome, _ = fetch(f"{host.url}/x?X-Amz-Signature=s3cret")
    assert isinstance(outcome, RunGenError)
    assert outcome.retryable
    if status in REFUSALS:
        assert type(outcome) is RefusedError
    else:
        assert isinstance(outcome, RunGenAPIError)
        assert (outcome.status_code, outcome.retry_after) == (status, 7)
    code = "SignatureDoesNotMatch" if body else ""
    assert str(outcome) == f"127.0.0.1 answered {status} {code}".rstrip()


@pytest.mark.parametrize(
    ("status", "body", "is_expired"),
    [
        ("400 Bad Request", "<Error><Code>ExpiredToken</Code></Error>", True),
        ("403 No", "<Error><Code>ExpiredRequest</Code><Message>It is late.</Message></Error>", True),
        ("403 No", "<Error><Code>AccessDenied</Code>\n<Message>Request has expired</Message></Error>", True),
        ("403 No", "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>", False),
        ("404 No", "<Error><Code>NoSuchKey</Code><Message>No</Message><Key>expired</Key></Error>", False),
        ("403 No", "<p>Your session with the proxy has expired</p>", False),
        ("503 No", "<Error><Code>SlowDown</Code><Message>It has expired</Message></Error>", False),
    ],
)
def test_a_url_has_expired_if_the_storage_says_so(
    host: Host, status: str, body: str, is_expired: bool
) -> None:
    host.answer = lambda path: response(status, body=body.encode())
    outcome, _ = fetch(host.url)
    assert isinstance(outcome, RunGenError)
    assert getattr(outcome, "is_expired", False) == is_expired
    code = body.partition("<Code>")[2].partition("<")[0]
    assert str(outcome) == f"127.0.0.1 answered {status[:3]} {code}".rstrip()


@pytest.mark.parametrize("size", [1, 2, 3, 196_608, 1_000_000])
def test_a_data_url_is_decoded(size: int) -> None:
    content = (BODY * (size // len(BODY) + 1))[:size]
    text = "data:image/png;base64," + base64.b64encode(content).decode()
    outcome, file = fetch(text, max_bytes=size)
    assert outcome == Download(size, hashlib.sha256(content).hexdigest(), "image/png")
    assert file == content
    outcome, _ = fetch(text, max_bytes=size - 1)
    assert "max_output_bytes" in str(outcome)


def test_a_full_disk_is_no_fault_of_the_network(host: Host) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    async def run() -> None:
        downloader = Downloader(Settings(HERE, KEY), max_bytes=10**6, at_once=1)
        try:
            await downloader.fetch(host.url, Full())
        finally:
            await downloader.close()

    with pytest.raises(RunGenOutputError, match=r"cannot be written to disk \(No space") as caught:
        asyncio.run(run())
    assert caught.value.retryable


# --- redirects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("goal", ["/there?a=b%2Fc", "http://localhost:{port}/there?a=b%2Fc"])
def test_a_redirect_to_this_machine_is_followed(host: Host, status: int, goal: str) -> None:
    there = response(f"{status} There", f"Location: {goal.format(port=host.port)}")
    host.answer = lambda path: ok(BODY) if path.startswith("/there") else there
    assert fetch(f"{host.url}/here?secret=1")[1] == BODY
    assert "GET /there?a=b%2Fc HTTP" in host.requests[1]
    assert "secret" not in host.requests[1]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://storage.example/x", "over plain http"),
        ("http://8.8.8.8/x", "over plain http"),
        ("https://10.0.0.1/x", "private network"),
        ("https://169.254.169.254/latest", "private network"),
        ("https://[::ffff:10.0.0.1]/x", "private network"),
        ("https://0x0a000001/x", "private network"),
        ("ftp://127.0.0.1/x", "not http or https"),
        ("file:///etc/passwd", "not http or https"),
        ("https://", "no valid host"),
        ("http://[bad", "cannot be parsed"),
    ],
)
def test_a_redirect_to_somewhere_else_is_not_followed(host: Host, location: str, reason: str) -> None:
    # the login page of a proxy is often in a private network, or without https
    host.answer = lambda path: response("302 Found", f"Location: {location}?secret=1")
    message = refusal(host.url)
    assert message.startswith("127.0.0.1 redirected it, but ")
    assert reason in message
    assert "secret" not in message
    assert len(host.requests) == 1


def test_a_redirect_to_https_is_followed(host: Host, free_port: int) -> None:
    host.answer = lambda path: response("302 Found", f"Location: https://127.0.0.1:{free_port}/x")
    outcome, _ = fetch(host.url)
    assert type(outcome) is RunGenConnectionError  # nobody is there


def test_redirects_come_to_an_end(host: Host) -> None:
    host.answer = lambda path: response("302 Found", "Location: /again")
    assert "redirected more than" in refusal(host.url)
    assert len(host.requests) == download.MAX_REDIRECTS + 1


# --- private networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "10.0.0.1", "169.254.169.254", "[fe80::1]"],
)
@pytest.mark.parametrize("service", [AWAY, "https://93.184.216.34"])
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_no_private_network_is_reached_for_a_public_service(
    host: Host, name: str, service: str, proxy: str | None
) -> None:
    reason = rejection(f"http://{name}:{host.port}/x?secret=1", service, proxy=proxy)
    assert "private network that the service is not part of" in reason
    assert "secret" not in reason
    assert host.requests == []


@pytest.mark.parametrize("service", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"])
def test_a_service_on_this_machine_may_have_its_outputs_here(host: Host, service: str) -> None:
    for name in ("127.0.0.1", "localhost"):
        assert fetch(f"http://{name}:{host.port}/x", service)[1] == BODY


def test_a_name_is_judged_by_every_address_it_has(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"two.example": ["93.184.216.34", "127.0.0.1"], "one.example": ["127.0.0.1"]}

    known = socket.getaddrinfo

    def look_up(name: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in names:
            return known(name, port, *args, **kwargs)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, int(port or 0))) for address in names[name]
        ]

    monkeypatch.setattr("socket.getaddrinfo", look_up)  # stands for the network's DNS
    for name in names:
        assert "private network" in rejection(f"http://{name}:{host.port}/x", AWAY)
    assert host.requests == []
    assert fetch(f"http://one.example:{host.port}/x", HERE)[1] == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://127.0.0.1/x", "ftp, not http"),
        ("file:///etc/passwd", "file, not http"),
        ("s3://bucket/x", "s3, not http"),
        ("http:///x", "no valid host"),
        ("http://[bad/x", "cannot be parsed"),
        ("http://h:99999/x", "cannot be parsed"),
        ("http://127.0.0.\uff11/x", "no valid host"),
        ("http://1.2.3.4.5/x", "no valid host"),
    ],
)
def test_what_cannot_be_fetched_is_refused(url: str, reason: str) -> None:
    assert reason in rejection(url)


# --- proxies and TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["connection", "environment"])
def test_a_proxy_is_used(host: Host, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    options: dict[str, Any] = {"proxy": host.url} if by == "connection" else {}
    if by == "environment":
        monkeypatch.setenv("http_proxy", host.url)
    outcome, _ = fetch("http://storage.invalid/x?a=b", AWAY, **options)
    assert isinstance(outcome, Download)
    assert host.requests[0].startswith("GET http://storage.invalid/x?a=b HTTP/1.1")
    assert KEY not in host.requests[0]


def test_a_ca_bundle_is_trusted_beside_the_usual_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    import ssl

    import certifi

    own = tmp_path / "ca.pem"
    own.write_bytes(
        Path(certifi.where()).read_bytes().split(b"-----END CERTIFICATE-----")[0]
        + b"-----END CERTIFICATE-----\n"
    )
    context = download._tls(str(own))
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert download._tls(False) is False
    assert download._tls(True) is True
