"""The jobs of a batch that are over, and what a deferral keeps of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.batch.checkpoint import KEY, BatchHeader
from airflow_provider_rungen.execution.outcomes import read_job_event, unsuccessful_job
from airflow_provider_rungen.execution.ranges import format_ranges, parse_ranges

log = logging.getLogger(__name__)

# Of more jobs that did not complete, the reasons are fetched again.
MAX_KEPT_REASONS = 100


class EndedJobs:
    """The jobs that are over, as far as it is known. They are not polled again."""

    def __init__(self) -> None:
        #: Their ids.
        self.ids: set[str] = set()
        #: Those that did not complete; ``None`` where only that is known.
        self.unsuccessful: dict[str, Job | None] = {}
        #: How many failed since the last success.
        self.failures = 0

    def note(self, jobs: Iterable[Job]) -> None:
        """Note jobs that are over."""
        for job in jobs:
            self.ids.add(job.id)
            if job.status is not JobStatus.COMPLETED:
                self.unsuccessful[job.id] = job

    def note_event(self, job_ids: Sequence[str], event: Mapping[str, Any], named: Iterable[Job]) -> bool:
        """
        Note what a trigger found.

        :param job_ids: the jobs that it waited for.
        :param named: those that did not complete, as far as the event names them.
        :return: whether the event tells how each job that is over ended; otherwise, nothing is noted.
        """
        jobs = {job.id: job for job in named}

        def numbered(key: str) -> list[str]:
            if event.get("jobs") != len(job_ids):
                raise ValueError("the numbers are not those of these jobs")
            return [job_ids[number] for number in parse_ranges(event.get(key), len(job_ids))]

        try:
            ended = numbered("ended") if event.get("outcome") == "part" else list(job_ids)
            failed = numbered("failed") if event.get("count", 0) > len(jobs) else list(jobs)
        except ValueError:
            return False
        self.ids.update(ended)
        self.unsuccessful |= {job_id: jobs.get(job_id) for job_id in failed}
        self.failures = event.get("failures", 0)
        return True

    @property
    def unexplained(self) -> list[str]:
        """The jobs that did not complete for an unknown reason."""
        return [job_id for job_id, job in self.unsuccessful.items() if job is None]

    @property
    def jobs(self) -> list[Job]:
        """The jobs that did not complete, as far as the reason is known."""
        return [job for job in self.unsuccessful.values() if job is not None]


@dataclass(frozen=True)
class DeferredBatch:
    """
    What XCom keeps of a batch over a deferral, beside its ids.

    :param header: the batch.
    :param deadline: the time (seconds since 1970) to stop at.
    :param ended: the jobs that are over.
    :param seconds: how long these ran, if known.
    :param has_unsent: whether inputs are still to be submitted.
    """

    header: BatchHeader
    deadline: float
    ended: EndedJobs
    seconds: float | None
    has_unsent: bool

    def to_xcom(self, ids: Sequence[str | None]) -> dict[str, Any]:
        """
        Return the value to push.

        :param ids: the job of each input.
        """
        ended = self.ended
        explained = ended.jobs[:MAX_KEPT_REASONS]
        return {
            "header": self.header.to_store(),
            "deadline": self.deadline,
            "ended": format_ranges(index for index, job_id in enumerate(ids) if job_id in ended.ids),
            "unsuccessful": format_ranges(
                index for index, job_id in enumerate(ids) if job_id in ended.unsuccessful
            ),
            "reasons": [unsuccessful_job(job) for job in explained],
            "failures": ended.failures,
            "seconds": self.seconds,
            "has_unsent": self.has_unsent,
        }

    @classmethod
    def from_xcom(cls, value: Any, ids: Sequence[str | None]) -> Self | None:
        """Return what was pushed; ``None`` if nothing was, or, with a warning, if it cannot be read."""
        if value is None:
            return None
        try:
            header = BatchHeader.from_store(value["header"])
            if header is None:
                return None
            ended = EndedJobs()
            ended.ids = {ids[index] or "" for index in parse_ranges(value["ended"], len(ids))}
            failed = [ids[index] or "" for index in parse_ranges(value["unsuccessful"], len(ids))]
            ended.unsuccessful = dict.fromkeys(failed)
            reasons = {"app_id": header.app_id, "outcome": "over", "unsuccessful": value["reasons"]}
            ended.note(job for job in read_job_event(reasons) if job.id in ended.unsuccessful)
            ended.failures = int(value["failures"])
            seconds = value["seconds"]
            return cls(
                header,
                records.moment(value, "deadline"),
                ended,
                None if seconds is None else float(seconds),
                bool(value["has_unsent"]),
            )
        except (LookupError, TypeError, ValueError) as error:
            log.warning("Ignored what was kept of %r over the deferral: %s", KEY, type(error).__name__)
            return None
