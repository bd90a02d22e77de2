"""Cancel many jobs in a bounded time, for a task that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.injected import AsyncInjectedSender
from airflow_provider_rungen.client.senders import AsyncSender
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.client.transport import adrive, gather_limited
from airflow_provider_rungen.exceptions import RunGenError


def cancel_concurrently(
    open_sender: Callable[[], AsyncSender | AsyncInjectedSender],
    app_id: str,
    job_ids: Sequence[str],
    *,
    within: float,
    retry_budget: float,
) -> dict[str, RunGenError | None]:
    """
    Cancel jobs on connections of their own.

    :param open_sender: opens the connections.
    :param app_id: the app of the jobs.
    :param job_ids: the jobs.
    :param within: the most seconds for all of them.
    :param retry_budget: seconds after which a request is not sent again.
    :return: the jobs, each with the error that kept it from being canceled, or ``None``.
    """
    outcomes: dict[str, RunGenError | None] = {}

    async def cancel_all() -> None:
        sender = open_sender()

        async def cancel(job_id: str) -> None:
            try:
                await adrive(endpoints.cancel_job(app_id, job_id, retry_budget=retry_budget), sender)
                outcomes[job_id] = None
            except RunGenError as error:
                outcomes[job_id] = error

        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await gather_limited(cancel, job_ids)
        finally:
            await sender.close()

    # in a thread: this one may have an event loop that runs
    worker = threading.Thread(target=lambda: asyncio.run(cancel_all()), daemon=True)
    worker.start()
    worker.join(within + 0.5)
    late = "Could not cancel the job: there was no time left"
    return {
        job_id: outcomes.get(job_id, RunGenError(f"{late} {format_ids(app_id, job_id)}"))
        for job_id in job_ids
    }
