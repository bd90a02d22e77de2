"""What the jobs of a task used: the XCom ``usage``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import format_count, format_duration

log = logging.getLogger(__name__)

#: The XCom key.
USAGE_KEY = "usage"


class Usage:
    """What is known of the jobs that one attempt ran or collected."""

    def __init__(self) -> None:
        # whether each job completed; None while its end is not known
        self._jobs: dict[str, bool | None] = {}
        self._reused: set[str] = set()
        self._seconds: dict[str, float] = {}

    def note_submitted(self, job_ids: Iterable[str]) -> None:
        """Note jobs of the attempt, before anything else is known of them."""
        for job_id in job_ids:
            self._jobs.setdefault(job_id, None)

    def note(self, job: Job) -> None:
        """Note a job that has ended."""
        self.note_end(job.id, is_completed=job.status is JobStatus.COMPLETED, seconds=job.execution_time)

    def note_end(self, job_id: str, *, is_completed: bool, seconds: float | None = None) -> None:
        """Note how a job ended."""
        self._jobs[job_id] = is_completed
        if seconds is not None:
            self._seconds[job_id] = seconds

    def note_reused(self, job_ids: Iterable[str]) -> None:
        """Note jobs whose outputs were stored before."""
        self._reused.update(job_ids)

    def to_json(self) -> dict[str, Any]:
        """Return the value to push."""
        ends = {job_id: end for job_id, end in self._jobs.items() if job_id not in self._reused}
        known = [self._seconds[job_id] for job_id in ends if job_id in self._seconds]
        seconds = sum(known) if known or not ends else None
        ended = list(ends.values())
        return {
            "jobs": len(ends),
            "completed": ended.count(True),
            "failed": ended.count(False),
            "reused": len(self._reused),
            "execution_seconds": None if seconds is None else round(seconds, 3),
        }


def report_usage(used: Mapping[str, Any]) -> None:
    """Log what `Usage.to_json` returned, and count it in Airflow's metrics."""
    if used["jobs"] or used["reused"]:
        log.info("Used %s", format_usage(used))
    for name, value in used.items():
        metrics.incr(f"usage.{name}", round(value or 0))


def format_usage(used: Mapping[str, Any]) -> str:
    """Return what `Usage.to_json` returned as a line for people."""
    unfinished = used["jobs"] - used["completed"] - used["failed"]
    counts = {"completed": used["completed"], "failed": used["failed"], "unfinished": unfinished}
    ends = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    parts = [format_count(used["jobs"], "job") + (f" ({ends})" if ends else "")]
    parts += [f"{used['reused']} reused"] * bool(used["reused"])
    if seconds := used["execution_seconds"]:
        parts.append(f"{format_duration(seconds)} of execution")
    return ", ".join(parts)
