"""A service that answers in each way that the API's documentation allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rungen_emulator import Reply, Service

_ALTERNATE_WORDS = {
    "QUEUED": "IN_QUEUE",
    "RUNNING": "in_progress",
    "COMPLETED": "Completed",
    "CANCELED": "CANCELLED",
    "FAILED": "ERROR",
}


@dataclass
class Style:
    """
    How answers are written.

    :param shape: whether they are wrapped in `data`.
    :param id_field: the fields with a job's id; documented: as the reference shows them.
    :param words: how statuses are spelled.
    :param failed_word: the status of a failed job (alternate says ERROR).
    :param error_field: the field with a failed job's error text.
    :param time_format: what separates date and time.
    :param execution_time_as: the type of execution_time.
    :param extra_fields: whether there are fields that no page documents.
    :param run_status: the status of the answer to run.
    :param create_status: the status of the answer to create.
    """

    shape: Literal["wrapped", "flat", "mixed"] = "wrapped"
    id_field: Literal["documented", "id", "job_id", "both"] = "documented"
    words: Literal["upper", "lower", "title", "alternate"] = "upper"
    failed_word: str = "FAILED"
    error_field: Literal["error", "error_message", "message", "result", "detail", "nested"] = "error"
    time_format: Literal["T", "space"] = "T"
    execution_time_as: Literal["string", "number"] = "string"
    extra_fields: bool = False
    run_status: int = 201
    create_status: int = 201

    def write(self, operation: str, data: dict[str, Any], is_flat: bool) -> dict[str, Any]:
        """Return the answer about a job or an app in this style."""
        if operation in ("run", "get", "cancel"):
            documented = "job_id" if operation == "cancel" or (operation == "run" and is_flat) else "id"
            data = self._job(data, documented)
        else:
            data = {**data, "status": self._spelled(data["status"])}
        if self.time_format == "space":
            data |= {name: data[name].replace("T", " ") for name in data if name.endswith("_at")}
        extra = {"x_region": "emulated", "x_trace": {"hops": [1, 2, 3]}, "x_note": None}
        return data | (extra if self.extra_fields else {})

    def _job(self, data: dict[str, Any], documented: str) -> dict[str, Any]:
        job_id = data.pop("id", None) or data.pop("job_id")
        names = {"both": ["id", "job_id"], "documented": [documented]}
        data |= dict.fromkeys(names.get(self.id_field, [self.id_field]), job_id)
        status = data["status"]
        if self.words == "alternate":
            data["status"] = _ALTERNATE_WORDS[status]
        else:
            data["status"] = self._spelled(self.failed_word if status == "FAILED" else status)
        if status == "FAILED":
            error = data.pop("error")
            is_nested = self.error_field == "nested"
            data["error" if is_nested else self.error_field] = {"message": error} if is_nested else error
        if "execution_time" in data and self.execution_time_as == "number":
            data["execution_time"] = float(data["execution_time"])
        return data

    def _spelled(self, word: str) -> str:
        if self.words == "lower":
            return word.lower()
        return word.title() if self.words == "title" else word


class OddService(Service):
    """A service whose answers have a style."""

    style = Style()
    _answers = 0

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Change options by name, and the style."""
        options = dict(changes)
        if "style" in options:
            self.style = Style(**options.pop("style"))
        super().configure(options)

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Answer a request. What a fault has answered is left as it is."""
        with self._lock:
            reply = super().handle(method, path, headers, body)
            if self.style == Style() or path.startswith("/_emulator"):
                return reply
            operation, is_wrong = self.requests[-1].operation, self.requests[-1].fault is not None
            if is_wrong or reply.status >= 300 or operation in ("output", "delete_app"):
                return reply
            self._answers += 1
            return self._restyled(operation, reply)

    def _restyled(self, operation: str, reply: Reply) -> Reply:
        data, style = json.loads(reply.body)["data"], self.style
        is_flat = style.shape == "flat" or (style.shape == "mixed" and self._answers % 2 == 0)
        if operation == "list_apps":
            data = [style.write(operation, app, is_flat) for app in data]
        else:
            data = style.write(operation, data, is_flat)
        status = {"run": style.run_status, "create_app": style.create_status}.get(operation, reply.status)
        return replace(reply, status=status, body=json.dumps(data if is_flat else {"data": data}).encode())
