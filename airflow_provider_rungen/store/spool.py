"""Keeps ended records on this worker's disk while a task joins them with its rows, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.store.records import STRENGTH, Record, Status

# The lines are in a file beside it, so that most of the table fits into the cache (kB).
_SCHEMA = """
    PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE; PRAGMA cache_size=-48000;
    CREATE TABLE facts (
        key BLOB, n INTEGER, strength INTEGER, is_own INTEGER, has_files INTEGER, start INTEGER, size INTEGER,
        PRIMARY KEY (key, n)
    ) WITHOUT ROWID;
"""
_ADD = """
    INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key, n) DO UPDATE
    SET strength = excluded.strength, is_own = excluded.is_own, has_files = excluded.has_files,
        start = excluded.start, size = excluded.size
    WHERE excluded.strength < strength
"""
_COMPLETED = STRENGTH[Status.COMPLETED]


class Spool:
    """
    Ended records by key, the strongest of each purchase.

    :param run: the task run whose own purchases can be asked for.
    :raises RunGenOutputError: a method could not use the folder for temporary files.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        with _named_errors():
            self._lines = tempfile.TemporaryFile(prefix="rungen-")  # noqa: SIM115 - closed below
            number, path = tempfile.mkstemp(prefix="rungen-", suffix=".sqlite")
            os.close(number)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.close = weakref.finalize(self, _close, self._database, path, self._lines)
            self._database.executescript(_SCHEMA)
        self._end = 0

    def add(self, records: Iterable[tuple[Record, bytes]]) -> None:
        """Add records, each with its line. Known ones, and weaker facts, make no difference."""
        with _named_errors():
            self._database.execute("BEGIN")
            try:
                self._database.executemany(_ADD, self._entries(records))
            finally:
                self._database.execute("COMMIT")
            self._lines.flush()

    def _entries(self, records: Iterable[tuple[Record, bytes]]) -> Iterator[tuple[object, ...]]:
        for each, line in records:
            start, size = self._end, len(line)
            self._lines.write(line)
            self._end += size
            has_files = bool(each.outputs) or each.result_size is not None
            is_own = each.run == self._run
            yield bytes.fromhex(each.key), each.n, STRENGTH[each.status], is_own, has_files, start, size

    def mark_gone(self, records: Iterable[Record]) -> None:
        """Remember that a file of these purchases is there no more."""
        for each in records:
            self.replace(each.model_copy(update={"status": Status.GONE}))

    def replace(self, record: Record) -> None:
        """Replace what is known of a purchase by a weaker fact."""
        with _named_errors():
            self._database.execute(
                "DELETE FROM facts WHERE key = ? AND n = ?", (bytes.fromhex(record.key), record.n)
            )
        self.add([(record, record.to_line())])

    def history(self, key: str) -> list[Record]:
        """Return the ended purchases of a key."""
        return [*self._select("WHERE key = ?", bytes.fromhex(key))]

    def is_completed(self, key: str, *, by_own_run: bool) -> bool:
        """
        Return whether a purchase of a key completed.

        :param by_own_run: whether it has to be one of the own run.
        """
        which = "SELECT 1 FROM facts WHERE key = ? AND strength = ? AND is_own >= ? LIMIT 1"
        with _named_errors():
            found = self._database.execute(which, (bytes.fromhex(key), _COMPLETED, by_own_run))
            return found.fetchone() is not None

    def completed(self, key: str, *, by_own_run: bool) -> Record | None:
        """
        Return the purchase of a key that is reused: the last one of the own run, or else the last one.

        :param by_own_run: whether it has to be one of the own run.
        """
        which = "WHERE key = ? AND strength = ? AND is_own >= ? ORDER BY is_own DESC, n DESC LIMIT 1"
        return next(self._select(which, bytes.fromhex(key), _COMPLETED, by_own_run), None)

    def of_own_run(self) -> Iterator[Record]:
        """Yield the ended purchases of the own run."""
        return self._select("WHERE is_own")

    def with_files(self, first_byte: int | None = None) -> list[Record]:
        """
        Return the purchases that completed and have files, in the order of their keys.

        :param first_byte: with which a key begins. Any when left out.
        """
        which = "WHERE key >= ? AND key < ? AND has_files AND strength = ? ORDER BY key, n"
        first, last = (0, 255) if first_byte is None else (first_byte, first_byte)
        end = b"\xff" * 33 if last == 255 else bytes([last + 1])
        return [*self._select(which, bytes([first]), end, _COMPLETED)]

    def count_with_files(self) -> int:
        """Return how many purchases completed and have files."""
        [count] = self._database.execute(
            "SELECT count(*) FROM facts WHERE has_files AND strength = ?", (_COMPLETED,)
        ).fetchone()
        return int(count)

    def sample(self, count: int = 100) -> list[Record]:
        """Return some purchases that completed."""
        return [*self._select("WHERE strength = ? LIMIT ?", _COMPLETED, count)]

    def _select(self, which: str, *values: object) -> Iterator[Record]:
        number = self._lines.fileno()
        with _named_errors():
            for start, size in self._database.execute(f"SELECT start, size FROM facts {which}", values):  # noqa: S608 - a constant
                yield Record.of_line(os.pread(number, size, start), "the store")

    def __len__(self) -> int:
        [count] = self._database.execute("SELECT count(*) FROM facts").fetchone()
        return int(count)


def _close(database: sqlite3.Connection, path: str, lines: BinaryIO) -> None:
    database.close()
    lines.close()
    with contextlib.suppress(OSError):
        os.unlink(path)


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise RunGenOutputError(
            f"Could not keep records in the folder for temporary files: {error}",
            hint=f"Check {tempfile.gettempdir()} and its free space, or set TMPDIR",
        ) from None


# The first digits of a key, which is a digest, name one of so many bits.
_DIGITS, _BITS = 6, 1 << 24


class KeyFilter:
    """Knows keys in two megabytes. With a million, it takes each sixteenth other one for known."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, key: str) -> None:
        """Add a key."""
        number = int(key[:_DIGITS], 16)
        self._bits[number >> 3] |= 1 << (number & 7)

    def __contains__(self, key: str) -> bool:
        number = int(key[:_DIGITS], 16)
        return bool(self._bits[number >> 3] >> (number & 7) & 1)
