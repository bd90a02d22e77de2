"""What the jobs of a task used: the XCom ``usage``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.models import Job, JobStatus

#: The XCom key.
USAGE_KEY = "usage"


class Usage:
    """What is known of the jobs that one attempt ran or collected."""

    def __init__(self) -> None:
        # whether each job completed; None while it is not known to be over
        self._jobs: dict[str, bool | None] = {}
        self._reused: set[str] = set()
        self._seconds: dict[str, float] = {}
        # the jobs that the triggerer waited for, and their seconds together
        self._waited_for: set[str] = set()
        self._waited_seconds = 0.0
        # what was sent as metrics
        self._counted: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Return whether the attempt ran, collected or reused jobs, as far as it is known."""
        return bool(self._jobs or self._reused)

    @property
    def job_ids(self) -> list[str]:
        """The jobs that the attempt ran or collected, in order."""
        return list(self._jobs)

    def note_submitted(self, job_ids: Iterable[str]) -> None:
        """Note jobs of the attempt, before anything else is known of them."""
        for job_id in job_ids:
            self._jobs.setdefault(job_id, None)

    def note(self, job: Job) -> None:
        """Note a job that is over."""
        self.note_end(job.id, is_completed=job.status is JobStatus.COMPLETED, seconds=job.execution_time)

    def note_end(self, job_id: str, *, is_completed: bool, seconds: float | None = None) -> None:
        """Note how a job ended."""
        self._jobs[job_id] = is_completed
        if seconds is not None:
            self._seconds[job_id] = seconds

    def note_reused(self, job_id: str) -> None:
        """Note a job whose outputs were stored before."""
        self._reused.add(job_id)

    def note_event(self, job_ids: Collection[str], event: Mapping[str, Any]) -> None:
        """Note what the triggerer found about the jobs that it waited for."""
        unsuccessful = event.get("unsuccessful") or ()
        failed = {job.get("id") for job in unsuccessful}
        if event.get("outcome") != "over" or event.get("count", 0) > len(unsuccessful):
            return  # what is not in the event is looked at again
        for job_id in job_ids:
            self._jobs[job_id] = job_id not in failed
        seconds = event.get("execution_seconds")
        if isinstance(seconds, int | float):
            self._waited_for, self._waited_seconds = set(job_ids), float(seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the value to push."""
        ends = [is_completed for job_id, is_completed in self._jobs.items() if job_id not in self._reused]
        counted = self._waited_for | self._reused
        others = (seconds for job_id, seconds in self._seconds.items() if job_id not in counted)
        seconds = self._waited_seconds + sum(others)
        return {
            "jobs": len(ends),
            "completed": ends.count(True),
            "failed": ends.count(False),
            "reused": len(self._reused),
            "execution_seconds": round(seconds, 3),
        }

    def send_metrics(self) -> None:
        """Count what was used, through Airflow's metrics. A second call counts only what was added since."""
        for name, value in self.to_json().items():
            metrics.incr(f"usage.{name}", round(value) - self._counted[name])
            self._counted[name] = round(value)

    def __str__(self) -> str:
        """Return the usage as a line for people."""
        value = self.to_json()
        reused = f", {value['reused']} reused" if value["reused"] else ""
        return (
            f"{value['jobs']} jobs ({value['completed']} completed, {value['failed']} failed){reused}, "
            f"{value['execution_seconds']} s of execution"
        )
