"""Submits the inputs of a batch, and saves each job id as it comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.progress import pace
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenRateLimitedError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.batch.checkpoint import Checkpoint
from airflow_provider_rungen.execution.batch.saver import Saver

log = logging.getLogger(__name__)

# Inputs that count as sent before they are, so that sending never waits for the store.
SENT_AHEAD = 64
# Seconds that submitting pauses for a store that fails.
STORE_RETRY_BUDGET = 60.0
# Seconds that its last tries take, when it fails at once.
_LAST_TRIES = 2.0
PROGRESS_INTERVAL = 10.0
# Seconds that requests in flight have when the task is killed, and then the stores for the last ids.
LAST_ANSWERS = 1.0
LAST_SAVES = 0.75


class Throttle:
    """
    How fast the service takes submissions. It outlasts a wave.

    :param max_concurrency: how many submissions are in flight at most.
    """

    def __init__(self, max_concurrency: int) -> None:
        self._max_limit = max_concurrency
        #: How many submissions may be in flight now.
        self.limit = max_concurrency
        #: The time (of the monotonic clock) before which nothing is sent.
        self.not_before = 0.0
        self._since: float | None = None
        self._failures = self._successes = 0

    def note_success(self) -> None:
        """Raise the limit again after as many successes as it allows at a time."""
        self._failures, self._since = 0, None
        self._successes += 1
        if self._successes % self.limit == 0:
            self.limit = min(self.limit + 1, self._max_limit)

    def note_failure(self, error: RunGenError) -> bool:
        """Back off, and return whether it has been too long without success."""
        now = time.monotonic()
        if now >= self.not_before:  # once for all that were in flight together
            self._failures += 1
            self.limit = max(1, self.limit // 2)
            log.warning("%s; continuing with %d in flight", error.message, self.limit)
        self.not_before = max(self.not_before, now + retry.retry_delay(self._failures - 1, error))
        self._since = self._since or now
        # it may be full until some of our jobs have ended
        is_full = isinstance(error, RunGenRateLimitedError)
        return now - self._since > retry.RETRY_BUDGET and not is_full


class BatchSubmitter:
    """
    Submits inputs concurrently, and backs off when the service is busy or in trouble.

    :param perform: performs a flow in the running event loop.
    :param app_id: the app to run.
    :param checkpoint: where to save the ids.
    :param throttle: how many submissions are in flight at most.
    :param deadline: the time (seconds since 1970) after which no more are started.
    :param is_stopping: returns whether to stop at once.
    :param stop_after: stop when so many inputs in a row were refused.
    :param refusals: how many in a row were refused before.
    """

    def __init__(
        self,
        perform: Callable[[Flow[Job]], Awaitable[Job]],
        app_id: str,
        checkpoint: Checkpoint,
        *,
        throttle: Throttle,
        deadline: float,
        is_stopping: Callable[[], bool],
        stop_after: int | None = None,
        refusals: int = 0,
    ) -> None:
        self._perform = perform
        self._app_id = app_id
        self._checkpoint = checkpoint
        self._deadline = deadline
        self._is_stopping = is_stopping
        self._throttle = throttle
        self._in_flight: dict[asyncio.Task[Job], tuple[int, Any]] = {}
        self._retries: deque[tuple[int, Any]] = deque()
        self._abort: RunGenError | None = None
        self._submitted = 0
        self._savers: list[Saver] = []
        self._is_exhausted = False
        self._stop_after = stop_after
        self.refused: dict[int, RunGenError] = {}
        #: How many inputs in a row were refused, up to the last answer.
        self.refusals = refusals
        #: Whether so many were refused in a row that it stopped.
        self.is_broken = False

    async def run(self, todo: Iterable[tuple[int, Any]], indexes: Collection[int]) -> None:
        """
        Submit the inputs. Those that are refused one by one go to ``refused``.

        :param todo: the inputs, with their indexes.
        :param indexes: these indexes.
        :raises RunGenError: no input can be submitted.
        :raises Exception: the inputs cannot be read, or the ids not be saved.
        """
        checkpoint = self._checkpoint
        new_from = checkpoint.sent_upto
        again = {index for index in indexes if checkpoint.ids[index] == Checkpoint.NOT_CREATED}
        self._savers = [Saver(backlog, STORE_RETRY_BUDGET) for backlog in checkpoint.backlogs]
        self._wake()
        failure: Exception | None = None
        try:
            try:
                await self._announce(again)
                await self._submit_all(iter(todo), len(indexes))
            except Exception as error:
                failure = error
            started_at = time.monotonic()
            while self._in_flight and time.monotonic() < started_at + (
                LAST_ANSWERS if self._is_stopping() else retry.RETRY_BUDGET
            ):
                await self._take_answers(0.1)
        finally:
            for task in self._in_flight:
                task.cancel()
            unknown = {index for index, _ in self._in_flight.values()} | set(self.refused)
            for index in {*again, *range(new_from, checkpoint.sent_upto)} - unknown:
                if not checkpoint.ids[index]:  # counted as sent, but not accepted
                    checkpoint.note(index, Checkpoint.NOT_CREATED)
            if self._in_flight:
                log.warning(
                    "Fate unknown: %d submissions to app %s got no answer in time. Their jobs may have been "
                    "created, and cannot be canceled",
                    *(len(self._in_flight), self._app_id),
                )
            await self._finish_saving()
        if failure := failure or self._abort:
            raise failure

    async def _announce(self, again: Collection[int]) -> None:
        """Save that inputs which counted as not sent may be sent from now on."""
        checkpoint = self._checkpoint
        for index in again:
            checkpoint.note(index, "")
        if checkpoint.sent_upto:  # otherwise, each counts as sent before it is
            checkpoint.count_as_sent(checkpoint.sent_upto)  # with the time of this wave
            self._wake()
            await self._until(lambda: checkpoint.is_announced)

    def _wake(self) -> None:
        for saver in self._savers:
            saver.wake()

    async def _until(self, is_saved: Callable[[], bool]) -> bool:
        """Wait for what has to be saved before an input is sent, and return whether it is."""
        while not is_saved():
            self._check_savers()
            if self._is_stopping() or time.time() >= self._deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    def _check_savers(self) -> None:
        for saver in self._savers:
            saver.check()

    async def _finish_saving(self) -> None:
        """Save the last ids. A kill waits no longer than it takes to have each of them in one store."""
        for saver in self._savers:
            saver.finish()
        started_at = time.monotonic()
        while any(saver.is_alive for saver in self._savers):
            waited = time.monotonic() - started_at
            if self._is_stopping() and (self._checkpoint.is_saved or waited > LAST_SAVES):
                return  # the rest is saved while the kill goes on
            if waited > STORE_RETRY_BUDGET + _LAST_TRIES:
                break
            await asyncio.sleep(0.002)
        self._check_savers()

    @property
    def _has_to_stop(self) -> bool:
        return self._is_stopping() or self._abort is not None or self.is_broken

    async def _submit_all(self, rest: Iterator[tuple[int, Any]], total: int) -> None:
        started_at = logged_at = time.monotonic()
        while not self._has_to_stop and time.time() < self._deadline:
            self._check_savers()
            await self._begin(rest)
            if self._is_exhausted and not self._in_flight and not self._retries:
                break
            await self._take_answers(0.1)
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at, left = now, total - self._submitted - len(self.refused)
                progress = pace(total - left, left, now - started_at)
                log.info(
                    "Submitted %d of %d inputs to app %s%s",
                    *(self._checkpoint.submitted_count, len(self._checkpoint.ids), self._app_id, progress),
                )

    async def _begin(self, rest: Iterator[tuple[int, Any]]) -> None:
        """Start as many submissions as may be in flight. Each counts until its id is in the store."""
        while (
            len(self._in_flight) + self._checkpoint.unsaved < self._throttle.limit
            and time.monotonic() >= self._throttle.not_before
        ):
            item = self._retries.popleft() if self._retries else next(rest, None)
            if item is None:
                self._is_exhausted = True
                return
            index, job_input = item
            if index + SENT_AHEAD // 2 >= self._checkpoint.sent_upto:
                self._checkpoint.count_as_sent(index + SENT_AHEAD)
                self._wake()
            if not await self._until(partial(self._counts_as_sent, index)):
                return
            task = asyncio.ensure_future(
                self._perform(endpoints.run_job(self._app_id, job_input, attempts=1))
            )
            self._in_flight[task] = item

    def _counts_as_sent(self, index: int) -> bool:
        return self._checkpoint.saved_upto > index

    async def _take_answers(self, within: float) -> None:
        """Handle the answers that arrived."""
        if self._checkpoint.unsaved:
            within = 0.005  # the store makes room soon
        if not self._in_flight:
            await asyncio.sleep(within)
            return
        done, _ = await asyncio.wait(self._in_flight, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._take(*self._in_flight.pop(task), task)
        if done:
            self._wake()

    def _take(self, index: int, input: Any, task: asyncio.Task[Job]) -> None:
        try:
            job = task.result()
        except RunGenError as error:
            if retry.was_not_accepted(error):
                self._retries.append((index, input))
                self._slow_down(error)
            elif isinstance(error, RunGenSubmissionUnknownError):
                self.refused[index] = error
                self._slow_down(error)
            elif isinstance(error, RunGenBadRequestError):
                self.refused[index] = error
                self._checkpoint.note(index, Checkpoint.NOT_CREATED)
                self.refusals += 1
                self.is_broken |= self._stop_after is not None and self.refusals >= self._stop_after
            else:
                self._checkpoint.note(index, Checkpoint.NOT_CREATED)
                self._abort = error
        else:
            if job.id in self._checkpoint.known:
                # the first keeps it: one of the two has no job, or an unknown one
                self.refused[index] = RunGenSubmissionUnknownError(
                    f"Fate unknown: RunGen may have created a job of app {self._app_id}. Its answer names "
                    f"job {job.id}, which is that of another input",
                    hint="Look at the app's jobs first",
                )
                return
            self._checkpoint.note(index, job.id)
            self._submitted += 1
            self.refusals = 0
            self._throttle.note_success()

    def _slow_down(self, error: RunGenError) -> None:
        if self._throttle.note_failure(error):
            self._abort = error
