"""
What the pages ask of Airflow's API server and its database. All differences between versions are here.

These functions block, except for those with ``async``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api import security
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from fastapi import HTTPException, Request
from sqlalchemy import func, select

from airflow_provider_rungen.execution.costs.bill import BILL_KEY
from airflow_provider_rungen.execution.costs.scale_state import KEY as SCALE_KEY
from airflow_provider_rungen.execution.jobs.log_home import token_of
from airflow_provider_rungen.execution.task.page_record import PAGE_KEY
from airflow_provider_rungen.plugins import xcoms
from airflow_provider_rungen.plugins.cache import FRESH, LASTING, Cache
from airflow_provider_rungen.plugins.connections import own_connection
from airflow_provider_rungen.plugins.task_record import TaskRecord, mapping, plain

log = logging.getLogger(__name__)

COOKIE = "_token"
_MAX_TRIGGER_CHARS = 8 << 20
_TRIGGERS = "airflow_provider_rungen.triggers."
# The tasks whose pages are open, by the length of their XComs. In memory they take some six times as much.
_known = Cache(max_size=8 << 20)

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
        attempt = {**place._asdict(), **_attempt_of(ti)}
        key = *attempt.values(), ti.trigger_id, xcoms.version(session, place)
        if (known := _known.get(key)) is not None:
            return known  # type: ignore[no-any-return]  # the cache is untyped
        found, waits_for = xcoms.find(session, place), _trigger_arguments(session, ti.trigger_id)
        own_conn_id = own_connection(session, ti)
    # in no session: a store may be slow
    values, notices = xcoms.read(found)
    task = TaskRecord(
        **attempt,
        xcoms=values,
        notices=tuple(notices),
        waits_for=waits_for,
        own_conn_id=own_conn_id,
    )
    seconds = FRESH if notices else LASTING
    _known.put(key, task, seconds, size=len(json.dumps([values, waits_for], default=str)))
    return task


def _attempt_of(ti: Any) -> dict[str, Any]:
    return {
        "state": str(ti.state or ""),
        "try_number": ti.try_number,
        "operator": str(ti.operator_name or ""),
        "started_at": ti.start_date,
        "ended_at": ti.end_date,
        "token": token_of(ti),
    }


def _trigger_arguments(session: Any, trigger_id: int | None) -> Mapping[str, Any]:
    if trigger_id is None:
        return {}
    is_small = func.length(Trigger.encrypted_kwargs) <= _MAX_TRIGGER_CHARS
    trigger = session.scalar(select(Trigger).where(Trigger.id == trigger_id, is_small))
    if trigger is None or not str(trigger.classpath).startswith(_TRIGGERS):
        return {}
    try:
        return mapping(plain(trigger.kwargs))
    except Exception as error:  # it is encrypted, perhaps with a key that this server does not have
        log.warning("Could not read the trigger of a task (%s)", type(error).__name__)
        return {}


def recent_tasks(dag_ids: Collection[str]) -> list[TaskRecord]:
    """Return the tasks that used RunGen last, the latest first, with what they did to their apps."""
    with create_session() as session:
        pages = xcoms.find_recent(session, dag_ids, [PAGE_KEY])
        more = xcoms.find_recent(session, dag_ids, [SCALE_KEY, BILL_KEY])
    tasks: dict[xcoms.Place, dict[str, Any]] = {place: {} for place, _, _ in pages}
    found = [each for each in (*pages, *more) if each[0] in tasks]
    values = xcoms.resolve([(key, value) for _, key, value in found])
    for (place, key, _), value in zip(found, values, strict=True):
        tasks[place][key] = value
    return [TaskRecord(**place._asdict(), xcoms=values) for place, values in tasks.items()]


def readable_dag_ids(user: Any) -> set[str]:
    return set(get_auth_manager().get_authorized_dag_ids(user=user, method="GET"))
