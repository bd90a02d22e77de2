"""Faults: what may go wrong with a request, and with which request."""

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
_PERFORMED = {
    *("reset_after", "truncate", "drip", "empty", "no_id", "other_id"),
    *("garbage", "wrong_types", "deep", "oversize"),
}
_PAGE = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>proxy</body></html>"
_ON_THE_WIRE = {
    "reset_before": "reset",
    "reset_after": "reset",
    "truncate": "truncate",
    "hang": "hang",
    "drip": "drip",
    "drip_headers": "drip_headers",
}
# More levels than any JSON parser of Python accepts.
_DEPTH = 200_000


@dataclass(frozen=True)
class Fault:
    """
    Something that goes wrong with requests.

    :param on: the operation, such as ``run``, or ``any``.
    :param status: the HTTP status of the answer.
    :param headers: headers of the answer.
    :param body: the body for the kind ``status``: a text, bytes or JSON.
    :param kind: what goes wrong, one of `KINDS`.
    :param times: for how many requests; ``None`` for all.
    :param skip: how many matching requests succeed first.
    :param job_id: only for requests about this job.
    :param taken: whether the request is performed nevertheless. By default it is for the kinds
        ``reset_after``, ``truncate``, ``drip``, ``empty``, ``no_id``, ``other_id``, ``garbage``,
        ``wrong_types``, ``deep`` and ``oversize``, unless ``status`` is an error.
    :param size: bytes of the body for the kind ``oversize``.
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
            raise ValueError(f"on must be one of {', '.join(OPERATIONS)} or any, not {self.on!r}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")

    @property
    def performs(self) -> bool:
        """Whether the request is performed nevertheless."""
        if self.taken is not None:
            return self.taken
        return self.kind in _PERFORMED and (self.status is None or self.status < 300)

    def apply(self, reply: Reply) -> Reply:
        """Return the answer that this fault makes out of the right one."""
        if self.kind in ("status", "redirect", "html"):
            return self._replacement()
        status, headers = self.status or reply.status, self._headers(reply.headers)
        if self.kind in _ON_THE_WIRE:
            return replace(reply, status=status, headers=headers, fault=_ON_THE_WIRE[self.kind])
        if self.kind == "oversize":
            return Reply(status, headers, b'{"data": "' + b"x" * self.size + b'"}', "stream")
        body = b""
        if self.kind == "garbage":
            body = b"\x80\x81\xfe\xff" + os.urandom(60)
        elif self.kind == "deep":
            body = b'{"result": ' + b"[" * _DEPTH + b"]" * _DEPTH + b", " + reply.body.lstrip()[1:]
        elif self.kind != "empty" and reply.headers.get("Content-Type") == "application/json":
            change = {"no_id": _without_ids, "other_id": _with_other_ids}.get(self.kind, _with_wrong_types)
            body = json.dumps(change(json.loads(reply.body))).encode()
        return Reply(status, headers, body)

    def _replacement(self) -> Reply:
        if self.kind == "redirect":
            return Reply(self.status or 302, self._headers({"Location": "/"}))
        if self.kind == "html":
            return Reply(self.status or 200, self._headers({"Content-Type": "text/html"}), _PAGE)
        status, body = self.status or 500, self.body
        if body is None:
            body = {"error": f"the emulator was configured to answer {status}"}
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        content = text.encode() if isinstance(text, str) else text
        return Reply(status, self._headers({"Content-Type": "application/json"}), content)

    def _headers(self, usual: dict[str, str]) -> dict[str, str]:
        own = {name.title(): text for name, text in (self.headers or {}).items()}
        return {**usual, **own}


class Faults:
    """The injected faults, in order."""

    def __init__(self) -> None:
        self._pending: list[Fault] = []

    def inject(self, fault: Fault) -> None:
        self._pending.append(fault)

    def clear(self) -> None:
        self._pending.clear()

    def take(self, operation: str, job_id: str | None) -> Fault | None:
        """Return the first fault that applies to a request, and count it as used."""
        for place, fault in enumerate(self._pending):
            if fault.on not in ("any", operation) or fault.job_id not in (None, job_id) or fault.times == 0:
                continue
            if fault.skip:
                self._pending[place] = replace(fault, skip=fault.skip - 1)
                continue
            if fault.times is not None:
                self._pending[place] = replace(fault, times=fault.times - 1)
            return fault
        return None


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
