"""The result of a batch: the job of each input, and why inputs failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.exceptions import RunGenError


@dataclass(frozen=True)
class BatchResult:
    """
    The result of a batch.

    :param ids: the job of each input, or ``None``.
    :param refused: the inputs that have no job, with the reason.
    :param jobs: the jobs that are over, all that failed among them.
    """

    ids: list[str | None]
    refused: Mapping[int, RunGenError] = field(default_factory=dict)
    jobs: Sequence[Job] = ()

    @property
    def job_ids(self) -> list[str]:
        """The jobs. Equal inputs may share one."""
        return [job_id for job_id in dict.fromkeys(self.ids) if job_id]

    def reasons(self) -> dict[int, str]:
        """Return why inputs did not complete, by their index."""
        reasons = {index: "it was not submitted" for index, job_id in enumerate(self.ids) if job_id is None}
        reasons |= {index: error.message for index, error in self.refused.items()}
        reason_by_job = {}
        for job in self.jobs:
            try:
                job.raise_for_status()
            except RunGenError as error:
                reason_by_job[job.id] = error.message
        reasons |= {i: reason_by_job[job_id] for i, job_id in enumerate(self.ids) if job_id in reason_by_job}
        return dict(sorted(reasons.items()))
