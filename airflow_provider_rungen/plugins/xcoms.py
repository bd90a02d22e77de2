"""
What tasks have pushed, as far as pages need it: a few keys, each up to a size.

These functions block.
"""

from __future__ import annotations

import json
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
from airflow_provider_rungen.execution.bill import BILL_KEY
from airflow_provider_rungen.execution.page_record import PAGE_KEY
from airflow_provider_rungen.execution.scale_state import KEY as SCALE_KEY
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.plugins.task_record import plain

log = logging.getLogger(__name__)

#: The XComs that pages read, and the most bytes of each. An id of a job takes 40.
LIMITS: Mapping[str, int] = {
    "job_ids": 4 << 20,
    "refused": 4 << 20,
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
_size = func.length(cast(_model.value, Text))
# what is too large does not leave the database
_value = case((_size <= case(LIMITS, value=_model.key), _model.value), else_=null())


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


def find(session: Any, place: Place) -> list[tuple[str, int, Any]]:
    """Return the key, the size and the value in the database of each XCom of a task. See `LIMITS`."""
    query = select(_model.key, _size, _value).where(*_at(place)).order_by(_model.key)
    return [tuple(row) for row in session.execute(query)]


def find_recent(
    session: Any, dag_ids: Collection[str], keys: Collection[str]
) -> list[tuple[Place, str, Any]]:
    """Return the XComs with certain keys that were pushed last, the latest first, each with its task."""
    query = (
        select(*_place, _model.key, _size, _value)
        .where(_model.dag_id.in_(dag_ids), _model.key.in_(keys))
        .order_by(_model.timestamp.desc())
        .limit(_MAX_RECENT_FILES if uses_files() else MAX_RECENT)
        .execution_options(yield_per=_FETCHED_AT_ONCE)
    )
    found: list[tuple[Place, str, Any]] = []
    left = _MAX_RECENT_BYTES
    for *place, key, size, value in session.execute(query):
        left -= min(size or 0, LIMITS[key])
        if left < 0:
            break
        found.append((Place(*place), key, value))
    return found


def read(found: Sequence[tuple[str, int, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a task by key, and what its page says of those that are missing."""
    fitting = [(key, value) for key, size, value in found if (size or 0) <= LIMITS[key]]
    values = dict(zip((key for key, _ in fitting), resolve(fitting), strict=True))
    values |= {key: TooLargeError() for key, size, _ in found if key not in values}
    errors = {key: value for key, value in values.items() if isinstance(value, Exception)}
    return {key: values[key] for key in values.keys() - errors.keys()}, list(starmap(_notice, errors.items()))


def resolve(found: Sequence[tuple[str, Any]]) -> list[Any]:
    """Return what the XCom backend makes of keys and values; an error for one that cannot be read."""
    if uses_files():
        return run_concurrently(lambda each: _through_backend(*each), found)
    return [_in_database(*each) for each in found]


def _in_database(key: str, value: Any) -> Any:
    try:
        return plain(value)
    except RecursionError as error:  # lists in lists in lists
        log.info("Could not read an XCom %s (%s)", key, type(error).__name__)
        return error


def _through_backend(key: str, value: Any) -> Any:
    backend = _backend()
    try:
        # its own method reads a file whatever its size
        if backend.deserialize_value.__module__ == _OBJECT_STORAGE:
            return plain(_of_file(value, LIMITS[key]))
        return plain(backend.deserialize_value(XComResult(key=key, value=value)))
    except Exception as error:  # that of any backend
        log.info("Could not read an XCom %s (%s)", key, type(error).__name__)
        return error


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
    return json.loads(content)


def _notice(key: str, error: Exception) -> str:
    if isinstance(error, TooLargeError):
        return f"The XCom {key} is missing: it has more than the {LIMITS[key] >> 10:,} KiB that a page reads."
    return f"The XCom {key} is missing: it could not be read ({type(error).__name__})."


def _at(place: Place) -> list[Any]:
    return [column == value for column, value in zip(_place, place, strict=True)] + [_model.key.in_(LIMITS)]
