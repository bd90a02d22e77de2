"""What a ledger remembers: the key of an input, and the entry of a key. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_provider_rungen.client.codec import encode, encode_input
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.redaction import without_secret_parameters
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.archive.stored_jobs import MANIFEST
from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.plan import canonical_json

VERSION = 1
MAX_ENTRY_BYTES = 64 * 1024
# The file that tells that a folder is a ledger: its folder below that, its name, and what it has.
HEADER = "", "ledger.json"
HEADER_TEXT = b'{"version": %d}\n' % VERSION
_RUN = re.compile(r"[0-9a-f]{1,128}")
_TASK_DIGITS = 32
_MAX_URI_CHARS = 2048
# Of a file or folder; many file systems allow no more.
_MAX_NAME_BYTES = 255
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")
# Whoever can write an entry is not to make a worker send requests to any host.
_NO_STORAGE = frozenset(["http", "https", "ftp"])
# The part before the @ is the name of an Airflow connection or of a container, but never a password.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]{1,250}@)?[A-Za-z0-9._-]{1,250}(?::[0-9]{1,5})?")


# --- keys ---


def model_identity(app: App) -> str:
    """
    Return what tells one model from another: an app's workflow, or its id if the service returns none.

    Parameters that sign the URLs in a workflow make no difference, since they change with each answer.

    :param app: the app, from an answer that has its workflow.
    """
    if app.workflow:
        with suppress(RunGenInputError):  # it is not JSON
            encode(app.workflow, "workflow")
            return canonical_json(app.workflow, without_secret_parameters)
    return f"app:{app.id}"


def ledger_key(job_input: Mapping[str, Any], model: str, version: str, ignore: Collection[str]) -> str:
    """
    Return the key of an input: equal inputs to equal models have equal keys.

    :param job_input: the input.
    :param model: the identity of the model.
    :param version: any text.
    :param ignore: top-level fields of the input that make no difference.
    :raises RunGenInputError: the input is not a JSON object.
    """
    encode_input(job_input)
    fields = {name: value for name, value in job_input.items() if name not in ignore}
    # an array, because no part of it can be mistaken for a piece of its neighbor
    return hashlib.sha256(canonical_json([model, version, fields]).encode()).hexdigest()


# --- entries ---


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What a ledger remembers about one input: its job, or who is about to submit it.

    :param app_id: the app of the job.
    :param job_id: the job; empty until it is submitted.
    :param run: the task run that wrote the entry.
    :param at: when it was written (aware).
    :param manifest: the URI of the job's manifest; empty until its outputs are stored.
    :param execution_seconds: how long the job ran, if known.
    :param replaces: the entry that counts again if this job is canceled. A stored job counts also if this
        one fails, and for other tasks until this one is stored.
    :param failures: how many jobs of the input have failed, this one as the last; 0 if it did not.
    :param why: why it failed.
    """

    app_id: str
    job_id: str
    run: str
    at: datetime
    manifest: str = ""
    execution_seconds: float | None = None
    replaces: Entry | None = None
    failures: int = 0
    why: str = ""

    @property
    def state(self) -> str:
        """What the entry says: ``done``, ``failed``, ``pending`` or ``claimed``."""
        if self.manifest or self.failures:
            return "done" if self.manifest else "failed"
        return "pending" if self.job_id else "claimed"

    @property
    def stored(self) -> Entry | None:
        """The entry of a stored job: this one, or one that it replaces."""
        return self if self.manifest else self.replaces and self.replaces.stored


def kept_of(entry: Entry | None) -> Entry | None:
    """Return what counts again if the job that takes the place of an entry comes to nothing."""
    return entry if entry is None or entry.manifest or entry.failures else entry.replaces


def is_claim_of_others(entry: Entry | None, app_id: str, run: str) -> bool:
    """
    Return whether an entry is the claim of another task run.

    :param app_id: the app that both use: nobody can wait for the jobs of another one.
    :param run: the token of this task run.
    """
    if entry is None or entry.job_id or is_same_task(entry.run, run):
        return False
    return entry.app_id == app_id


def file_of(key: str) -> tuple[str, str]:
    """Return the folder and the name of the file of an entry."""
    return key[:2], f"{key}.json"


def entry_text(key: str, entry: Entry) -> bytes:
    """
    Return the text of an entry, a JSON object.

    :param key: the key of its input, so that a copy of the file is not taken for the entry of another.
    """
    return json.dumps(_fields(key, entry), allow_nan=False).encode() + b"\n"


def _fields(key: str, entry: Entry) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "version": VERSION,
        "key": key,
        "state": entry.state,
        "app_id": entry.app_id,
        "job_id": entry.job_id,
        "run": entry.run,
        "at": entry.at.isoformat(),
    }
    if entry.manifest:
        fields |= {"manifest": entry.manifest, "execution_seconds": entry.execution_seconds}
    if entry.failures:
        fields |= {"failures": entry.failures, "why": entry.why}
    if entry.replaces:
        fields["replaces"] = _fields(key, entry.replaces)
    return fields


def parse_entry(key: str, content: bytes) -> Entry | None:
    """
    Return the entry of a key, or ``None`` unless it has the fields that this package writes about it.

    :raises RunGenInputError: a later version of this package wrote it.
    """
    if len(content) > MAX_ENTRY_BYTES:
        return None
    try:
        fields = json.loads(content)
        version = fields["version"]
        if type(version) is not int or version <= VERSION:
            entry = _read_entry(fields)
            # as text, in which 1 and True differ
            is_exact = json.dumps(fields, sort_keys=True) == json.dumps(_fields(key, entry), sort_keys=True)
            return entry if is_exact else None
    except records.ERRORS:
        return None
    raise _version_error(f"the entry {key}", version)


def _read_entry(fields: Mapping[str, Any]) -> Entry:
    entry = Entry(
        records.identifier(fields["app_id"], "app_id"),
        fields["job_id"] and records.identifier(fields["job_id"], "job_id"),
        fields["run"],
        datetime.fromisoformat(fields["at"]),
        fields.get("manifest", ""),
        fields.get("execution_seconds"),
        _read_entry(fields["replaces"]) if "replaces" in fields else None,
        records.count(fields.get("failures", 0), "failures"),
        records.text(fields.get("why", ""), "why"),
    )
    if entry.execution_seconds is not None:
        records.seconds(entry.execution_seconds, "execution_seconds")
    if (entry.job_id and not _is_name(entry.job_id)) or not is_run(entry.run) or entry.at.tzinfo is None:
        raise records.InvalidRecordError("job_id, run or at")
    if entry.manifest and not is_manifest_uri(entry.manifest, entry.job_id):
        raise records.InvalidRecordError("manifest")
    return entry


def check_header(content: bytes, uri: str) -> None:
    """
    Check the header of a ledger.

    :param uri: where it is, for errors.
    :raises RunGenInputError: it is none, or another version of this package wrote it.
    """
    try:
        version = json.loads(content)["version"]
    except records.ERRORS:
        version = None
    if type(version) is not int:
        raise RunGenInputError(
            f"the ledger cannot be used: {uri} is not the header of a ledger",
            hint="Restore that file, or set uri to a folder of its own",
        )
    if version != VERSION:
        raise _version_error(uri, version)


def _version_error(what: str, version: int) -> RunGenInputError:
    return RunGenInputError(
        f"the ledger cannot be used: {what} has version {version}, and this package reads {VERSION}",
        hint="Install the version of airflow-provider-rungen that wrote it, or set another uri",
    )


def is_run(value: Any) -> bool:
    """Return whether a value can be the token of a task run: lower-case hexadecimal digits."""
    return isinstance(value, str) and _RUN.fullmatch(value) is not None


def is_same_task(run: str, other: str) -> bool:
    """Return whether two tokens are those of one task in one DAG run, whatever was cleared in between."""
    return run[:_TASK_DIGITS] == other[:_TASK_DIGITS]


def is_manifest_uri(value: Any, job_id: str) -> bool:
    """Return whether a value is the URI of a job's manifest, without a secret and without detours."""
    if not isinstance(value, str) or len(value) > _MAX_URI_CHARS or not value.isprintable():
        return False
    if not destination_of(value, job_id) or re.search(r"[?#\\]|::", value):
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
    is_in_folder = bool(authority) or path != f"{job_id}/{MANIFEST}"
    return is_in_folder and bool(slash) and all(map(_is_name, path.split("/")))


def destination_of(manifest: str, job_id: str) -> str:
    """Return the destination that has the folder of a job, given the URI of its manifest."""
    destination, separator, rest = manifest.rpartition(f"/{job_id}/{MANIFEST}")
    return destination if separator and not rest else ""


def _is_name(segment: str) -> bool:
    return segment not in ("", ".", "..") and len(segment.encode()) <= _MAX_NAME_BYTES
