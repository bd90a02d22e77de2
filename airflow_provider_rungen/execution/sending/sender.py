"""Submits inputs concurrently, each after its intent is durable, and keeps its slot until its id is, too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.progress import pace
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.sending.log_writer import Item, LogWriter
from airflow_provider_rungen.execution.sending.lookahead import LedgerPort, Lookahead
from airflow_provider_rungen.execution.sending.throttle import Throttle
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog
from airflow_provider_rungen.runs.place import Place

log = logging.getLogger(__name__)

# Seconds in which a store may fail, or not answer, before the attempt ends. Nothing is sent meanwhile.
STORE_RETRY_BUDGET = 60.0
PROGRESS_INTERVAL = 10.0
# Seconds that requests in flight have when the task is killed, and then the stores for the last ids.
LAST_ANSWERS = 1.0
LAST_SAVES = 0.75
# Seconds that an id, or a free slot, waits for others, so that they share a write.
_GATHERING_TIME = 0.1
# Seconds between checks for a kill.
_POLL = 0.05


class Sender:
    """
    Submits inputs concurrently, and backs off when the service is busy or in trouble.

    An input goes through a queue in each of these steps: read, looked up, announced, in flight, saved.

    :param perform: performs a flow in the running event loop.
    :param app_id: the app to run.
    :param throttle: how many submissions are in flight at most.
    :param deadline: the time (seconds since 1970) after which no more are started.
    :param is_stopping: returns whether to stop at once.
    :param stop_after: stop when so many inputs in a row were refused.
    :param refusals: how many in a row were refused before.
    :param spare: where the files of the log go if its own place fails at the end.
    """

    def __init__(
        self,
        perform: Callable[[Flow[Job]], Awaitable[Job]],
        app_id: str,
        jobs: Jobs,
        log: RunLog,
        ledger: LedgerPort | None,
        *,
        throttle: Throttle,
        deadline: float,
        is_stopping: Callable[[], bool],
        stop_after: int | None = None,
        refusals: int = 0,
        spare: Place | None = None,
    ) -> None:
        self._perform = perform
        self._app_id = app_id
        self._jobs = jobs
        self._throttle = throttle
        self._deadline, self._is_stopping = deadline, is_stopping
        self._stop_after = stop_after
        self._inputs = Lookahead(ledger, budget=STORE_RETRY_BUDGET, wake=self._wake)
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer = LogWriter(jobs, log, ledger, spare, budget=STORE_RETRY_BUDGET, wake=self._wake)
        self._ready: deque[Item] = deque()
        self._in_flight: dict[asyncio.Future[Job], Item] = {}
        self._answered: deque[asyncio.Future[Job]] = deque()
        self._gathering_since: float | None = None
        self._abort: Exception | None = None
        self._is_ending = False
        self._submitted = 0
        #: Why inputs were refused, or have an unknown fate.
        self.errors: dict[int, RunGenError] = {}
        #: How many inputs in a row were refused, up to the last answer.
        self.refusals = refusals
        #: Whether so many were refused in a row that it stopped.
        self.is_broken = False

    async def run(self, todo: Iterator[Item], total: int) -> None:
        """
        Submit the inputs. Those that are refused one by one go to ``errors``.

        :param todo: the inputs, with their numbers. They are read in a thread, a block ahead.
        :param total: how many they are.
        :raises RunGenError: no input can be submitted.
        :raises Exception: the inputs cannot be read, or intents or ids not be saved.
        """
        self._loop = asyncio.get_running_loop()
        self._inputs.todo = todo
        failure: BaseException | None = None
        try:
            try:
                await self._send_all(total)
            except Exception as error:
                failure = error
            self._withdraw_unsent()
            await self._await_answers()
        finally:
            self._withdraw_unsent()
            await self._drop_in_flight()
            await self._save_rest()
        if failure := failure or self._abort or self._writer.failure:
            raise failure

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no later attempt would find, also while the last writes go on."""
        return self._writer.unsaved_ids()

    # --- submitting ---

    async def _send_all(self, total: int) -> None:
        started_at = logged_at = time.monotonic()
        while not self._has_to_stop and time.time() < self._deadline:
            self._take_news()
            self._writer.check()
            self._inputs.check()
            if self._has_to_stop:
                return
            self._send()
            self._writer.begin_ledger()
            self._begin_write()
            if time.monotonic() >= self._throttle.not_before:
                self._inputs.advance(self._throttle.limit)
            if self._inputs.is_over and not (self._in_flight or self._ready or self._writer.announced):
                return
            await self._wait()
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at = now
                self._log_progress(total, now - started_at)

    @property
    def _has_to_stop(self) -> bool:
        return self._is_stopping() or self._abort is not None or self.is_broken

    def _begin_write(self) -> None:
        """Begin to save ids, with the intents of the inputs that take their slots."""
        if not self._writer.is_ready:
            return
        now, in_flight = time.monotonic(), len(self._in_flight)
        room = self._throttle.limit - in_flight - len(self._ready)
        is_held_up = self._is_ending or self._writer.announced or now < self._throttle.not_before
        size = 0 if is_held_up else min(max(room, 0), len(self._inputs))
        if not (size or self._writer.announced or self._writer.has_ids):
            self._gathering_since = None
            return
        self._gathering_since = self._gathering_since or now
        # while most slots are in use, more of them become free soon
        if room < in_flight and now < self._gathering_since + _GATHERING_TIME:
            return
        self._gathering_since = None
        self._writer.begin(self._inputs.pop(size), self._ready.extend)

    def _send(self) -> None:
        """Send what was announced, as far as there are slots."""
        if time.monotonic() < self._throttle.not_before:
            return
        slots = self._throttle.limit - len(self._in_flight) - self._writer.held
        for _ in range(min(slots, len(self._ready))):
            number, job_input = self._ready.popleft()
            flow = endpoints.run_job(self._app_id, job_input, attempts=1)
            task = asyncio.ensure_future(self._perform(flow))
            self._in_flight[task] = number, job_input
            task.add_done_callback(self._note_answer)

    def _log_progress(self, total: int, seconds: float) -> None:
        left = total - self._submitted - self._inputs.settled - len(self.errors)
        progress = pace(total - left, left, seconds)
        log.info("Submitted %d of %d inputs to app %s%s", self._submitted, total, self._app_id, progress)

    # --- news ---

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is over, and what hung has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._news.set)

    def _note_answer(self, task: asyncio.Future[Job]) -> None:
        self._answered.append(task)
        self._news.set()

    async def _wait(self) -> None:
        """Wait for an answer of the service or a store, or a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL):
                await self._news.wait()
        self._news.clear()

    def _take_news(self) -> None:
        """Handle the answers of the stores and the service."""
        self._writer.take()
        self._inputs.take()
        while self._answered:
            task = self._answered.popleft()
            self._take(*self._in_flight.pop(task), task)

    def _take(self, number: int, job_input: Any, task: asyncio.Future[Job]) -> None:
        try:
            job = task.result()
        except RunGenError as error:
            self._take_error(number, job_input, error)
            return
        except Exception as error:  # nobody knows how far it came: the input stays announced
            self._abort = error
            return
        if not self._jobs.accept(number, job.id):
            # the first keeps it: one of the two has no job, or an unknown one
            self.errors[number] = RunGenSubmissionUnknownError(
                f"Fate unknown: RunGen may have created a job of app {self._app_id}. Its answer names "
                f"job {job.id}, which is that of another input",
                hint="Look at the app's jobs first",
            )
            return
        self._writer.add_id(number, job.id)
        self._submitted += 1
        self.refusals = 0
        self._throttle.note_success()

    def _take_error(self, number: int, job_input: Any, error: RunGenError) -> None:
        if isinstance(error, RunGenSubmissionUnknownError):  # it stays announced
            self.errors[number] = error
            self._slow_down(error)
            return
        self._writer.take_back([number])
        if isinstance(error, RunGenBadRequestError):
            self.errors[number] = error
            self._jobs.refuse(number, error.message)
            self.refusals += 1
            self.is_broken |= self._stop_after is not None and self.refusals >= self._stop_after
            return
        self._jobs.withdraw([number])
        if retry.was_not_accepted(error):
            self._inputs.repeat((number, job_input))
            self._slow_down(error)
        else:
            self._abort = error

    def _slow_down(self, error: RunGenError) -> None:
        if self._throttle.note_failure(error):
            self._abort = error

    # --- the end ---

    def _withdraw_unsent(self) -> None:
        numbers = [number for number, _ in (*self._ready, *self._writer.give_up())]
        self._ready.clear()
        self._jobs.withdraw(numbers)
        self._writer.take_back(numbers)

    async def _await_answers(self) -> None:
        """Wait for the answers in flight, and save their ids, unless the task is killed."""
        self._is_ending = True
        give_up_at, is_killed = time.monotonic() + retry.RETRY_BUDGET, False
        while self._in_flight:
            if self._is_stopping() and not is_killed:
                give_up_at, is_killed = time.monotonic() + LAST_ANSWERS, True
            if time.monotonic() >= give_up_at:
                return
            self._take_news()
            if not is_killed:
                self._writer.begin_ledger()
                self._begin_write()
            if self._in_flight:
                await self._wait()

    async def _drop_in_flight(self) -> None:
        """Cancel what got no answer."""
        if not self._in_flight:
            return
        for task in self._in_flight:
            task.cancel()
        await asyncio.wait(self._in_flight, timeout=_POLL)
        for task in [task for task in self._in_flight if task.done() and not task.cancelled()]:
            self._take(*self._in_flight.pop(task), task)
        self._answered.clear()
        if self._in_flight:
            log.warning(
                "Fate unknown: %d submissions to app %s got no answer in time. Their jobs may have been "
                "created, and cannot be canceled",
                *(len(self._in_flight), self._app_id),
            )

    async def _save_rest(self) -> None:
        """Save the last ids. A kill waits no longer than it takes to have each of them in one store."""
        self._writer.begin_end()
        killed_at: float | None = None
        while True:
            is_killed = self._is_stopping()
            self._writer.take()
            self._writer.begin_last(is_killed=is_killed)
            if self._writer.is_done(is_killed=is_killed):
                return
            now = time.monotonic()
            if is_killed and now - (killed_at := killed_at or now) > LAST_SAVES:
                return  # the rest is saved while the kill goes on
            await self._wait()
