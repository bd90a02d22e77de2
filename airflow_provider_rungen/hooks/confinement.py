"""Keep the tests of DAGs at the emulator, whatever connections this Airflow has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_rungen.client.address_policy import is_loopback

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Connection
    from airflow_provider_rungen.client.settings import Settings

# The test kit sets it to the URLs of its emulators, separated by spaces. No others may then be used. If there
# are none, a service on this machine may be used that is in a connection of the environment.
EMULATORS = "RUNGEN_EMULATOR"


def is_allowed(settings: Settings, *, is_of_environment: bool) -> bool:
    """
    Return whether requests may be sent: anywhere, or in a test to its emulators.

    :param is_of_environment: whether `find_connection` found the connection.
    """
    emulators = os.environ.get(EMULATORS)
    if emulators is None:
        return True
    if not emulators:
        return is_of_environment and is_loopback(urlsplit(settings.base_url).hostname or "")
    return any(f"{settings.base_url}/".startswith(f"{url.rstrip('/')}/") for url in emulators.split())


def find_connection(conn_id: str) -> Connection | None:
    """
    Return the connection of a test, if there is one.

    It is in the environment, which Airflow asks only after a configured secrets backend.
    """
    if EMULATORS not in os.environ:
        return None
    from airflow_provider_rungen._airflow import EnvironmentVariablesBackend

    found: Connection | None = EnvironmentVariablesBackend().get_connection(conn_id)
    return found
