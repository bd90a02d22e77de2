"""
What the pages ask of Airflow's API server and its database. All differences between versions are here.

These functions block, except for those with ``async``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.core_api import security
from airflow.models.connection import Connection
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from fastapi import HTTPException, Request
from sqlalchemy import select

from airflow_provider_rungen._airflow import AirflowNotFoundException
from airflow_provider_rungen.execution.bill import BILL_KEY
from airflow_provider_rungen.execution.page_record import PAGE_KEY
from airflow_provider_rungen.execution.scale_state import KEY as SCALE_KEY
from airflow_provider_rungen.plugins.task_record import TaskRecord, plain

log = logging.getLogger(__name__)

COOKIE = "_token"
CONN_TYPE = "rungen"
# How many of the latest tasks are looked at to find those that use an app.
MAX_RECENT = 500
_TRIGGERS = "airflow_provider_rungen.triggers."

# --- who asks ---

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


def may_read_connection(user: Any, conn_id: str) -> bool:
    team = Connection.get_team_name(conn_id) if hasattr(Connection, "get_team_name") else None
    details = ConnectionDetails(conn_id=conn_id, **({"team_name": team} if team else {}))
    return bool(get_auth_manager().is_authorized_connection(method="GET", details=details, user=user))


# --- tasks ---


def find_task(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskRecord | None:
    """Return the latest attempt of a task, with what it has pushed, or ``None`` if there is none."""
    with create_session() as session:
        ti: Any = session.scalar(
            select(TaskInstance).where(
                TaskInstance.dag_id == dag_id,
                TaskInstance.run_id == run_id,
                TaskInstance.task_id == task_id,
                TaskInstance.map_index == map_index,
            )
        )
        if ti is None:
            return None
        query: Any = XComModel.get_many(
            run_id=run_id, dag_ids=dag_id, task_ids=task_id, map_indexes=map_index
        )
        pushed = query.all() if hasattr(query, "all") else session.scalars(query).all()
        trigger_id = getattr(ti, "trigger_id", None)
        trigger = session.get(Trigger, trigger_id) if trigger_id is not None else None
        return TaskRecord(
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=map_index,
            state=str(ti.state or ""),
            try_number=ti.try_number,
            operator=str(ti.operator_name or ""),
            started_at=ti.start_date,
            ended_at=ti.end_date,
            xcoms={each.key: plain(each.value) for each in pushed},
            waits_for=_trigger_arguments(trigger),
        )


def _trigger_arguments(trigger: Any) -> Mapping[str, Any]:
    if trigger is None or not str(trigger.classpath).startswith(_TRIGGERS):
        return {}
    try:
        return dict(trigger.kwargs)
    except Exception as error:  # it is encrypted, perhaps with a key that this server does not have
        log.warning("Could not read the trigger of a task (%s)", type(error).__name__)
        return {}


def recent_tasks(dag_ids: Iterable[str]) -> list[TaskRecord]:
    """Return the tasks that used RunGen last, the latest first, with what they did to their apps."""
    model: Any = XComModel
    columns = (model.dag_id, model.run_id, model.task_id, model.map_index, model.key, model.value)
    query = (
        select(*columns)
        .where(model.dag_id.in_(set(dag_ids)))
        .order_by(model.timestamp.desc())
        .limit(MAX_RECENT)
    )
    pages, more = query.where(model.key == PAGE_KEY), query.where(model.key.in_([SCALE_KEY, BILL_KEY]))
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    with create_session() as session:
        for *task, key, value in session.execute(pages):
            found.setdefault(tuple(task), {})[key] = plain(value)
        for *task, key, value in session.execute(more):
            if tuple(task) in found:
                found[tuple(task)][key] = plain(value)
    return [
        TaskRecord(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index, xcoms=xcoms)
        for (dag_id, run_id, task_id, map_index), xcoms in found.items()
    ]


def readable_dag_ids(user: Any) -> set[str]:
    return set(get_auth_manager().get_authorized_dag_ids(user=user, method="GET"))


# --- connections ---


def rungen_connection_ids() -> list[str]:
    """Return the ids of the connections to RunGen in the database and in the environment."""
    with create_session() as session:
        found = set(session.scalars(select(Connection.conn_id).where(Connection.conn_type == CONN_TYPE)))
    for name in os.environ:
        if name.startswith("AIRFLOW_CONN_") and (conn_id := name.removeprefix("AIRFLOW_CONN_").lower()):
            with contextlib.suppress(Exception):  # it is of another type, or broken
                get_connection(conn_id)
                found.add(conn_id)
    return sorted(found)


def get_connection(conn_id: str) -> Any:
    """
    Return a connection, with short timeouts: a page does not wait long for the service.

    It is that of Airflow's core: the SDK's look-up, which tasks use, fails in some API servers.

    :raises AirflowNotFoundException: there is none, or it is not one to RunGen.
    """
    conn: Any = Connection.get_connection_from_secrets(conn_id)
    # the password of another type must not be sent as an API key
    if conn is None or conn.conn_type != CONN_TYPE:
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined, or not of type {CONN_TYPE}")
    names = ("conn_id", "conn_type", "login", "password", "host", "port", "schema")
    fields = {name: getattr(conn, name) for name in names}
    return SimpleNamespace(**fields, extra=_impatient(conn.extra))


def _impatient(extra: str | None) -> str | None:
    try:
        fields = json.loads(extra or "{}")
    except ValueError:
        return extra
    if not isinstance(fields, dict):
        return extra
    fields.pop("extra__rungen__timeout", None)
    return json.dumps(fields | {"timeout": {"connect": 2, "read": 3}})
