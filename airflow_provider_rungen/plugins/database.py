"""
What the pages ask of Airflow's API server and its database. All differences between versions are here.

These functions block, except for those with ``async``.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.core_api import security
from airflow.models.connection import Connection
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from fastapi import HTTPException, Request
from sqlalchemy import select

from airflow_provider_rungen._airflow import AirflowNotFoundException
from airflow_provider_rungen.execution.jobs.log_home import token_of
from airflow_provider_rungen.execution.task.xcom_keys import TIMES_KEY
from airflow_provider_rungen.plugins import xcoms
from airflow_provider_rungen.plugins.limits import CACHE, FRESH, LASTING
from airflow_provider_rungen.plugins.task_record import TaskRecord

#: Tasks of a run, and runs of a task, on one page.
MAX_TASKS = 1000
MAX_RUNS = 5
COOKIE = "_token"
CONN_TYPE = "rungen"
# The field of each operator and sensor.
_CONN_FIELD = "rungen_conn_id"
_IN_ENVIRONMENT = "AIRFLOW_CONN_"
# The objects of a task in memory take some six times as much as the JSON of its XComs.
_BYTES_OF_CHAR = 6

# --- who asks -----------------------------------------------------------------------------------------------

can_read_task: Callable[..., Any] = security.requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE)
can_read_xcom: Callable[..., Any] = security.requires_access_dag("GET", DagAccessEntity.XCOM)
can_read_connection: Callable[..., Any] = security.requires_access_connection("GET")
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


# --- tasks --------------------------------------------------------------------------------------------------


def find_tasks(
    dag_id: str, run_id: str = "", task_id: str = "", map_index: int | None = None
) -> Sequence[TaskRecord]:
    """
    Return the latest attempts of tasks, with what pages need of them: the latest `MAX_TASKS` of a run.

    :param run_id: the run; the latest `MAX_RUNS` if it is left out.
    :param task_id: the task; all of them if it is left out.
    :param map_index: its index; all of them if it is left out.
    """
    given = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    place: dict[str, Any] = {name: value for name, value in given.items() if value not in ("", None)}
    with create_session() as session:
        newest = select(TaskInstance).filter_by(**place).order_by(TaskInstance.start_date.desc())
        tis: Sequence[Any] = session.scalars(newest.limit(MAX_TASKS if run_id else MAX_RUNS)).all()
        if run_id:
            tis = sorted(tis, key=lambda ti: (ti.task_id, ti.map_index))
        place["run_id"] = sorted({ti.run_id for ti in tis})
        attempts = {(ti.run_id, ti.task_id, ti.map_index): _attempt_of(ti) for ti in tis}
        states = [tuple(attempt.values()) for attempt in attempts.values()]
        cache_key = "tasks", str(place), *states, xcoms.version(session, place)
        if (known := CACHE.get(cache_key)) is not None:
            return known  # type: ignore[no-any-return]  # the cache is untyped
        found = xcoms.find(session, place, len(tis))
        # all indexes of a task are one task of the DAG
        firsts = {(ti.run_id, ti.task_id): ti for ti in tis}
        dag_conn_ids = {key: _find_dag_connection(session, ti) for key, ti in firsts.items()}
    values: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    # outside of the session, since a store may be slow
    for stored, value in zip(found, xcoms.read(found), strict=True):
        values[stored.place][stored.key] = value
    tasks = [_record(each, values[key], dag_conn_ids[key[:2]]) for key, each in attempts.items()]
    size = _BYTES_OF_CHAR * sum(len(stored.text or "") for stored in found)
    CACHE.put(cache_key, tasks, FRESH if any(task.notices for task in tasks) else LASTING, size)
    return tasks


def _attempt_of(ti: Any) -> dict[str, Any]:
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    return {name: getattr(ti, name) for name in names} | {
        "state": str(ti.state or ""),
        "operator": str(ti.operator_name or ""),
        "name": str(ti.task_display_name or ti.task_id),
        "token": token_of(ti),
    }


def _record(attempt: Mapping[str, Any], values: Mapping[str, Any], dag_conn_id: str) -> TaskRecord:
    errors = {key: value for key, value in values.items() if isinstance(value, Exception)}
    pushed = {xcoms.FIELDS.get(key, key): value for key, value in values.items() if key not in errors}
    # a sum says itself what it lacks
    notices = [xcoms.notice(key, error) for key, error in errors.items() if key != TIMES_KEY]
    return TaskRecord(**attempt, **pushed, notices=notices, dag_conn_id=dag_conn_id)


def _find_dag_connection(session: Any, ti: Any) -> str:
    """
    Return the connection that a task names in its DAG.

    Airflow has the rendered fields of the latest runs only. For older runs, the DAG has the field.
    """
    rendered = RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
    if rendered is not None:
        return str(rendered.get(_CONN_FIELD) or "")
    query = select(SerializedDagModel).where(SerializedDagModel.dag_version_id == ti.dag_version_id)
    dag: Any = session.scalar(query)
    for task in () if dag is None else dag.data["dag"]["tasks"]:
        fields = task.get("__var", task)
        if fields["task_id"] == ti.task_id:
            partial = fields.get("partial_kwargs", {})
            return str(fields.get(_CONN_FIELD) or partial.get(_CONN_FIELD) or "")
    return ""


# --- connections --------------------------------------------------------------------------------------------


def may_use_connection(user: Any, task: TaskRecord) -> bool:
    """Return whether the page of a task may use its connection. An XCom alone is no reason to."""
    return task.page.connection == task.dag_conn_id or may_read_connection(user, task.page.connection)


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
