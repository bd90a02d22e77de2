"""What a plan that has changed takes over from earlier ones: the jobs of equal inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.rows import SUBMITTABLE, Row


def adopt_rows(
    jobs: Jobs,
    digests: Mapping[int, str],
    earlier: Iterable[tuple[str, Row]],
    trusted: Collection[str] = (),
) -> list[tuple[str, Row]]:
    """
    Resume the jobs of earlier plans whose input the new plan has, too.

    :param jobs: the new plan, with all that storage knows of it.
    :param digests: the fingerprint of each of its inputs.
    :param earlier: the same of the inputs of earlier plans, with their rows.
    :param trusted: the jobs in these rows that are certainly of this task run.
    :return: the rows that no input of the new plan uses. Their jobs that run are to be canceled.
    """
    waiting: defaultdict[str, list[Row]] = defaultdict(list)
    for digest, row in earlier:
        owners = {job.id: jobs.table.input_of[job.id] for job in row.jobs if job.id in jobs.table.input_of}
        for job in row.jobs:
            if job.id in owners:
                jobs.table.merge_job(owners[job.id], job, is_trusted=job.id in trusted)
        rest = replace(row, jobs=tuple(job for job in row.jobs if job.id not in owners))
        equal = [number for number in owners.values() if digests.get(number) == digest]
        if equal:  # the new plan was an earlier one, too, and other plans came between
            jobs.adopt(equal[0], rest, trusted)
        elif rest != Row():
            waiting[digest].append(rest)
    for rows in waiting.values():
        rows.sort(key=lambda row: _usefulness(row, jobs.since))
    for number in jobs.inputs(*SUBMITTABLE):
        if rows := waiting.get(digests[number], []):
            jobs.adopt(number, rows.pop(), trusted)
    return [(digest, row) for digest, rows in waiting.items() for row in rows]


def _usefulness(row: Row, since: int) -> int:
    """Return a greater number for a row that should be taken first."""
    job = row.current(since)
    return int(bool(row.intents)) if job is None else 2 + job.use
