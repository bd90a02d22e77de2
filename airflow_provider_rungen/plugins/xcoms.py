"""
What tasks have pushed, as far as pages need it: a few keys, each up to a size.

These functions block.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import starmap
from typing import Any, NamedTuple

from airflow.models.xcom import XComModel
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time.comms import XComResult
from sqlalchemy import Text, case, cast, func, null, select

from airflow_provider_rungen._airflow import ObjectStoragePath, conf
from airflow_provider_rungen.execution.archive.threads import run_concurrently
from airflow_provider_rungen.execution.costs.bill import BILL_KEY
from airflow_provider_rungen.execution.costs.scale_state import KEY as SCALE_KEY
from airflow_provider_rungen.execution.task.page_record import PAGE_KEY
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.plugins.bounded_json import TooComplexError, parse_bounded
from airflow_provider_rungen.plugins.task_record import plain

log = logging.getLogger(__name__)

#: The XComs that pages read, and the most bytes of each. An id of a job takes 40.
LIMITS: Mapping[str, int] = {
    "job_ids": 4 << 20,
    "failed": 1 << 20,
    PAGE_KEY: 1 << 20,
    SCALE_KEY: 1 << 18,
    BILL_KEY: 1 << 16,
    "job_id": 1 << 16,
    "usage": 1 << 16,
    RunGenJobLink.key: 1 << 16,
}
# Of the tasks that used RunGen last: how many are looked at, the same where each is a file, and their bytes.
MAX_RECENT = 500
_MAX_RECENT_FILES = 50
_MAX_RECENT_BYTES = 8 << 20
_FETCHED_AT_ONCE = 10
_OBJECT_STORAGE = "airflow.providers.common.io.xcom.backend"

_model: Any = XComModel
_place = (_model.dag_id, _model.run_id, _model.task_id, _model.map_index)
# not JSON, which SQLAlchemy parses whatever it is
_text = cast(_model.value, Text)
_size = func.length(_text)
# what is too large does not leave the database
_value = case((_size <= case(LIMITS, value=_model.key), _text), else_=null())


class Place(NamedTuple):
    """Where a task is."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


class TooLargeError(Exception):
    """A value is larger than a page needs."""


def uses_files() -> bool:
    """Return whether XComs may be in files, or wherever else the XCom backend has them."""
    return _backend() is not BaseXCom


def _backend() -> Any:
    return conf.getimport("core", "xcom_backend")


def version(session: Any, place: Place) -> Any:
    """Return what changes with each push of a task."""
    query = select(_model.key, _model.timestamp).where(*_at(place)).order_by(_model.key)
    return tuple(map(tuple, session.execute(query)))


def find(session: Any, place: Place) -> list[tuple[str, int, str | None]]:
    """Return the key, the size and the JSON in the database of each XCom of a task. See `LIMITS`."""
    query = select(_model.key, _size, _value).where(*_at(place)).order_by(_model.key)
    return [tuple(row) for row in session.execute(query)]


def find_recent(
    session: Any, dag_ids: Collection[str], keys: Collection[str]
) -> list[tuple[Place, str, str | None]]:
    """Return the JSON of XComs with certain keys that were pushed last, the latest first, and their tasks."""
    query = (
        select(*_place, _model.key, _size, _value)
        .where(_model.dag_id.in_(dag_ids), _model.key.in_(keys))
        .order_by(_model.timestamp.desc())
        .limit(_MAX_RECENT_FILES if uses_files() else MAX_RECENT)
        .execution_options(yield_per=_FETCHED_AT_ONCE)
    )
    found: list[tuple[Place, str, str | None]] = []
    left = _MAX_RECENT_BYTES
    for *place, key, size, text in session.execute(query):
        left -= min(size or 0, LIMITS[key])
        if left < 0:
            break
        found.append((Place(*place), key, text))
    return found


def read(found: Sequence[tuple[str, int, str | None]]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a task by key, and what its page says of those that are missing."""
    fitting = [(key, text) for key, size, text in found if (size or 0) <= LIMITS[key]]
    values = dict(zip((key for key, _ in fitting), resolve(fitting), strict=True))
    values |= {key: TooLargeError() for key, size, _ in found if key not in values}
    errors = {key: value for key, value in values.items() if isinstance(value, Exception)}
    return {key: values[key] for key in values.keys() - errors.keys()}, list(starmap(_notice, errors.items()))


def resolve(found: Sequence[tuple[str, str | None]]) -> list[Any]:
    """Return what the XCom backend makes of keys and JSON; an error for one that cannot be read."""
    if uses_files():
        return run_concurrently(lambda each: _resolve_one(*each), found)
    return [_resolve_one(*each) for each in found]


def _resolve_one(key: str, text: str | None) -> Any:
    try:
        value = None if text is None else parse_bounded(text)
        return plain(_through_backend(key, value) if uses_files() else value)
    except Exception as error:  # that of any backend
        log.info("Could not read an XCom %s (%s)", key, type(error).__name__)
        return error


def _through_backend(key: str, value: Any) -> Any:
    backend = _backend()
    # its own method reads a file whatever its size
    if backend.deserialize_value.__module__ == _OBJECT_STORAGE:
        return _of_file(value, LIMITS[key])
    return backend.deserialize_value(XComResult(key=key, value=value))


def _of_file(value: Any, limit: int) -> Any:
    """
    Return what a file has, if the value is the path of one that the backend wrote, or else the value.

    :raises TooLargeError: it is larger, once decompressed.
    """
    if not isinstance(value, str) or "://" not in value:
        return value
    folder = ObjectStoragePath(conf.get("common.io", "xcom_objectstorage_path"))
    path = ObjectStoragePath(value)
    if not path.is_relative_to(folder) or ".." in path.parts:
        return value
    with path.open("rb", compression="infer") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLargeError
    return parse_bounded(content)


def _notice(key: str, error: Exception) -> str:
    if isinstance(error, TooLargeError):
        return f"The XCom {key} is missing: it has more than the {LIMITS[key] >> 10:,} KiB that a page reads."
    if isinstance(error, TooComplexError):
        return f"The XCom {key} is missing: it has more values than a page reads."
    return f"The XCom {key} is missing: it could not be read ({type(error).__name__})."


def _at(place: Place) -> list[Any]:
    return [column == value for column, value in zip(_place, place, strict=True)] + [_model.key.in_(LIMITS)]
