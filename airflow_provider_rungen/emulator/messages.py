"""What goes in and out of the service: a parsed request, a reply, and a refusal."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from aiohttp import web


@dataclass(frozen=True)
class Reply:
    """
    An answer.

    :param send: sends it in another way than a server does: given the request of aiohttp and the answer.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    send: Callable[[web.BaseRequest, Reply], Awaitable[web.StreamResponse | None]] | None = None


class Refusal(Exception):  # noqa: N818 - a refusal is a regular answer, not a defect
    """Ends a request with an error answer."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.reply = json_reply(status, {"error": text}, headers)


class StorageRefusal(Refusal):
    """Ends the download of an output as an object storage does."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(403, text)
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{text}</Message>"
            f"<RequestId>{secrets.token_hex(8).upper()}</RequestId></Error>"
        )
        self.reply = Reply(403, {"Content-Type": "application/xml"}, body.encode())


@dataclass(frozen=True)
class Request:
    """A request. Its path is split before it is decoded, so that ``%2F`` does not split it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Request:
        segments = tuple(unquote(segment) for segment in path.partition("?")[0].split("/")[1:])
        lower = {name.lower(): text for name, text in headers.items()}
        return cls(method.upper(), path, lower, body, segments)

    def json(self) -> Any:
        """
        Return the body.

        :raises Refusal: it is not JSON.
        """
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise Refusal(400, "a body must be sent with Content-Type: application/json")
        try:
            return json.loads(self.body, parse_constant=_refuse_constant)
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None


def _refuse_constant(name: str) -> None:
    """Refuse ``NaN`` and ``Infinity``, which only Python takes for JSON."""
    raise ValueError(f"{name} is not JSON")


def json_reply(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(
        status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()
    )
