"""Manifests of what was stored: how they are written, and what of one is believed. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_rungen.client.models import clean_text

# Characters of a content type at most.
LONGEST_TYPE = 100
# What is returned of each file.
FIELDS = ("uri", "size", "sha256", "content_type")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """
    What an earlier attempt, or anybody else who can write there, has left.

    :param entries: the files that it names, by URI and place in the result.
    :param is_complete: whether it says that all were stored.
    :param bad: how many of its entries cannot be used.
    """

    entries: Mapping[tuple[str, str], dict[str, Any]]
    is_complete: bool = False
    bad: int = 0


def read_manifest(content: bytes, app_id: str, job_id: str) -> Manifest | None:
    """Read a manifest of a job; ``None`` if it is none, or of another job."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or (found.get("app_id"), found.get("job_id")) != (app_id, job_id):
        return None
    outputs = found.get("outputs")
    if not isinstance(outputs, list):
        return None
    entries = [entry for entry in map(_read_entry, outputs) if entry is not None]
    return Manifest(
        {(entry["uri"], entry["at"]): entry for entry in entries},
        found.get("complete") is True,
        len(outputs) - len(entries),
    )


def _read_entry(entry: Any) -> dict[str, Any] | None:
    """Return of an entry what is known, if all of it is as it would have been written."""
    if not isinstance(entry, dict):
        return None
    uri, at, size, sha256, kind = (
        entry.get(name) for name in ("uri", "at", "size", "sha256", "content_type")
    )
    is_good = (
        isinstance(uri, str)
        and isinstance(at, str)
        and type(size) is int
        and 0 <= size <= _LARGEST
        and isinstance(sha256, str)
        and _SHA256.fullmatch(sha256) is not None
        and (kind is None or (isinstance(kind, str) and clean_text(kind, LONGEST_TYPE) == kind))
    )
    return {"uri": uri, "at": at, "size": size, "sha256": sha256, "content_type": kind} if is_good else None


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest: JSON, with a line for each field and for each file."""
    lines = []
    for name, value in manifest.items():
        if name == "outputs" and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(entry, allow_nan=False)}" for entry in value) + "\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
