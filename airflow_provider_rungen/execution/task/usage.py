"""What the jobs of a task used: the XCom ``usage``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.execution.task import attempts
from airflow_provider_rungen.execution.task.kill import KillGuard
from airflow_provider_rungen.execution.task.xcom_keys import USAGE_KEY

log = logging.getLogger(__name__)

#: The XCom key.


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


class UsageReport:
    """
    Reports what the jobs of an attempt used, when it ends: as a line, as metrics and as an XCom.

    :param guard: knows whether the task was killed.
    :param push: pushes an XCom: its key, its value, and what it is for people. It must not raise.
    """

    def __init__(self, guard: KillGuard, push: Callable[[str, Any, str], None]) -> None:
        #: Returns what `Usage.to_json` does; nothing for a task that is not about jobs.
        self.used: Callable[[], Mapping[str, Any]] = dict
        self._guard = guard
        self._push = push
        self._reported: Mapping[str, Any] = {}

    def value(self) -> dict[str, Any] | None:
        """Return what was used; ``None`` while that is nothing."""
        used = self.used()
        return dict(used) if used and (used["jobs"] or used["reused"]) else None

    @contextmanager
    def at_end(self) -> Iterator[None]:
        """Report when the block ends, also if it fails. A deferral does not end it."""
        try:
            yield
        except Exception:
            if not self._guard.is_killed:
                self.push()
            raise
        self.push()

    def push(self) -> None:
        """Report what was used. A second call counts only what was added since."""
        used = self.used()
        if used == self._reported:
            return
        before, self._reported = self._reported, used
        if used["jobs"] or used["reused"]:
            log.info("Used %s", format_usage(used))
        for name, value in used.items():
            metrics.incr(f"usage.{name}", round(value or 0) - round(before.get(name) or 0))
        self._push(USAGE_KEY, dict(used), "what the jobs used")

    def push_at_kill(self) -> None:
        """Report after the cancels if the task timed out. Otherwise another attempt may follow."""
        if attempts.is_timing_out():
            attempts.call_briefly(self.push, self._guard.time_left())


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
