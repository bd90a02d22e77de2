"""Submits the inputs of a batch, and saves each job id as it comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Any

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.progress import pace
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenRateLimitedError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.batch.checkpoint import Checkpoint

log = logging.getLogger(__name__)

# Inputs that count as sent before they are, so that sending never waits for the store.
SENT_AHEAD = 64
# Seconds that submitting pauses for a store that fails.
STORE_RETRY_BUDGET = 60.0
PROGRESS_INTERVAL = 10.0
# Seconds that requests in flight have when the task is killed.
LAST_ANSWERS = 1.0


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
        self._news = asyncio.Event()
        self._is_exhausted = self._is_finished = False
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
        await self._announce(again)
        self._saving = asyncio.create_task(self._save())
        if checkpoint.unsaved:  # it counts as in flight
            self._news.set()
        failure: Exception | None = None
        try:
            await self._submit_all(iter(todo), len(indexes))
        except Exception as error:
            failure = error
        try:
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
            self._is_finished = True
            self._news.set()
            await self._saving
        if failure := failure or self._abort:
            raise failure

    async def _announce(self, again: Collection[int]) -> None:
        """Save that inputs which counted as not sent may be sent from now on."""
        checkpoint = self._checkpoint
        for index in again:
            checkpoint.note(index, "")
        if not checkpoint.sent_upto:
            return  # each counts as sent before it is
        checkpoint.count_as_sent(checkpoint.sent_upto)  # with the time of this wave
        try:
            await self._flush()
        except Exception:
            for index in again:
                checkpoint.note(index, Checkpoint.NOT_CREATED)
            raise

    @property
    def _has_to_stop(self) -> bool:
        return self._is_stopping() or self._abort is not None or self.is_broken

    async def _submit_all(self, rest: Iterator[tuple[int, Any]], total: int) -> None:
        started_at = logged_at = time.monotonic()
        while not self._has_to_stop and time.time() < self._deadline:
            if self._saving.done():  # it ends early only when the store fails
                await self._saving
            await self._begin(rest)
            if self._is_exhausted and not self._in_flight and not self._retries:
                break
            await self._take_answers(0.1)
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at, left = now, total - self._submitted - len(self.refused)
                progress = pace(total - left, left, now - started_at)
                log.info(
                    "Submitted %d of %d inputs to app %s%s",
                    *(self._submitted, total, self._app_id, progress),
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
                self._news.set()
            while self._checkpoint.saved_upto <= index:  # nothing is sent before it counts as sent
                if self._saving.done():
                    await self._saving
                if self._is_stopping() or time.time() >= self._deadline:
                    return
                await asyncio.sleep(0.002)
            task = asyncio.ensure_future(
                self._perform(endpoints.run_job(self._app_id, job_input, attempts=1))
            )
            self._in_flight[task] = item

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
            self._news.set()

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

    async def _save(self) -> None:
        """Save ids as they come."""
        while not self._is_finished:
            await self._news.wait()
            self._news.clear()
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        """Save what has changed. When the store fails, retry for a while; submitting pauses meanwhile."""
        give_up_at, pause = 0.0, retry.BACKOFF
        while True:
            try:
                return await asyncio.to_thread(self._checkpoint.flush)
            except Exception as error:
                now = time.monotonic()
                if not give_up_at:
                    log.warning(
                        "Could not save job ids: %s; submitting pauses",
                        clean_text(f"{type(error).__name__}: {error}"),
                    )
                give_up_at = give_up_at or now + STORE_RETRY_BUDGET
                if now >= give_up_at or self._is_stopping():
                    raise
            for _ in range(int(pause / 0.05)):
                if not self._is_stopping():
                    await asyncio.sleep(0.05)
            pause = min(pause * 2, 5.0)
