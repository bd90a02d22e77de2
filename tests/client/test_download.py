"""Downloads over real HTTP: what the other host is sent, where they may lead, and what a fault becomes."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import certifi
import pytest
from conftest import KEY
from wire import Server

from airflow_provider_rungen.client import download
from airflow_provider_rungen.client.download import Download, Downloader, RefusedError, RejectedUrlError
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


class Host(Server):
    """A host that answers with the given bytes, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answer: Callable[[str], bytes | Iterator[bytes]] = lambda path: ok(BODY)
        super().__init__(self._send)

    @property
    def requests(self) -> list[str]:
        return [heard.decode() for heard in self.heard]

    def _send(self, connection: socket.socket) -> None:
        answer = self.answer(self.requests[-1].split()[1])
        for part in [answer] if isinstance(answer, bytes) else answer:
            connection.sendall(part)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def response(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def ok(body: bytes, *headers: str) -> bytes:
    return response("200 OK", "Content-Type: image/png", *headers, body=body)


def fetch(
    url: str, service: str = HERE, *, max_bytes: int = 10**6, file: io.BytesIO | None = None, **options: Any
) -> tuple[Download | RunGenError, bytes]:
    """Download a URL; return the outcome, and what was written."""
    settings = replace(Settings(service, KEY, team_id="team", user_id="user", read_timeout=5.0), **options)
    into = file or io.BytesIO(b"what a failed attempt has left" * 9999)

    async def run() -> Download | RunGenError:
        downloader = Downloader(settings, max_bytes=max_bytes, at_once=2)
        try:
            return await downloader.fetch(url, into)
        except RunGenError as error:
            return error
        finally:
            await downloader.close()

    return asyncio.run(run()), into.getvalue()


def failure(kind: type[RunGenError], url: str, service: str = HERE, **options: Any) -> str:
    """Return why a URL is never requested, or a file refused: for good, or only this time."""
    outcome, _ = fetch(url, service, **options)
    assert type(outcome) is kind
    assert outcome.retryable == (kind is RefusedError)
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
            if not counts:
                asyncio.get_running_loop().call_soon(begin_turn)
                counts.append(0)
            counts[-1] += 1
            return super().write(data)

    def begin_turn() -> None:
        counts.append(0)
        asyncio.get_running_loop().call_soon(begin_turn)

    outcome, written = fetch(host.url, max_bytes=10**8, file=File())
    assert isinstance(outcome, Download)
    assert outcome.size == len(written) == 50_000_000
    assert sum(counts) > 100
    assert max(counts) <= 2


def test_an_encoding_that_is_not_known_is_refused(host: Host) -> None:
    host.answer = lambda path: ok(BODY, "Content-Encoding: gzip, br")
    assert "encoding gzip, br" in failure(RefusedError, host.url)


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
        *(("a.png", f"{kind}/xml", b"<Error/>", False) for kind in ("application", "text")),
        ("a.png", "application/problem+json", b"{}", False),
        *(("a.svg", f"{kind}+xml", b"<svg/>", True) for kind in ("image/svg", "text/svg")),
        ("a.svg", "text/xml", b"<svg/>", True),
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
        assert re.fullmatch(
            r"127\.0\.0\.1 sent (text/html|\w+/[a-z+]*(json|xml)|no bytes) in .*", str(outcome)
        )


# --- too large ----------------------------------------------------------------------------------------------


def test_a_file_that_announces_too_many_bytes_is_not_read(host: Host) -> None:
    assert isinstance(fetch(host.url, max_bytes=len(BODY))[0], Download)
    host.answer = lambda path: b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"
    reason = failure(RunGenOutputError, host.url, max_bytes=1000)
    assert "over 1,000 bytes" in reason


@pytest.mark.parametrize(
    ("encoding", "part"), [("identity", bytes(1 << 20)), ("gzip", gzip.compress(bytes(1 << 20)))]
)
def test_what_turns_out_too_large_is_read_no_further(host: Host, encoding: str, part: bytes) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Encoding: {encoding}\r\n\r\n".encode()
        for sent in range(1000):  # noqa: B007
            yield part

    host.answer = lambda path: endless()
    assert "the file has over" in failure(RunGenOutputError, host.url, max_bytes=5 << 20)
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
    assert "the file has over" in str(outcome)


def test_a_full_disk_is_no_fault_of_the_network(host: Host) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    outcome, _ = fetch(host.url, file=Full())
    assert type(outcome) is RunGenOutputError
    assert outcome.retryable
    assert outcome.is_outage
    assert "cannot be written to disk (No space" in str(outcome)


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
        *((f"http://{host}/x", "over plain http") for host in ("storage.example", "8.8.8.8")),
        *((f"https://{host}/x", "private network") for host in ("169.254.169.254", "[::ffff:10.0.0.1]")),
        *((url, "not http or https") for url in ("ftp://127.0.0.1/x", "file:///etc/passwd")),
        ("https://", "no valid host"),
        ("http://[bad", "cannot be parsed"),
    ],
)
def test_a_redirect_to_somewhere_else_is_not_followed(host: Host, location: str, reason: str) -> None:
    # the login page of a proxy is often in a private network, or without https
    host.answer = lambda path: response("302 Found", f"Location: {location}?secret=1")
    message = failure(RefusedError, host.url)
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
    assert "redirected more than" in failure(RefusedError, host.url)
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
    reason = failure(RejectedUrlError, f"http://{name}:{host.port}/x?secret=1", service, proxy=proxy)
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
        addresses = names.get(name, [name])
        return [each for address in addresses for each in known(address, port, *args, **kwargs)]

    monkeypatch.setattr("socket.getaddrinfo", look_up)  # stands for the network's DNS
    for name in names:
        assert "private network" in failure(RejectedUrlError, f"http://{name}:{host.port}/x", AWAY)
    assert host.requests == []
    assert fetch(f"http://one.example:{host.port}/x", HERE)[1] == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        *((f"{scheme}://bucket/x", f"{scheme}, not http") for scheme in ("ftp", "file", "s3")),
        *((f"http://{host}/x", "no valid host") for host in ("", "127.0.0.\uff11", "1.2.3.4.5")),
        *((f"http://{host}/x", "cannot be parsed") for host in ("[bad", "h:99999")),
    ],
)
def test_what_cannot_be_fetched_is_refused(url: str, reason: str) -> None:
    assert reason in failure(RejectedUrlError, url)


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


def test_a_ca_bundle_is_trusted_beside_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    context = download._tls(certifi.where())
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert [download._tls(verify) for verify in (False, True)] == [False, True]
