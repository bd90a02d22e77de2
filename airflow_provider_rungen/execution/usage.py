"""What the jobs of a task used: the XCom ``usage``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import format_count

#: The XCom key.
USAGE_KEY = "usage"


class Usage:
    """What is known of the jobs that one attempt ran or collected."""

    def __init__(self) -> None:
        # whether each job completed; None while it is not known to be over
        self._jobs: dict[str, bool | None] = {}
        self._reused: set[str] = set()
        self._seconds: dict[str, float] = {}
        # the jobs that ended before this process or in the triggerer, and their seconds together
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
        seconds = event.get("execution_seconds")
        self.note_ends({job_id: job_id not in failed for job_id in job_ids}, seconds)

    def note_ends(self, ends: Mapping[str, bool], seconds: Any) -> None:
        """
        Note jobs that are over, which were waited for elsewhere.

        :param ends: whether each completed.
        :param seconds: how long they ran together, if that is known.
        """
        self._jobs |= ends
        if isinstance(seconds, int | float):
            self._waited_for |= ends.keys()
            self._waited_seconds += seconds

    def seconds_of(self, job_ids: Iterable[str]) -> float | None:
        """Return how long jobs that are over ran together; ``None`` if that is known of none."""
        known = self._seconds.keys() & set(job_ids) - self._waited_for
        if not known and not self._waited_for:
            return None
        return self._waited_seconds + sum(self._seconds[job_id] for job_id in known)

    def to_json(self) -> dict[str, Any]:
        """Return the value to push."""
        ends = {job_id: end for job_id, end in self._jobs.items() if job_id not in self._reused}
        seconds = self.seconds_of(ends) if ends else 0.0
        ended = list(ends.values())
        return {
            "jobs": len(ends),
            "completed": ended.count(True),
            "failed": ended.count(False),
            "reused": len(self._reused),
            "execution_seconds": None if seconds is None else round(seconds, 3),
        }

    def send_metrics(self) -> None:
        """Count what was used, through Airflow's metrics. A second call counts only what was added since."""
        for name, value in self.to_json().items():
            count = round(value or 0)
            metrics.incr(f"usage.{name}", count - self._counted[name])
            self._counted[name] = count

    def __str__(self) -> str:
        """Return the usage as a line for people."""
        value = self.to_json()
        unfinished = value["jobs"] - value["completed"] - value["failed"]
        counts = {"completed": value["completed"], "failed": value["failed"], "unfinished": unfinished}
        ends = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        parts = [format_count(value["jobs"], "job") + (f" ({ends})" if ends else "")]
        parts += [f"{value['reused']} reused"] * bool(value["reused"])
        if seconds := value["execution_seconds"]:
            parts.append(f"{format_duration(seconds)} of execution")
        return ", ".join(parts)


def add_usage(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of values that `Usage.to_json` returned."""
    known = {name: [value[name] for value in values if value.get(name) is not None] for name in values[0]}
    return {name: sum(numbers) if numbers else None for name, numbers in known.items()}
