"""Write manifests as text, and validate those that are read. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_rungen.client.codec import to_seconds, to_text, to_time
from airflow_provider_rungen.client.output_urls import MAX_CONTENT_TYPE_CHARS

MANIFEST = "manifest.json"
# A larger manifest is neither written nor read.
MAX_MANIFEST_BYTES = 128 * 1024 * 1024
# The fields of a file that a task returns.
RETURNED_FIELDS = ("uri", "size", "sha256", "content_type")
_FIELDS = ("uri", "at", "size", "sha256", "content_type")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """
    What an earlier attempt, or anybody else who can write there, has left.

    :param entries: its valid entries, by URI and place in the result.
    :param is_complete: whether all outputs were stored, according to it.
    :param invalid_count: how many entries are not valid; 1 for a manifest that is not valid as a whole.
    :param status: the status of the job, if known.
    :param input: its input.
    :param result: its result.
    :param created_at: when it was created (ISO 8601), if known.
    :param execution_seconds: how long it ran, if known.
    :param app_id: its app.
    """

    entries: Mapping[tuple[str, str], dict[str, Any]]
    is_complete: bool
    invalid_count: int
    status: str = ""
    input: Any = None
    result: Any = None
    created_at: str | None = None
    execution_seconds: float | None = None
    app_id: str = ""


def parse_manifest(
    content: bytes, app_id: str, job_id: str, *, parse: Callable[[bytes], Any] = json.loads
) -> Manifest:
    """
    Parse a manifest of a job. One that is not valid, or belongs to another job, has no entries.

    :param app_id: the app of the job; empty if it is not known.
    :param parse: parses the JSON. Errors of its own are raised.
    """
    try:
        fields = parse(content)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        fields = {}
    app, outputs = fields.get("app_id"), fields.get("outputs")
    is_of_job = app == (app_id or app) and fields.get("job_id") == job_id
    if not is_of_job or not isinstance(outputs, list):
        return Manifest({}, is_complete=False, invalid_count=1)
    entries = [entry for entry in map(_parse_entry, outputs) if entry is not None]
    return Manifest(
        {(entry["uri"], entry["at"]): entry for entry in entries},
        is_complete=fields.get("complete") is True,
        invalid_count=len(outputs) - len(entries),
        status=to_text(fields.get("status")),
        input=fields.get("input"),
        result=fields.get("result"),
        created_at=fields["created_at"] if to_time(fields.get("created_at")) else None,
        execution_seconds=to_seconds(fields.get("execution_time")),
        app_id=to_text(app),
    )


def _parse_entry(entry: Any) -> dict[str, Any] | None:
    """Return the known fields of an entry, or ``None`` unless each is as this package writes it."""
    if not isinstance(entry, dict):
        return None
    fields = {name: entry.get(name) for name in _FIELDS}
    uri, at, size, sha256, content_type = fields.values()
    is_valid = (
        isinstance(uri, str)
        and isinstance(at, str)
        and type(size) is int
        and 0 <= size <= _MAX_SIZE
        and isinstance(sha256, str)
        and _SHA256.fullmatch(sha256) is not None
        and (content_type is None or _is_content_type(content_type))
    )
    return fields if is_valid else None


def _is_content_type(value: Any) -> bool:
    # each character may be escaped by up to ten
    return isinstance(value, str) and len(value) <= 10 * MAX_CONTENT_TYPE_CHARS + 1 and value.isprintable()


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest: JSON, with a line for each field."""
    fields = (
        f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in manifest.items()
    )
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode()
