"""Look up names in daemon threads, which neither an event loop nor the process waits for at its end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
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
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # or a canceled caller would cancel it

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rungen-lookup", daemon=True).start()
    return await asyncio.wrap_future(future)
