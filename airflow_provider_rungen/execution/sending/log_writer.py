"""Makes intents and job ids durable: in the run log, in the ledger, and in a spare place if the log fails."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from airflow_provider_rungen.client.daemon_threads import begin, in_daemon_thread
from airflow_provider_rungen.execution.sending.inputs import LedgerPort
from airflow_provider_rungen.execution.sending.saver import Saver
from airflow_provider_rungen.execution.sending.store_writer import StoreWriter
from airflow_provider_rungen.runs.place import Place

# Seconds that the last ids may take in the log, and then in the spare place, when nothing more is sent.
LAST_TIME = 2.0
# Seconds that a kill waits for the log, and for all places together.
LOG_TIME_OF_KILL = 0.25
LAST_SAVES = 0.75
_POLL = 0.05


class LogWriter:
    """
    Writes intents and ids to the log, and ids to the ledger beside it.

    :param saver: writes the log. Only the event loop's thread changes its jobs.
    :param spare: where the files of the log go if its own place fails at the end.
    :param budget: seconds in which a store may fail, or not answer.
    :param is_stopping: returns whether the task is killed.
    :param is_more_due_soon: see `StoreWriter`.
    """

    def __init__(
        self,
        saver: Saver,
        ledger: LedgerPort | None,
        spare: Place | None,
        *,
        budget: float,
        is_stopping: Callable[[], bool],
        is_more_due_soon: Callable[[], bool],
    ) -> None:
        self._saver, self._jobs, self._run_log = saver, saver.jobs, saver.run_log
        self._ledger, self._spare = ledger, spare
        self._is_stopping = is_stopping
        self._in_log = StoreWriter("save job ids in the run log", self._write_log, budget, is_more_due_soon)
        self._in_ledger = StoreWriter(
            "save job ids in the ledger", self._write_ledger, budget, is_more_due_soon
        )
        self._in_spare = StoreWriter("save job ids in the spare place", self._write_spare, LAST_TIME)
        #: The inputs that wait until they may be sent.
        self.announcing: set[int] = set()
        # the jobs that the ledger does not have, and those that no later attempt would find
        self._unledgered: dict[int, str] = {}
        self._at_risk: dict[int, str] = {}
        self._killed_at = math.inf

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no later attempt would find, also while a last write goes on."""
        return list(self._at_risk.values())

    async def announce(self, number: int) -> None:
        """
        Wait until an input may be sent: its intent is durable, and so are all ids that are known by now.

        If that fails, or is canceled, the intent is withdrawn.

        :raises Exception: a store failed for too long, or a later attempt has begun.
        """
        self._jobs.announce([number])
        self.announcing.add(number)
        writes = [self._in_log.flush()]
        if self._unledgered:
            writes.append(self._in_ledger.flush())
        try:
            # others wait for them, too
            await asyncio.gather(*map(asyncio.shield, writes))
        except BaseException:
            self._jobs.withdraw([number])
            raise
        finally:
            self.announcing.discard(number)

    def add(self, number: int, job_id: str) -> None:
        """Note the job of an input. It is written soon."""
        self._at_risk[number] = job_id
        self._in_log.flush()
        if self._ledger is not None:
            self._unledgered[number] = job_id
            self._in_ledger.flush()

    # --- the end ---

    async def finish(self) -> BaseException | None:
        """
        Write the last ids, and which intents were withdrawn.

        A log that fails or hangs is not waited for until it works, because saving goes on after the
        submission. A kill waits no longer than it takes to have each id in one store.

        :return: why the ledger was given up.
        """
        self._in_log.retry_now()
        in_log, in_ledger = self._in_log.flush(), self._in_ledger.flush()
        await self._wait_for([in_log], LAST_TIME, LOG_TIME_OF_KILL)
        saves = [in_ledger]
        if self._spare is not None and self._is_savable:
            saves.append(self._in_spare.flush())
        await self._wait_for(saves, math.inf, LAST_SAVES, is_enough=lambda: not self._is_savable)
        for writer in (self._in_log, self._in_ledger, self._in_spare):
            await writer.stop()
        return None if in_ledger.cancelled() else in_ledger.exception()

    async def _wait_for(
        self,
        writes: Collection[asyncio.Task[None]],
        seconds: float,
        seconds_of_kill: float,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Wait for writes.

        :param seconds: how long to wait at most.
        :param seconds_of_kill: how long a kill waits at most, from its beginning on.
        :param is_enough: returns whether a kill need not wait any more.
        """
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at and not all(write.done() for write in writes):
            if self._is_stopping():
                if self._killed_at == math.inf:
                    self._killed_at = time.monotonic()
                    self._in_ledger.retry_now()
                if is_enough():
                    return
                give_up_at = min(give_up_at, self._killed_at + seconds_of_kill)
            await asyncio.wait(writes, timeout=_POLL)

    @property
    def _is_savable(self) -> bool:
        """Whether a job is at risk, and a store could take it."""
        return bool(self._at_risk) and (self._run_log.place.is_durable or self._ledger is not None)

    # --- one try each ---

    async def _write_log(self) -> None:
        has_intents = bool(self.announcing)
        if self._saver.late is not None:
            with suppress(Exception):
                await asyncio.wrap_future(self._saver.late)
        ids = list(self._at_risk)
        with self._saver.writing() as write:
            if self._run_log.place.is_durable:
                write.add_done_callback(partial(self._forget, ids))
            await asyncio.wrap_future(write)
        if has_intents:
            await in_daemon_thread(self._run_log.fence)

    async def _write_ledger(self) -> None:
        if self._ledger is None or not self._unledgered:
            return
        ids = dict(self._unledgered)
        write = begin(self._ledger.add_pending, ids)
        write.add_done_callback(partial(self._forget, ids))
        await asyncio.wrap_future(write)
        for number in ids:
            del self._unledgered[number]

    async def _write_spare(self) -> None:
        if self._spare is not None:
            snapshots = self._run_log.snapshots(self._jobs)
            write = begin(self._spare.put, {name: file.encode() for name, file in snapshots.items()})
            write.add_done_callback(partial(self._forget, list(self._at_risk)))
            await asyncio.wrap_future(write)

    def _forget(self, numbers: Collection[int], write: Future[None]) -> None:
        """Note that jobs are at risk no more. Called in any thread, also after the event loop has ended."""
        if not write.cancelled() and write.exception() is None:
            for number in numbers:
                self._at_risk.pop(number, None)
