"""Look up names without blocking an event loop, nor the end of it and of the process."""

from __future__ import annotations

import socket
from typing import Any

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread


async def look_up(host: str, port: int, family: int) -> list[Any]:
    """
    Return the addresses of a host, as aiohttp expects them.

    :param host: its name.
    :param port: the port to connect to.
    :param family: the family of addresses to look up.
    """
    infos = await in_daemon_thread(
        socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
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
