"""Perform the steps of storing: again after an error that may pass, and until the task is killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.exceptions import RunGenError

log = logging.getLogger(__name__)

T = TypeVar("T")
_KILL_CHECK_SECONDS = 0.1


async def retry_step(job_id: str, action: Callable[..., Awaitable[T]], *args: Any) -> T:
    """
    Do something for a job, again after a retryable error, as often as an API request is retried.

    :param job_id: the job, for the log.
    """
    failures, give_up_at = 0, math.inf
    while True:
        try:
            return await action(*args)
        except RunGenError as error:
            delay, now = retry.retry_delay(failures, error), time.monotonic()
            failures += 1
            give_up_at = min(give_up_at, now + retry.RETRY_BUDGET)
            if not error.retryable or failures == retry.ATTEMPTS or now + delay > give_up_at:
                raise
            log.warning("Retrying in %s: %s (job %s)", format_duration(delay), error.message, job_id)
        await asyncio.sleep(delay)


async def run_with_checks(work: Awaitable[None], check: Callable[[], None]) -> None:
    """
    Await work.

    :param check: called often; an error that it raises ends the work.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_KILL_CHECK_SECONDS)
            check()
        task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
