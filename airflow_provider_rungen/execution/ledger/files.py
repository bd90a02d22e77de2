"""The files of a ledger: how entries are read, created and replaced. Blocks."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeAlias

from airflow_provider_rungen.client.daemon_threads import batches, run_concurrently
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import File, Storage
from airflow_provider_rungen.execution.ledger.entries import (
    HEADER,
    HEADER_TEXT,
    MAX_ENTRY_BYTES,
    Entry,
    entry_text,
    file_of,
    parse_entry,
)

log = logging.getLogger(__name__)

#: Files, by name: a digest, and since when it has not changed (seconds since 1970).
Watched: TypeAlias = Mapping[str, tuple[str, float]]

# Seconds after which a claim without a job no longer counts: whoever made it was killed.
CLAIM_TIME = 240.0
# Seconds that the clocks of two workers may differ. An older claim need not be looked at for `CLAIM_TIME`.
_CLOCK_SKEW = 2 * 86_400.0
# To list all shards takes about as many requests as to read so many entries.
_MAX_DIRECT = 256
# The names in so many folders, and so many entries, are in memory at a time.
_SHARDS_AT_A_TIME = 16
_BATCH = 1000
# How much is read to find out how long jobs run.
_SAMPLE_SHARDS = 16
_SAMPLE_ENTRIES = 100


class LedgerFiles:
    """
    The files of a ledger, and for how long this attempt has seen those of others unchanged.

    :param storage: its folder.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        #: What is waited for, by key or name: a digest, and since when it has not changed (monotonic clock).
        self.unchanged: dict[str, tuple[str, float]] = {}

    def read(self, keys: Iterable[str]) -> dict[str, Entry]:
        """
        Return the valid entries of some keys. Others are named in a warning.

        :raises RunGenOutputError: they cannot be read, or the ledger is gone.
        """
        entries: dict[str, Entry] = {}
        invalid: list[File] = []
        for key, content in self.texts(keys):
            entry = parse_entry(key, content)
            if entry is not None:
                entries[key] = entry
            elif content:  # an empty one is being written
                invalid.append(file_of(key))
        if invalid:
            log.warning(
                "Ignored %d invalid entries of the ledger: %s",
                *(len(invalid), redact(self.storage.uri_of(*min(invalid)))),
            )
        return entries

    def texts(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the texts of the entries of some keys."""
        for files in self._batches({file_of(key) for key in keys}):
            contents = self.storage.read_all([HEADER, *files], MAX_ENTRY_BYTES)
            # what is not there while the header is, is missing
            self.require_header(contents)
            for (_, name), content in contents.items():
                yield name.removesuffix(".json"), content

    def _batches(self, files: set[File]) -> Iterator[list[File]]:
        """Yield those of some files that may exist: a few as they are, and many after a listing."""
        if len(files) <= _MAX_DIRECT:
            yield from [[*files]] if files else []
            return
        yield []  # the place of a missing mount is listed as an empty folder, but has no header
        for shards in batches(sorted({folder for folder, _ in files}), _SHARDS_AT_A_TIME):
            yield from batches(self.storage.list_all(shards).keys() & files, _BATCH)

    def sample(self, app_id: str) -> list[float]:
        """Return how long some stored jobs of an app ran."""
        # named by the first digits of a hash, so these have any inputs; a new ledger has none
        shards = sorted(self.storage.folders())[:_SAMPLE_SHARDS]
        files = sorted(self.storage.list_all(shards) if shards else ())[:_SAMPLE_ENTRIES]
        contents = self.storage.read_all(files, MAX_ENTRY_BYTES)
        entries = [parse_entry(name.removesuffix(".json"), text) for (_, name), text in contents.items()]
        times = [entry.execution_seconds for entry in entries if entry is not None and entry.app_id == app_id]
        return [each for each in times if each is not None]

    @cached_property
    def is_exclusive(self) -> bool:
        """Whether the store creates a file only if it is missing."""
        self.require_header(self.storage.read_all([HEADER], MAX_ENTRY_BYTES))
        # it is there
        is_exclusive = not self.storage.create(*HEADER, HEADER_TEXT)
        if not is_exclusive:
            log.warning(
                "The ledger's store cannot create a file only if it is missing: of runs that submit "
                "equal inputs within a second, more than one may pay"
            )
        return is_exclusive

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write entries, whatever is there."""
        self.storage.write_all({file_of(key): entry_text(key, entry) for key, entry in entries.items()})

    def create(self, keys: Collection[str], entry: Entry) -> set[str]:
        """Write an entry for each key without one, and return these keys."""
        created = run_concurrently(
            lambda key: self.storage.create(*file_of(key), entry_text(key, entry)), keys
        )
        # where a mount is missing, all can be created
        self.require_header(self.storage.read_all([HEADER], MAX_ENTRY_BYTES))
        return {key for key, is_new in zip(keys, created, strict=True) if is_new}

    def replace(self, changes: Mapping[str, tuple[bytes, Entry | None]]) -> set[str]:
        """
        Replace entries, except those that another run has changed, or is about to replace.

        Whoever creates a file that is named after the entry may replace it, and nobody else.

        :param changes: the text of each entry, and what takes its place: `None` removes it.
        :return: the keys of those that were replaced.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        is_exclusive = self.is_exclusive

        def replace_one(key: str) -> bool:
            text, entry = changes[key]
            lock = key[:2], f"{key}.{_digest(text)}"
            if is_exclusive and not self.storage.create(*lock, lock[1].encode()):
                if self.is_abandoned(lock[1], text):
                    self.storage.remove([lock])
                return False
            try:
                is_same = dict(self.texts([key])).get(key) == text
                if is_same and entry is None:
                    self.storage.remove([file_of(key)])
                elif is_same and entry is not None:
                    self.storage.write(*file_of(key), entry_text(key, entry))
            finally:
                if is_exclusive:
                    self.storage.remove([lock])
            return is_same

        replaced = run_concurrently(replace_one, changes)
        return {key for key, is_replaced in zip(changes, replaced, strict=True) if is_replaced}

    def require_header(self, contents: dict[File, bytes]) -> None:
        """Remove the header of the ledger from what was read of it, and raise if it is not there."""
        if contents.pop(HEADER, None) is None:
            self.storage.confirm_missing([])
            raise RunGenOutputError(
                f"the ledger cannot be used: {redact(self.storage.uri_of(*HEADER))} is missing",
                hint="The next task run with this ledger writes it again",
            )

    # --- the files of others ---

    def is_abandoned(self, name: str, text: bytes, entry: Entry | None = None) -> bool:
        """
        Return whether another run was killed: its file has had the same text for `CLAIM_TIME`.

        :param entry: the entry in the file, if it is one.
        """
        if entry is not None and (datetime.now(UTC) - entry.at).total_seconds() >= _CLOCK_SKEW:
            return True
        digest = _digest(text)
        if name not in self.unchanged or self.unchanged[name][0] != digest:
            self.unchanged[name] = digest, time.monotonic()
        return time.monotonic() - self.unchanged[name][1] >= CLAIM_TIME

    def watched(self, keys: Iterable[str]) -> Watched:
        """Return what is known of the claims of others, to go on with it after a deferral."""
        offset = time.time() - time.monotonic()
        seen = {key: self.unchanged[key] for key in keys if key in self.unchanged}
        return {key: (digest, since + offset) for key, (digest, since) in seen.items()}

    def watch(self, watched: Watched) -> None:
        """Go on after a deferral: the time counts that a claim has been waited for."""
        offset = time.time() - time.monotonic()
        self.unchanged = {key: (digest, since - offset) for key, (digest, since) in watched.items()}


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
