"""The service behind the client: what each answer to a submission means for a purchase."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenRateLimitedError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.work.service import Lost, NotSent, Refused, Submission, Submitted

if TYPE_CHECKING:
    from airflow_provider_rungen.hooks.rungen import RunGenHook

#: Seconds after which a submission without an answer is lost.
SUBMIT_TIME = 60.0
#: Seconds until an input is sent once more that a page has refused: a gateway may send one for a moment.
PAGE_PAUSE = 10.0


class ClientService:
    """
    The service, for one app.

    :param hook: the connection.
    :param app_id: the app.
    """

    def __init__(self, hook: RunGenHook, app_id: str) -> None:
        self._hook, self._app_id = hook, app_id

    async def submit(self, job_input: Mapping[str, Any], start_within: float) -> Submission:
        try:
            async with asyncio.timeout(min(SUBMIT_TIME, start_within + SUBMIT_TIME)):
                flow = endpoints.run_job(self._app_id, job_input, attempts=1)
                return Submitted((await self._hook.aperform(flow)).id)
        except TimeoutError:
            return Lost(f"no answer to the submission within {format_duration(SUBMIT_TIME)}")
        except RunGenError as error:
            return _outcome_of(error)

    async def cancel(self, job: str) -> None:
        await self._hook.aperform(endpoints.cancel_job(self._app_id, job, is_known=True))


def _outcome_of(error: RunGenError) -> Lost | Refused | NotSent:
    if isinstance(error, RunGenSubmissionUnknownError):
        return Lost(error.message)
    if isinstance(error, RunGenBadRequestError):
        return NotSent(error.message, PAGE_PAUSE, error) if error.retryable else Refused(error.message)
    if not was_not_accepted(error) or not error.retryable:
        return Refused(error.message, error)
    is_asked = isinstance(error, RunGenRateLimitedError)  # it may be full until jobs have ended
    return NotSent(error.message, error.retry_after or 0.0, None if is_asked else error)
