"""The rows of a task that collects jobs: one for each job, which somebody else has submitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_rungen.results.rows import Status
from airflow_provider_rungen.store.keys import job_key
from airflow_provider_rungen.table.inputs import KeyOf, PlannedRow, Source

#: Why an input has no job to collect.
NO_JOB = "it has no job"


@dataclass
class KnownJobs(Source):
    """
    The rows of jobs. In the plan, the id of its job stands for the input of a row.

    :param app_id: the app of the jobs.
    :param ids: the jobs, with ``None`` for an input without one.
    :param labels: the labels of jobs, as far as they have any.
    """

    app_id: str
    ids: Sequence[str | None]
    labels: Mapping[str, str]

    def read(self, key_of: KeyOf) -> Iterator[tuple[PlannedRow, Any]]:
        self.types = {"label": "text"} if self.labels else {}
        self.without_job = {str(Status.SKIPPED): 0, str(Status.REFUSED): 0}
        first: dict[str, int] = {}
        for number, job in enumerate(self.ids):
            values = [self.labels.get(job or "")] if self.labels else []
            if job is None:
                yield PlannedRow(values, status=Status.FAILED, why=NO_JOB), None
                continue
            earlier = first.setdefault(job, number)
            yield (
                PlannedRow(values, job_key(self.app_id, job), first=None if earlier == number else earlier),
                job,
            )
