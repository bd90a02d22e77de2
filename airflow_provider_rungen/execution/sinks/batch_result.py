"""The result of a batch: the job of each input, and why inputs failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobFailedError
from airflow_provider_rungen.execution.task.outcomes import brief_reason


@dataclass(frozen=True)
class Stopped:
    """
    A batch that was stopped, because everything failed.

    :param cause: what happened, with the figures.
    :param canceled: how many of its jobs were canceled.
    :param unsent: how many inputs were not submitted.
    :param left: the jobs that could not be canceled.
    :param retryable: whether a retry may have more success.
    """

    cause: str
    canceled: int
    unsent: int
    left: Sequence[str]
    retryable: bool

    def error(self, app_id: str, reasons: str, count: int, hint: str) -> RunGenJobFailedError:
        """
        Return the error that ends the task.

        :param app_id: the app.
        :param reasons: the first reasons.
        :param count: how many inputs the batch has.
        :param hint: what to do.
        """
        message = (
            f"Stopped: {self.cause}: {reasons}. {self.canceled + self.unsent} of {count} inputs were not "
            f"bought ({self.canceled} jobs canceled, {self.unsent} inputs not submitted)"
        )
        if self.left:
            message += f". {len(self.left)} jobs could not be canceled and may still run"
        return RunGenJobFailedError(message, app_id=app_id, job_id="", hint=hint, retryable=self.retryable)


@dataclass(frozen=True)
class BatchResult:
    """
    The result of a batch.

    :param ids: the job of each input, or ``None``.
    :param refused: the inputs that have no job, with the reason.
    :param jobs: the jobs that are over, all that failed among them.
    :param stopped: why it was stopped before all inputs had a job.
    :param shared: the jobs that another task run submitted, or that were stored before.
    :param submitted: how many jobs this task run submitted, in all its attempts; by default, those of ``ids``
        that are not shared.
    """

    ids: list[str | None]
    refused: Mapping[int, RunGenError] = field(default_factory=dict)
    jobs: Sequence[Job] = ()
    stopped: Stopped | None = None
    shared: Collection[str] = ()
    submitted: int | None = None

    @property
    def job_ids(self) -> list[str]:
        """The jobs. Equal inputs may share one."""
        return [job_id for job_id in dict.fromkeys(self.ids) if job_id]

    def reasons(self) -> dict[int, str]:
        """Return why inputs did not complete, by their index."""
        reasons = {index: "it was not submitted" for index, job_id in enumerate(self.ids) if job_id is None}
        reasons |= self.failures(JobStatus.FAILED, JobStatus.CANCELED)
        return dict(sorted(reasons.items()))

    def failures(self, *statuses: JobStatus) -> dict[int, str]:
        """
        Return why inputs were refused, or their jobs ended, by their index.

        :param statuses: the statuses that count: that of a failed job when left out.
        """
        reasons = {index: error.message for index, error in self.refused.items()}
        reason_by_job = {}
        for job in self.jobs:
            if job.status not in (statuses or (JobStatus.FAILED,)):
                continue
            try:
                job.raise_for_status()
            except RunGenError as error:
                reason_by_job[job.id] = brief_reason(error)
        return reasons | {
            i: reason_by_job[job_id] for i, job_id in enumerate(self.ids) if job_id in reason_by_job
        }
