"""Read and write the ledger: a small file for each input that was paid for. Blocks."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text, format_count
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, read_stored_jobs
from airflow_provider_rungen.execution.ledger.entries import (
    HEADER,
    HEADER_TEXT,
    MAX_ENTRY_BYTES,
    Entry,
    check_header,
    destination_of,
    is_claim_of_others,
    is_manifest_uri,
    is_same_task,
    kept_of,
    ledger_key,
    parse_entry,
)
from airflow_provider_rungen.execution.ledger.files import LedgerFiles
from airflow_provider_rungen.execution.task.job_ids import warn_of_resubmission

if TYPE_CHECKING:
    from airflow_provider_rungen.ledger import Ledger

log = logging.getLogger(__name__)

_MAX_REASON = 300


class LedgerStore:
    """
    What was paid for, as one attempt of a task sees it.

    :param ledger: the ledger, with its templates rendered.
    :param model: the identity of the model, once it is known.
    :param run: a token of this task run (lower-case hexadecimal digits), the same in all of its attempts.
    :param began: when the run began (seconds since 1970), if known. What had not expired by then does not.
    :raises RunGenInputError: there can be no such ledger.
    """

    def __init__(self, ledger: Ledger, model: str, run: str, *, began: float = 0.0) -> None:
        self._ledger, self.model, self._run = ledger, model, run
        self._at = min(began or math.inf, time.time())
        self._expires: Any = ledger.expires  # checked in __post_init__
        self._destinations: dict[str, Storage] = {}
        # the jobs that this attempt has written, or seen without reusing them
        self._known: set[str] = set()
        # the stored jobs and failures that this attempt replaces, by key
        self._replaced: dict[str, Entry] = {}
        self._is_missing = False
        #: Its files.
        self.files = LedgerFiles(Storage(ledger.uri, "ledger"))

    def open(self, *, create: bool = True) -> str | None:
        """
        Find out whether the ledger can be used, before anything is sent: if not, all is paid for again.

        :param create: whether to create it if it is missing.
        :return: its URI for the log if it is new, since nothing is remembered then.
        :raises RunGenInputError: it cannot be written, read, listed or removed from; or it is of another
            version of this package.
        """
        storage = self.files.storage
        try:
            header = storage.read_all([HEADER], MAX_ENTRY_BYTES).get(HEADER)
            if header is not None:
                check_header(header, redact(storage.uri_of(*HEADER)))
            is_new = header is None and not storage.folders()
            self._is_missing = is_new and not create
            if create:
                storage.prepare()
                if header is None:
                    storage.write(*HEADER, HEADER_TEXT)
        except RunGenOutputError as error:
            raise RunGenInputError(error.message, hint=error.hint, retryable=error.retryable) from None
        if not is_new:
            return None
        folder = redact(str(self._ledger.uri))
        log.info("New ledger, nothing is remembered yet: %s", folder)
        return folder

    def key(self, job_input: Mapping[str, Any]) -> str:
        """
        Return the key of an input.

        :param job_input: the input.
        :raises RunGenInputError: it is not a JSON object.
        """
        return ledger_key(job_input, self.model, self._ledger.version, self._ledger.ignore)

    def is_of_task(self, entry: Entry) -> bool:
        """Return whether this task wrote an entry in this DAG run, whatever was cleared since."""
        return is_same_task(entry.run, self._run)

    # --- reading ---

    def find(
        self,
        keys: Iterable[str],
        on_stored: Callable[[StoredJob], object],
        *,
        destination: Any = None,
        without: Collection[str] = (),
    ) -> dict[str, Entry]:
        """
        Return the entries of inputs at this moment: of jobs that are stored or submitted, or of which too
        many have failed. A stored job that another task replaces counts until the new one is stored.

        :param keys: the keys of the inputs.
        :param on_stored: takes each job that is stored, as it is found.
        :param destination: where this task stores outputs. If a submitted job is stored there, the ledger
            remembers it: an attempt may have been killed before that.
        :param without: jobs that do not count.
        :raises RunGenOutputError: the ledger or a destination cannot be read, or the ledger not be written.
        """
        if self._is_missing:
            return {}
        entries = self.files.read(keys)
        of_others = {key: each for key, each in entries.items() if not self.is_of_task(each)}
        replaced = {key: kept for key, each in of_others.items() if (kept := each.stored)}
        usable = {key: each for key, each in (entries | replaced).items() if each.job_id not in without}
        done = {key: each for key, each in usable.items() if each.manifest and self._counts(each)}
        stored = self.find_again(done.values(), on_stored)
        done = {key: each for key, each in done.items() if each.job_id in stored}
        entries = {key: each for key, each in entries.items() if each.job_id and key not in done}
        self._known |= {entry.job_id for entry in entries.values()}.union(without)
        entries = {key: each for key, each in entries.items() if each.failures or each.job_id not in without}
        rest = {key: each for key, each in entries.items() if not each.manifest and self._counts(each)}
        pending = {key: each for key, each in rest.items() if not each.failures}
        limit = self._ledger.max_attempts or math.inf
        given_up = {key: each for key, each in rest.items() if each.failures >= limit}
        if destination is not None and pending:
            pending |= self._complete(pending, Storage(destination, read_only=True), on_stored)
        return done | pending | given_up

    def _complete(
        self, pending: Mapping[str, Entry], destination: Storage, on_stored: Callable[[StoredJob], object]
    ) -> dict[str, Entry]:
        """Remember the submitted jobs that are stored in a destination, and return their entries."""
        found: dict[str, dict[str, Any]] = {}

        def note(job: StoredJob) -> None:
            on_stored(job)
            found[job.job_id] = {"manifest": job.manifest, "execution_seconds": job.execution_seconds}

        apps = {entry.job_id: entry.app_id for entry in pending.values()}
        read_stored_jobs(destination, apps, note, are_remembered=False)
        there = {key: entry for key, entry in pending.items() if entry.job_id in found}
        stored = {key: replace(entry, **found[entry.job_id]) for key, entry in there.items()}
        self.add_done(stored)
        return stored

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
        # what a job that still runs will bring is new, and a failure is none that time heals
        expires = self._expires if entry.manifest else None
        age = self._at - entry.at.timestamp()
        return not self._ledger.refresh and (expires is None or age <= expires)

    # --- claims ---

    def claim(self, app_id: str, keys: Iterable[str]) -> set[str]:
        """
        Claim inputs that have no entry. No other run submits them for `CLAIM_TIME` then.

        :param app_id: the app that will run them.
        :return: those that have an entry.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        keys, is_exclusive = set(keys), self.files.is_exclusive
        # what others have claimed is read first
        existing = keys & self.files.unchanged.keys()
        if not is_exclusive:
            existing |= dict(self.files.texts(keys)).keys()
        rest = keys - existing
        return existing | (rest - self.files.create(rest, self._entry(app_id)))

    def replace_useless(self, app_id: str, keys: Collection[str]) -> set[str]:
        """
        Claim inputs whose entries are of no use to this run, unless another run is about to submit them.

        :param app_id: the app that will run them.
        :return: those that were claimed.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        texts = dict(self.files.texts(keys))
        free = {key: text for key, text in texts.items() if not self._is_claimed(app_id, key, text)}
        entries = {key: parse_entry(key, text) for key, text in free.items()}
        claims = {key: (free[key], self._entry(app_id, "", kept_of(each))) for key, each in entries.items()}
        claimed = self.files.replace(claims)
        self._replaced |= {key: kept for key in claimed if (kept := kept_of(entries[key]))}
        left = sum(is_claim_of_others(entries[key], app_id, self._run) for key in claimed)
        if left and not self._ledger.refresh:
            warn_of_resubmission("another run", f"jobs for {format_count(left, 'input')}", app_id)
        missing = set(keys) - texts.keys()
        return claimed | (self.files.create(missing, self._entry(app_id)) if missing else set())

    def _is_claimed(self, app_id: str, key: str, text: bytes) -> bool:
        """Return whether another run has claimed an input, or has submitted it since it was looked up."""
        entry = parse_entry(key, text)
        if entry is not None and entry.job_id:
            return entry.job_id not in self._known
        # an empty one is being written
        is_claim = is_claim_of_others(entry, app_id, self._run) if entry else not text
        return is_claim and not self._ledger.refresh and not self.files.is_abandoned(key, text, entry)

    # --- writing ---

    def add_pending(self, app_id: str, jobs: Mapping[str, str]) -> None:
        """
        Remember submitted jobs, by key.

        :raises RunGenOutputError: the ledger cannot be written.
        """
        entries = {key: self._entry(app_id, job_id, self._replaced.get(key)) for key, job_id in jobs.items()}
        self._write(entries)

    def add_missing(self, app_id: str, jobs: Mapping[str, str]) -> None:
        """
        Remember submitted jobs whose key has no entry of a job that counts.

        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        entries, states = self.files.read(jobs), ("done", "pending")
        counting = {key for key, each in entries.items() if each.state in states and self._counts(each)}
        missing = {key: job_id for key, job_id in jobs.items() if key not in counting}
        self._replaced |= {key: kept for key in missing if (kept := kept_of(entries.get(key)))}
        self.add_pending(app_id, missing)

    def add_done(self, jobs: Mapping[str, StoredJob | Entry]) -> None:
        """
        Remember stored jobs, and log how many of the inputs another run bought in the meantime.

        :param jobs: the job of each key.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        now = datetime.now(UTC)
        current = self.files.read(jobs)
        refused = [job.manifest for job in jobs.values() if not is_manifest_uri(job.manifest, job.job_id)]
        twice = sum(
            entry.run != self._run and entry.job_id != jobs[key].job_id and entry.job_id not in self._known
            for key, entry in current.items()
        )
        # an entry keeps its time, so that a job that is reused again and again expires
        remembered = {(key, entry.job_id, entry.manifest) for key, entry in current.items()}
        self._write(
            {
                key: Entry(job.app_id, job.job_id, self._run, now, job.manifest, job.execution_seconds)
                for key, job in jobs.items()
                if job.manifest not in refused and (key, job.job_id, job.manifest) not in remembered
            }
        )
        if refused:
            log.warning(
                "Not remembered: %d stored jobs, since their destination has a password, a query string "
                "or an empty part of a path: %s",
                *(len(refused), redact(refused[0])),
            )
        if twice:
            log.warning("Bought twice: %d inputs, since another run submitted them at the same time", twice)

    def remove(self, jobs: Mapping[str, str], reasons: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Forget jobs that failed or were canceled, as far as possible. What they replaced counts again.

        An entry that names another job, or that is a claim of another run, stays.

        :param jobs: the id of each job, by key. It is empty for what was claimed, and is not submitted.
        :param reasons: by key, why jobs failed. With ``max_attempts``, their failures are counted.
        """
        try:
            changes: dict[str, tuple[bytes, Entry | None]] = {}
            for key, text in self.files.texts(jobs):
                entry = parse_entry(key, text)
                if entry is None or entry.job_id != jobs[key] or entry.failures:
                    continue
                if entry.job_id or entry.run == self._run:
                    changes[key] = text, self._after_failure(entry, reasons.get(key))
            self._known |= {entry.job_id for _, entry in changes.values() if entry}
            # another run may have forgotten the same jobs, and bought their inputs by now
            self.files.replace(changes)
        except RunGenError as error:
            log.warning("Could not remove %d entries from the ledger: %s", len(jobs), error.message)

    def _after_failure(self, entry: Entry, why: str | None) -> Entry | None:
        """Return the entry that a job leaves which failed, or was canceled (without a reason)."""
        before = entry.replaces
        if why is None or self._ledger.max_attempts is None:
            return before
        failures = before.failures if before and self._counts(before) else 0
        stored = before and before.stored
        return replace(entry, failures=failures + 1, why=clean_text(why, _MAX_REASON), replaces=stored)

    def _entry(self, app_id: str, job_id: str = "", replaces: Entry | None = None) -> Entry:
        return Entry(app_id, job_id, self._run, datetime.now(UTC), replaces=replaces)

    def _write(self, entries: Mapping[str, Entry]) -> None:
        self.files.write(entries)
        self._known |= {entry.job_id for entry in entries.values()}
