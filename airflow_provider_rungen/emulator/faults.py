"""Faults: what may go wrong with a request, and with which request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from airflow_provider_rungen.emulator.messages import Reply
from airflow_provider_rungen.emulator.wire import hang, reset

OPERATIONS = (
    *("run", "get", "cancel"),
    *("list_apps", "get_app", "create_app", "update_app", "delete_app"),
    *("output", "unknown"),
)


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
