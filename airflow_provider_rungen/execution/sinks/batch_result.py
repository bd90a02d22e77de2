"""The result of a batch: the job of each input, and why inputs have no result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError


@dataclass(frozen=True)
class Stopped:
    """
    A batch that was stopped, because everything failed.

    :param cause: what happened, with the figures.
    :param canceled: how many of its jobs were canceled.
    :param unsent: how many inputs were not submitted.
    :param not_canceled: the jobs that could not be canceled.
    :param retryable: whether a retry may have more success.
    """

    cause: str
    canceled: int
    unsent: int
    not_canceled: Sequence[str]
    retryable: bool


@dataclass(frozen=True)
class BatchResult:
    """
    The result of a batch: the job of each input.

    :param ids: the job of each input, or ``None``.
    :param refused: by index, the errors of inputs that have no job.
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

    def errors(self, of_jobs: Mapping[str, RunGenError]) -> dict[int, RunGenError]:
        """
        Return why inputs have no result, by their index.

        :param of_jobs: why jobs have none, beside those that did not complete.
        """
        by_job = dict(of_jobs)
        for job in self.jobs:
            if job.is_terminal and (error := _error_of(job)) is not None:
                by_job[job.id] = error
        found = {}
        for index, job_id in enumerate(self.ids):
            if index in self.refused:
                found[index] = self.refused[index]
            elif job_id is None:
                found[index] = RunGenJobTimeoutError("it was not submitted")
            elif job_id in by_job:
                found[index] = by_job[job_id]
        return found


def _error_of(job: Job) -> RunGenError | None:
    try:
        job.raise_for_status()
    except RunGenError as error:
        return error
    return None
