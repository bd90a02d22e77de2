"""
What tasks have pushed, as far as pages need it: a few keys, each up to a size, and each of a type.

The functions block.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from airflow.models.xcom import XComModel
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time.comms import XComResult
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
)
from sqlalchemy import Text, case, cast, func, null, select

from airflow_provider_rungen._airflow import ObjectStoragePath, conf
from airflow_provider_rungen.execution.archive.threads import run_concurrently
from airflow_provider_rungen.execution.costs.bill import BILL_KEY
from airflow_provider_rungen.execution.task.page_record import PAGE_KEY
from airflow_provider_rungen.execution.task.usage import USAGE_KEY
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.plugins.bounded import TooComplexError, parse_bounded

log = logging.getLogger(__name__)

Count = Annotated[StrictInt, Field(ge=0)]
# JSON may hold half a character, which no page and no URL can
PlainText = Annotated[StrictStr, AfterValidator(lambda text: text.encode(errors="replace").decode())]
Ids = list[PlainText | None]
#: The figures of a bill, or of what jobs used, by name.
Figures = dict[PlainText, PlainText | StrictInt | StrictFloat | None]


class PageXCom(BaseModel):
    """The XCom ``rungen_page``: see `page_record`."""

    connection: PlainText = ""
    app: PlainText = ""
    destination: PlainText = ""
    results: PlainText = ""
    key: list[PlainText] = []
    waits: bool = True
    rows: Count = 0
    skipped: Count = 0
    refused: Count = 0
    reused: Count = 0
    new_ledger: PlainText = ""
    jobs: Ids | None = None


class Failure(BaseModel):
    """An entry of the XCom ``failed``."""

    index: Count
    job_id: PlainText | None = None
    error: PlainText = ""


# The XComs that pages read: the most bytes of each, and its type. An id of a job takes 40 bytes.
_KINDS: Mapping[str, tuple[int, Any]] = {
    "job_ids": (4 << 20, Ids),
    "failed": (1 << 20, list[Failure]),
    PAGE_KEY: (1 << 20, PageXCom),
    BILL_KEY: (1 << 16, Figures),
    "job_id": (1 << 16, PlainText),
    USAGE_KEY: (1 << 16, Figures),
    RunGenJobLink.key: (1 << 16, PlainText),
}
#: The fields of a task that have other names than their XComs.
FIELDS = {PAGE_KEY: "page", RunGenJobLink.key: "job_link"}
LIMITS = {key: limit for key, (limit, _) in _KINDS.items()}
_TYPES: Mapping[str, TypeAdapter[Any]] = {key: TypeAdapter(kind) for key, (_, kind) in _KINDS.items()}
# How JSON in a text begins.
_JSON = ("[", "{", '"')
_OBJECT_STORAGE = "airflow.providers.common.io.xcom.backend"

_model: Any = XComModel
_place = (_model.dag_id, _model.run_id, _model.task_id, _model.map_index)
# not JSON, which SQLAlchemy parses whatever it is
_text = cast(_model.value, Text)
_size = func.coalesce(func.length(_text), 0)
# what is too large does not leave the database
_value = case((_size <= case(LIMITS, value=_model.key), _text), else_=null())


class Place(NamedTuple):
    """Where a task is."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


class StoredXCom(NamedTuple):
    """An XCom as the database has it."""

    key: str
    size: int
    #: Its JSON, unless it is larger than its limit.
    text: str | None


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


def find(session: Any, place: Place) -> list[StoredXCom]:
    """Return the XComs of a task that pages need."""
    query = select(_model.key, _size, _value).where(*_at(place)).order_by(_model.key)
    return [StoredXCom(*row) for row in session.execute(query)]


def read(found: Sequence[StoredXCom]) -> list[Any]:
    """Return the values of XComs, each of its type; an error for one that cannot be read."""
    if uses_files():
        return run_concurrently(_read_one, found)
    return list(map(_read_one, found))


def _read_one(stored: StoredXCom) -> Any:
    try:
        if stored.size > LIMITS[stored.key]:
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


def notice(key: str, error: Exception) -> str:
    """Return what a page says of an XCom that it lacks."""
    match error:
        case TooLargeError():
            reason = f"it has more than the {LIMITS[key] >> 10:,} KiB that a page reads"
        case TooComplexError():
            reason = "it has more values than a page reads"
        case _:
            reason = f"it could not be read ({type(error).__name__})"
    return f"The XCom {key} is missing: {reason}."


def _at(place: Place) -> list[Any]:
    return [column == value for column, value in zip(_place, place, strict=True)] + [_model.key.in_(LIMITS)]
