"""What to do about an error, in terms of the Airflow connection and of the apps that it may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.texts import MAX_LINE, join_within
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenError,
    RunGenForbiddenError,
    RunGenNotFoundError,
)

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import App

# Characters that the names of apps have at least.
_LEAST_ROOM = 60


def name_connection(error: RunGenError, conn_id: str, *, has_team: bool) -> None:
    """
    Name the connection in what to do about an error.

    :param error: the error. If it names the connection already, it stays as it is.
    :param conn_id: the connection.
    :param has_team: whether it has a team.
    """
    name = f"connection {conn_id!r}"
    error.hint = error.hint.replace("the Airflow connection", name)
    if isinstance(error, RunGenForbiddenError) and has_team:
        error.hint = error.hint.replace(f"the password of {name}", f"the password and Team ID of {name}")
    if isinstance(error, RunGenAPIError) and not error.retryable and name not in error.hint:
        error.hint = f"{error.hint} ({name})".strip()


def is_about_missing_app(error: RunGenError) -> bool:
    """Return whether the service itself says that there is no such app."""
    return isinstance(error, RunGenNotFoundError) and bool(error.app_id) and not error.retryable


def name_apps(error: RunGenError, conn_id: str, apps: Sequence[App]) -> None:
    """
    Name the apps that there are in what to do about one that does not exist.

    :param error: the error.
    :param conn_id: the connection.
    :param apps: the apps that it may see.
    """
    name = f"connection {conn_id!r}"
    if not apps:
        error.hint = f"There is no app that {name} may see: check its Team ID"
    elif all(app.id != error.app_id for app in apps):
        error.hint = f"Correct app_id: {name} has"
        room = MAX_LINE - len(f"{error} ")
        error.hint += f" {join_within([app.label for app in apps], max(room, _LEAST_ROOM))}"
