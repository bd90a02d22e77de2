"""Finds what XCom cannot hold, or would not give back as it was. No I/O, no Airflow.

A result comes from a model, and so from whoever wrote its input. Airflow makes objects of dicts with certain
keys when an XCom is pulled, and the way there (msgpack, JSON, PostgreSQL) refuses or changes some values.
Nothing is mended, since nothing of this could be changed without a loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_rungen.client.models import clean_text

# Levels of nesting at most. Airflow 3.3 reads less than 200, and 190 if lists and dicts alternate.
DEEPEST = 100
# Characters of a path in an error.
_LONGEST_PATH = 200
# Keys of what Airflow serializes itself, of all versions: a dict that has them may become any object.
RESERVED = frozenset(
    {
        *("__classname__", "__version__", "__data__", "__id__", "__cache__"),
        *("__type", "__source", "__var"),
    }
)
# Of what the supervisor of a task is sent, integers have 64 bits.
_LEAST, _BEYOND = -(2**63), 2**64
_SURROGATE = re.compile("[\ud800-\udfff]")
# With multiple_outputs, keys become part of a path in Airflow's API, and these are used otherwise.
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,249}")
_TAKEN_KEYS = frozenset(
    {*("return_value", "job_id", "job_ids", "failed", "refused"), *("rungen_job_link", "rungen_app_link")}
)


def find_xcom_problem(value: Any, name: str = "result") -> str:
    """
    Return what of a value XCom cannot hold, with its path; empty if it can hold all of it.

    :param name: what to call the value.
    """
    if problem := _problem_of(value):
        return f"{name} {problem}"
    keys: list[str | int] = []
    stack = [_children(value)]
    while stack:
        for key, item in stack[-1]:
            is_too_deep = len(stack) >= DEEPEST and _is_nested(item)
            if problem := _TOO_DEEP if is_too_deep else _problem_of(item):
                return f"{_path(name, [*keys, key])} {problem}"
            if _is_nested(item):
                keys.append(key)
                stack.append(_children(item))
                break
        else:
            stack.pop()
            if keys:
                keys.pop()
    return ""


def find_key_problem(value: Any) -> str:
    """Return which key of a result cannot be the key of an XCom of its own (``multiple_outputs``)."""
    for key in value if isinstance(value, Mapping) else ():
        if _KEY.fullmatch(key) is None or key in _TAKEN_KEYS:
            return f"result has the key {clean_text(repr(key), 100)}, which cannot be the key of an XCom"
    return ""


_TOO_DEEP = f"is nested deeper than {DEEPEST} levels"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _children(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _problem_of(value: Any) -> str:
    """Return what is wrong with a value itself, whatever is inside it."""
    if isinstance(value, str):
        return _problem_of_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _problem_of_number(value)
    if isinstance(value, Mapping):
        return next(filter(None, map(_problem_of_key, value)), "")
    is_json = value is None or isinstance(value, bool | list)
    return "" if is_json else f"is a {type(value).__name__}, which is not valid JSON"


def _problem_of_number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which is not valid JSON"
    # a float counts, too: PostgreSQL gives it back as an integer
    return "" if _LEAST <= value < _BEYOND else "is a number that does not fit into 64 bits"


def _problem_of_text(text: str) -> str:
    if "\0" in text:
        return "holds a NUL character"
    return "holds half a surrogate pair" if not text.isascii() and _SURROGATE.search(text) else ""


def _problem_of_key(key: Any) -> str:
    if not isinstance(key, str):
        return f"has a key that is a {type(key).__name__}"
    problem = "is reserved by Airflow" if key in RESERVED else _problem_of_text(key)
    return f"has the key {clean_text(repr(key), 100)}, which {problem}" if problem else ""


def _path(name: str, keys: list[str | int]) -> str:
    path = name + "".join(f"[{key}]" if isinstance(key, int) else f".{clean_text(key, 100)}" for key in keys)
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}…"
