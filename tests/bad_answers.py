"""More faults of the emulator: answers that are cut short, slow, or not those of the service."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import rungen_emulator as emulator
from aiohttp import web
from rungen_emulator.faults import reset
from rungen_emulator.messages import Reply

_PAGE = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>proxy</body></html>"
# More levels than any JSON parser of Python accepts.
_DEPTH = 200_000
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Fault(emulator.Fault):
    """
    Something that goes wrong with requests.

    Without `taken`, the request is performed where the answer comes from the service, and is no error.

    :param kind: one of `kinds`.
    :param size: bytes of the body for the kind ``oversize``.
    :param drip_seconds: the time between two bytes for the kinds ``drip`` and ``drip_headers``.
    """

    size: int = 40 * 1024 * 1024
    drip_seconds: float = 1.0

    kinds = (
        *emulator.Fault.kinds,
        *("truncate", "drip", "drip_headers", "redirect", "html"),
        *("empty", "no_id", "other_id", "garbage", "wrong_types", "deep", "oversize"),
    )

    @property
    def performs(self) -> bool:
        if self.taken is not None or self.kind in emulator.Fault.kinds:
            return super().performs
        is_error = self.status is not None and self.status >= 300
        return self.kind not in ("html", "redirect", "drip_headers") and not is_error

    def apply(self, reply: Reply) -> Reply:
        if self.kind in emulator.Fault.kinds:
            return super().apply(reply)
        if self.kind in ("redirect", "html"):
            return self._page()
        ways: dict[str, Any] = {
            "truncate": truncate,
            "drip": partial(drip, pause=self.drip_seconds),
            "drip_headers": partial(drip_headers, pause=self.drip_seconds),
            "oversize": stream,
        }
        send = ways.get(self.kind)
        body = reply.body if send not in (None, stream) else self._body(reply)
        status, headers = self.status or reply.status, self.merge_headers(reply.headers)
        return Reply(status, headers, body, send)

    def _page(self) -> Reply:
        """Return an answer that is not the service's."""
        if self.kind == "redirect":
            return Reply(self.status or 302, self.merge_headers({"Location": "/"}))
        return Reply(self.status or 200, self.merge_headers({"Content-Type": "text/html"}), _PAGE)

    def _body(self, reply: Reply) -> bytes:
        if self.kind == "oversize":
            return b'{"data": "' + b"x" * self.size + b'"}'
        if self.kind == "garbage":
            return b"\x80\x81\xfe\xff" + os.urandom(60)
        if self.kind == "deep":
            return b'{"result": ' + b"[" * _DEPTH + b"]" * _DEPTH + b", " + reply.body.lstrip()[1:]
        if self.kind == "empty" or reply.headers.get("Content-Type") != "application/json":
            return b""
        change: dict[str, Callable[[Any], Any]] = {
            "no_id": _without_ids,
            "other_id": _with_other_ids,
            "wrong_types": _with_wrong_types,
        }
        return json.dumps(change[self.kind](json.loads(reply.body))).encode()


# --- on the wire ---


async def truncate(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Send half of the body, and close the connection."""
    response = await _begin(request, reply, length=len(reply.body))
    await response.write(reply.body[: len(reply.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def drip(request: web.BaseRequest, reply: Reply, pause: float) -> web.StreamResponse:
    """Send the body a byte at a time."""
    response = await _begin(request, reply, length=len(reply.body))
    for start in range(len(reply.body)):
        await response.write(reply.body[start : start + 1])
        await asyncio.sleep(pause)
    return response


async def drip_headers(request: web.BaseRequest, reply: Reply, pause: float) -> None:
    """Send headers without end, a byte at a time, until the client closes the connection."""
    line = b"HTTP/1.1 200 OK\r\nX-Padding: "
    while request.transport is not None and not request.transport.is_closing():
        request.transport.write(line[:1])
        line = line[1:] or b"x"
        await asyncio.sleep(pause)
    await reset(request, reply)


async def stream(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Send a body without saying how long it is."""
    response = await _begin(request, reply, length=None)
    for start in range(0, len(reply.body), _CHUNK):
        await response.write(reply.body[start : start + _CHUNK])
    return response


async def _begin(request: web.BaseRequest, reply: Reply, length: int | None) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_length = length
    await response.prepare(request)
    return response


# --- in the body ---


def _without_ids(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_ids(value) for key, value in content.items() if key not in ("id", "job_id")}
    return [_without_ids(value) for value in content] if isinstance(content, list) else content


def _with_other_ids(content: Any) -> Any:
    """Replace the ids by those of another job or app."""
    if isinstance(content, dict):
        return {
            key: f"another-{value}" if key in ("id", "job_id") else _with_other_ids(value)
            for key, value in content.items()
        }
    return [_with_other_ids(value) for value in content] if isinstance(content, list) else content


def _with_wrong_types(content: Any) -> Any:
    if isinstance(content, dict):
        inside = content.get("data")
        if isinstance(inside, dict):
            return {**content, "data": _with_wrong_types(inside)}
        return {key: _wrong(value) for key, value in content.items()}
    return _wrong(content)


def _wrong(value: Any) -> Any:
    match value:
        case str():
            return len(value)
        case dict():
            return list(value)
        case list():
            return f"{len(value)} things"
        case None:
            return 0
        case _:
            return [value]
