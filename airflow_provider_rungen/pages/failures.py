"""Group failed jobs by their reason. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from airflow_provider_rungen.pages.models import FailureGroup, JobView

MAX_GROUPS = 20
MAX_EXAMPLES = 5
_OTHER = "other reasons"
_BAD_ENDS = frozenset(["failed", "canceled", "refused"])
_SUBJECT = re.compile(r"Job \S+ of app \S+ (?:failed: |(?=was ))")


def failure_reason(job: JobView) -> str:
    """Return why a job failed, without what is different for each job: its id, and its app."""
    reason = _SUBJECT.sub("", job.error, count=1)
    if job.job_id:
        reason = reason.replace(job.job_id, "…")
    return reason or job.status


def group_failures(jobs: Iterable[JobView]) -> Sequence[FailureGroup]:
    """
    Return the failed jobs by reason, the most frequent first, in bounded memory.

    :param jobs: all jobs. Those that did not fail are left out.
    """
    counts: dict[str, int] = {}
    examples: dict[str, list[JobView]] = {}
    for job in jobs:
        if job.status not in _BAD_ENDS:
            continue
        reason = failure_reason(job)
        if reason not in counts and len(counts) >= MAX_GROUPS:
            reason = _OTHER
        counts[reason] = counts.get(reason, 0) + 1
        if len(shown := examples.setdefault(reason, [])) < MAX_EXAMPLES:
            # the reason need not be repeated
            shown.append(job if reason == _OTHER else replace(job, error=""))
    ranked = sorted(counts, key=lambda reason: (reason == _OTHER, -counts[reason]))
    return [FailureGroup(reason=each, count=counts[each], examples=examples[each]) for each in ranked]
