"""Faults: what may go wrong with a request, and with which request."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rungen_emulator.messages import Reply

if TYPE_CHECKING:
    from aiohttp import web

OPERATIONS = (
    *("run", "get", "cancel"),
    *("list_apps", "get_app", "create_app", "update_app", "delete_app"),
    *("output", "unknown"),
)
_HANG_SECONDS = 120.0


@dataclass(frozen=True)
class Fault:
    """
    Something that goes wrong with requests. A subclass may have more kinds, and override `apply`.

    :param on: the operation, such as ``run``, or ``any``.
    :param status: the HTTP status of the answer.
    :param headers: headers of the answer.
    :param body: the body for the kind ``status``: a text, bytes or JSON.
    :param kind: what goes wrong: ``status`` answers with an error, ``hang`` does not answer, and
        ``reset_before`` and ``reset_after`` reset the connection.
    :param times: for how many requests; ``None`` for all.
    :param skip: how many matching requests succeed first.
    :param job_id: only for requests about this job.
    :param taken: whether the request is performed nevertheless. By default it is for ``reset_after``.
    """

    on: str = "any"
    status: int | None = None
    headers: dict[str, str] | None = None
    body: Any = None
    kind: str = "status"
    times: int | None = 1
    skip: int = 0
    job_id: str | None = None
    taken: bool | None = None

    kinds: ClassVar[Sequence[str]] = ("status", "hang", "reset_before", "reset_after")

    def __post_init__(self) -> None:
        if self.on != "any" and self.on not in OPERATIONS:
            raise ValueError(f"on must be one of {', '.join(OPERATIONS)} or any, not {self.on!r}")
        if self.kind not in self.kinds:
            raise ValueError(f"kind must be one of {', '.join(self.kinds)}, not {self.kind!r}")

    @property
    def performs(self) -> bool:
        """Whether the request is performed nevertheless."""
        return self.kind == "reset_after" if self.taken is None else self.taken

    def matches(self, operation: str, job_id: str | None) -> bool:
        """Return whether it concerns a request for an operation, about a job."""
        return self.on in ("any", operation) and self.job_id in (None, job_id)

    def apply(self, reply: Reply) -> Reply:
        """Return the answer that this fault makes out of the right one."""
        if self.kind != "status":
            return replace(reply, send=hang if self.kind == "hang" else reset)
        status, body = self.status or 500, self.body
        if body is None:
            body = {"error": f"the emulator was configured to answer {status}"}
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        content = text.encode() if isinstance(text, str) else text
        return Reply(status, self.merge_headers({"Content-Type": "application/json"}), content)

    def merge_headers(self, usual: dict[str, str]) -> dict[str, str]:
        """Return the usual headers of an answer, with those of the fault."""
        return usual | {name.title(): text for name, text in (self.headers or {}).items()}


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
