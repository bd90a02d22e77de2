"""What many inputs amount to: the counts and seconds of a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import add, attrgetter
from typing import Any

from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.rows import InputState, JobState, Row, Writer

_COMPLETED = (JobState.COMPLETED, JobState.INVALID)
_FAILED = (JobState.FAILED, JobState.CANCELED, JobState.LOST)


@dataclass(frozen=True, slots=True)
class Totals:
    """
    Counts of inputs and jobs. They add up over parts.

    :param inputs: the inputs that need a job.
    :param completed: those whose job completed.
    :param failed: those whose job did not, or cannot be used.
    :param refused: those that the service refused in this attempt.
    :param shared: those whose job another task run submitted.
    :param submitted: the jobs of this task run, of all attempts: what the bill is about.
    :param jobs_completed: those of them that completed at the service, also if their result cannot be used.
    :param jobs_failed: those that failed, were canceled, or are not known there any more. The others may run.
    :param timed: those of them of which it is known how long they ran.
    :param seconds: how long these ran together.
    :param unknown: the submissions that may have created a job which nobody knows.
    """

    inputs: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    shared: int = 0
    submitted: int = 0
    jobs_completed: int = 0
    jobs_failed: int = 0
    timed: int = 0
    seconds: float = 0.0
    unknown: int = 0

    @classmethod
    def of(cls, row: Row, writer: Writer, since: int) -> Totals:
        """Return the totals of one input, as an attempt sees it."""
        state, current = row.state(writer, since), row.current(since)
        ours = [job for job in row.jobs if not job.is_shared]
        return cls(
            inputs=1,
            completed=int(state is InputState.COMPLETED),
            failed=int(state in (InputState.FAILED, InputState.TO_REPEAT)),
            refused=int(state is InputState.REFUSED),
            shared=int(current is not None and current.is_shared),
            submitted=len(ours),
            jobs_completed=sum(job.state in _COMPLETED for job in ours),
            jobs_failed=sum(job.state in _FAILED for job in ours),
            timed=sum(job.seconds is not None for job in ours),
            seconds=round(sum(job.seconds or 0.0 for job in ours), 3),
            unknown=sum(intent.refusal is None for intent in row.intents),
        )

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Totals:
        """
        Return what the fields of a record say.

        :raises InvalidRecordError: one is no count.
        """
        counts = {name: records.count(fields[name], name) for name in fields if name != "seconds"}
        return cls(**counts, seconds=records.seconds(fields["seconds"], "seconds"))

    def __add__(self, other: Totals) -> Totals:
        return Totals(*map(add, _values(self), _values(other)))


_values = attrgetter(*(field.name for field in fields(Totals)))
