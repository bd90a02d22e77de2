"""Submits inputs concurrently, each after its intent is durable, and keeps its slot until its id is, too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.progress import are_too_many, pace
from airflow_provider_rungen.client.senders import FINAL_GRACE
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenRateLimitedError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.sending.inputs import Inputs, Item
from airflow_provider_rungen.execution.sending.log_writer import LogWriter, Saver
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.runs.place import Place, SupersededError
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sending.paid import PaidInputs

log = logging.getLogger(__name__)

PROGRESS_INTERVAL = 10.0
# Seconds that requests in flight have when the task is killed: a little less than each one has.
LAST_ANSWERS = FINAL_GRACE - 0.25
# Seconds that the inputs which were claimed, and not submitted, may take to be released.
RELEASE_TIME = 0.5
# Seconds until an input is sent once more that a page has refused.
PAGE_PAUSE = 10.0
# Refused inputs whose reasons are logged.
MAX_LOGGED_REFUSALS = 100
# Seconds between checks for a kill, and whether a submission may begin.
_POLL = 0.05


@dataclass(eq=False)
class Sender:
    """
    Submits inputs concurrently, and backs off when the service is busy or in trouble.

    There is a worker for each input that may be in flight. It takes an input, announces it, sends it, and
    goes on with the next, whose announcement also waits until the last id is durable.

    :param perform: performs a flow in the running event loop.
    :param app_id: the app to run.
    :param saver: writes the log.
    :param throttle: how many submissions are in flight at most.
    :param deadline: the time (seconds since 1970) after which no more are started.
    :param is_stopping: returns whether to stop at once.
    :param refusals: how many inputs in a row were refused, up to the last answer.
    :param has_success: whether an input was accepted before.
    :param fallback: where the files of the log go if its own place fails at the end.
    :param is_single: whether the task has one input, whose error is that of the task.
    """

    perform: Callable[[Flow[Job]], Awaitable[Job]]
    app_id: str
    saver: Saver
    ledger: PaidInputs | None
    _: KW_ONLY
    throttle: Throttle
    deadline: float
    is_stopping: Callable[[], bool]
    refusals: int = 0
    has_success: bool = False
    fallback: Place | None = None
    is_single: bool = False
    #: Why inputs were refused, or have an unknown fate.
    errors: dict[int, RunGenError] = field(init=False, default_factory=dict)
    #: The inputs that another run is about to submit.
    claimed_elsewhere: set[int] = field(init=False, default_factory=set)
    #: Whether so many were refused in a row that it stopped.
    is_broken: bool = field(init=False, default=False)
    # the inputs that are being sent
    _in_flight: dict[asyncio.Task[None], int] = field(init=False, default_factory=dict)
    _has_ended: bool = field(init=False, default=False)
    _submitted: int = field(init=False, default=0)
    # the inputs that a page has refused, which a gateway may send for a moment
    _doubted: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._writer = LogWriter(
            self.saver,
            self.ledger,
            self.fallback,
            budget=store_writer.STORE_RETRY_BUDGET,
            is_stopping=self.is_stopping,
            is_more_due_soon=self._is_more_due_soon,
        )

    async def run(self, todo: Iterator[Item], total: int) -> None:
        """
        Submit the inputs. Those that are refused one by one go to ``errors``, those that another run is about
        to submit to ``claimed_elsewhere``.

        :param todo: the inputs. They are read in a thread, a block ahead.
        :param total: how many they are.
        :raises RunGenError: no input can be submitted.
        :raises Exception: the inputs cannot be read, or intents or ids not be saved.
        """
        budget = store_writer.STORE_RETRY_BUDGET
        inputs = Inputs(todo, self.ledger, block_size=lambda: self.throttle.limit, budget=budget)
        count = min(self.throttle.max_concurrency, total)
        workers = [asyncio.create_task(self._work(inputs)) for _ in range(count)]
        try:
            await self._watch(workers, inputs, total)
        finally:
            failure = await self._end(workers, inputs)
        if failure is not None:
            raise failure

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no later attempt would find, also while the last writes go on."""
        return self._writer.unsaved_ids()

    async def _watch(self, workers: Iterable[asyncio.Task[None]], inputs: Inputs, total: int) -> None:
        """Wait until there is nothing more to send, or nothing more may be sent."""
        started_at = logged_at = time.monotonic()
        pending = set(workers)
        while pending and not self._has_to_stop:
            done, pending = await asyncio.wait(pending, timeout=_POLL, return_when=asyncio.FIRST_EXCEPTION)
            if any(worker.exception() for worker in done):
                return
            if (now := time.monotonic()) - logged_at >= PROGRESS_INTERVAL:
                logged_at = now
                # at the end, nobody waits for answers so long that a claim ends
                self._writer.renew_claims(self._in_flight.values())
                unsent = total - self._submitted - inputs.settled - len(self.errors)
                progress = pace(total - unsent, unsent, now - started_at)
                log.info(
                    "Submitted %d of %d inputs to app %s%s", self._submitted, total, self.app_id, progress
                )

    @property
    def _has_to_stop(self) -> bool:
        return self._has_ended or self.is_broken or self.is_stopping() or time.time() >= self.deadline

    def _is_more_due_soon(self) -> bool:
        """Return whether more workers are about to wait for a write."""
        in_flight, waiting = len(self._in_flight), len(self._writer.announcing)
        # while most submissions are in flight, some of them end soon
        return in_flight + waiting < self.throttle.in_use or waiting < in_flight

    # --- one worker ---

    async def _work(self, inputs: Inputs) -> None:
        while not self._has_to_stop:
            async with self.throttle:
                if self._has_to_stop or (item := await inputs.take()) is None:
                    return
                if (pause := await self._submit(inputs, *item)) is not None:
                    inputs.put_back(item, pause)

    async def _submit(self, inputs: Inputs, number: int, job_input: Any) -> float | None:
        """Announce an input, and submit it. Return after how many seconds to do so once more, if at all."""
        await self._writer.announce(number)
        # the announcement may have taken long
        if self._has_to_stop or not inputs.may_submit(number):
            self.saver.jobs.withdraw([number])
            return 0.0
        worker = cast("asyncio.Task[None]", asyncio.current_task())
        self._in_flight[worker] = number
        try:
            job = await self.perform(endpoints.run_job(self.app_id, job_input, attempts=1))
            self._note_job(number, job)
        except RunGenSubmissionUnknownError as error:  # it stays announced
            self.errors[number] = error
            self.throttle.note_failure(error)
        except RunGenBadRequestError as error:
            if error.retryable and number not in self._doubted:
                if not self._doubted:
                    log.warning("%s; sending such inputs once more in %.0f s", error.message, PAGE_PAUSE)
                self._doubted.add(number)
                self.saver.jobs.withdraw([number])
                return PAGE_PAUSE
            self.errors[number] = error
            self.saver.jobs.refuse(number, error.message)
            self.throttle.note_success()
            if not self.is_single and len(self.errors) <= MAX_LOGGED_REFUSALS:
                log.warning("%s (input %d)", error.message, number)
            self.refusals += 1
            self.is_broken |= are_too_many(self.refusals, has_success=self.has_success)
        except RunGenError as error:
            self.saver.jobs.withdraw([number])
            if self.is_stopping():
                return 0.0
            if not was_not_accepted(error):
                raise
            self.throttle.note_failure(error)
            return 0.0
        finally:
            del self._in_flight[worker]
        return None

    def _note_job(self, number: int, job: Job) -> None:
        if not self.saver.jobs.accept(number, job.id):
            # the first keeps it: one of the two has no job, or an unknown one
            other = self.saver.jobs.table.input_of.get(job.id)
            whose = {None: "that of another input", number: "an earlier one"}.get(
                other, f"that of inputs[{other}]"
            )
            raise RunGenSubmissionUnknownError(
                f"Fate unknown: RunGen may have created a job of app {self.app_id}. Its answer names "
                f"job {job.id}, as did {whose}: see whose it is (with a ledger, equal inputs share one)",
                hint="Look at the app's jobs first",
            )
        self._writer.add(number, job.id)
        self._submitted += 1
        self.refusals, self.has_success = 0, True
        self.throttle.note_success()

    # --- the end ---

    async def _end(self, workers: Collection[asyncio.Task[None]], inputs: Inputs) -> BaseException | None:
        """
        Wait for the answers in flight, and save the last ids.

        :return: what has kept inputs from being submitted.
        """
        self._has_ended = True
        for worker in set(workers).difference(self._in_flight):
            worker.cancel()
        await inputs.close()
        self.claimed_elsewhere = inputs.claimed_elsewhere
        await self._await_answers()
        if unanswered := list(self._in_flight):
            log.warning(
                "Fate unknown: %d submissions to app %s got no answer in time. Their jobs may have been "
                "created, and cannot be canceled",
                *(len(unanswered), self.app_id),
            )
        for worker in unanswered:
            worker.cancel()
        await asyncio.wait(workers, timeout=_POLL)
        ledger_failure = await self._writer.finish()
        ended = [worker for worker in workers if worker.done() and not worker.cancelled()]
        failures = [*[worker.exception() for worker in ended], ledger_failure]
        # the claims may be those of a later attempt
        if self.ledger is not None and not any(isinstance(each, SupersededError) for each in failures):
            release = begin(self.ledger.release, self.saver.jobs.inputs(*SUBMITTABLE, InputState.REFUSED))
            await asyncio.wait([asyncio.wrap_future(release)], timeout=RELEASE_TIME)
        return next((failure for failure in failures if failure is not None), None)

    async def _await_answers(self) -> None:
        give_up_at, is_killed = time.monotonic() + retry.RETRY_BUDGET, False
        while self._in_flight and time.monotonic() < give_up_at:
            if self.is_stopping() and not is_killed:
                give_up_at, is_killed = time.monotonic() + LAST_ANSWERS, True
            await asyncio.wait(self._in_flight, timeout=_POLL)


class Throttle:
    """
    How fast the service takes submissions. One throttle serves all senders of an attempt.

    A submission has a slot during an ``async with`` block. It begins when one is free and no pause is left.

    :param max_concurrency: how many submissions are in flight at most.
    :param attempts: how many failures in a row end the attempt. If left out, it ends after two minutes
        without success, but not while the service answers 429: it may be full until some jobs have ended.
    """

    def __init__(self, max_concurrency: int, attempts: int | None = None) -> None:
        self.max_concurrency = max_concurrency
        #: How many submissions may be in flight now: one, until it is known that the service takes any.
        self.limit = 1
        #: How many slots are in use.
        self.in_use = 0
        #: The last failure since the last success.
        self.trouble: RunGenError | None = None
        self._attempts = attempts
        # nothing is sent before (monotonic clock)
        self._not_before = 0.0
        # since when there is only trouble of one kind
        self._since: float | None = None
        self._is_limited = False
        self._begun_at = 0.0
        self._failures = self._successes = 0
        self._has_worked = False

    async def __aenter__(self) -> None:
        # no condition: one throttle serves several event loops
        while self.in_use >= self.limit or time.monotonic() < self._not_before:  # noqa: ASYNC110
            await asyncio.sleep(max(self._not_before - time.monotonic(), _POLL))
        self.in_use += 1
        self._begun_at = time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        self.in_use -= 1

    def note_success(self) -> None:
        """Note that the service answers, and raise the limit: after the first time to all that may be."""
        self._failures, self._since, self.trouble = 0, None, None
        self._successes += 1
        if not self._has_worked:
            self._has_worked, self.limit = True, self.max_concurrency
        elif self._successes % self.limit == 0:
            self.limit = min(self.limit + 1, self.max_concurrency)

    def note_failure(self, error: RunGenError) -> None:
        """
        Back off.

        :raises RunGenError: the error, if it is a refusal, the last of too many, or if there was no success
            for too long.
        """
        self.trouble = error
        now, is_limited = time.monotonic(), isinstance(error, RunGenRateLimitedError)
        if not error.retryable:
            raise error
        if is_limited != self._is_limited or self._begun_at > self._not_before + retry.RETRY_BUDGET / 2:
            # another trouble than the last one, or nothing was sent for long
            self._since, self._is_limited = None, is_limited
        is_first = now >= self._not_before  # of those that were in flight together
        if is_first:
            self._failures += 1
            self.limit = max(1, self.limit // 2)
        self._not_before = max(self._not_before, now + retry.retry_delay(self._failures - 1, error))
        self._since = self._since or now
        if self._has_failed(now):
            raise error
        if is_first:
            pause = format_duration(self._not_before - now)
            log.warning("%s; continuing in %s with %d in flight", error.message, pause, self.limit)

    def _has_failed(self, now: float) -> bool:
        give_up_at = (self._since or now) + retry.RETRY_BUDGET
        if self._attempts is not None:
            return self._failures >= self._attempts or self._not_before > give_up_at
        return now > give_up_at and not self._is_limited
