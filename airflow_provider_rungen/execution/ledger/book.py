"""Read and write the ledger: a small file for each input that was paid for. Blocks."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import File, Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, read_stored_jobs
from airflow_provider_rungen.execution.archive.threads import batches
from airflow_provider_rungen.execution.ledger.entries import (
    MAX_ENTRY_BYTES,
    VERSION,
    Entry,
    check_header,
    destination_of,
    entry_text,
    is_manifest_uri,
    is_run,
    is_same_task,
    ledger_key,
    parse_entry,
)

if TYPE_CHECKING:
    from airflow_provider_rungen.ledger import Ledger

log = logging.getLogger(__name__)

# To list all shards takes about as many requests as to read so many entries.
_MAX_DIRECT = 256
# The names in so many folders are in memory at a time.
_SHARDS_AT_A_TIME = 16
_HEADER: File = ("", "ledger.json")
_HEADER_TEXT = b'{"version": %d}\n' % VERSION


@dataclass(frozen=True, slots=True)
class Found:
    """
    What a ledger knows about some inputs, by key.

    :param stored: those whose job completed, and whose outputs are stored.
    :param pending: those that were submitted. Only the service knows their status.
    :param unnoted: the keys of stored jobs whose entries do not say so: an attempt was killed before that.
    :param of_task: the keys of jobs that this task submitted in this DAG run, whatever was cleared since.
    """

    stored: dict[str, Entry] = field(default_factory=dict)
    pending: dict[str, Entry] = field(default_factory=dict)
    unnoted: set[str] = field(default_factory=set)
    of_task: set[str] = field(default_factory=set)


class LedgerBook:
    """
    What was paid for, as one attempt of a task sees it.

    :param ledger: the ledger, with its templates rendered.
    :param model: the identity of the model.
    :param run: a token of this task run (lower-case hexadecimal digits), the same in all of its attempts.
    :raises RunGenInputError: there can be no such ledger.
    """

    def __init__(self, ledger: Ledger, model: str, run: str) -> None:
        if not is_run(run):
            raise ValueError(f"run must consist of hexadecimal digits, not {run!r}")
        self._ledger = ledger
        self._model = model
        self._run = run
        # checked in __post_init__
        self._expires: Any = ledger.expires
        self._storage = Storage(ledger.uri, "ledger")
        self._destinations: dict[str, Storage] = {}
        # the jobs that this attempt has written, or seen without reusing them
        self._known: set[str] = set()
        self._is_missing = False

    def open(self, *, create: bool = True) -> str | None:
        """
        Find out whether the ledger can be used, before anything is sent: if not, all is paid for again.

        :param create: whether to create it if it is missing.
        :return: its URI for the log if it is new, since nothing is remembered then.
        :raises RunGenInputError: it cannot be written, read, listed or removed from; or it is of another
            version of this package.
        """
        storage = self._storage
        try:
            header = storage.read_all([_HEADER], MAX_ENTRY_BYTES).get(_HEADER)
            if header is not None:
                check_header(header, redact(storage.uri_of(*_HEADER)))
            is_new = header is None and not storage.folders()
            self._is_missing = is_new and not create
            if create:
                storage.prepare()
                if header is None:
                    storage.write(*_HEADER, _HEADER_TEXT)
        except RunGenOutputError as error:
            raise RunGenInputError(error.message, hint=error.hint, retryable=error.retryable) from None
        if not is_new:
            return None
        folder = redact(str(self._ledger.uri))
        log.warning("New ledger, nothing is remembered yet: %s", folder)
        return folder

    def key(self, job_input: Mapping[str, Any]) -> str:
        """
        Return the key of an input.

        :param job_input: the input.
        :raises RunGenInputError: it is not a JSON object.
        """
        return ledger_key(job_input, self._model, self._ledger.version, self._ledger.ignore)

    # --- reading ---

    def find(
        self,
        keys: Iterable[str],
        on_stored: Callable[[StoredJob], object],
        *,
        destination: Any = None,
        without: Collection[str] = (),
    ) -> Found:
        """
        Return what the ledger knows about inputs at this moment.

        :param keys: the keys of the inputs.
        :param on_stored: takes each job that is stored, as it is found.
        :param destination: where this task stores outputs. A pending job that is stored there counts as
            stored.
        :param without: jobs that do not count.
        :raises RunGenOutputError: the ledger or a destination cannot be read.
        """
        found = Found()
        if self._is_missing:
            return found
        entries = {key: each for key, each in self._read(set(keys)).items() if each.job_id not in without}
        for key, entry in entries.items():
            if self._counts(entry):
                (found.stored if entry.manifest else found.pending)[key] = entry
                if is_same_task(entry.run, self._run):
                    found.of_task.add(key)
        stored = self.find_again(found.stored.values(), on_stored)
        for key in [key for key, entry in found.stored.items() if entry.job_id not in stored]:
            del found.stored[key]
        self._known |= {entry.job_id for key, entry in entries.items() if key not in found.stored}
        if destination is not None and found.pending:
            self._find_unnoted(found, Storage(destination, read_only=True), on_stored)
        return found

    def _find_unnoted(
        self, found: Found, destination: Storage, on_stored: Callable[[StoredJob], object]
    ) -> None:
        def note(job: StoredJob) -> StoredJob:
            on_stored(job)
            return replace(job, input=None, result=None, outputs=())

        apps = {entry.job_id: entry.app_id for entry in found.pending.values()}
        jobs = read_stored_jobs(destination, apps, note, are_remembered=False)
        for key, entry in list(found.pending.items()):
            if job := jobs.get(entry.job_id):
                found.stored[key] = replace(
                    entry, manifest=job.manifest, execution_seconds=job.execution_seconds
                )
                found.unnoted.add(key)
                del found.pending[key]

    def find_again(self, entries: Iterable[Entry], on_stored: Callable[[StoredJob], object]) -> set[str]:
        """
        Return those of some stored jobs that are still there, whatever the ledger has about them by now.

        :param entries: the entry of each job. An app that is not known is empty.
        :param on_stored: takes each job that is there.
        :raises RunGenOutputError: a destination cannot be read.
        """
        by_destination: defaultdict[str, dict[str, str]] = defaultdict(dict)
        manifests = {}
        for entry in entries:
            by_destination[destination_of(entry.manifest, entry.job_id)][entry.job_id] = entry.app_id
            manifests[entry.job_id] = entry.manifest
        stored: set[str] = set()
        for uri, apps in by_destination.items():
            storage = self._remembered_storage(uri)
            stored.update(read_stored_jobs(storage, apps, on_stored, are_remembered=True))
        if gone := [manifest for job_id, manifest in manifests.items() if job_id not in stored]:
            log.warning(
                "%d of the remembered jobs are gone from storage and run again: %s",
                *(len(gone), redact(gone[0])),
            )
        return stored

    def _remembered_storage(self, uri: str) -> Storage:
        if uri not in self._destinations:
            try:
                name = f"remembered destination {redact(uri)}"
                self._destinations[uri] = Storage(uri, name, read_only=True)
            except RunGenInputError as error:
                # another worker may have its connection or library, so its files are not missing
                raise RunGenOutputError(error.message, hint=error.hint) from None
        return self._destinations[uri]

    def _counts(self, entry: Entry) -> bool:
        # a retry is not to buy again what this run has bought
        if entry.run == self._run:
            return True
        age = (datetime.now(UTC) - entry.at).total_seconds()
        return not self._ledger.refresh and (self._expires is None or age <= self._expires)

    def _read(self, keys: set[str]) -> dict[str, Entry]:
        """Return the valid entries of some keys, as cheaply as possible."""
        entries = self._read_directly(keys) if len(keys) <= _MAX_DIRECT else None
        return self._read_listed(keys) if entries is None else entries

    def _read_directly(self, keys: set[str]) -> dict[str, Entry] | None:
        """
        Return the valid entries of a few keys, without a listing: a shard may have thousands of others.

        :return: ``None`` if anything is unusual. Then a listing shows whether it is an outage.
        :raises RunGenOutputError: the ledger is gone.
        """
        if not keys:
            return {}
        try:
            contents = self._storage.read_all([_HEADER, *map(_file, keys)], MAX_ENTRY_BYTES)
        except RunGenOutputError:
            return None
        # what is not there while the header is, is missing
        if not contents.pop(_HEADER, b""):
            self._storage.confirm_missing([_HEADER])
            return None
        entries = _parse(contents)
        return entries if len(entries) == len(contents) else None

    def _read_listed(self, keys: set[str]) -> dict[str, Entry]:
        """Return the valid entries of many keys. Others are named in a warning."""
        shards: defaultdict[str, list[File]] = defaultdict(list)
        for key in keys:
            shards[key[:2]].append(_file(key))
        entries: dict[str, Entry] = {}
        invalid: list[File] = []
        for some in batches(sorted(shards), _SHARDS_AT_A_TIME):
            sizes = self._storage.list_all(some)
            existing = [file for shard in some for file in shards[shard] if file in sizes]
            small = {file: sizes[file] for file in existing if sizes[file] <= MAX_ENTRY_BYTES}
            valid: dict[str, Entry] = {}
            for contents in self._storage.read_listed(small):
                valid |= _parse(contents)
            invalid += [file for file in existing if _key(file) not in valid]
            entries |= valid
        if invalid:
            log.warning(
                "Ignored %d invalid entries of the ledger: %s",
                *(len(invalid), redact(self._storage.uri_of(*min(invalid)))),
            )
        return entries

    # --- writing ---

    def add_pending(self, app_id: str, jobs: Mapping[str, str]) -> None:
        """
        Remember submitted jobs.

        :param app_id: their app.
        :param jobs: the id of each job, by key.
        :raises RunGenOutputError: the ledger cannot be written.
        """
        now = datetime.now(UTC)
        self._write({key: Entry(app_id, job_id, self._run, now) for key, job_id in jobs.items()})

    def add_missing(self, app_id: str, jobs: Mapping[str, str]) -> None:
        """
        Remember submitted jobs whose key has no entry that counts.

        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        counting = {key for key, entry in self._read(set(jobs)).items() if self._counts(entry)}
        self.add_pending(app_id, {key: job_id for key, job_id in jobs.items() if key not in counting})

    def add_done(self, jobs: Mapping[str, StoredJob | Entry]) -> None:
        """
        Remember stored jobs, and log how many of the inputs another run bought in the meantime.

        :param jobs: the job of each key.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        now = datetime.now(UTC)
        current = self._read(set(jobs))
        refused = {key: job for key, job in jobs.items() if not is_manifest_uri(job.manifest, job.job_id)}
        twice = sum(
            entry.run != self._run and entry.job_id != jobs[key].job_id and entry.job_id not in self._known
            for key, entry in current.items()
        )
        self._write(
            {
                key: Entry(job.app_id, job.job_id, self._run, now, job.manifest, job.execution_seconds)
                for key, job in jobs.items()
                # an entry keeps its time, so that a job that is reused again and again expires
                if key not in refused and not _says(current.get(key), job)
            }
        )
        if refused:
            log.warning(
                "Not remembered: %d stored jobs, since their destination has a password, a query string "
                "or an empty part of a path: %s",
                *(len(refused), redact(next(iter(refused.values())).manifest)),
            )
        if twice:
            log.warning("Bought twice: %d inputs, since another run submitted them at the same time", twice)

    def remove(self, jobs: Mapping[str, str]) -> None:
        """
        Forget canceled jobs, as far as possible. An entry that names another job stays.

        :param jobs: the id of each job, by key.
        """
        try:
            entries = self._read(set(jobs))
            self._storage.remove(_file(key) for key, each in entries.items() if each.job_id == jobs[key])
        except RunGenError as error:
            log.warning("Could not remove %d entries from the ledger: %s", len(jobs), error.message)

    def _write(self, entries: Mapping[str, Entry]) -> None:
        self._storage.write_all({_file(key): entry_text(key, entry) for key, entry in entries.items()})
        self._known |= {entry.job_id for entry in entries.values()}


def _says(entry: Entry | None, job: StoredJob | Entry) -> bool:
    return entry is not None and (entry.job_id, entry.manifest) == (job.job_id, job.manifest)


def _parse(contents: Mapping[File, bytes]) -> dict[str, Entry]:
    """Return the valid entries, by key."""
    parsed = {_key(file): parse_entry(_key(file), content) for file, content in contents.items()}
    return {key: entry for key, entry in parsed.items() if entry is not None}


def _file(key: str) -> File:
    return key[:2], f"{key}.json"


def _key(file: File) -> str:
    return file[1].removesuffix(".json")
