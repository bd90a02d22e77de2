"""How an answer may be lost on the wire."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

    from airflow_provider_rungen.emulator.messages import Reply

_HANG_SECONDS = 120.0


async def reset(request: web.BaseRequest, reply: Reply) -> None:
    """Reset the connection, and send nothing."""
    if request.transport is None:
        return
    # with a linger time of zero, closing sends RST instead of FIN
    linger = struct.pack("ii", 1, 0)
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.transport.abort()


async def hang(request: web.BaseRequest, reply: Reply) -> None:
    """Send nothing for two minutes, and reset the connection."""
    await asyncio.sleep(_HANG_SECONDS)
    await reset(request, reply)
