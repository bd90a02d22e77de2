"""Stop an attempt whose jobs or inputs all fail, and cancel jobs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.execution.sinks.batch_result import Stopped
from airflow_provider_rungen.execution.task.attempts import call_briefly
from airflow_provider_rungen.runs.rows import JobState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)


class Stopping:
    """
    Stops one attempt.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        #: Why it was stopped, and how far it had come.
        self.stopped: Stopped | None = None

    def stop_failing(self) -> None:
        # of what one poll found, a success may have come last
        failures = max(self._run.collecting.failures, self._run.options.stop_after or 0)
        self._stop(f"{failures} jobs in a row failed", retryable=True)

    def stop_refused(self, deadline: float) -> None:
        """Submit no more. Inputs that were accepted are fine, so their jobs may end."""
        # an answer that came after the last refusal may have been a success
        refusals = max(self._run.submitting.refusals, self._run.options.stop_after or 0)
        unsent = self._log.stop_submitting()
        log.warning("Submitting no more: %d inputs in a row were refused (stop_after)", refusals)
        while self._log.jobs.running and not self._run.wait_for_part(deadline, may_defer=False):
            self._run.collecting.store()
        self._stop(f"{refusals} inputs in a row were refused", retryable=False, unsent=unsent)

    def _stop(self, cause: str, *, retryable: bool, unsent: int = 0) -> None:
        """Cancel what is in flight, unless a later attempt waits for it."""
        self._log.run_log.fence()
        unsent += self._log.stop_submitting()
        cause = f"{cause} (stop_after={self._run.options.stop_after})"
        running = self._log.running
        log.warning("Stopped: %s. Canceling %d jobs", cause, len(running))
        left = self.cancel(running, why=f"after {cause}")
        canceled = self._run.wait.canceled.intersection(running)
        over = [job_id for job_id in running if job_id not in canceled and job_id not in left]
        self._run.collecting.look_at(over)
        self.stopped = Stopped(cause, len(canceled), unsent, left, retryable)

    def cancel(self, job_ids: Any, *, within: float | None = None, why: str = "") -> list[str]:
        """Cancel jobs, and return those that may still run."""
        left = self._run.wait.cancel(self._run.ending.app_id, job_ids, within=within)
        canceled = self._run.wait.canceled.intersection(job_ids)
        for job_id in canceled:
            self._log.jobs.end(job_id, JobState.CANCELED, why=why)
            self._run.report.note_canceled(job_id, why)
        # a kill leaves little time, and the next attempt finds out that they were canceled
        call_briefly(lambda: self._run.ledger.forget(dict.fromkeys(canceled)), self._run.guard.time_left())
        return left
