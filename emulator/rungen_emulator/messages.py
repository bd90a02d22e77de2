"""Requests to the service, the checks of their bodies, and its replies and refusals."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

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

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.reply = json_reply(status, {"error": text})


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

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(unquote(segment) for segment in self.path.partition("?")[0].split("/")[1:])

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


def json_reply(status: int, content: Any) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(content).encode())


# --- the bodies of requests, by schemas ---

_LONGEST_REASON = 200

_TEXT = {"type": "string"}
_FILLED = {"type": "string", "pattern": r"\S"}
_COUNT = {"type": "integer", "minimum": 0}
# the pixels that a model can paint
_SIDE = {"type": "integer", "minimum": 64, "maximum": 2048, "multipleOf": 8}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_INSTRUCTIONS = _object(
    fail=_TEXT,
    seconds={"type": "number", "minimum": 0, "maximum": 1e9},
    result_bytes=_COUNT,
    output_bytes=_COUNT,
    images=_COUNT,
)
_INPUT = _object(width=_SIDE, height=_SIDE, emulator=_INSTRUCTIONS)
_FLUX_SCHEMA = files("rungen_emulator") / "flux-schnell.input.json"
_FLUX_INPUT = {"allOf": [json.loads(_FLUX_SCHEMA.read_bytes()), _INPUT]}
_LORAS = {"type": "array", "items": _object(weight={"type": "number"})}
_APP = _object(
    name=_FILLED,
    description=_TEXT,
    configuration=_object(
        gpu_tier={"enum": ["BASIC", "STANDARD", "PERFORMANCE"]}, active_workers={**_COUNT, "maximum": 1000}
    ),
    workflow=_object(model_url=_FILLED, tools={**_object(loras=_LORAS), "type": ["object", "null"]}),
)
_COMPLETE_APP = _object(
    *("name", "configuration", "workflow"),
    configuration=_object("gpu_tier"),
    workflow=_object("model_url"),
)
_BODIES = {
    "flux": _object("input", input=_FLUX_INPUT),
    "text": _object("input", input=_INPUT),
    "new app": {"type": "object", "allOf": [_APP, _COMPLETE_APP]},
    "update": _APP,
}
_VALIDATORS = {kind: Draft202012Validator(schema) for kind, schema in _BODIES.items()}


def check_body(kind: str, request: Request) -> dict[str, Any]:
    """
    Return the body of a request.

    :param kind: ``flux`` or ``text`` for a run of such an app, ``new app`` or ``update``.
    :raises Refusal: it is wrong.
    """
    body: dict[str, Any] = request.json()
    error = best_match(_VALIDATORS[kind].iter_errors(body))
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the body"
        raise Refusal(400, f"{place}: {error.message}"[:_LONGEST_REASON])
    return body
