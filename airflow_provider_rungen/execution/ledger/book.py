"""Read and write the ledger: a small file for each input that was paid for. Blocks."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.folder import File
from airflow_provider_rungen.execution.archive.many_files import read_listed, read_unlisted
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, read_stored_jobs
from airflow_provider_rungen.execution.archive.threads import batches, run_concurrently
from airflow_provider_rungen.execution.ledger.entries import (
    MAX_ENTRY_BYTES,
    VERSION,
    Entry,
    StoredPlace,
    check_header,
    entry_text,
    is_manifest_uri,
    is_run,
    is_same_task,
    parse_entry,
)
from airflow_provider_rungen.execution.ledger.keys import ledger_key

if TYPE_CHECKING:
    from airflow_provider_rungen.ledger import Ledger

log = logging.getLogger(__name__)

T = TypeVar("T")
# To list all shards takes about as many requests as to read so many entries.
_MAX_DIRECT = 256
# The names in so many folders are in memory at a time.
_SHARDS_AT_A_TIME = 16
_HEADER: File = ("", "ledger.json")
_HEADER_TEXT = b'{"version": %d}\n' % VERSION


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """
    What a ledger knows about some inputs, by key.

    :param stored: what is kept of the jobs that completed, and whose outputs are stored.
    :param pending: those that were submitted. Only the service knows their status.
    :param unnoted: the keys of stored jobs whose entries do not say so: an attempt was killed before that.
    :param own: the keys of jobs that this task submitted in this DAG run, whatever was cleared since.
    """

    stored: dict[str, T] = field(default_factory=dict)
    pending: dict[str, Entry] = field(default_factory=dict)
    unnoted: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)


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
        uri = redact(storage.uri_of(*_HEADER))
        try:
            sizes = storage.sizes_of([_HEADER])
            if any(size > MAX_ENTRY_BYTES for size in sizes.values()):
                check_header(b"", uri)
            for contents in read_listed(storage, sizes):
                for content in contents.values():
                    check_header(content, uri)
            is_new = not sizes and not storage.folders()
            self._is_missing = is_new and not create
            if create:
                storage.prepare()
                if not sizes:
                    storage.write_all({_HEADER: _HEADER_TEXT})
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

    def find(
        self, keys: Iterable[str], destination: Any = None, *, on_stored: Callable[[StoredJob], T]
    ) -> Found[T]:
        """
        Return what the ledger knows about many keys: a plan.

        :param keys: the keys; repeated ones cost nothing.
        :param destination: where this task stores outputs. A pending job that is stored there counts as
            stored.
        :param on_stored: takes each job that is stored, as it is found, and returns what to keep of it.
        :raises RunGenOutputError: the ledger or a destination cannot be read.
        """
        found: Found[T] = Found()
        if self._is_missing:
            return found
        for entries in self._read_listed(set(keys)):
            self._sort(entries, found, on_stored)
        if destination is not None and found.pending:
            places = {key: entry.place for key, entry in found.pending.items()}
            stored = self._stored(Storage(destination, read_only=True), places, on_stored)
            found.stored.update(stored)
            found.unnoted.update(stored)
            for key in stored:
                del found.pending[key]
        return found

    def find_now(
        self, keys: Iterable[str], *, on_stored: Callable[[StoredJob], T], without: Collection[str] = ()
    ) -> Found[T]:
        """
        Return what the ledger knows about a few keys at this moment: a block that is to be submitted.

        :param on_stored: see `find`.
        :param without: jobs that do not count.
        :raises RunGenOutputError: the ledger or a destination cannot be read.
        """
        found: Found[T] = Found()
        entries = self._read_all(set(keys))
        counting = {key: entry for key, entry in entries.items() if entry.job_id not in without}
        self._sort(counting, found, on_stored)
        return found

    def _sort(
        self, entries: Mapping[str, Entry], found: Found[T], on_stored: Callable[[StoredJob], T]
    ) -> None:
        """Add what entries say, as far as they count."""
        counting = {key: entry for key, entry in entries.items() if self._counts(entry)}
        done = {key: entry.place for key, entry in counting.items() if entry.state == "done"}
        found.stored.update(self.find_again(done, on_stored=on_stored))
        found.pending.update({key: entry for key, entry in counting.items() if entry.state == "pending"})
        found.own.update(key for key, entry in counting.items() if is_same_task(entry.run, self._run))
        self._known |= {entry.job_id for key, entry in entries.items() if key not in found.stored}

    def find_again(
        self, places: Mapping[str, StoredPlace], *, on_stored: Callable[[StoredJob], T]
    ) -> dict[str, T]:
        """
        Return jobs that were stored before, whatever the ledger has about them by now.

        :param places: by key.
        :param on_stored: see `find`.
        :raises RunGenOutputError: a destination cannot be read.
        """
        by_destination: defaultdict[str, dict[str, StoredPlace]] = defaultdict(dict)
        for key, place in places.items():
            by_destination[place.destination][key] = place
        stored: dict[str, T] = {}
        for uri, remembered in by_destination.items():
            storage = self._remembered_storage(uri)
            stored |= self._stored(storage, remembered, on_stored, are_remembered=True)
        if gone := [place.manifest for key, place in places.items() if key not in stored]:
            log.warning(
                "%d of the remembered jobs are gone from storage and run again: %s",
                *(len(gone), redact(gone[0])),
            )
        return stored

    def apps_of(self, jobs: Mapping[str, str]) -> dict[str, str]:
        """
        Return the apps of jobs, by key, as far as their entries are still there.

        :param jobs: the id of each job, by key.
        """
        entries = self._read_all(set(jobs))
        return {key: entry.app_id for key, entry in entries.items() if entry.job_id == jobs[key]}

    def add_pending(self, app_id: str, jobs: Mapping[str, str]) -> None:
        """
        Remember submitted jobs.

        :param app_id: their app.
        :param jobs: the id of each job, by key.
        :raises RunGenOutputError: the ledger cannot be written.
        """
        now = datetime.now(UTC)
        self._write({key: Entry("pending", app_id, job_id, self._run, now) for key, job_id in jobs.items()})

    def add_missing(self, app_id: str, jobs: Mapping[str, str]) -> None:
        """
        Remember submitted jobs whose key has no entry that counts.

        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        counting = {key for key, entry in self._read_all(set(jobs)).items() if self._counts(entry)}
        self.add_pending(app_id, {key: job_id for key, job_id in jobs.items() if key not in counting})

    def add_done(self, jobs: Mapping[str, StoredJob | StoredPlace]) -> int:
        """
        Remember stored jobs. Return how many of the inputs another run bought in the meantime.

        :param jobs: the job of each key.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        now = datetime.now(UTC)
        current = self._read_all(set(jobs))
        entries, refused, twice = {}, [], 0
        for key, job in jobs.items():
            entry = Entry(
                *("done", job.app_id, job.job_id, self._run, now),
                manifest=job.manifest,
                execution_seconds=job.execution_seconds,
            )
            there = current.get(key)
            if not is_manifest_uri(job.manifest, job.job_id):
                refused.append(job)
            # an entry keeps its time, so that a job that is reused again and again expires
            elif there is None or (there.job_id, there.manifest) != (job.job_id, job.manifest):
                entries[key] = entry
            if there is not None and there.run != self._run:
                twice += there.job_id != job.job_id and there.job_id not in self._known
        self._write(entries)
        if refused:
            log.warning(
                "Not remembered: %d stored jobs, since their destination has a password, a query string "
                "or an empty part of a path: %s",
                *(len(refused), redact(refused[0].manifest)),
            )
        if twice:
            log.warning("Bought twice: %d inputs, since another run submitted them at the same time", twice)
        return twice

    def remove(self, jobs: Mapping[str, str]) -> None:
        """
        Forget canceled jobs, as far as possible. An entry that names another job stays.

        :param jobs: the id of each job, by key.
        """

        def remove(shard: str) -> None:
            self._storage.remove(shard, [f"{key}.json" for key in shards[shard]])

        shards: defaultdict[str, list[str]] = defaultdict(list)
        try:
            for key, entry in self._read_all(set(jobs)).items():
                if entry.job_id == jobs[key]:
                    shards[key[:2]].append(key)
            run_concurrently(remove, shards)
        except RunGenError as error:
            log.warning("Could not remove %d entries from the ledger: %s", len(jobs), error.message)

    def _counts(self, entry: Entry) -> bool:
        # a retry is not to buy again what this run has bought
        if entry.run == self._run:
            return True
        age = (datetime.now(UTC) - entry.at).total_seconds()
        return not self._ledger.refresh and (self._expires is None or age <= self._expires)

    def _read_all(self, keys: set[str]) -> dict[str, Entry]:
        """Return the valid entries of some keys, as cheaply as possible."""
        entries = self._read_directly(keys) if len(keys) <= _MAX_DIRECT else None
        if entries is None:
            entries = {key: entry for some in self._read_listed(keys) for key, entry in some.items()}
        return entries

    def _read_directly(self, keys: set[str]) -> dict[str, Entry] | None:
        """
        Return the valid entries of a few keys, without a listing: a shard may have thousands of others.

        :return: ``None`` if anything is unusual. Then a listing shows whether it is an outage.
        :raises RunGenOutputError: the ledger is gone.
        """
        if not keys:
            return {}
        try:
            contents = read_unlisted(self._storage, [_HEADER, *map(_file, keys)], MAX_ENTRY_BYTES)
        except RunGenOutputError:
            return None
        # what is not there while the header is, is missing
        if not contents.pop(_HEADER, b""):
            self._storage.confirm_missing([_HEADER])
            return None
        parsed = {_key(file): parse_entry(_key(file), content) for file, content in contents.items()}
        entries = {key: entry for key, entry in parsed.items() if entry is not None}
        return entries if len(entries) == len(parsed) else None

    def _read_listed(self, keys: set[str]) -> Iterator[dict[str, Entry]]:
        """Yield the valid entries of many keys, part by part."""
        shards: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            shards[key[:2]].append(key)
        broken: list[File] = []
        for some in batches(sorted(shards), _SHARDS_AT_A_TIME):
            sizes = self._storage.list_all(some)
            existing = [file for shard in some for file in map(_file, shards[shard]) if file in sizes]
            small = {file: sizes[file] for file in existing if sizes[file] <= MAX_ENTRY_BYTES}
            broken += [file for file in existing if file not in small]
            for contents in read_listed(self._storage, small):
                parsed = {file: parse_entry(_key(file), content) for file, content in contents.items()}
                broken += [file for file, entry in parsed.items() if entry is None]
                yield {_key(file): entry for file, entry in parsed.items() if entry is not None}
        if broken:
            log.warning(
                "Ignored %d invalid entries of the ledger: %s",
                *(len(broken), redact(self._storage.uri_of(*min(broken)))),
            )

    def _write(self, entries: Mapping[str, Entry]) -> None:
        self._storage.write_all({_file(key): entry_text(key, entry) for key, entry in entries.items()})
        self._known |= {entry.job_id for entry in entries.values()}

    @staticmethod
    def _stored(
        storage: Storage,
        places: Mapping[str, StoredPlace],
        on_stored: Callable[[StoredJob], T],
        *,
        are_remembered: bool = False,
    ) -> dict[str, T]:
        apps = {place.job_id: place.app_id for place in places.values()}
        jobs = read_stored_jobs(storage, apps, on_stored, are_remembered=are_remembered)
        return {key: jobs[place.job_id] for key, place in places.items() if place.job_id in jobs}

    def _remembered_storage(self, uri: str) -> Storage:
        if uri not in self._destinations:
            try:
                name = f"remembered destination {redact(uri)}"
                self._destinations[uri] = Storage(uri, name, read_only=True)
            except RunGenInputError as error:
                # another worker may have its connection or library, so its files are not missing
                raise RunGenOutputError(error.message, hint=error.hint) from None
        return self._destinations[uri]


def _file(key: str) -> File:
    return key[:2], f"{key}.json"


def _key(file: File) -> str:
    return file[1].removesuffix(".json")
