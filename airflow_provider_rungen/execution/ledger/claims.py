"""Claim inputs in a ledger: one run submits each, and the others wait for its job. Blocks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias

from airflow_provider_rungen.client.daemon_threads import run_concurrently
from airflow_provider_rungen.execution.ledger.entries import (
    HEADER,
    MAX_ENTRY_BYTES,
    Entry,
    entry_text,
    file_of,
    is_same_task,
    kept_of,
    parse_entry,
)
from airflow_provider_rungen.execution.ledger.files import LedgerFiles

#: Claims, by key: a digest, and since when it has not changed (seconds since 1970).
Watched: TypeAlias = Mapping[str, tuple[str, float]]

# Seconds after which a claim without a job no longer counts: whoever made it was killed.
CLAIM_TIME = 240.0
# Seconds that the clocks of two workers may differ. An older claim need not be looked at for `CLAIM_TIME`.
_CLOCK_SKEW = 2 * 86_400.0


class Claims:
    """
    The claims of one attempt, and what it has seen of those of others.

    :param files: the files of the ledger.
    :param run: the token of the task run.
    :param known: the jobs that this attempt has seen, and cannot use.
    :param waits: whether to wait for inputs that others have claimed.
    """

    def __init__(
        self,
        files: LedgerFiles,
        run: str,
        known: set[str],
        *,
        waits: bool,
    ) -> None:
        self._files = files
        self._storage = files.storage
        self._run = run
        self._known = known
        self._waits = waits
        #: The stored jobs and failures that this attempt replaces, by key.
        self.replaced: dict[str, Entry] = {}
        # the claims of other runs, by key: a digest, and since when it has not changed (monotonic clock)
        self._others: dict[str, tuple[str, float]] = {}

    def watched(self, keys: Iterable[str]) -> Watched:
        """Return what is known of the claims of others, to go on with it after a deferral."""
        offset = time.time() - time.monotonic()
        seen = {key: self._others[key] for key in keys if key in self._others}
        return {key: (digest, since + offset) for key, (digest, since) in seen.items()}

    def watch(self, watched: Watched) -> None:
        """Go on after a deferral: the time counts that a claim has been waited for."""
        offset = time.time() - time.monotonic()
        self._others = {key: (digest, since - offset) for key, (digest, since) in watched.items()}

    def claim(self, app_id: str, keys: Iterable[str]) -> set[str]:
        """
        Claim inputs that have no entry. No other run submits them for `CLAIM_TIME` then.

        :param app_id: the app that will run them.
        :param keys: their keys.
        :return: those that have an entry.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        keys, is_exclusive = set(keys), self._files.is_exclusive
        # what others have claimed is read first
        existing = keys & self._others.keys()
        if not is_exclusive:
            existing |= dict(self._files.texts(keys)).keys()
        return existing | (keys - existing - self._create(app_id, keys - existing))

    def take_over(self, app_id: str, keys: Collection[str]) -> set[str]:
        """
        Claim inputs whose entries are of no use to this run, unless another run is about to submit them.

        :param app_id: the app that will run them.
        :param keys: their keys.
        :return: those that were claimed.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        texts = dict(self._files.texts(keys))
        free = {key: text for key, text in texts.items() if not self._is_held(app_id, key, text)}
        replaces = {key: kept_of(parse_entry(key, text)) for key, text in free.items()}
        claim = Entry(app_id, "", self._run, datetime.now(UTC))
        claims = {key: (text, replace(claim, replaces=replaces[key])) for key, text in free.items()}
        taken = self.replace(claims)
        self.replaced |= {key: kept for key in taken if (kept := replaces[key])}
        missing = set(keys) - texts.keys()
        return taken | (self._create(app_id, missing) if missing else set())

    def _create(self, app_id: str, keys: Collection[str]) -> set[str]:
        """Claim inputs without an entry, and return those that had none indeed."""
        entry = Entry(app_id, "", self._run, datetime.now(UTC))
        created = run_concurrently(
            lambda key: self._storage.create(*file_of(key), entry_text(key, entry)), keys
        )
        # where a mount is missing, all can be created
        self._files.require_header(self._storage.read_all([HEADER], MAX_ENTRY_BYTES))
        return {key for key, is_new in zip(keys, created, strict=True) if is_new}

    def _is_held(self, app_id: str, key: str, text: bytes) -> bool:
        """Return whether another run has claimed an input, or has submitted it since it was looked up."""
        entry = parse_entry(key, text)
        if entry is None:
            is_claim = not text  # it is being written
        elif entry.job_id:
            return entry.job_id not in self._known
        else:
            is_of_others = entry.app_id == app_id and not is_same_task(entry.run, self._run)
            is_claim = is_of_others and (datetime.now(UTC) - entry.at).total_seconds() < _CLOCK_SKEW
        return self._waits and is_claim and self._seconds_unchanged(key, text) < CLAIM_TIME

    def replace(self, changes: Mapping[str, tuple[bytes, Entry | None]]) -> set[str]:
        """
        Replace entries, except those that another run has changed, or is about to replace.

        Whoever creates a file that is named after the entry may replace it, and nobody else.

        :param changes: the text of each entry, and what takes its place: `None` removes it.
        :return: the keys of those that were replaced.
        :raises RunGenOutputError: the ledger cannot be read or written.
        """
        is_exclusive = self._files.is_exclusive

        def replace_one(key: str) -> bool:
            text, entry = changes[key]
            lock = key[:2], f"{key}.{_digest(text)}"
            if is_exclusive and not self._storage.create(*lock, self._run.encode()):
                if self._seconds_unchanged(lock[1], text) > CLAIM_TIME:  # its writer was killed
                    self._storage.remove([lock])
                return False
            try:
                is_same = dict(self._files.texts([key])).get(key) == text
                if is_same and entry is None:
                    self._storage.remove([file_of(key)])
                elif is_same and entry is not None:
                    self._storage.write(*file_of(key), entry_text(key, entry))
            finally:
                if is_exclusive:
                    self._storage.remove([lock])
            return is_same

        replaced = run_concurrently(replace_one, changes)
        return {key for key, is_replaced in zip(changes, replaced, strict=True) if is_replaced}

    def _seconds_unchanged(self, name: str, text: bytes) -> float:
        """Return for how long this attempt has seen a file with the same text."""
        digest = _digest(text)
        if name not in self._others or self._others[name][0] != digest:
            self._others[name] = digest, time.monotonic()
        return time.monotonic() - self._others[name][1]


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
