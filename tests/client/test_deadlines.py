"""The limit of a request holds whatever a server does, and a kill gets through whatever hangs."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import APP, SOON, FakeStore, FakeTaskInstance, Outcome, run_task, signal_when, table_of
from rungen_emulator import Emulator, Fault
from wire import GET, KEY, OK, POST, Server, failure, send, settings_for

from airflow_provider_rungen.client.bodies import ResponseBody
from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.client.senders import Sender
from airflow_provider_rungen.decorators import rungen_task
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenConnectionError,
    RunGenResponseError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunJobOperator

LIMIT = 0.5
LIMITS: dict[str, Any] = {"connect_timeout": LIMIT / 2, "read_timeout": LIMIT / 2}
FINAL_GRACE = 0.3
LAST = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")  # the server closes the connection
# What a hostile server sends: a beginning, then a piece again and again, and the seconds between the pieces.
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIPPED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
ENDLESS: dict[str, tuple[bytes, bytes, float]] = {
    "status line": (b"HTTP/1.1 200 ", b"O", 0.02),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Drip: x\r\n", 0.05),
    "100 continue, fast": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.002),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{", b" ", 0.02),
    "body until it closes": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{", b" ", 0.02),
    "body of a refusal": (b"HTTP/1.1 500 Oh\r\nContent-Length: 100000\r\n\r\n{", b" ", 0.02),
    "body of a redirect": (b"HTTP/1.1 302 Go\r\nLocation: /\r\nContent-Length: 9999\r\n\r\n", b" ", 0.02),
    "chunks": (CHUNKED, b"1\r\n \r\n", 0.02),
    "trailers, fast": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-Trailer: x\r\n" * 50, 0.001),
    "empty gzip members, fast": (GZIPPED, gzip.compress(b"") * 500, 0.002),
}


def endless(first: bytes, again: bytes, gap: float) -> Callable[[socket.socket], None]:
    """Send something for 20 s, or until nobody listens any more."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(first)
        give_up_at = time.monotonic() + 20
        while time.monotonic() < give_up_at:
            connection.sendall(again)
            time.sleep(gap)

    return talk


@pytest.fixture(autouse=True)
def _short_final_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.senders.FINAL_GRACE", FINAL_GRACE)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lead the default connection to a host."""

    def to(host: str) -> None:
        connection = {"conn_type": "rungen", "host": host, "password": KEY, "extra": {"app_id": APP}}
        monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(connection))

    return to


@pytest.fixture
def limited() -> Iterator[Callable[[], float]]:
    """Check that what is done ends soon after the limit; else it would never end."""
    begun_at = time.monotonic()
    yield lambda: time.monotonic() - begun_at
    assert time.monotonic() - begun_at < SOON


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.usefixtures("limited")
def test_an_endless_answer_ends_at_the_limit(serve: Any, name: str) -> None:
    server = serve(endless(*ENDLESS[name]))
    # an HTTP library that finds it too odd may end it sooner, in its own way
    failure(settings_for(server.url, **LIMITS), sent=True)
    assert len(server.heard) == 1
    assert server.closed.wait(10)  # nobody listens to it any more


@pytest.mark.usefixtures("limited")
def test_a_request_has_a_limit_of_its_own_which_gives_it_no_more_than_the_connection_does(serve: Any) -> None:
    settings = settings_for(
        serve(endless(*ENDLESS["status line"])).url, connect_timeout=5.0, read_timeout=60.0
    )
    failure(settings, replace(GET, timeout=LIMIT), sent=True, match=f"within {LIMIT} s")
    limits = [settings.time_limit(replace(GET, timeout=timeout)) for timeout in (None, 1.5, 99.0, -1.0)]
    assert limits == [65.0, 1.5, 65.0, 0.0]


@pytest.mark.usefixtures("limited")
def test_a_tls_handshake_that_drips_ends_at_the_limit(serve: Any) -> None:
    server = serve(endless(b"\x16\x03\x03\x40\x00", b"\x02", 0.02), head=1)
    settings = settings_for(server.url.replace("http:", "https:"), **LIMITS)
    failure(settings, sent=False, match="could not be reached")
    assert server.closed.wait(10)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Control the DNS: how long a look-up takes, and how many addresses it returns."""
    known, over = socket.getaddrinfo, threading.Event()
    dns: dict[str, Any] = {"seconds": 0.0, "addresses": 1, "asked": 0, "over": over}

    def look_up(name: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if name != "slow.example":
            return known(name, port, *args, **kwargs)
        dns["asked"] += 1
        over.wait(dns["seconds"])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))] * dns["addresses"]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    yield dns
    over.set()


def test_a_slow_look_up_ends_at_the_limit_and_nothing_is_sent_afterwards(
    serve: Any, names: dict[str, Any], limited: Callable[[], float]
) -> None:
    server = serve(OK)
    names["seconds"] = 10.0
    settings = settings_for(f"http://slow.example:{server.port}", **LIMITS)
    # not sent, so the caller may send it again, and it must not arrive twice
    failure(settings, sent=False, match="could not be reached")
    names["over"].set()
    while limited() < LIMIT + 0.5 and not server.heard:
        time.sleep(0.01)
    assert server.heard == []


@pytest.mark.usefixtures("limited")
def test_addresses_that_do_not_answer_share_the_limit(names: dict[str, Any]) -> None:
    names["addresses"] = 10
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):  # nobody accepts: further ones wait without end
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        settings = settings_for(f"http://slow.example:{listener.getsockname()[1]}", **LIMITS)
        failure(settings, sent=False, match="could not be reached")


def test_a_sender_goes_on_after_a_request_without_an_answer(serve: Any) -> None:
    hostile = endless(b"HTTP/1.1 200 ", b"O", 0.02)

    def talk(connection: socket.socket) -> None:
        (hostile if len(server.heard) == 1 else lambda it: it.sendall(LAST))(connection)

    server = serve(talk)
    sender = Sender(settings_for(server.url, **LIMITS))
    with pytest.raises(RunGenConnectionError):
        sender(GET)
    assert sender(GET).body == b"{}"
    sender.close()
    assert sender(GET).body == b"{}"
    sender.close()


@pytest.mark.usefixtures("limited")
def test_a_request_ends_when_another_thread_closes_the_sender(serve: Any) -> None:
    server = serve(endless(b"HTTP/1.1 200 ", b"O", 0.02))
    sender = Sender(settings_for(server.url, read_timeout=30.0))

    def close() -> None:
        while not server.heard:
            time.sleep(0.01)
        sender.close()

    threading.Thread(target=close, daemon=True).start()
    with pytest.raises(RunGenConnectionError) as caught:
        sender(POST)
    assert caught.value.sent


def test_a_sender_ends_its_thread_and_connections_with_itself(rungen_emulator: Emulator) -> None:
    def threads() -> int:
        return sum(thread.name == "rungen-sender" for thread in threading.enumerate())

    sender = Sender(settings_for(rungen_emulator.url, read_timeout=5.0))
    sender(GET)
    before = threads()
    del sender
    begun_at = time.monotonic()
    while threads() == before and time.monotonic() - begun_at < SOON:
        time.sleep(0.01)
    assert threads() < before


def test_the_session_of_a_hook_follows_no_redirect(serve: Any, connect: Callable[[str], None]) -> None:
    other = serve(OK)
    server = serve(b"HTTP/1.1 302 Go\r\nLocation: %s/x\r\nContent-Length: 0\r\n\r\n" % other.url.encode())
    connect(server.url)
    with RunGenHook() as hook:
        assert hook.get_conn().get(f"{server.url}/app", timeout=5).status_code == 302
    assert f"x-api-key: {KEY}".encode() in server.heard[0]
    assert other.heard == []


# --- bombs, and answers of which little is needed -----------------------------------------------------------


def answer(body: bytes, *, status: bytes = b"200 OK", encoding: bytes = b"identity") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, encoding, len(body)) + body


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """2 GB of spaces, packed twice as tightly as one would think."""
    part = gzip.compress(b" " * 100_000_000, 9)
    return gzip.compress(b'{"a": 1}') + part * 20


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize("status", [b"200 OK", b"500 Oh"])
def test_a_bomb_is_refused_before_it_goes_off(serve: Any, bomb: bytes, is_lean: bool, status: bytes) -> None:
    server = serve(answer(bomb, status=status, encoding=b"gzip"))
    settings = settings_for(server.url, read_timeout=20.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if status.startswith(b"2"):
        with pytest.raises(RunGenResponseError) as caught:
            send(settings, replace(GET, is_lean=is_lean))
        assert not caught.value.retryable
    else:  # of a refusal the beginning is enough
        assert send(settings, GET).body == b'{"a": 1}'.ljust(256 * 1024)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 150_000_000


@pytest.mark.parametrize("is_lean", [False, True])
def test_empty_members_are_decoded_in_short_steps(is_lean: bool) -> None:
    body = ResponseBody(replace(GET, is_lean=is_lean), lambda *_: None, 200, "gzip")
    assert len(list(body.feed(gzip.compress(b"") * 1000 + gzip.compress(b"{}")))) >= 1000
    assert b"".join(body.finish()) == b"{}"


def test_an_encoding_that_was_not_asked_for_cannot_be_read(serve: Any) -> None:
    server = serve(answer(b"{}", encoding=b"br"))
    with pytest.raises(RunGenResponseError, match="not asked for"):
        send(settings_for(server.url), GET)
    assert re.search(rb"(?i)accept-encoding: gzip\r\n", server.heard[0])
    assert send(settings_for(serve(answer(b"{}", status=b"403 No", encoding=b"br")).url), GET).status == 403


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"identity", bytes)])
def test_a_lean_answer_comes_without_its_bulk(
    serve: Any, encoding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    job = {"id": "j", "result": list(range(100_000)), "status": "COMPLETED", "input": "x" * 100_000}
    body = json.dumps({"data": job}).encode()
    settings = settings_for(serve(answer(pack(body), encoding=encoding)).url)
    lean = send(settings, replace(GET, is_lean=True))
    assert json.loads(lean.body) == {"data": job | {"result": None, "input": None}}
    assert send(settings, GET).body == body
    with pytest.raises(RunGenResponseError, match="max_response_bytes"):
        send(replace(settings, max_response_bytes=500_000), replace(GET, is_lean=True))
    small = json.dumps({"result": "x" * 65_000}).encode()
    server = serve(answer(pack(small), encoding=encoding))
    assert send(settings_for(server.url), replace(GET, is_lean=True)).body == small, "it is not reduced"


# --- kills --------------------------------------------------------------------------------------------------


def decorated_op() -> Any:
    made: Any = rungen_task(lambda: {"prompt": "x"}, task_id="task", deferrable=True)
    return made().operator


def job_op() -> Any:
    return RunGenRunJobOperator(task_id="task", input={"prompt": "x"}, wait_for_completion=True)


def batch_op() -> Any:
    return table_of(task_id="task", inputs=[{"prompt": f"{n}"} for n in range(40)])


KINDS = {"job": job_op, "batch": batch_op, "decorated": decorated_op}


class TimeoutStruck(BaseException):
    """What Airflow raises from its alarm."""


def kill_when(op: Any, number: signal.Signals, condition: Callable[[], bool], store: Any = None) -> Outcome:
    """Run a task, kill it as soon as a condition holds, and check that it ends in time."""

    def strike() -> None:
        if number == signal.SIGALRM:
            raise TimeoutStruck
        op.on_kill()

    context: Any = {"ti": FakeTaskInstance(), "task_state_store": store or FakeStore()}
    outcome = Outcome()
    with signal_when(number, condition, strike) as sent:
        try:
            outcome = run_task(op, context)
        except TimeoutStruck as error:
            outcome.error = error
    assert sent
    assert time.monotonic() - sent[0] < SOON
    assert outcome.error is not None
    return outcome


BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 2\r\n\r\n{}"
LASTING: dict[str, bytes | Callable[[socket.socket], None]] = {
    "retry-after": BUSY,
    "hang": endless(b"", b"", 0.02),
    **{
        name: endless(*ENDLESS[name])
        for name in ("status line", "100 continue, fast", "empty gzip members, fast")
    },
}


@pytest.mark.feature("kill")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LASTING)
def test_a_kill_gets_through_a_submission(  # noqa: PLR0917 - parameters
    serve: Any,
    connect: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
    number: signal.Signals,
) -> None:
    server: Server = serve(LASTING[name])
    connect(server.url)
    store = FakeStore()
    outcome = kill_when(KINDS[kind](), number, lambda: bool(server.heard), store)
    assert isinstance(outcome.error, TimeoutStruck) == (number == signal.SIGALRM)
    assert kind == "batch" or len(server.heard) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_gets_through_a_slow_look_up(
    names: dict[str, Any], connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names["seconds"] = 15.0
    connect("https://slow.example")
    monkeypatch.setenv("RUNGEN_EMULATOR", "https://slow.example")
    kill_when(KINDS[kind](), signal.SIGTERM, lambda: names["asked"] > 0)


def test_a_kill_that_was_swallowed_ends_a_wait(rungen_emulator: Emulator) -> None:
    """Handlers raise wherever the task is: a finalizer or a logging handler may swallow it."""
    service = rungen_emulator.service
    service.inject(Fault(on="get", status=503, headers={"Retry-After": "30"}, times=None))
    op = job_op()
    context: Any = {"ti": FakeTaskInstance()}

    def swallow() -> None:
        with contextlib.suppress(Exception):
            op.on_kill()

    op.cancel_on_kill = False
    with signal_when(signal.SIGTERM, lambda: service.count("get") > 0, swallow) as sent:
        assert run_task(op, context).error is not None
    assert time.monotonic() - sent[0] < SOON


def test_many_waits_at_once_let_a_kill_through(rungen_emulator: Emulator) -> None:
    service = rungen_emulator.service
    service.inject(Fault(on="get", kind="hang", times=None))
    service.inject(Fault(on="get_app", status=503, times=None))
    kill_when(batch_op(), signal.SIGTERM, lambda: service.count("get") + service.count("get_app") > 0)


@pytest.fixture
def paced(rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = rungen_emulator.airflow_connection(max_requests_per_second=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)


@pytest.mark.usefixtures("paced")
def test_a_paced_request_lets_a_kill_through(rungen_emulator: Emulator) -> None:
    kill_when(job_op(), signal.SIGTERM, lambda: rungen_emulator.service.count("run") > 0)


@pytest.mark.usefixtures("paced")
def test_a_cancel_at_a_kill_does_not_wait_for_its_turn() -> None:
    with RunGenHook() as hook:
        job = hook.run_job(input={"prompt": "x", "emulator": {"seconds": 0}})
        begun_at = time.monotonic()
        outcomes = hook.cancel_jobs(job_ids=[job.id], within=4.0)  # it is over, which takes a second request
    assert time.monotonic() - begun_at < SOON
    assert isinstance(outcomes[job.id], RunGenConflictError)


def test_a_request_that_is_interrupted_gets_a_moment_more(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="list_apps", kind="hang"))
    settings = settings_for(rungen_emulator.url, api_key=rungen_emulator.service.api_key, read_timeout=30.0)
    sender = Sender(settings, is_interrupted=lambda: True)
    begun_at = time.monotonic()
    with pytest.raises(RunGenConnectionError, match="before the task had to end") as caught:
        sender(Request("GET", "app", "list the apps"))
    assert caught.value.sent
    assert FINAL_GRACE * 0.9 < time.monotonic() - begun_at < SOON
    sender.close()
