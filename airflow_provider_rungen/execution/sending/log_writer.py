"""Makes intents and job ids durable: in the run log, in the ledger, and in another place if the log fails."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.daemon_threads import begin, ends_within, in_daemon_thread
from airflow_provider_rungen.execution.task.store_writer import StoreWriter, reason_of
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog
from airflow_provider_rungen.runs.place import Place

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sending.paid import PaidInputs

log = logging.getLogger(__name__)

# Seconds that the log may take at a deferral, and at the end.
END_TIME = 30.0
# Seconds between the tries to save at once what the service did, and how long one may take: a kill waits.
PAUSES = (0.1, 0.4)
SAVE_TIME = 1.0
# Seconds between two tries to save during a wait.
SAVE_EVERY = 5.0
# Seconds that the last ids may take in the log, and then in the fallback, when nothing more is sent.
LAST_TIME = 2.0
# Seconds that a kill waits for the log, and for all places together.
LOG_TIME_OF_KILL = 0.25
LAST_SAVES = 0.75
_POLL = 0.05


class Saver:
    """
    Saves in bounded time. What a place does not take stays due, and is saved later.

    :param jobs: the jobs.
    :param run_log: their log.
    """

    def __init__(self, jobs: Jobs, run_log: RunLog) -> None:
        self.jobs = jobs
        self.run_log = run_log
        #: A write that did not end in time. The next one waits for its end.
        self.late: Future[None] | None = None
        self._next_try = 0.0
        # whether the last try of `save_once` failed
        self._is_failing = False

    @contextmanager
    def writing(self, parts: Iterable[int] | None = None) -> Iterator[Future[None]]:
        """
        Write in a daemon thread while the block waits for it. It fails if the block leaves it too early.

        :param parts: see `RunLog.snapshots`.
        """
        with self.run_log.saving(self.jobs, parts) as files:
            write: Future[None] = Future()
            if files:
                write = begin(self.run_log.place.put, files)
            else:
                write.set_result(None)
            try:
                yield write
            finally:
                self.late = None if write.done() else write
            write.result(0)

    def save(
        self,
        parts: Iterable[int] | None = None,
        *,
        within: float = SAVE_TIME,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> bool:
        """
        Try a few times to save, and return whether that succeeded.

        :param parts: see `RunLog.snapshots`.
        :param within: the seconds that one try may take.
        :param is_stopping: returns whether to wait no longer.
        """
        parts = None if parts is None else list(parts)
        for pause in (*PAUSES, None):
            try:
                self._try(parts, within, is_stopping)
            except Exception as error:
                log.warning("Could not save in the run log: %s; saving continues", reason_of(error))
            else:
                return True
            if pause is None or self.late is not None:
                break
            time.sleep(pause)
        return False

    def save_between_polls(self) -> None:
        """Try once to save what is due, if the last try is some time ago. It may have ids: a kill waits."""
        if time.monotonic() >= self._next_try:
            self.save_once(None, SAVE_TIME, lambda: False)
            self._next_try = time.monotonic() + SAVE_EVERY

    def save_once(self, parts: Iterable[int] | None, within: float, is_stopping: Callable[[], bool]) -> None:
        """Try once to save, unless an earlier write still hangs; see `save`."""
        if self.late is None or self.late.done():
            try:
                self._try(parts, within, is_stopping)
            except Exception as error:
                level = logging.DEBUG if self._is_failing else logging.WARNING
                log.log(level, "Could not save in the run log: %s; saving continues", reason_of(error))
                self._is_failing = True

    def let_go(self, is_stopping: Callable[[], bool]) -> None:
        """
        Save the parts that are done, and keep only their totals.

        :param is_stopping: returns whether to wait no longer.
        """
        self.save_once([*self.jobs.due_parts, *self.jobs.done_unsaved], END_TIME, is_stopping)
        self.jobs.close_parts()

    def _try(self, parts: Iterable[int] | None, within: float, is_stopping: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + within

        def wait_for(write: Future[None]) -> None:
            if not ends_within(give_up_at - time.monotonic(), write, is_stopping):
                raise TimeoutError("it does not answer")

        if self.late is not None:
            wait_for(self.late)
        with self.writing(parts) as write:
            wait_for(write)
        self._is_failing = False


@dataclass(eq=False)
class LogWriter:
    """
    Writes intents and ids to the log, and ids to the ledger beside it.

    :param saver: writes the log. Only the event loop's thread changes its jobs.
    :param fallback: where the files of the log go if its own place fails at the end.
    :param budget: seconds in which a store may fail, or not answer.
    :param is_stopping: returns whether the task is killed.
    :param is_more_due_soon: see `StoreWriter`.
    """

    saver: Saver
    ledger: PaidInputs | None
    fallback: Place | None
    budget: float
    is_stopping: Callable[[], bool]
    is_more_due_soon: Callable[[], bool]
    #: The inputs that wait until they may be sent.
    announcing: set[int] = field(init=False, default_factory=set)
    # the jobs that the ledger does not have, and those that no later attempt would find
    _unledgered: dict[int, str] = field(init=False, default_factory=dict)
    _at_risk: dict[int, str] = field(init=False, default_factory=dict)
    # the inputs in flight whose claims grow old
    _old_claims: set[int] = field(init=False, default_factory=set)
    _killed_at: float = field(init=False, default=math.inf)

    def __post_init__(self) -> None:
        both = self.budget, self.is_more_due_soon
        self._in_log = StoreWriter("save job ids in the run log", self._write_log, *both)
        self._in_ledger = StoreWriter("save job ids in the ledger", self._write_ledger, *both)
        self._in_fallback = StoreWriter("save job ids in the fallback", self._write_fallback, LAST_TIME)

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no later attempt would find, also while a last write goes on."""
        return list(self._at_risk.values())

    async def announce(self, number: int) -> None:
        """
        Wait until an input may be sent: its intent is durable, and so are all ids that are known by now.

        If that fails, or is canceled, the intent is withdrawn.

        :raises Exception: a store failed for too long, or a later attempt has begun.
        """
        self.saver.jobs.announce([number])
        self.announcing.add(number)
        writes = [self._in_log.flush()]
        if self._unledgered:
            writes.append(self._in_ledger.flush())
        try:
            # others wait for them, too
            await asyncio.gather(*map(asyncio.shield, writes))
        except BaseException:
            self.saver.jobs.withdraw([number])
            raise
        finally:
            self.announcing.discard(number)

    def add(self, number: int, job_id: str) -> None:
        """Note the job of an input. It is written soon."""
        self._at_risk[number] = job_id
        self._in_log.flush()
        if self.ledger is not None:
            self._unledgered[number] = job_id
            self._in_ledger.flush()

    def renew_claims(self, in_flight: Iterable[int]) -> None:
        """Renew the claims of submissions that take long, before others take this attempt for killed."""
        if self.ledger is not None:
            self._old_claims.update(each for each in in_flight if not self.ledger.is_claimed(each))
            if self._old_claims:
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
        if self.fallback is not None and self._is_savable:
            saves.append(self._in_fallback.flush())
        await self._wait_for(saves, math.inf, LAST_SAVES, is_enough=lambda: not self._is_savable)
        for writer in (self._in_log, self._in_ledger, self._in_fallback):
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
            if self.is_stopping():
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
        return bool(self._at_risk) and (self.saver.run_log.place.is_durable or self.ledger is not None)

    # --- one try each ---

    async def _write_log(self) -> None:
        if self.saver.late is not None:
            with suppress(Exception):
                await asyncio.wrap_future(self.saver.late)
        has_intents = bool(self.announcing)
        with self.saver.writing() as write:
            await self._wait_for_ids(write, is_durable=self.saver.run_log.place.is_durable)
        if has_intents:
            await in_daemon_thread(self.saver.run_log.fence)

    async def _write_ledger(self) -> None:
        if self.ledger is None:
            return
        if ids := dict(self._unledgered):
            await self._wait_for_ids(begin(self.ledger.add_pending, ids))
            for number in ids:
                del self._unledgered[number]
        # one write at a time, so that no claim replaces an id
        if claims := self._old_claims.difference(self._unledgered):
            await in_daemon_thread(self.ledger.renew, claims)
        self._old_claims.clear()

    async def _write_fallback(self) -> None:
        if self.fallback is not None:
            snapshots = self.saver.run_log.snapshots(self.saver.jobs)
            files = {name: file.encode() for name, file in snapshots.items()}
            await self._wait_for_ids(begin(self.fallback.put, files))

    async def _wait_for_ids(self, write: Future[None], *, is_durable: bool = True) -> None:
        """Wait for a write that has all ids which are at risk now."""
        numbers = list(self._at_risk) if is_durable else []

        def note(write: Future[None]) -> None:
            # called in any thread, also after the event loop has ended
            if not write.cancelled() and write.exception() is None:
                for number in numbers:
                    self._at_risk.pop(number, None)

        write.add_done_callback(note)
        await asyncio.wrap_future(write)
