"""The passwords of proxies are registered with Airflow's masker, without blocking an event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from airflow.providers.common.compat.sdk import redact
from airflow.sdk import log as airflow_log

from airflow_provider_rungen._airflow.masking import amask, mask, proxy_passwords
from airflow_provider_rungen.hooks import RunGenHook

PASSWORD = "s%2Fcret%40proxy"
FORMS = (PASSWORD, "s/cret@proxy")


def connect(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    conn = {"conn_type": "rungen", "password": "a-key-of-rungen", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(conn))


@pytest.fixture(autouse=True)
def _unmasked() -> None:
    for form in FORMS:
        assert redact(f"with {form}") == f"with {form}", "an earlier test has masked it"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_async", [False, True])
def test_the_password_of_the_proxy_is_masked(
    monkeypatch: pytest.MonkeyPatch, form: str, is_async: bool
) -> None:
    # each test has a password of its own, since the masker forgets nothing
    mark = f"{FORMS.index(form)}{is_async}"
    connect(monkeypatch, proxy=f"http://me:{PASSWORD}{mark}@proxy.example:3128")
    hook = RunGenHook()
    _ = asyncio.run(hook.asettings()) if is_async else hook.settings
    assert redact(f"with {form}{mark}, twice: {form}{mark}") == "with ***, twice: ***"


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_the_password_of_a_proxy_in_the_environment_is_masked(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    connect(monkeypatch)
    monkeypatch.setenv(name, f"http://me:{PASSWORD}{name}@proxy.example:3128")
    _ = RunGenHook().settings
    for form in FORMS:
        assert redact(f"with {form}{name}") == "with ***"


@pytest.mark.parametrize(
    ("proxy", "passwords"),
    [
        *(
            (proxy, [])
            for proxy in (None, "http://p.example", "http://me@p.example", "http://[me:secret@proxy")
        ),
        *((f"{scheme}me:plain-secret@p.example:3128", ["plain-secret"]) for scheme in ("http://", "")),
        ("http://me:a%3Ab@proxy.example", ["a%3Ab", "a:b"]),
    ],
)
def test_what_is_a_password_in_the_url_of_a_proxy(proxy: str | None, passwords: list[str]) -> None:
    assert proxy_passwords(proxy) == passwords


class Supervisor:
    """As much of the process above a trigger as masking needs; a blocking message in its loop deadlocks."""

    def __init__(self, loop_thread: int) -> None:
        self.loop_thread = loop_thread
        self.received: list[Any] = []

    def send(self, message: Any) -> None:
        assert threading.get_ident() != self.loop_thread, "a blocking message in the event loop"
        self.received.append(message.value)

    async def asend(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.received.append(message.value)


def test_the_supervisor_of_a_trigger_gets_the_secrets_without_blocking_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow.sdk.execution_time import task_runner

    async def scene() -> list[Any]:
        supervisor = Supervisor(threading.get_ident())
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
        await amask(["a-secret-of-the-loop", "another-of-the-loop"])
        return supervisor.received

    assert asyncio.run(scene()) == ["a-secret-of-the-loop", "another-of-the-loop"]
    assert redact("a-secret-of-the-loop") == "***"


def test_a_supervisor_that_is_gone_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import task_runner

    send, asend = Mock(side_effect=BrokenPipeError), AsyncMock(side_effect=BrokenPipeError)
    gone = Mock(send=send, send_request=send, asend=asend)
    is_async = hasattr(airflow_log, "amask_secret")  # otherwise it sends in a thread
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", gone, raising=False)
    asyncio.run(amask(["a-secret-that-nobody-hears"]))
    mask(["another-that-nobody-hears"])
    assert (send.called, asend.called) == (True, is_async)
