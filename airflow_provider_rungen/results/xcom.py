"""What a task returns of jobs, and what XCom cannot hold, or would return changed. No I/O, no Airflow.

A result comes from a model, and so from whoever wrote its input. When an XCom is pulled, Airflow creates
objects from dicts with certain keys. On the way there, msgpack, JSON and PostgreSQL refuse or change some
values. Nothing is repaired, because every repair would lose something.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_rungen.client.codec import HALF_A_PAIR
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.texts import clean_text, format_ids
from airflow_provider_rungen.exceptions import RunGenOutputError

#: Bytes at most of all results that a task returns, as JSON.
MAX_XCOM_BYTES = 1_000_000
# Airflow 3.3 reads fewer than 200 levels, and 190 if lists and dicts alternate.
MAX_DEPTH = 100
# A dict with one of these keys may become any object.
RESERVED_KEYS = frozenset(
    ["__classname__", "__version__", "__data__", "__id__", "__cache__", "__type", "__source", "__var"]
)
_MAX_PATH_CHARS = 200
# A task sends integers of 64 bits to its supervisor.
_MIN_INT, _INT_LIMIT = -(2**63), 2**64
# With multiple_outputs, keys become part of a path in Airflow's API.
_XCOM_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,249}")
# Tasks and links push these, and those that begin with "rungen_", themselves.
_USED_KEYS = frozenset(["return_value", "app_id", "job_id", "failed", "usage", "bill", "scaled"])


class XComValues:
    """
    The results that a task returns, by job.

    :param collects: whether the task only collects jobs, so that it can do so again.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    """

    def __init__(
        self,
        *,
        collects: bool = False,
        pushes_keys: bool = False,
    ) -> None:
        way = "Set destination" if collects else "Collect by id with a destination"
        self._hint = f"{way}: results are stored there, and small manifests are returned"
        self._pushes_keys = pushes_keys
        self._held_bytes = 0
        self._values: dict[str, Any] = {}

    def add_job(self, job: Job) -> RunGenOutputError | None:
        """Add the result of a job, or return why XCom cannot hold it. All together may be too large then."""
        problem = find_xcom_problem(job.result) or (self._pushes_keys and find_key_problem(job.result))
        if problem:
            return RunGenOutputError(
                f"XCom cannot hold the result: {problem} {format_ids(job.app_id, job.id)}",
                app_id=job.app_id,
                job_id=job.id,
                hint=self._hint,
                retryable=False,
            )
        self._held_bytes += len(json.dumps(job.result))
        if self._held_bytes <= MAX_XCOM_BYTES:  # the rest need not be in memory
            self._values[job.id] = job.result
        return None

    def of(self, ids: Sequence[str | None]) -> list[Any]:
        """Return the values of jobs, with ``None`` for those that have none."""
        return [None if job_id is None else self._values.get(job_id) for job_id in ids]

    def find_excess(self, values: Sequence[Any] = ()) -> RunGenOutputError | None:
        """
        Return why XCom cannot hold the results together.

        :param values: what is to be returned. A result may be there for several inputs.
        """
        size = max(self._held_bytes, len(json.dumps(values)) if len(values) > 1 else 0)
        if size <= MAX_XCOM_BYTES:
            return None
        message = f"The results have over {MAX_XCOM_BYTES} bytes, too much for XCom"
        return RunGenOutputError(message, hint=self._hint, retryable=False)


def find_xcom_problem(result: Any) -> str:
    """Return what in a result XCom cannot hold, with its path, or an empty text."""
    path, problem = _find_problem(result, 0)
    path = f"result{path}"
    shown = path if len(path) <= _MAX_PATH_CHARS else f"{path[:_MAX_PATH_CHARS]}…"
    return f"{shown} {problem}" if problem else ""


def find_key_problem(result: Any) -> str:
    """Return which key of a result cannot be the key of an XCom (``multiple_outputs``), or an empty text."""
    for key in result if isinstance(result, Mapping) else ():
        if _XCOM_KEY.fullmatch(key) is None or key in _USED_KEYS or key.startswith("rungen_"):
            return f"result has the key {clean_text(repr(key), 100)}, which cannot be the key of an XCom"
    return ""


def _find_problem(value: Any, depth: int) -> tuple[str, str]:
    """Return the path from a value to the first problem in it, and the problem."""
    if depth == MAX_DEPTH and isinstance(value, Mapping | list):
        return "", f"is nested deeper than {MAX_DEPTH} levels"
    if problem := _problem_of(value):
        return "", problem
    is_list = isinstance(value, list)
    items: Any = enumerate(value) if is_list else value.items() if isinstance(value, Mapping) else ()
    for key, item in items:
        path, problem = _find_problem(item, depth + 1)
        if problem:
            step = f"[{key}]" if is_list else f".{clean_text(key, 100)}"
            return step + path, problem
    return "", ""


def _problem_of(value: Any) -> str:
    """Return what is wrong with a value itself, apart from the values inside it."""
    match value:
        case None | bool() | list():
            return ""
        case str():
            return _problem_of_text(value)
        case float() if not math.isfinite(value):
            return f"is {value}, which is not valid JSON"
        case int() | float():  # PostgreSQL returns floats as integers
            return "" if _MIN_INT <= value < _INT_LIMIT else "is a number that does not fit into 64 bits"
        case Mapping():
            return next(filter(None, map(_problem_of_key, value)), "")
    return f"is a {type(value).__name__}, which is not valid JSON"


def _problem_of_text(text: str) -> str:
    if "\0" in text:
        return "holds a NUL character"
    return "holds half a surrogate pair" if not text.isascii() and HALF_A_PAIR.search(text) else ""


def _problem_of_key(key: Any) -> str:
    if not isinstance(key, str):
        return f"has a key that is a {type(key).__name__}"
    problem = "is reserved by Airflow" if key in RESERVED_KEYS else _problem_of_text(key)
    return f"has the key {clean_text(repr(key), 100)}, which {problem}" if problem else ""
