"""Faults: what may go wrong with a request, and which request it befalls."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_rungen.emulator.messages import Reply

OPERATIONS = (
    *("run", "get", "cancel"),
    *("list_apps", "get_app", "create_app", "update_app", "delete_app"),
    *("output", "unknown"),
)
KINDS = (
    *("status", "reset_before", "reset_after", "truncate", "hang", "drip", "redirect", "html"),
    *("empty", "no_id", "other_id", "garbage", "wrong_types", "deep", "oversize", "drip_headers"),
)
_TAKEN = {
    *("reset_after", "truncate", "drip", "empty", "no_id", "other_id"),
    *("garbage", "wrong_types", "deep", "oversize"),
}
_PAGE = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>proxy</body></html>"
_BY_THE_WIRE = {
    "reset_before": "reset",
    "reset_after": "reset",
    "truncate": "truncate",
    "hang": "hang",
    "drip": "drip",
    "drip_headers": "drip_headers",
}
# Levels that no JSON parser of Python goes down.
_DEPTH = 200_000


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, ``times`` times (None: for ever) after ``skip`` matching requests.

    Whether the request is performed all the same follows from the kind: yes for reset_after, truncate, drip,
    empty, no_id, other_id, garbage, wrong_types, deep and oversize, unless ``status`` is no success;
    ``taken`` overrides it.
    ``body`` (a text, bytes or anything JSON) is for the kind status, ``size`` for oversize.
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
    size: int = 40 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.on != "any" and self.on not in OPERATIONS:
            raise ValueError(f"a fault is on any of {', '.join(OPERATIONS)} or any, not {self.on!r}")
        if self.kind not in KINDS:
            raise ValueError(f"a fault is of the kind {', '.join(KINDS)}, not {self.kind!r}")

    @property
    def performs(self) -> bool:
        if self.taken is not None:
            return self.taken
        return self.kind in _TAKEN and (self.status is None or self.status < 300)

    def spoil(self, reply: Reply) -> Reply:
        """Make of an answer what this fault makes of it."""
        if self.kind in ("status", "redirect", "html"):
            return self._instead()
        status, headers = self.status or reply.status, self._headers(reply.headers)
        if self.kind in _BY_THE_WIRE:
            return replace(reply, status=status, headers=headers, fault=_BY_THE_WIRE[self.kind])
        if self.kind == "oversize":
            return Reply(status, headers, b'{"data": "' + b"x" * self.size + b'"}', "stream")
        body = b""
        if self.kind == "garbage":
            body = b"\x80\x81\xfe\xff" + os.urandom(60)
        elif self.kind == "deep":
            body = b'{"result": ' + b"[" * _DEPTH + b"]" * _DEPTH + b", " + reply.body.lstrip()[1:]
        elif self.kind != "empty" and reply.headers.get("Content-Type") == "application/json":
            change = {"no_id": _without_ids, "other_id": _with_other_ids}.get(self.kind, _of_other_types)
            body = json.dumps(change(json.loads(reply.body))).encode()
        return Reply(status, headers, body)

    def _instead(self) -> Reply:
        if self.kind == "redirect":
            return Reply(self.status or 302, self._headers({"Location": "/"}))
        if self.kind == "html":
            return Reply(self.status or 200, self._headers({"Content-Type": "text/html"}), _PAGE)
        status, body = self.status or 500, self.body
        if body is None:
            body = {"error": f"the emulator was told to answer {status}"}
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        content = text.encode() if isinstance(text, str) else text
        return Reply(status, self._headers({"Content-Type": "application/json"}), content)

    def _headers(self, usual: dict[str, str]) -> dict[str, str]:
        own = {name.title(): text for name, text in (self.headers or {}).items()}
        return {**usual, **own}


class Faults:
    """The faults that are armed, in the order in which they were injected."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []

    def inject(self, fault: Fault) -> None:
        self._armed.append(fault)

    def clear(self) -> None:
        self._armed.clear()

    def take(self, operation: str, job_id: str | None) -> Fault | None:
        """Return the first fault that befalls this request, and count it as having happened."""
        for place, fault in enumerate(self._armed):
            if fault.on not in ("any", operation) or fault.job_id not in (None, job_id) or fault.times == 0:
                continue
            if fault.skip:
                self._armed[place] = replace(fault, skip=fault.skip - 1)
                continue
            if fault.times is not None:
                self._armed[place] = replace(fault, times=fault.times - 1)
            return fault
        return None


def _without_ids(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_ids(value) for key, value in content.items() if key not in ("id", "job_id")}
    return [_without_ids(value) for value in content] if isinstance(content, list) else content


def _with_other_ids(content: Any) -> Any:
    """Make it an answer about another job, or another app."""
    if isinstance(content, dict):
        return {
            key: f"another-{value}" if key in ("id", "job_id") else _with_other_ids(value)
            for key, value in content.items()
        }
    return [_with_other_ids(value) for value in content] if isinstance(content, list) else content


def _of_other_types(content: Any) -> Any:
    if isinstance(content, dict):
        inside = content.get("data")
        if isinstance(inside, dict):
            return {**content, "data": _of_other_types(inside)}
        return {key: _other(value) for key, value in content.items()}
    return _other(content)


def _other(value: Any) -> Any:
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
