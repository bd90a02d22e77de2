"""
What the pages ask of Airflow's API server and its database. All differences between versions are here.

These functions block, except for those with ``async``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api import security
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from fastapi import HTTPException, Request
from sqlalchemy import select

from airflow_provider_rungen.execution.jobs.log_home import token_of
from airflow_provider_rungen.plugins import xcoms
from airflow_provider_rungen.plugins.bounded import CACHE, FRESH, LASTING
from airflow_provider_rungen.plugins.connections import find_dag_connection
from airflow_provider_rungen.plugins.task_record import TaskRecord

COOKIE = "_token"
# The objects of a task in memory take some six times as much as the JSON of its XComs.
_BYTES_OF_CHAR = 6

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


# --- tasks ---


def find_task(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskRecord | None:
    """Return the latest attempt of a task, with what pages need of it, or ``None`` if there is none."""
    place = xcoms.Place(dag_id, run_id, task_id, map_index)
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
        attempt = {
            **place._asdict(),
            "state": str(ti.state or ""),
            "try_number": ti.try_number,
            "operator": str(ti.operator_name or ""),
            "started_at": ti.start_date,
            "token": token_of(ti),
        }
        key = "task", *attempt.values(), xcoms.version(session, place)
        if (known := CACHE.get(key)) is not None:
            return known  # type: ignore[no-any-return]  # the cache is untyped
        found, dag_conn_id = xcoms.find(session, place), find_dag_connection(session, ti)
    # in no session: a store may be slow
    values = {stored.key: value for stored, value in zip(found, xcoms.read(found), strict=True)}
    errors = {key: value for key, value in values.items() if isinstance(value, Exception)}
    task = TaskRecord(
        **attempt,
        **_fields({key: value for key, value in values.items() if key not in errors}),
        notices=[xcoms.notice(key, error) for key, error in errors.items()],
        dag_conn_id=dag_conn_id,
    )
    size = _BYTES_OF_CHAR * sum(stored.size for stored in found if stored.key not in errors)
    CACHE.put(key, task, FRESH if errors else LASTING, size)
    return task


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task by the values of its XComs."""
    return {xcoms.FIELDS.get(key, key): value for key, value in values.items()}
