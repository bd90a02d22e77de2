"""The entries of a ledger: write them as text, and validate those that are read. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from airflow_provider_rungen.client.parsing import to_number
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.archive.manifests import MANIFEST
from airflow_provider_rungen.runs.records import is_identifier

VERSION = 1
MAX_ENTRY_BYTES = 64 * 1024
_FIELDS = frozenset(
    ["version", "key", "state", "app_id", "job_id", "run", "at", "manifest", "execution_seconds"],
)
_RUN = re.compile(r"[0-9a-f]{1,128}")
_TASK_DIGITS = 32
_MAX_TIME_CHARS = 40
_MAX_URI_CHARS = 2048
# Of a file or folder; many file systems allow no more.
_MAX_NAME_BYTES = 255
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")
# Whoever can write an entry is not to make a worker send requests to any host.
_NO_STORAGE = frozenset(["http", "https", "ftp"])
# The part before the @ is the name of an Airflow connection or of a container, but never a password.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]{1,250}@)?[A-Za-z0-9._-]{1,250}(?::[0-9]{1,5})?")


class StoredPlace(NamedTuple):
    """
    Where a job is stored.

    :param job_id: the job.
    :param app_id: its app.
    :param manifest: the URI of its manifest; empty while the job is pending.
    :param execution_seconds: how long it ran, if known.
    """

    job_id: str
    app_id: str
    manifest: str
    execution_seconds: float | None = None

    @property
    def destination(self) -> str:
        """The destination that has the folder of the job."""
        return self.manifest.removesuffix(_manifest_path(self.job_id))


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What a ledger remembers about one input.

    :param state: ``pending`` from its submission, ``done`` once its outputs are stored.
    :param app_id: the app of the job.
    :param job_id: the job.
    :param run: the task run that wrote the entry.
    :param at: when it was written (aware).
    :param manifest: the URI of the job's manifest, once it is stored.
    :param execution_seconds: how long the job ran, if known.
    """

    state: Literal["pending", "done"]
    app_id: str
    job_id: str
    run: str
    at: datetime
    manifest: str = ""
    execution_seconds: float | None = None

    @property
    def place(self) -> StoredPlace:
        """Where its job is stored."""
        return StoredPlace(self.job_id, self.app_id, self.manifest, self.execution_seconds)


def check_header(content: bytes, uri: str) -> None:
    """
    Check the header of a ledger.

    :param uri: where it is, for errors.
    :raises RunGenInputError: it is none, or another version of this package wrote it.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    version = fields.get("version") if isinstance(fields, dict) else None
    if type(version) is not int:
        raise RunGenInputError(
            f"the ledger cannot be used: {uri} is not the header of a ledger",
            hint="Restore that file, or set uri to a folder of its own",
        )
    if version != VERSION:
        raise RunGenInputError(
            f"the ledger cannot be used: {uri} has version {version}, and this package reads {VERSION}",
            hint="Install the version of airflow-provider-rungen that wrote it, or set another uri",
        )


def is_run(value: Any) -> bool:
    """Return whether a value can be the token of a task run: lower-case hexadecimal digits."""
    return isinstance(value, str) and _RUN.fullmatch(value) is not None


def run_token(task: str, max_tries: int) -> str:
    """
    Return the token of a task run, in which a clear changes the last digits.

    :param task: the token of the task in its DAG run, 32 hexadecimal digits.
    :param max_tries: Airflow's number, which each clear changes.
    """
    return f"{task}{max_tries & 0xFFFF:04x}"


def is_same_task(run: str, other: str) -> bool:
    """Return whether two tokens are those of one task in one DAG run, whatever was cleared in between."""
    return run[:_TASK_DIGITS] == other[:_TASK_DIGITS]


def is_manifest_uri(value: Any, job_id: str) -> bool:
    """Return whether a value is the URI of a job's manifest, without a secret and without detours."""
    if not isinstance(value, str) or len(value) > _MAX_URI_CHARS or not value.isprintable():
        return False
    if not value.endswith(_manifest_path(job_id)) or re.search(r"[?#\\]|::", value):
        return False
    scheme, separator, rest = value.rpartition("://")
    authority, slash, path = rest.partition("/")
    if separator:
        if not _SCHEME.fullmatch(scheme) or scheme in _NO_STORAGE:
            return False
        if authority and (scheme in ("file", "local") or not _AUTHORITY.fullmatch(authority)):
            return False
    elif authority:
        return False
    is_in_folder = bool(authority) or path != _manifest_path(job_id)[1:]
    return is_in_folder and bool(slash) and all(map(_is_name, path.split("/")))


def entry_text(key: str, entry: Entry) -> bytes:
    """
    Return the text of an entry, a JSON object.

    :param key: the key of its input, so that a copy of the file is not taken for the entry of another.
    """
    fields: dict[str, Any] = {
        "version": VERSION,
        "key": key,
        "state": entry.state,
        "app_id": entry.app_id,
        "job_id": entry.job_id,
        "run": entry.run,
        "at": entry.at.isoformat(),
    }
    if entry.state == "done":
        fields |= {"manifest": entry.manifest, "execution_seconds": entry.execution_seconds}
    return json.dumps(fields, allow_nan=False).encode() + b"\n"


def parse_entry(key: str, content: bytes) -> Entry | None:
    """Return the entry of a key, or ``None`` unless each field is as this package writes it."""
    if len(content) > MAX_ENTRY_BYTES:
        return None
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not fields.keys() <= _FIELDS:
        return None
    at = _parse_time(fields.get("at"))
    is_head_valid = (
        type(fields.get("version")) is int
        and fields["version"] == VERSION
        and fields.get("key") == key
        and is_identifier(fields.get("app_id"))
        and is_identifier(fields.get("job_id"))
        and _is_name(fields["job_id"])
        and is_run(fields.get("run"))
    )
    if not is_head_valid or at is None or not _is_state_valid(fields):
        return None
    return Entry(
        fields["state"],
        fields["app_id"],
        fields["job_id"],
        fields["run"],
        at,
        fields.get("manifest", ""),
        fields.get("execution_seconds"),
    )


def _is_state_valid(fields: Mapping[str, Any]) -> bool:
    """Return whether an entry has what belongs to its state."""
    if fields.get("state") == "pending":
        return not fields.keys() & {"manifest", "execution_seconds"}
    seconds = fields.get("execution_seconds")
    return (
        fields.get("state") == "done"
        and is_manifest_uri(fields.get("manifest"), fields["job_id"])
        and (seconds is None or (not isinstance(seconds, str) and to_number(seconds) is not None))
    )


def _is_name(segment: str) -> bool:
    return segment not in ("", ".", "..") and len(segment.encode()) <= _MAX_NAME_BYTES


def _parse_time(value: Any) -> datetime | None:
    if not isinstance(value, str) or len(value) > _MAX_TIME_CHARS:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _manifest_path(job_id: str) -> str:
    return f"/{job_id}/{MANIFEST}"
