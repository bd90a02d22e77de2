"""Reads the ids that a task is given: one, a list, or the text that a template makes of either."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.exceptions import RunGenInputError

log = logging.getLogger(__name__)

_IDS_IN_A_LINE = 50


def parse_job_ids(value: Any) -> list[str | None]:
    """
    Return the ids in a value, with ``None`` for an input without a job.

    Lists in a list are read as one, since the outputs of batches arrive like this. What a task with a
    destination returns of a job stands for it.

    :raises RunGenInputError: there is no id, or something in it cannot be one.
    """
    value = _id_in(value)
    if isinstance(value, Iterator):
        raise RunGenInputError(
            "job_id must be an id or a list of ids, not an iterator, which can be read once"
        )
    if is_single(value):
        path_segment(value, "job_id")
        return [value]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        kind = type(value).__name__
        raise RunGenInputError(f"job_id must be an id or a list of ids, not a {kind}")
    ids = [job_id for each in value for job_id in _flatten(_id_in(each))]
    for job_id in ids:
        if job_id is not None:
            path_segment(job_id, "job_id")
    return ids


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            yield from _flatten(_id_in(each))
    else:
        yield value


def _id_in(value: Any) -> Any:
    value = untemplated(value)
    return value["job_id"] if isinstance(value, Mapping) and "job_id" in value else value


def parse_known_job_ids(value: Any) -> list[str]:
    """
    Return the ids in a value, without the inputs that have no job.

    :raises RunGenInputError: something in it cannot be an id, or no input has a job.
    """
    ids = parse_job_ids(value)
    known = [each for each in ids if each is not None]
    if ids and not known:
        raise RunGenInputError("job_id names no job. Did the upstream task push nothing?")
    return known


def is_single(value: Any) -> bool:
    """Return whether a value stands for one job, so that one result is returned, and not a list."""
    value = _id_in(value)
    return value is None or isinstance(value, str)


def untemplated(value: Any) -> Any:
    """Return what a template made text of, in Python or in JSON: a list, an object, or ``None``."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] + text[-1:] in ("[]", "{}"):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError):
                return parse(text)
    return None if text == "None" else value


def format_jobs(job_ids: list[str]) -> str:
    """Return the id of one job, or the number of several."""
    return f"job {job_ids[0]}" if len(job_ids) == 1 else f"{len(job_ids)} jobs"


def begin_with_jobs(job_ids: Sequence[str], app_id: str) -> str:
    """Return the same as the begin of a sentence, with the app."""
    jobs = format_jobs(list(job_ids))
    return f"{jobs[:1].upper()}{jobs[1:]} of app {app_id}"


def log_jobs(what: str, job_ids: Sequence[str]) -> None:
    """Warn about jobs, and name all of them, some in a line."""
    for start in range(0, len(job_ids), _IDS_IN_A_LINE):
        log.warning("%s: %s", what, ", ".join(job_ids[start : start + _IDS_IN_A_LINE]))
