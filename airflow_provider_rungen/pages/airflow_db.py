"""
What the pages ask of Airflow's API server and its database. All differences between versions are here.

These functions block, except for those with ``async``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.core_api import security
from airflow.models.connection import Connection
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time.comms import XComResult
from airflow.utils.session import create_session
from fastapi import HTTPException, Request
from pydantic import BaseModel, Field, TypeAdapter
from sqlalchemy import Text, cast, func, select

from airflow_provider_rungen._airflow import AirflowNotFoundException, conf
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.pages.threads import run_within
from airflow_provider_rungen.results.shown import shown
from airflow_provider_rungen.task.xcom_keys import FAILURE_KEY, PAGE_KEY, USAGE_KEY

log = logging.getLogger(__name__)

COOKIE = "_token"
CONN_TYPE = "rungen"
# The field of each operator and sensor, and those that name files.
_CONN_FIELD = "rungen_conn_id"
_FILE_FIELDS = ("destination", "results")
# Other runs of a task to look at. Airflow keeps the fields of 30, by default.
_MAX_RENDERED = 100
_IN_ENVIRONMENT = "AIRFLOW_CONN_"
# Characters of an XCom at most: the page of a task may name 10,000 jobs.
MAX_XCOM = 1 << 20
# Seconds to read XComs that are not in the database.
_XCOM_TIME = 2.0
_MOVING = frozenset(
    {"scheduled", "queued", "running", "deferred", "restarting", "up_for_retry", "up_for_reschedule"}
)

# --- who asks -----------------------------------------------------------------------------------------------

#: Who may read the log of a task may see its page.
can_read_logs: Callable[..., Any] = security.requires_access_dag("GET", DagAccessEntity.TASK_LOGS)
get_user: Callable[..., Any] = security.get_user


async def get_user_with_cookie(request: Request) -> Any:
    """Return the user of a request. Before 3.1.1, Airflow's own function ignores the session's cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = request.cookies.get(COOKIE, "")
    if not token:
        raise HTTPException(401, "Not authenticated")
    try:
        return await get_auth_manager().get_user_from_token(token)
    except Exception:
        raise HTTPException(401, "Invalid token") from None


def overrides() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what replaces Airflow's own dependencies."""
    return {} if hasattr(security, "COOKIE_NAME_JWT_TOKEN") else {security.get_user: get_user_with_cookie}


def login_url() -> str:
    return str(get_auth_manager().get_url_login())


# --- a task -------------------------------------------------------------------------------------------------


class PageXCom(BaseModel):
    """The XCom ``rungen_page``: see `xcom_keys`."""

    connection: str = ""
    app: str = ""
    destination: str = ""
    results: str = ""
    view: str = ""
    key: list[str] = []
    rows: int = 0
    jobs: list[str | None] | None = None
    price: str = ""


class FailureXCom(BaseModel):
    """The XCom ``rungen_failure``: see `xcom_keys`."""

    try_number: int = 0
    error: str
    hint: str = ""
    still_billing: list[str] = []


_Figures = dict[str, Any]
# What a table returns, and a job with a destination: counts, or URIs of files. Other values are not read.
_VALUE = "return_value"
# The XComs that pages read, with their types.
_TYPES: Mapping[str, TypeAdapter[Any]] = {
    PAGE_KEY: TypeAdapter(PageXCom),
    FAILURE_KEY: TypeAdapter(FailureXCom),
    USAGE_KEY: TypeAdapter(_Figures),
    "results": TypeAdapter(Annotated[str, Field(max_length=2000)]),
    "job_id": TypeAdapter(Annotated[str, Field(max_length=500)]),
    RunGenJobLink.key: TypeAdapter(str),
    _VALUE: TypeAdapter(dict[str, Any]),
}


class Place(NamedTuple):
    """
    A file or folder that may be opened.

    :param root: what the DAG names, or for a file itself, the folder around it.
    :param path: the path below it.
    """

    root: str
    path: str


class NotNamedError(Exception):
    """A file that the task does not name in its DAG, and why it is not opened."""


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """
    The latest attempt of a task: what Airflow knows of it, and what it pushed.

    :param page: the XCom ``rungen_page``; the next fields are other XComs.
    :param notices: which XComs cannot be read.
    :param rendered: the fields that its DAG gave to this task, or else to those of its runs that are kept.
    :param is_forgotten: whether they are those of other runs.
    :param duration: the seconds that it has taken so far, with its waits in the triggerer.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    state: str = ""
    try_number: int = 1
    operator: str = ""
    page: PageXCom = field(default_factory=PageXCom)
    failure: FailureXCom | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    results: str = ""
    job_id: str = ""
    job_link: str = ""
    return_value: Mapping[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    rendered: Sequence[Mapping[str, Any]] = ()
    is_forgotten: bool = False
    duration: float | None = None

    def names(self, *fields: str) -> set[str]:
        """Return what the DAG gives to fields."""
        values = [each.get(name) for each in self.rendered for name in fields]
        # an ObjectStoragePath is kept in parts
        texts = [value.get("path") if isinstance(value, dict) else value for value in values]
        return {text for text in texts if isinstance(text, str) and text}

    @property
    def input(self) -> Any:
        """The input of its one job, as Airflow has rendered it; ``None`` if it is not known."""
        return None if self.is_forgotten or not self.rendered else self.rendered[0].get("input")

    def find_place(self, uri: str) -> Place:
        """
        Return where a file or folder is that an XCom names. An XCom alone is no reason to open it.

        :raises NotNamedError: it is neither what the task names in its DAG nor below that.
        """
        plain = uri.removeprefix("file://").removesuffix("/")
        for named in self.names(*_FILE_FIELDS):
            # as the task has pushed it
            root = redact(named).removeprefix("file://").removesuffix("/")
            rest = plain.removeprefix(root)
            if plain == root:
                return Place(named, "")
            if rest != plain and rest.startswith("/") and not {".", ".."} & {*unquote(rest).split("/")}:
                return Place(named.removesuffix("/"), rest.removeprefix("/"))
        if self.is_forgotten:
            why = (
                "Airflow has forgotten what this run named in its DAG, and the runs that it knows do not name"
            )
        else:
            why = "The task does not name in its DAG"
        raise NotNamedError(f"{why} {shown(uri)}: it is not opened.")

    @property
    def is_of_rungen(self) -> bool:
        """Whether it runs anything at RunGen. A class of a user's own may have any name."""
        return bool(self.page.connection or self.failure or "RunGen" in self.operator)

    @property
    def is_moving(self) -> bool:
        """Whether the task has not ended."""
        return self.state in _MOVING

    @property
    def job_ids(self) -> list[str]:
        """The jobs that the task has pushed, apart from those in its results."""
        return [self.job_id] if self.job_id else [each for each in self.page.jobs or () if each]

    def has_pushed(self, job_id: str) -> bool:
        """Return whether a task has pushed a job, or a link to it."""
        return job_id in self.job_ids or self.job_link.endswith(f"#job={job_id}")


async def find_task(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskRecord | None:
    """
    Return a task, or ``None`` if it has not run.

    :raises TooSlowError: its XComs are not in the database, and where they are does not answer.
    """
    place = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return await run_within(_XCOM_TIME, "tasks", _find_task, place)


def _find_task(place: Mapping[str, Any]) -> TaskRecord | None:
    model: Any = XComModel
    with create_session() as session:
        newest = select(TaskInstance).filter_by(**place).order_by(TaskInstance.start_date.desc())
        ti: Any = session.scalars(newest.limit(1)).first()
        if ti is None:
            return None
        known: dict[str, Any] = {
            "state": str(ti.state or ""),
            "try_number": ti.try_number,
            "operator": str(ti.operator_name or ""),
        }
        if ti.start_date is not None:
            known["duration"] = ((ti.end_date or datetime.now(UTC)) - ti.start_date).total_seconds()
        rendered, is_forgotten = _find_rendered(session, place)
        known |= {"rendered": rendered, "is_forgotten": is_forgotten}
        size = func.coalesce(func.length(cast(model.value, Text)), 0)
        where = [getattr(model, name) == value for name, value in place.items()]
        query = select(model.key, model.value).where(model.key.in_(_TYPES), size <= MAX_XCOM, *where)
        pushed: dict[Any, Any] = dict(tuple(row) for row in session.execute(query))
        keys = set(session.scalars(select(model.key).where(model.key.in_(_TYPES), *where)))
    names = {PAGE_KEY: "page", FAILURE_KEY: "failure", RunGenJobLink.key: "job_link"}
    found: dict[str, Any] = {}
    notices = [f"The XCom {key} is larger than a page reads." for key in keys - pushed.keys()]
    # outside of the session, since a backend may be slow
    for key, value in sorted(pushed.items(), key=lambda item: item[0] == _VALUE):
        page = found.get("page")
        if key == _VALUE and not (page and page.destination and found.keys() & {"job_id", "results"}):
            continue
        try:
            found[names.get(key, key)] = _TYPES[key].validate_python(_through_backend(key, value))
        except Exception as error:  # that of any backend
            notices.append(f"The XCom {key} is missing: it could not be read ({type(error).__name__}).")
    return TaskRecord(**place, **known, **found, notices=notices)


def _find_rendered(session: Any, place: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the fields of a task as Airflow rendered them, or else those of its other runs."""
    ti: Any = TaskInstance
    fields = select(RenderedTaskInstanceFields.rendered_fields).join(RenderedTaskInstanceFields.task_instance)
    own = session.scalar(fields.where(*(getattr(ti, name) == value for name, value in place.items())))
    if own is not None:
        return [own], False
    of_task = fields.where(*(getattr(ti, name) == place[name] for name in ("dag_id", "task_id")))
    nearest = of_task.order_by(ti.map_index != place["map_index"], ti.start_date.desc())
    return [*session.scalars(nearest.limit(_MAX_RENDERED))], True


def _through_backend(key: str, value: Any) -> Any:
    backend: Any = conf.getimport("core", "xcom_backend")
    return (backend or BaseXCom).deserialize_value(XComResult(key=key, value=value))


# --- connections --------------------------------------------------------------------------------------------


def may_use_connection(user: Any, task: TaskRecord) -> bool:
    """
    Return whether the page of a task may use its connection. An XCom alone is no reason to.

    The task has to name it in its DAG, or the user may read it.
    """
    is_named = task.page.connection in task.names(_CONN_FIELD)
    return is_named or may_read_connection(user, task.page.connection)


def may_read_connection(user: Any, conn_id: str) -> bool:
    team = Connection.get_team_name(conn_id) if hasattr(Connection, "get_team_name") else None
    details = ConnectionDetails(conn_id=conn_id, **({"team_name": team} if team else {}))
    return bool(get_auth_manager().is_authorized_connection(method="GET", details=details, user=user))


def readable_connections(user: Any) -> list[str]:
    """Return the connections to RunGen in the database and in the environment that a user may read."""
    with create_session() as session:
        found = set(session.scalars(select(Connection.conn_id).where(Connection.conn_type == CONN_TYPE)))
    for name in os.environ:
        if name.startswith(_IN_ENVIRONMENT) and (conn_id := name.removeprefix(_IN_ENVIRONMENT).lower()):
            with contextlib.suppress(Exception):  # it is of another type, or broken
                get_connection(conn_id)
                found.add(conn_id)
    return [conn_id for conn_id in sorted(found) if may_read_connection(user, conn_id)]


def get_connection(conn_id: str) -> Connection:
    """
    Return a connection to RunGen.

    Airflow's core looks it up, since the look-up of the SDK, which tasks use, fails in some API servers.

    :raises AirflowNotFoundException: there is none, or it is of another type.
    """
    conn = Connection.get_connection_from_secrets(conn_id)
    # the password of another type must not be sent as an API key
    if conn is None or conn.conn_type != CONN_TYPE:
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined, or not of type {CONN_TYPE}")
    return conn
