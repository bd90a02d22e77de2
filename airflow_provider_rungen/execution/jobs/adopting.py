"""Take over the jobs of earlier plans of a task run, when its inputs, or its app, have changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_rungen.execution.jobs.plans import read_digests
from airflow_provider_rungen.runs.jobs import Jobs, adopt_rows
from airflow_provider_rungen.runs.rows import Job

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.task_log import TaskLog

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unwanted:
    """
    A job of an earlier plan that no input wants.

    :param job: what is known of it.
    :param digest: the fingerprint of its input, if that is known.
    :param is_ours: whether it is certainly one of this task run.
    """

    app_id: str
    job: Job
    digest: str
    is_ours: bool


def adopt_earlier(task_log: TaskLog, app_id: str) -> list[Unwanted]:
    """Take over the jobs of earlier plans whose input the new plan has, too. What they bought counts."""
    home, unwanted = task_log.home, dict[str, Unwanted]()
    plans = {record.plan: record.app_id for record in home.earlier}
    others = {plan: app for plan, app in plans.items() if plan not in ("", task_log.plan.digest)}
    if others:
        task_log.load_all()
        digests = {number: row.digest for number, row in enumerate(task_log.plan.rows()) if row.needs_job}
    for other, other_app_id in others.items():
        known = Jobs(other, task_log.jobs.writer, since=task_log.jobs.since)
        for _, files in home.read_parts(other):
            known.load((), *files)
        task_log.bought += known.unknown_since(home.first_turn)
        planned = read_digests(home.place, other)
        if planned is not None and other == home.earlier[-1].plan:
            then, now = set(planned) - {""}, set(digests.values())
            log.warning(
                "Inputs changed since the last attempt: %d new, %d gone", len(now - then), len(then - now)
            )
        rows = sorted(known.table.rows.items())
        pairs = [("" if planned is None else planned[number], row) for number, row in rows]
        if app_id == other_app_id:
            left = {job.id for job in adopt_rows(task_log.jobs, digests, pairs)}
            task_log.jobs.submitted_by = max(task_log.jobs.submitted_by, known.submitted_by)
        else:
            left = set(known.table.input_of)
        for digest, row in pairs:
            for job in row.jobs:
                if job.id in left:
                    is_ours = job.id not in known.table.unchecked
                    unwanted.setdefault(job.id, Unwanted(other_app_id, job, digest, is_ours))
    # a later one of the earlier plans may have had the same job, for an input that the new plan has, too
    return [each for job_id, each in unwanted.items() if job_id not in task_log.jobs.table.input_of]
