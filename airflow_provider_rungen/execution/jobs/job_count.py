"""Count the jobs that a table would run, without running any."""

from __future__ import annotations

import logging
from statistics import fmean
from typing import TYPE_CHECKING

from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.task.run import fail_without_retry
from airflow_provider_rungen.runs.plan import input_digest

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import MakeSource, Runner

log = logging.getLogger(__name__)


def count_jobs(run: Runner, make_source: MakeSource) -> int:
    """
    Return how many jobs a run would wait for, and push how long such a job ran. It submits nothing.

    :param run: the run, which is not executed.
    :param make_source: returns the source.
    """
    with fail_without_retry(), run.opened():
        book, _ = run.submitting.open_ledger(create=False)
        source = make_source()
        digest_of = input_digest if book is None else book.key
        plan = Plan.of_source(run.app_id, source.read(digest_of), lambda: run.report.about(source))
        run.link_to(run.app_id)
        seconds: list[float] = []
        count = sum(row.needs_job for row in plan.rows())
        if book is not None:
            found = run.submitting.look_up(book, plan)
            count -= len(found.stored)
            known = (place.execution_seconds for place in found.stored.values())
            seconds = [each for each in known if each is not None]
        # not None, which XComArg takes for a value that was not pushed
        run.ti.xcom_push(key="seconds_per_job", value=round(fmean(seconds), 3) if seconds else 0)
        log.info("%d rows: %d jobs to run", plan.count, count)
        return count
