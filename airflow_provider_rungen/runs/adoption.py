"""Match the rows of earlier plans with equal inputs of a new one, however often an input occurs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.rows import SUBMITTABLE, Job, Row


def adopt_rows(jobs: Jobs, digests: Mapping[int, str], earlier: Iterable[tuple[str, Row]]) -> list[Job]:
    """
    Resume the jobs of earlier plans whose input the new plan has, too.

    :param jobs: the new plan, with all that storage knows of it.
    :param digests: the fingerprint of each of its inputs.
    :param earlier: the same of the inputs of earlier plans, with their rows.
    :return: the jobs that no input of the new plan wants. What runs of them is to be canceled.
    """
    waiting: defaultdict[str, list[Row]] = defaultdict(list)
    for digest, row in earlier:
        known = [job for job in row.jobs if job.id in jobs.table.input_of]
        for job in known:
            jobs.table.merge_job(jobs.table.input_of[job.id], job)
        if not known and (row.jobs or row.intents):
            waiting[digest].append(row)
    for rows in waiting.values():
        rows.sort(key=lambda row: _usefulness(row, jobs.since))
    for number in jobs.inputs(*SUBMITTABLE):
        if rows := waiting.get(digests[number], []):
            jobs.adopt(number, rows.pop())
    return [job for rows in waiting.values() for row in rows for job in row.jobs]


def _usefulness(row: Row, since: int) -> int:
    """Return a greater number for a row that should be taken first."""
    job = row.current(since)
    return int(bool(row.intents)) if job is None else 2 + job.use
