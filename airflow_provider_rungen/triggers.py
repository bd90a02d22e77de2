"""Waits for jobs in the triggerer and yields one small event: ids, status words and error texts, no URLs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_rungen import api
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.models import JobStatus

# Airflow loses a deferred task whose trigger fires while the deferring process is still going down
# (apache/airflow #72716, #71580).
SETTLING_TIME = 6.0


class RunGenJobTrigger(BaseTrigger):
    """
    Waits until jobs are over, however they end.

    The event is ``{"outcome": "over", "unsuccessful": [{"id", "status", "error"}, …]}``, or
    ``{"outcome": "timeout" | "error", "message", …}``, with the ``app_id``, and the ``job_id`` if it is one.

    :param rungen_conn_id: the Airflow connection.
    :param app_id: the app of the jobs.
    :param job_ids: the jobs to wait for.
    :param poll_interval: seconds between two looks at a job.
    :param deadline: the time (seconds since 1970) to stop waiting at.
    :param deferred_at: the time (seconds since 1970) of the deferral.
    """

    def __init__(
        self,
        *,
        rungen_conn_id: str,
        app_id: str,
        job_ids: list[str],
        poll_interval: float,
        deadline: float,
        deferred_at: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.rungen_conn_id = rungen_conn_id
        self.app_id = app_id
        self.job_ids = job_ids
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.deferred_at = deferred_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("rungen_conn_id", "app_id", "job_ids", "poll_interval", "deadline", "deferred_at")
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            name: getattr(self, name) for name in names
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        event = {"app_id": self.app_id, **await self._event()}
        if len(self.job_ids) == 1:
            event["job_id"] = self.job_ids[0]
        await asyncio.sleep(self.deferred_at + SETTLING_TIME - time.time())
        yield TriggerEvent(event)

    async def _event(self) -> dict[str, Any]:
        flow = api.wait_for_jobs(
            self.app_id, self.job_ids, poll_interval=self.poll_interval, deadline=self.deadline
        )
        try:
            async with RunGenHook(self.rungen_conn_id) as hook:
                jobs = await hook.aperform(flow)
        except RunGenJobTimeoutError as error:
            return {"outcome": "timeout", "message": str(error)}
        except RunGenError as error:
            return {"outcome": "error", "message": str(error), "hopeless": error.hopeless}
        except Exception as error:
            # a trigger that raises reaches the task as a bare TaskDeferralError
            self.log.exception("Waiting for RunGen jobs failed")
            return {
                "outcome": "error",
                "message": f"{type(error).__name__} in the triggerer",
                "hopeless": False,
            }
        unsuccessful = [
            {"id": job.id, "status": job.status.value, "error": job.error}
            for job in jobs
            if job.status is not JobStatus.COMPLETED
        ]
        return {"outcome": "over", "unsuccessful": unsuccessful}
