"""Buys keys: claims them, looks again, and submits what nobody else is buying."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any

from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.store.records import Buy, Policy, Record, Status, Verdict, verdict
from airflow_provider_rungen.store.store import Store
from airflow_provider_rungen.work.service import Lost, NotSent, Service, Submitted

#: Seconds in which the POST of a claim has to begin; it is cut 60 s later. `records.CLAIM_TIME` is longer.
START_TIME = 30.0
#: How many submissions are in flight.
MAX_CONCURRENCY = 16
#: How many are between the submission and the file of the job's id: a kill buys no more than these again.
MAX_UNNAMED = 32
# Seconds for which the store may refuse the id of a paid job, before that job is canceled.
_ID_TIME = 60.0
_ID_PAUSE = 1.0
#: Seconds for which the service may take nothing, except that it asks to wait, before the task fails.
OUTAGE_TIME = 120.0
# Seconds until the next try, where the service does not name them.
_LEAST_PAUSE, _MOST_PAUSE = 1.0, 20.0
# A block is what so many seconds bring, and no more than this.
_BLOCK_TIME, _MAX_BLOCK = 5.0, 200


@dataclass(slots=True)
class Bought:
    """
    The result of a block.

    :param opened: the purchases that have a job now.
    :param refused: the inputs that the service did not take.
    :param lost: the purchases whose answer nobody got.
    :param pause: seconds to wait before the rest is decided about again: the service asks for them.
    :param error: what stops the task.
    """

    opened: list[Record] = field(default_factory=list)
    refused: list[Record] = field(default_factory=list)
    lost: list[Record] = field(default_factory=list)
    pause: float = 0.0
    error: RunGenError | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """
    A block that this attempt alone may buy.

    :param inputs: by key.
    :param numbers: which purchase of each key it is.
    :param at: when it was claimed (monotonic clock).
    :param seconds: how long that took.
    """

    inputs: Mapping[str, Mapping[str, Any]]
    numbers: Mapping[str, int]
    at: float
    seconds: float


class Buyer:
    """
    Buys the inputs of one task.

    :param store: what is known of purchases.
    :param service: the service.
    :param policy: the task's.
    :param is_stopping: returns whether nothing more is to be sent.
    """

    def __init__(
        self,
        *,
        store: Store,
        service: Service,
        policy: Policy,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._service, self._policy = store, service, policy
        self._monotonic, self._sleep, self._is_stopping = monotonic, sleep, is_stopping
        self._stopped: RunGenError | None = None
        # whether the service has taken an input: until then, one is sent at a time
        self._has_worked = False
        # until when nothing is sent, and since when nothing was (monotonic clock)
        self._quiet_until = 0.0
        self._failing_since: float | None = None
        self._block_size = 1

    @property
    def error(self) -> RunGenError | None:
        """What has stopped the buying, if anything has."""
        return self._stopped

    async def buy_all(
        self, take: Callable[[int], Mapping[str, Mapping[str, Any]]], note: Callable[[Bought], None]
    ) -> None:
        """
        Buy block after block. The next one is claimed while one is sent.

        :param take: returns at most so many inputs by key; none after the last.
        :param note: takes the result of each block.
        """
        claimed: Claimed | None = await self.claim(take(self._block_size))
        while claimed is not None:
            coming = asyncio.create_task(self._claim_next(take)) if self._has_worked else None
            try:
                began, bought = self._monotonic(), await self.send(claimed)
            except BaseException:
                await self._drop(coming)
                raise
            note(bought)
            # the one and the other go on at the same time
            self._fit_block(len(bought.opened), max(self._monotonic() - began, claimed.seconds))
            if self._stopped is not None or self._is_stopping() or bought.pause:
                await self._drop(coming)
                return
            claimed = await (self._claim_next(take) if coming is None else coming)

    async def _claim_next(self, take: Callable[[int], Mapping[str, Mapping[str, Any]]]) -> Claimed | None:
        if self._is_stopping() or not (inputs := take(self._block_size)):
            return None
        return await self.claim(inputs)

    async def _drop(self, coming: asyncio.Task[Claimed | None] | None) -> None:
        """Withdraw what was claimed ahead."""
        if coming is not None and (claimed := await coming) is not None:
            await self._store.withdraw(claimed.numbers)

    def _fit_block(self, sent: int, seconds: float) -> None:
        """Make a block as large as five seconds allow. One that came too late is followed by a small one."""
        self._has_worked = self._has_worked or sent > 0
        if self._has_worked:
            rate = sent / max(seconds, 1e-3)
            self._block_size = min(max(MAX_CONCURRENCY, int(rate * _BLOCK_TIME)), _MAX_BLOCK)

    async def claim(self, inputs: Mapping[str, Mapping[str, Any]]) -> Claimed:
        """
        Claim a block, look again, and leave what others are buying.

        :raises RunGenOutputError: the store cannot be read or written.
        """
        wanted = {key: each.n for key in inputs if isinstance(each := self.verdict(key), Buy)}
        at = self._monotonic()
        claimed = await self._store.claim(wanted)
        mine = {key: n for key, n in wanted.items() if key in claimed}
        try:
            await self._store.look()
        except BaseException:
            await self._store.withdraw(mine)
            raise
        sure = {key: n for key, n in mine.items() if self._is_sure(key, n)}
        unsure = {key: n for key, n in mine.items() if key not in sure}
        if unsure:
            await self._store.withdraw(unsure)
        return Claimed(inputs, sure, at, self._monotonic() - at)

    async def send(self, claimed: Claimed) -> Bought:
        """Submit a claimed block."""
        result = Bought()
        # each block may be in an event loop of its own
        self._slots, unnamed = asyncio.Semaphore(MAX_CONCURRENCY), asyncio.Semaphore(MAX_UNNAMED)

        async def submit(key: str, n: int) -> None:
            async with unnamed:  # until the store names the job
                await self._submit(key, n, claimed.inputs[key], claimed.at, result)

        await asyncio.gather(*starmap(submit, claimed.numbers.items()))
        return result

    def verdict(self, key: str, but: int = 0) -> Verdict:
        """Return what is done about a key, as far as is known."""
        return verdict(self._store.history(key, but), self._policy)

    def _is_sure(self, key: str, n: int) -> bool:
        """Return whether to buy a claimed purchase: nobody else does, or has done it."""
        return self.verdict(key, but=n) == Buy(n)

    async def _submit(
        self, key: str, n: int, job_input: Mapping[str, Any], claimed_at: float, result: Bought
    ) -> None:
        async with self._slots:
            left = claimed_at + START_TIME - self._monotonic()
            is_quiet = self._monotonic() < self._quiet_until
            if self._stopped is not None or self._is_stopping() or is_quiet or left <= 0:
                await self._store.withdraw({key: n})
                result.pause = max(result.pause, self._quiet_until - self._monotonic())
                return
            answer = await self._service.submit(job_input, left)
        if isinstance(answer, NotSent):
            await self._store.withdraw({key: n})
            self._back_off(answer, result)
            return
        self._failing_since = None
        if isinstance(answer, Submitted):
            await self._keep_id(key, n, answer.job, result)
        elif isinstance(answer, Lost):
            record = self._claim_of(key, n).model_copy(update={"status": Status.LOST, "why": answer.why})
            self._store.end(record)
            result.lost.append(record)
        elif answer.error is None:
            record = self._claim_of(key, n).model_copy(update={"status": Status.REFUSED, "why": answer.why})
            self._store.end(record)
            result.refused.append(record)
        else:
            await self._store.withdraw({key: n})
            self._stopped = result.error = answer.error

    def _back_off(self, answer: NotSent, result: Bought) -> None:
        """Leave the service alone for a while, and stop if it has taken nothing for too long."""
        now = self._monotonic()
        self._failing_since = self._failing_since or now
        pause = answer.retry_after or min(max(now - self._failing_since, _LEAST_PAUSE), _MOST_PAUSE)
        self._quiet_until = max(self._quiet_until, now + pause)
        result.pause = max(result.pause, pause)
        if answer.error is not None and now - self._failing_since > OUTAGE_TIME:
            self._stopped = result.error = answer.error

    def _claim_of(self, key: str, n: int) -> Record:
        return next(each for each in self._store.history(key) if each.n == n)

    async def _keep_id(self, key: str, n: int, job: str, result: Bought) -> None:
        """Write the id of a paid job. If that fails for a minute, cancel it, as nobody else could know it."""
        give_up_at = self._monotonic() + _ID_TIME
        while True:
            try:
                result.opened.append(await self._store.add_job(key, n, job))
                return
            except RunGenError as error:
                if self._monotonic() >= give_up_at:
                    self._stopped = result.error = error
                    break
            await self._sleep(_ID_PAUSE)
        record = self._claim_of(key, n).model_copy(update={"job": job, "status": Status.OPEN})
        try:
            await self._service.cancel(job)
        except RunGenError:  # it is over, or may not be: this attempt waits for it
            result.opened.append(record)
            return
        canceled = {"status": Status.CANCELED, "why": "its id could not be stored"}
        self._store.end(record.model_copy(update=canceled))
