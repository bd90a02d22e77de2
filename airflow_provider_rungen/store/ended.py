"""What has ended: records in files of ``done``, which are written once, read as a stream, and merged."""

from __future__ import annotations

import gzip
import io
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, groupby
from urllib.parse import quote

from airflow_provider_rungen.client.daemon_threads import batches
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.store.files import DONE, OUTPUTS, Files
from airflow_provider_rungen.store.records import Policy, Record
from airflow_provider_rungen.store.spool import Spool

#: When ended records are written.
FLUSH_SECONDS, FLUSH_RECORDS, FLUSH_BYTES = 60.0, 1000, 8 << 20
#: With more files than this in ``done``, an attempt merges so many at its end, as long as one has fewer bytes
#: than this, since a merge is in memory.
MERGE_FILES, MERGE_BYTES = 64, 8 << 20
# So many files are in memory at a time.
_READ_TOGETHER = 4
# How often a listing is repeated whose files others have merged meanwhile.
_LISTINGS = 5
# So many outputs are looked for by name, or as many as a listing of all would take requests; of so many, all
# are listed at once.
_MOST_LOOKS, _LISTED_TOGETHER, _MOST_LISTED = 64, 1000, 100_000
# So many records that completed are kept though nobody wants them: they tell how long jobs run.
_SAMPLE = 100
# How a line begins, so that the key of a record is known without reading it.
_KEY_AT, _KEY_END = len('{"key":"'), len('{"key":"') + 64


class Ended:
    """
    What has ended, as one attempt reads and writes it.

    :param files: where it is.
    :param policy: the task's.
    :param is_wanted: whether a key is one of the task's rows. Records of others are not kept, but for those
        of the own run.
    :param now: the time (seconds since 1970) of this worker.
    """

    def __init__(
        self, files: Files, policy: Policy, is_wanted: Callable[[str], bool], now: Callable[[], float]
    ) -> None:
        self._files, self._policy, self._is_wanted, self._now = files, policy, is_wanted, now
        self.spool = Spool(policy.run)
        # the size of each file that was read or written
        self._read: dict[str, int] = {}
        self._own = f'"run":"{policy.run}"'.encode()
        self._count = self._sampled = 0
        self._unwritten: list[tuple[Record, bytes]] = []
        self._unwritten_bytes = 0
        self._flushed_at = now()

    # --- reading ---

    async def look(self) -> None:
        """Read what is new, past any cache."""
        for _ in range(_LISTINGS):
            new = sorted((await self._files.list(DONE)).keys() - self._read.keys())
            for paths in batches(new, _READ_TOGETHER):
                contents = await self._files.read(paths)
                for path, content in contents.items():
                    self.spool.add(self._wanted(path, content))
                    self._read[path] = len(content)
            if self._read.keys() >= set(new):
                return
        raise RunGenOutputError("the store cannot be read: it lists files that are not there", retryable=True)

    def _wanted(self, path: str, content: bytes) -> Iterator[tuple[Record, bytes]]:
        """Yield the records of a file that are to be kept."""
        for line in _lines_in(path, content):
            self._count += 1
            is_sampled = self._sampled < _SAMPLE
            if is_sampled or self._may_be_wanted(line):
                self._sampled += is_sampled
                yield Record.of_line(line, path), line

    def _may_be_wanted(self, line: bytes) -> bool:
        try:
            is_wanted = self._is_wanted(line[_KEY_AT:_KEY_END].decode())
        except ValueError:  # it is no record, and `Record.of_line` says why
            return True
        return is_wanted or self._own in line

    async def mark_gone(self) -> int:
        """
        Look which completed purchases have lost a file, and forget all but their numbers.

        :return: how many keys have no completed purchase any more.
        """
        if self.spool.count_with_files() <= max(_MOST_LOOKS, self._count // _LISTED_TOGETHER):
            records = self.spool.with_files()
            return self._compare(
                records, await self._files.exist([*chain(*(each.paths for each in records))])
            )
        if self._count <= _MOST_LISTED:
            return self._compare(self.spool.with_files(), await self._files.find(OUTPUTS))
        gone = 0
        for byte in range(256):  # a folder of them is in memory at a time
            if records := self.spool.with_files(byte):
                gone += self._compare(records, await self._files.find(f"{OUTPUTS}/{byte:02x}"))
        return gone

    def _compare(self, records: Iterable[Record], existing: set[str]) -> int:
        """Mark what is gone, given the files that exist."""
        gone: list[Record] = []
        count, policy = 0, self._policy
        for _, purchases in groupby(filter(policy.counts, records), lambda each: each.key):
            # as they are reused; what is behind one that is there is needed no more
            for each in sorted(purchases, key=lambda each: (each.run == policy.run, each.n), reverse=True):
                if existing.issuperset(each.paths):
                    break
                gone.append(each)
            else:
                count += 1
        self.spool.mark_gone(gone)
        return count

    # --- writing ---

    def add(self, record: Record) -> None:
        """Add a record. It is stored by the next `flush`."""
        line = record.to_line()
        self.spool.add([(record, line)])
        # as Python objects, a result takes many times what its line does
        self._unwritten.append((record.model_copy(update={"result": None, "input": None}), line))
        self._unwritten_bytes += len(line)

    @property
    def is_flush_due(self) -> bool:
        """Whether enough has ended, or long enough ago."""
        is_full = len(self._unwritten) >= FLUSH_RECORDS or self._unwritten_bytes >= FLUSH_BYTES
        return is_full or (bool(self._unwritten) and self._now() - self._flushed_at >= FLUSH_SECONDS)

    async def flush(self) -> list[Record]:
        """
        Store what has ended, and return it, without results.

        :raises RunGenOutputError: it could not be written, or not be read back. It is kept for the next call.
        """
        # more may end while it is written
        unwritten, size, self._flushed_at = self._unwritten, self._unwritten_bytes, self._now()
        self._unwritten, self._unwritten_bytes = [], 0
        try:
            if unwritten:
                await self._write(line for _, line in unwritten)
        except BaseException:
            self._unwritten = [*unwritten, *self._unwritten]
            self._unwritten_bytes += size
            raise
        return [record for record, _ in unwritten]

    async def _write(self, lines: Iterable[bytes]) -> None:
        moment = f"{datetime.fromtimestamp(self._now(), UTC):%Y%m%dT%H%M%S}"
        # an attempt has a process after each deferral, and two may write within a second
        name = f"{moment}-{self._policy.run}-{quote(self._policy.by, safe='')}-{secrets.token_hex(4)}"
        path, content = f"{DONE}/{name}.jsonl.gz", _compressed(lines)
        await self._files.write(path, content)
        if (await self._files.read([path])).get(path) != content:
            raise RunGenOutputError(f"the store cannot be used: {path} was written, but cannot be read")
        self._read[path] = len(content)

    async def merge(self) -> int:
        """Merge files if there are too many, and return how many became one. It needs no lock."""
        merged = 0
        while paths := self._to_merge():
            contents = await self._files.read(paths)
            lines = {line for path in contents for line in _lines_in(path, contents[path])}
            if lines:
                await self._write(sorted(lines))
            await self._files.remove(contents.keys())
            for path in paths:
                del self._read[path]
            merged += len(contents)
        return merged

    def _to_merge(self) -> list[str]:
        """Return the smallest of the files that were read, if they are too many."""
        if len(self._read) <= MERGE_FILES:
            return []
        paths, size = [], 0
        for path in sorted(self._read, key=self._read.__getitem__)[:MERGE_FILES]:
            size += self._read[path]
            if size > MERGE_BYTES:
                break
            paths.append(path)
        return paths if len(paths) > 1 else []


def _compressed(lines: Iterable[bytes]) -> bytes:
    """Return the content of a file of ``done``."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=3, mtime=0) as file:
        file.writelines(lines)
    return content.getvalue()


def _lines_in(path: str, content: bytes) -> Iterator[bytes]:
    """Yield the lines of a file of ``done``."""
    try:
        yield from gzip.GzipFile(fileobj=io.BytesIO(content))
    except (OSError, EOFError, zlib.error) as error:
        raise RunGenOutputError(
            f"the store cannot be read: {path} is damaged ({error})",
            hint="Restore that file, or move it away to forget what it has",
            retryable=False,
        ) from None
