"""What goes in and out of the service: a parsed request, a reply, and a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True)
class Reply:
    """
    An answer.

    :param fault: what the HTTP layer does wrong: ``reset``, ``truncate``, ``hang``, ``drip``,
        ``drip_headers`` or ``stream``.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    fault: str | None = None


class Refusal(Exception):  # noqa: N818 - a refusal is a regular answer, not a defect
    """Ends a request with an error answer."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


@dataclass(frozen=True)
class Request:
    """A request. Its path is split before it is decoded, so that ``%2F`` does not split it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    segments: tuple[str, ...]
    query: str

    @classmethod
    def parse(cls, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Request:
        raw, _, query = path.partition("?")
        segments = tuple(unquote(segment) for segment in raw.split("/")[1:])
        return cls(
            method.upper(),
            path,
            {name.lower(): text for name, text in headers.items()},
            body,
            segments,
            query,
        )

    def object(self, *, any_type: bool = False) -> dict[str, Any]:
        """
        Return the body.

        :param any_type: whether any Content-Type is accepted.
        :raises Refusal: it is not a JSON object.
        """
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json" and not any_type:
            raise Refusal(400, "a body must be sent with Content-Type: application/json")
        try:
            content = json.loads(self.body)
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None
        if not isinstance(content, dict):
            raise Refusal(400, "the body must be a JSON object")
        return content


def json_reply(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(
        status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()
    )


def error_reply(status: int, text: str, headers: Mapping[str, str] | None = None) -> Reply:
    return json_reply(status, {"error": text}, headers)
