"""Keep the tests of DAGs at the emulator, whatever connections this Airflow has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Connection
    from airflow_provider_rungen.client.settings import Settings

# The test kit sets it to the URLs of its emulators, separated by spaces. No others may then be used.
EMULATORS = "RUNGEN_EMULATOR"


def is_allowed(settings: Settings) -> bool:
    """Return whether requests may be sent: anywhere, or in a test to its emulators."""
    emulators = os.environ.get(EMULATORS)
    return emulators is None or any(
        f"{settings.base_url}/".startswith(f"{url.rstrip('/')}/") for url in emulators.split()
    )


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
