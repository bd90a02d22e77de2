"""The senders on the wire: nasty servers, proxies, TLS, and where the key must not go."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import certifi
import pytest
from packaging.version import Version
from rungen_emulator import Emulator
from wire import GET, KEY, OK, POST, Connections, Server, failure, send, send_each, settings_for

from airflow_provider_rungen.client.flow import Flow, Gather, Request, Response, Sleep
from airflow_provider_rungen.client.senders import Sender
from airflow_provider_rungen.client.settings import proxy_of_environment
from airflow_provider_rungen.client.transport import adrive, drive, end_background, gather_limited, watched
from airflow_provider_rungen.exceptions import RunGenConnectionError, RunGenError, RunGenResponseError

# --- answers as they should be ------------------------------------------------------------------------------


def test_status_headers_and_body_come_back(serve: Any) -> None:
    server = serve(b"HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\nRetry-After: 7\r\nX-Odd: a\r\n\r\nshort")
    answer = send(settings_for(server.url), GET)
    assert (answer.status, answer.body) == (418, b"short")
    assert (answer.headers["retry-after"], answer.headers["x-odd"]) == ("7", "a")


def test_the_request_is_as_the_api_wants_it(serve: Any) -> None:
    server = serve(OK)
    send(settings_for(server.url + "/prefix", team_id="t"), POST)
    [heard] = server.heard
    head, _, body = heard.partition(b"\r\n\r\n")
    lines = [line.lower() for line in head.split(b"\r\n")]
    assert lines[0] == b"post /prefix/app/a/run_async http/1.1"
    assert body == POST.body
    for line in (b"x-api-key: " + KEY.encode(), b"x-team-id: t", b"content-type: application/json"):
        assert lines.count(line) == 1
    assert not any(line.startswith((b"authorization", b"cookie", b"expect")) for line in lines)


def test_cookies_are_not_kept(serve: Any) -> None:
    server = serve(OK.replace(b"OK\r\n", b"OK\r\nSet-Cookie: a=b; Path=/\r\nConnection: close\r\n"))
    send_each(settings_for(server.url), GET, GET)
    assert len(server.heard) == 2
    assert b"cookie" not in server.heard[1].lower()


# --- answers as they should not be --------------------------------------------------------------------------

# The last ones look whole: only the framing, or the compression, tells that there was more.
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "bad gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
    "less than promised": b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{}",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "half a gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 15\r\n\r\n"
    + gzip.compress(b"{}" * 500)[:15],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_an_error_of_ours(serve: Any, name: str) -> None:
    server = serve(BROKEN[name])
    failure(settings_for(server.url), sent=True, match="run a job of app a")
    assert len(server.heard) == 1


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found", b"500 Oh"])
def test_an_endless_body_is_cut_off(serve: Any, status: bytes) -> None:
    sent = 0

    def talk(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nLocation: /x\r\n\r\n")
        while sent < 100_000_000:
            connection.sendall(b"x" * 100_000)
            sent += 100_000

    with pytest.raises(RunGenResponseError, match="max_response_bytes"):
        send(settings_for(serve(talk).url, max_response_bytes=200_000, read_timeout=20.0), GET)
    assert sent < 50_000_000


# --- what was never sent ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}", "https://no-such-host.invalid", "http://a..b", f"http://{'a' * 70}.x"]
)
def test_a_connection_that_cannot_be_made_sent_nothing(free_port: int, url: str) -> None:
    failure(settings_for(url.format(free_port)), sent=False, match="could not be reached")


# --- where the key must not go ------------------------------------------------------------------------------


def _away(server: Server) -> str:
    """An address of a server as a proxy knows it: what is on this machine is reached without a proxy."""
    return server.url.replace("127.0.0.1", "rungen.example")


def test_a_proxy_of_the_environment_is_overruled_by_that_of_the_connection(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, other = serve(OK), serve(OK)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, other.url)
        monkeypatch.setenv(name.upper(), other.url)
    send(settings_for("http://rungen.example", proxy=wanted.url), GET)
    assert (len(wanted.heard), len(other.heard)) == (1, 0)


@pytest.mark.parametrize("by", ["http_proxy", "ALL_PROXY", "connection"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "localhost", "rungen.localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_what_is_on_this_machine_is_never_reached_through_a_proxy(
    serve: Any, monkeypatch: pytest.MonkeyPatch, free_port: int, by: str, host: str
) -> None:
    proxy = serve(OK)
    if by != "connection":
        monkeypatch.setenv(by, proxy.url)
    settings = settings_for(
        f"http://{host}:{free_port}", proxy=proxy.url if by == "connection" else None, connect_timeout=0.5
    )
    with contextlib.suppress(RunGenConnectionError):  # whether anybody is there is not what counts
        send(settings, GET)
    assert proxy.heard == []
    assert settings.proxy_for(settings.base_url) is None


def test_the_netrc_is_not_used(serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hush\ndefault login me password hush\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(OK)
    send(settings_for(server.url), GET)
    assert b"authorization" not in server.heard[0].lower()


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rungen test")])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("rungen.example")]
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    unsigned = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
    )
    unsigned = unsigned.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    unsigned = unsigned.add_extension(x509.SubjectAlternativeName(names), critical=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    path.write_bytes(unsigned.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def bundle(certificate: Path, tmp_path: Path) -> Path:
    """A CA bundle that no other test has loaded."""
    return Path(shutil.copy(certificate, tmp_path / "bundle.pem"))


def test_a_certificate_that_does_not_prove_the_name_is_refused(
    serve: Any, tls: ssl.SSLContext, certificate: Path
) -> None:
    server = serve(OK, tls=tls)
    failure(settings_for(server.url), sent=False)
    other = server.url.replace("127.0.0.1", "localhost")
    failure(settings_for(other, verify=str(certificate)), sent=False)
    assert server.heard == []


def test_a_server_that_speaks_plain_http_is_suspected(rungen_emulator: Emulator) -> None:
    settings = settings_for(rungen_emulator.url.replace("http://", "https://"))
    suspicion = r"WRONG_VERSION_NUMBER.*Is the server speaking plain http\?"
    failure(settings, sent=False, match=suspicion)


def test_the_connection_decides_what_is_trusted(
    serve: Any, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.devnull)
    monkeypatch.setenv("CURL_CA_BUNDLE", os.devnull)
    for verify in (str(certificate), False):
        assert send(settings_for(serve(OK, tls=tls).url, verify=verify), GET).status == 200


def test_an_invalid_ca_bundle_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "nonsense").write_text("nonsense")
    (tmp_path / "folder").mkdir()
    for name in ("empty", "nonsense", "folder", "missing"):
        with pytest.raises(RunGenError):
            send(settings_for("https://127.0.0.1:9", verify=str(tmp_path / name)), GET)


def test_a_ca_bundle_is_loaded_once(
    serve: Any, tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = ssl.SSLContext.load_verify_locations, []

    def count(context: ssl.SSLContext, *args: Any, **named: Any) -> None:
        loaded.append((args, named))
        load(context, *args, **named)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    settings = settings_for(serve(OK, tls=tls).url, verify=str(bundle))
    assert [send(settings, GET).status for _ in range(5)] == [200] * 5
    assert len(loaded) == 1


def test_a_replaced_ca_bundle_holds_for_the_next_connection(
    serve: Any, tls: ssl.SSLContext, bundle: Path
) -> None:
    def talk(connection: socket.socket) -> None:
        bundle.write_text(Path(certifi.where()).read_text())
        connection.sendall(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))

    server = serve(talk, tls=tls)
    with pytest.raises(RunGenConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        send_each(settings_for(server.url, verify=str(bundle)), GET, POST)
    assert [heard.split()[0] for heard in server.heard] == [b"GET"]


# --- proxies ------------------------------------------------------------------------------------------------


class Proxy(Server):
    """An HTTP proxy that forwards plain requests and makes tunnels, to this machine whatever the name."""

    def __init__(self) -> None:
        super().__init__(self._forward)

    def _forward(self, connection: socket.socket) -> None:
        method, target, _ = self.heard[-1].split(b"\r\n", 1)[0].decode().split(" ")
        if method != "CONNECT":
            port = re.findall(r"//[^:/]+:(\d+)", target)[0]
            with socket.create_connection(("127.0.0.1", int(port))) as onward:
                path = "/" + target.split("/", 3)[3]
                onward.sendall(self.heard[-1].replace(target.encode(), path.encode(), 1))
                connection.sendall(onward.recv(65536))
            return
        port = target.rsplit(":", 1)[1]
        with socket.create_connection(("127.0.0.1", int(port))) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(onward, connection), daemon=True)
            back.start()
            _pump(connection, onward)
            back.join(5)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = Proxy()
    yield server
    server.close()


def test_a_proxy_forwards_plain_http(proxy: Proxy, serve: Any) -> None:
    server = serve(OK)
    assert send(settings_for(_away(server), proxy=proxy.url), POST).status == 200
    assert proxy.heard[0].startswith(f"POST {_away(server)}/app/a/run_async HTTP/1.1".encode())
    assert server.heard[0].endswith(b'{"input":{}}')


def test_a_proxy_tunnels_https_and_never_sees_the_key(
    proxy: Proxy, serve: Any, tls: ssl.SSLContext, certificate: Path
) -> None:
    server = serve(OK, tls=tls)
    settings = settings_for(
        _away(server), proxy=proxy.url.replace("//", "//me:pass%40word@"), verify=str(certificate)
    )
    assert send(settings, POST).status == 200
    assert len(proxy.heard) == 1
    assert proxy.heard[0].startswith(f"CONNECT rungen.example:{server.port} HTTP/1.".encode())
    assert b"Proxy-Authorization: Basic bWU6cGFzc0B3b3Jk" in proxy.heard[0]
    assert KEY.encode() not in b"".join(proxy.heard)
    assert KEY.encode() in server.heard[0]
    assert b"proxy-authorization" not in server.heard[0].lower()


@pytest.mark.parametrize("written", ["http://{}", "{}", " http://{} "])
def test_a_proxy_of_the_environment_is_used(
    proxy: Proxy, serve: Any, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    server = serve(OK)
    monkeypatch.setenv("http_proxy", written.format(f"127.0.0.1:{proxy.port}"))
    send(settings_for(_away(server)), GET)
    assert (len(proxy.heard), len(server.heard)) == (1, 1)


NO_PROXIES = (
    *("", "*", "rungen.example", ".rungen.example", "example", "rungen.example:8443", "10.1.0.0/16"),
    *("other, api.rungen.example", "10.1.2.3", "10.2.0.0/16", "10.1.2.3/33", "nonsense/8"),
    *("rungen.example/8", "::1"),
)
URLS = (
    *("https://api.rungen.example", "http://api.rungen.example/v1", "https://rungen.example:8443"),
    *("https://norungen.example", "https://10.1.2.3", "http://10.1.2.3:8000/x", "http://[::1]:8000"),
)


@pytest.mark.parametrize("no_proxy", NO_PROXIES)
@pytest.mark.parametrize("url", URLS)
def test_the_environment_names_the_same_proxy_for_both(
    monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str
) -> None:
    from requests.utils import get_environ_proxies, select_proxy  # the reference

    if Version(version("requests")) < Version("2.34") and url.endswith(f"no{no_proxy}"):
        pytest.skip("requests before 2.34 takes norungen.example for a part of rungen.example")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    for names in (("http_proxy",), ("https_proxy",), ("http_proxy", "https_proxy"), ("all_proxy",), ()):
        with monkeypatch.context() as environment:
            for name in names:
                environment.setenv(name, f"http://{name[:-6]}.example:3128")
            assert proxy_of_environment(url) == select_proxy(url, get_environ_proxies(url, no_proxy=None))


def test_requests_is_imported_for_those_who_use_it_only() -> None:
    """It would cost each worker and triggerer some megabytes."""
    script = """if True:
        import sys
        from airflow_provider_rungen.client.senders import Sender
        from airflow_provider_rungen.client.settings import Settings
        sender = Sender(settings := Settings('https://rungen.example', 'key'))
        print('requests' in sys.modules, settings.session() is not None and 'requests' in sys.modules)
    """
    assert output_of(script).stdout.strip() == "False True"


def output_of(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize("url", ["http://rungen.example", "https://rungen.example"])
def test_a_proxy_that_is_not_there_sent_nothing(free_port: int, url: str) -> None:
    blamed = f"the proxy 127.0.0.1:{free_port} could not be reached .*Check Proxy of the Airflow connection"
    settings = settings_for(url, proxy=f"http://me:hush-hush@127.0.0.1:{free_port}")
    shown = failure(settings, sent=False, match=blamed)
    assert "RunGen could not" not in shown
    assert "hush-hush" not in shown


@pytest.mark.parametrize("refusal", ["407 Proxy Authentication Required", "502 Bad Gateway"])
def test_a_tunnel_that_is_refused_sent_nothing(serve: Any, refusal: str) -> None:
    proxy = serve(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
    blamed = rf"the proxy 127.0.0.1:\d+ refused to connect to RunGen \({refusal[:3]}\)"
    failure(settings_for("https://rungen.example", proxy=proxy.url), sent=False, match=blamed)
    assert KEY.encode() not in b"".join(proxy.heard)


# --- reuse --------------------------------------------------------------------------------------------------


def test_connections_are_used_again_but_by_no_submission_once_they_were_idle(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: now)
    opened = []
    with Emulator() as emulator:
        sender = Sender(settings_for(emulator.url, api_key=emulator.service.api_key, read_timeout=5.0))
        for now, requests in ((0, [*[GET] * 20, *[POST] * 50]), (0.9, [POST]), (2, [POST, GET])):  # noqa: B007
            for request in requests:
                sender(request)
            opened.append(connections.opened)
        sender.close()
    # a poll may be sent again, so it may find its connection closed
    assert opened == [2, 2, 3]


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(serve: Any) -> None:
    server = serve(OK)  # closes after each answer without saying so
    sender = Sender(settings_for(server.url))
    first = sender(POST)
    server.closed.wait(5)
    time.sleep(0.01)  # let the loop hear of it
    second = sender(POST)
    sender.close()
    assert (first.status, second.status) == (200, 200)
    assert len(server.heard) == 2


def test_a_signal_while_the_sender_opens_leaves_it_usable(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender(settings_for(serve(OK).url))
    with monkeypatch.context() as interrupted:
        interrupted.setattr("queue.SimpleQueue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            sender(GET)
    assert sender(GET).status == 200
    sender.close()


def test_a_worker_that_can_open_nothing_is_told_so() -> None:
    script = """if True:
        import os, resource, aiohttp
        from airflow_provider_rungen.client.endpoints import list_apps
        from airflow_provider_rungen.client.senders import Sender
        from airflow_provider_rungen.client.settings import Settings
        from airflow_provider_rungen.client.transport import drive
        from airflow_provider_rungen.exceptions import RunGenConnectionError
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")),) * 2)
        try:
            drive(list_apps(attempts=1), Sender(Settings("https://rungen.example", "key")))
        except RunGenConnectionError as error:
            print(error.message)
    """
    done = output_of(script)
    assert "no connection could be opened" in done.stdout
    assert "Too many open files" in done.stderr


class Interrupted:
    """A queue whose reader a signal handler interrupts."""

    def put(self, item: Any) -> None: ...

    def get(self, timeout: float) -> Any:
        raise KeyboardInterrupt

    def empty(self) -> bool:
        return False


def test_no_more_begin_than_there_are() -> None:
    tasks: list[int] = []

    async def work(item: int) -> None:
        tasks.append(len(asyncio.all_tasks()))

    asyncio.run(gather_limited(work, [1, 2], at_once=1000))
    assert max(tasks) == 1 + 2
    asyncio.run(gather_limited(work, [], at_once=1000))
    assert len(tasks) == 2


# --- flows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_flow_is_closed_as_soon_as_what_performs_it_is_killed(is_async: bool) -> None:
    """An error that somebody holds keeps the frame of the driver, and so the flow, from being collected."""
    ends: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield Request("GET", "app", "list the apps")
        finally:
            ends.append("closed")

    def die(_: Request) -> Response:
        raise KeyboardInterrupt

    async def hang(_: Request) -> Response:
        await asyncio.sleep(3600)
        raise AssertionError("it was canceled")

    async def scene() -> None:
        task = asyncio.create_task(adrive(flow(), hang))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)) as held:
        asyncio.run(scene()) if is_async else drive(flow(), die)
    assert held.value is not None
    assert ends == ["closed"]


# --- what continues in the background -----------------------------------------------------------------------


class Over(BaseException):
    """Ends an attempt, as a time limit does."""


def fail_later() -> Flow[None]:
    yield Sleep(0.1)
    raise Over


def wait_beside() -> Flow[None]:
    yield Gather([fail_later()], wait_at_most=0.01)
    yield Sleep(60)


async def never_send(request: Request) -> Response:
    raise AssertionError(request)


def test_what_fails_in_the_background_ends_the_work() -> None:
    async def work() -> None:
        background: set[asyncio.Task[Any]] = set()
        await watched(adrive(wait_beside(), never_send, background=background), lambda: None, background)

    started_at = time.monotonic()
    with pytest.raises(Over):
        asyncio.run(work())
    assert time.monotonic() - started_at < 30


def test_what_fails_in_the_background_ends_the_next_round() -> None:
    def two_rounds() -> Flow[None]:
        yield Gather([fail_later()], wait_at_most=0.01)
        yield Sleep(0.3)
        yield Gather([])
        raise AssertionError("went on")

    background: set[asyncio.Task[Any]] = set()
    with pytest.raises(Over):
        asyncio.run(adrive(two_rounds(), never_send, background=background))
    assert not background


def test_what_nobody_has_seen_fail_in_the_background_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        background: set[asyncio.Task[Any]] = set()
        flow = wait_beside()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await adrive(flow, never_send, background=background)
        await end_background(background)
        assert not background

    asyncio.run(work())
    assert "A request in the background failed" in caplog.text
