"""Look up names in daemon threads, which neither an event loop nor the process waits for at its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def look_up(host: str, port: int, family: int) -> list[Any]:
    """
    Return the addresses of a host, as aiohttp expects them.

    :param host: its name.
    :param port: the port to connect to.
    :param family: the family of addresses to look up.
    """
    infos = await in_daemon_thread(
        lambda: socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
        )
    )
    return [_resolved(host, *info) for info in infos]


def _resolved(name: str, family: int, _: int, proto: int, __: str, address: Any) -> dict[str, Any]:
    host, port, *scope = address
    if len(scope) == 2 and scope[1]:  # an IPv6 address of this link only
        host = f"{host}%{scope[1]}"
    return {
        "hostname": name,
        "host": host,
        "port": port,
        "family": family,
        "proto": proto,
        "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    }


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Perform blocking work in a daemon thread, and return its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # without an error there is a value

    def run() -> None:
        value, failure = None, None
        try:
            value = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="rungen-lookup", daemon=True).start()
    return await future
