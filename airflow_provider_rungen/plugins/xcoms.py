"""
Read what a task has pushed, as far as its page needs it. Each key has a type, and a size that it may have.

The functions block.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from airflow.models.xcom import XComModel
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time.comms import XComResult
from pydantic import TypeAdapter
from sqlalchemy import Text, case, cast, func, null, select

from airflow_provider_rungen._airflow import ObjectStoragePath, conf
from airflow_provider_rungen.client.daemon_threads import run_concurrently
from airflow_provider_rungen.execution.task.xcom_keys import (
    BILL_KEY,
    FAILURE_KEY,
    PAGE_KEY,
    SCALED_KEY,
    TIMES_KEY,
    USAGE_KEY,
)
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.plugins.limits import TooLargeError, parse_bounded
from airflow_provider_rungen.plugins.task_record import (
    Failure,
    FailureXCom,
    Figures,
    PageXCom,
    PlainText,
    Times,
)

log = logging.getLogger(__name__)

# The XComs that pages read: the most bytes of each, and its type. An id of a job takes 40 bytes.
_KINDS: Mapping[str, tuple[int, Any]] = {
    "failed": (1 << 20, list[Failure]),
    PAGE_KEY: (1 << 20, PageXCom),
    FAILURE_KEY: (1 << 18, FailureXCom),
    BILL_KEY: (1 << 16, Figures),
    SCALED_KEY: (1 << 16, dict[str, Any]),
    "job_id": (1 << 16, PlainText),
    USAGE_KEY: (1 << 16, Figures),
    TIMES_KEY: (4 << 20, Times),
    RunGenJobLink.key: (1 << 16, PlainText),
}
#: The fields of a task that have other names than their XComs.
FIELDS = {PAGE_KEY: "page", TIMES_KEY: "times", FAILURE_KEY: "failure", RunGenJobLink.key: "job_link"}
LIMITS = {key: limit for key, (limit, _) in _KINDS.items()}
_TYPES: Mapping[str, TypeAdapter[Any]] = {key: TypeAdapter(kind) for key, (_, kind) in _KINDS.items()}
# How JSON in a text begins.
_JSON = ("[", "{", '"')
_OBJECT_STORAGE = "airflow.providers.common.io.xcom.backend"

_model: Any = XComModel
# not JSON, which SQLAlchemy parses whatever it is
_text = cast(_model.value, Text)
_size = func.coalesce(func.length(_text), 0)
# Bytes that each XCom may have, however many tasks share a page.
_LEAST_LIMIT = 4096


class StoredXCom(NamedTuple):
    """An XCom as the database has it."""

    key: str
    size: int
    #: Its JSON, unless it is larger than its limit.
    text: str | None
    #: The run, the task, and its index.
    place: Any = None


def uses_files() -> bool:
    """Return whether an XCom backend may have XComs in files or elsewhere."""
    return _backend() is not BaseXCom


def _backend() -> Any:
    return conf.getimport("core", "xcom_backend")


def version(session: Any, place: Mapping[str, Any]) -> Any:
    """
    Return a value that changes with each push of a task.

    :param place: its DAG, run, id and map index, as columns: values, or lists of them, or all if left out.
    """
    return tuple(map(tuple, _select(session, place, _model.key, _model.timestamp)))


def find(session: Any, place: Mapping[str, Any], tasks: int = 1) -> list[StoredXCom]:
    """
    Return the XComs that pages need.

    :param tasks: how many tasks share the limits.
    """
    limits = {key: max(limit // max(1, tasks), _LEAST_LIMIT) for key, limit in LIMITS.items()}
    # a value that is too large stays in the database
    value = case((_size <= case(limits, value=_model.key), _text), else_=null())
    columns = (_model.key, _size, value, _model.run_id, _model.task_id, _model.map_index)
    found = _select(session, place, *columns)
    return [StoredXCom(key, size, text, tuple(where)) for key, size, text, *where in found]


def _select(session: Any, place: Mapping[str, Any], *columns: Any) -> Any:
    query = select(*columns).where(_model.key.in_(LIMITS)).order_by(_model.key)
    for name, value in place.items():
        column = getattr(_model, name)
        query = query.where(column.in_(value) if isinstance(value, list) else column == value)
    return session.execute(query)


def read(found: Sequence[StoredXCom]) -> list[Any]:
    """Return the values of XComs, each of its type; an error for one that cannot be read."""
    return run_concurrently(_read_one, found) if uses_files() else list(map(_read_one, found))


def _read_one(stored: StoredXCom) -> Any:
    try:
        if stored.size and stored.text is None:
            raise TooLargeError
        value = parse_bounded(stored.text or "null")
        if uses_files():
            value = _through_backend(stored.key, value)
        if isinstance(value, str) and value.startswith(_JSON):  # as some versions of Airflow store it
            value = parse_bounded(value)
        return _TYPES[stored.key].validate_python(value)
    except Exception as error:  # that of any backend
        log.info("Could not read an XCom %s (%s)", stored.key, type(error).__name__)
        return error


def _through_backend(key: str, value: Any) -> Any:
    """
    Return the value that the XCom backend has in a place of its own.

    :raises TooLargeError: it is a file that is larger, once decompressed.
    """
    backend = _backend()
    # the method of this one reads a file whatever its size
    if backend.deserialize_value.__module__ != _OBJECT_STORAGE:
        return backend.deserialize_value(XComResult(key=key, value=value))
    if not isinstance(value, str) or "://" not in value:
        return value
    path = ObjectStoragePath(value)
    folder = ObjectStoragePath(conf.get("common.io", "xcom_objectstorage_path"))
    if not path.is_relative_to(folder) or ".." in path.parts:
        return value
    with path.open("rb", compression="infer") as file:
        content = file.read(LIMITS[key] + 1)
    if len(content) > LIMITS[key]:
        raise TooLargeError
    return parse_bounded(content)


def notice(key: str, error: Exception) -> str:
    """Return what a page says of an XCom that it lacks."""
    reason = f"it could not be read ({type(error).__name__})"
    if isinstance(error, TooLargeError):
        reason = "it is larger than a page reads"
    return f"The XCom {key} is missing: {reason}."
