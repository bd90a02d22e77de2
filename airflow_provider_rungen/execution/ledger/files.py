"""The files of a ledger: how entries are read and written. Blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from airflow_provider_rungen.client.daemon_threads import batches
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
    The files of a ledger.

    :param storage: its folder.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

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

    def require_header(self, contents: dict[File, bytes]) -> None:
        """Remove the header of the ledger from what was read of it, and raise if it is not there."""
        if contents.pop(HEADER, None) is None:
            self.storage.confirm_missing([])
            raise RunGenOutputError(
                f"the ledger cannot be used: {redact(self.storage.uri_of(*HEADER))} is missing",
                hint="The next task run with this ledger writes it again",
            )
