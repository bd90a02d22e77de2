"""Which connections there are, and which of them a page may use. These functions block."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.models.connection import Connection
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_rungen._airflow import AirflowNotFoundException
from airflow_provider_rungen.plugins.task_record import TaskRecord

CONN_TYPE = "rungen"
# The field of each operator and sensor.
_FIELD = "rungen_conn_id"


def may_ask(user: Any, task: TaskRecord) -> bool:
    """Return whether the page of a task may use its connection. What the task has pushed does not decide."""
    return task.page.connection == task.dag_conn_id or may_read_connection(user, task.page.connection)


def may_read_connection(user: Any, conn_id: str) -> bool:
    team = Connection.get_team_name(conn_id) if hasattr(Connection, "get_team_name") else None
    details = ConnectionDetails(conn_id=conn_id, **({"team_name": team} if team else {}))
    return bool(get_auth_manager().is_authorized_connection(method="GET", details=details, user=user))


def find_dag_connection(session: Any, ti: Any) -> str:
    """
    Return the connection that a task names in its DAG.

    Airflow keeps what was rendered for the latest runs. Of older ones, the DAG itself tells.
    """
    rendered = RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
    if rendered is not None:
        return str(rendered.get(_FIELD) or "")
    query = select(SerializedDagModel).where(SerializedDagModel.dag_version_id == ti.dag_version_id)
    dag: Any = session.scalar(query)
    for task in () if dag is None else dag.data["dag"]["tasks"]:
        fields = task.get("__var", task)
        if fields["task_id"] == ti.task_id:
            return str(fields.get(_FIELD) or fields.get("partial_kwargs", {}).get(_FIELD) or "")
    return ""


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


def get_connection(conn_id: str) -> Connection:
    """
    Return a connection to RunGen.

    It is that of Airflow's core: the SDK's look-up, which tasks use, fails in some API servers.

    :raises AirflowNotFoundException: there is none, or it is not one to RunGen.
    """
    conn = Connection.get_connection_from_secrets(conn_id)
    # the password of another type must not be sent as an API key
    if conn is None or conn.conn_type != CONN_TYPE:
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined, or not of type {CONN_TYPE}")
    return conn
