"""Decide whether more jobs failed than may fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobError
from airflow_provider_rungen.execution.outcomes import (
    brief_reason,
    combined_error,
    format_reasons,
    is_permanent,
    max_failures,
)

log = logging.getLogger(__name__)

# XCom has so many failed jobs at most, and so many characters of each error.
MAX_FAILED = 1000
MAX_FAILED_ERROR = 200


def failed_jobs(
    ids: Sequence[str | None],
    reasons: Mapping[int, str],
    places: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """
    Return the XCom ``failed``: what is known of the first jobs that failed.

    :param ids: the jobs, with ``None`` for an input without a job.
    :param reasons: why they failed, by index.
    :param places: the ``file`` and ``line`` of inputs, by index.
    """
    return [
        {
            "index": index,
            **places.get(index, {}),
            "job_id": ids[index],
            "error": clean_text(reasons[index], MAX_FAILED_ERROR),
        }
        for index in sorted(reasons)[:MAX_FAILED]
    ]


def failure_reasons(ids: Sequence[str | None], errors: Mapping[str, RunGenError]) -> dict[int, str]:
    """
    Return why jobs failed, by index.

    :param ids: the jobs, with ``None`` for an input without a job.
    :param errors: the errors of those that failed.
    """
    return {
        index: "it has no job" if job_id is None else brief_reason(errors[job_id])
        for index, job_id in enumerate(ids)
        if job_id is None or job_id in errors
    }


def enforce_max_failed(
    ids: Sequence[str | None],
    errors: Mapping[str, RunGenError],
    reasons: Mapping[int, str],
    max_failed: float,
    logged_failures: int,
) -> None:
    """
    Fail when too many jobs failed, or one is not over.

    :param reasons: see `failure_reasons`.
    :param max_failed: how many may fail: a number, or a share below 1.
    :param logged_failures: how many failures the log names already.
    """
    if not reasons:
        return
    allowed = max_failures(max_failed, len(ids))
    is_running = any(type(error) is RunGenJobError for error in errors.values())
    if len(reasons) <= allowed and not is_running:
        if len(reasons) > logged_failures:
            log.warning(
                "Failed: %d of %d jobs, as max_failed allows: %s",
                *(len(reasons), len(ids), format_reasons(reasons)),
            )
        return
    permanent = sum(ids[index] is None or is_permanent(errors[ids[index] or ""]) for index in reasons)
    named = [error for error in errors.values() if permanent > allowed or not is_permanent(error)]
    limit = f" ({allowed} of {len(ids)} may fail)" if max_failed else ""
    raise combined_error(named, len(named), f"were not collected{limit}")
