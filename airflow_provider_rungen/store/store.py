"""The store of paid work, as one attempt reads and writes it: what is open, and what has ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from airflow_provider_rungen.store.claims import Claims
from airflow_provider_rungen.store.ended import Ended
from airflow_provider_rungen.store.files import HEADER, HEADER_TEXT, Files, check_header, view_path
from airflow_provider_rungen.store.records import Policy, Record, Status


class Store:
    """
    What is known of purchases.

    :param files: where it is.
    :param policy: the task's.
    :param is_wanted: whether a key may be one of the task's rows. Of others, little is read.
    :param now: the time (seconds since 1970) of this worker.
    """

    def __init__(
        self,
        files: Files,
        policy: Policy,
        is_wanted: Callable[[str], bool] = lambda _: True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files, self._policy = files, policy
        self._claims = Claims(files, policy, is_wanted, now)
        self._ended = Ended(files, policy, is_wanted, now)
        self._spool = self._ended.spool
        self.is_exclusive = True  #: Whether a file is created only if it is missing.

    def close(self) -> None:
        """Remove what it has on this worker."""
        self._spool.close()

    # --- reading ---

    async def open(self, *, create: bool = True) -> bool:
        """
        Check its version, and return whether it is new.

        :param create: whether to write the header of a new store.
        :raises RunGenInputError: a later version of this package wrote it, or it is none.
        """
        self._claims.is_read_only = not create
        content = (await self._files.read([HEADER])).get(HEADER)
        if content is not None:
            check_header(content)
        elif create:
            await self._files.create({HEADER: HEADER_TEXT})
            self.is_exclusive = not await self._files.create({HEADER: HEADER_TEXT})
        return content is None

    async def look(self) -> None:
        """
        Read what is new, past any cache.

        :raises RunGenOutputError: it cannot be read, or a record is damaged.
        """
        await self._claims.look()
        await self._ended.look()

    def history(self, key: str, but: int = 0) -> list[Record]:
        """
        Return what is known of a key.

        :param but: a purchase whose claim is left out: the own one.
        """
        return [*self._spool.history(key), *self._claims.history(key, but)]

    def is_known(self, key: str) -> bool:
        """Return whether a key completed, and that counts whatever else is known: its verdict is `Reuse`."""
        return self._spool.is_completed(key, by_own_run=self._policy.reuse is not True)

    def known(self, key: str) -> Record | None:
        """Return the purchase that a key reuses whatever else is known of it, if there is one."""
        return self._spool.completed(key, by_own_run=self._policy.reuse is not True)

    def of_own_run(self) -> Iterator[Record]:
        """Yield all facts of the own run, ended or open, without results."""
        for each in self._spool.of_own_run():
            yield each.model_copy(update={"result": None, "input": None})
        yield from self._claims.of_own_run()

    def bought(self) -> Iterator[Record]:
        """Yield all purchases of the own run: its bill. What was refused is none."""
        return (each for each in self.of_own_run() if each.status is not Status.REFUSED)

    def seconds_per_job(self) -> float:
        """Return how long a job runs, by some of those that completed; 0 if that is not known."""
        known = [each.seconds for each in self._spool.sample() if each.seconds is not None]
        return sum(known) / len(known) if known else 0.0

    async def mark_gone(self) -> int:
        """
        Look which completed purchases have lost a file, and forget all but their numbers.

        :return: how many keys have no completed purchase any more.
        """
        return await self._ended.mark_gone()

    def note_invalid(self, record: Record, why: str) -> None:
        """Note, for this attempt, that what was bought is of no use to the task."""
        self._spool.replace(record.model_copy(update={"status": Status.INVALID, "why": why}))

    async def stale(self) -> list[Record]:
        """
        Return purchases that were open for over a day at the last look, of this app, whoever made them.

        A purchase with jobs is each of them, and one without is lost. Whoever finds them records how they
        ended, so that nothing is forgotten though its row has changed.
        """
        return await self._claims.stale()

    # --- buying ---

    async def claim(self, purchases: Mapping[str, int]) -> set[str]:
        """
        Claim the n-th purchase of each key, and return the keys that are claimed by this attempt.

        :param purchases: n, by key.
        """
        return await self._claims.add(purchases)

    async def withdraw(self, purchases: Mapping[str, int]) -> None:
        """Remove claims of this attempt for which certainly nothing was sent."""
        await self._claims.withdraw(purchases)

    async def add_job(self, key: str, n: int, job: str) -> Record:
        """Write the id of the job of an own claim, and return the open purchase."""
        return await self._claims.add_job(key, n, job)

    # --- ending ---

    def end(self, record: Record) -> None:
        """Note how a purchase ended. It is stored by the next `flush`."""
        self._ended.add(record)
        self._claims.end(record)

    @property
    def is_flush_due(self) -> bool:
        """Whether enough has ended, or long enough ago."""
        return self._ended.is_flush_due

    async def flush(self) -> None:
        """
        Store what has ended, and remove it from ``open``.

        :raises RunGenOutputError: it could not be written, or not be read back. It is kept for the next call.
        """
        if stored := await self._ended.flush():
            await self._claims.remove(stored)

    async def merge(self) -> int:
        """Merge files of records if they are too many, and return how many were merged. It needs no lock."""
        return await self._ended.merge()

    async def write_view(self, view: Mapping[str, Any]) -> None:
        """Write what the page shows of this attempt."""
        await self._files.write(view_path(self._policy), json.dumps(view, separators=(",", ":")).encode())
