"""Look up an Airflow connection: once, and again when RunGen refuses its key."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_rungen import _airflow
from airflow_provider_rungen._airflow import AirflowNotFoundException, BaseHook
from airflow_provider_rungen._airflow.masking import amask, mask, proxy_passwords
from airflow_provider_rungen.client.address_policy import is_loopback
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.exceptions import RunGenConfigError
from airflow_provider_rungen.hooks.connection import read_connection

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Connection

log = logging.getLogger(__name__)


class ConnectionLookup:
    """
    The settings of an Airflow connection, looked up when they are first needed.

    :param conn_id: the connection.
    :param hook: the hook class through which Airflow is asked.
    :param around: a context in which a blocking call asks Airflow.
    :param renew_every: seconds that pass at least between two look-ups after a refusal.
    """

    def __init__(
        self,
        conn_id: str,
        hook: type[BaseHook],
        around: Callable[[], AbstractContextManager[None]],
        renew_every: float,
    ) -> None:
        #: The default app of the connection, once it is looked up.
        self.app_id: str | None = None
        self._conn_id = conn_id
        self._hook = hook
        self._around = around
        self._renew_every = renew_every
        self._renew_from = 0.0
        self._settings: Settings | None = None
        self._is_of_environment = False
        self._lock = asyncio.Lock()

    def get(self, refused: Settings | None = None) -> Settings:
        """
        Return the settings.

        :param refused: the settings whose key was just refused. The connection may then be looked up again.
        :raises RunGenConfigError: the connection is missing or invalid; the message names the field.
        """
        settings = self._settings
        if settings is None or not self._is_usable(settings) or self._is_due(refused):
            settings = self._adopt(*self._look_up())
        return settings

    async def aget(self, refused: Settings | None = None) -> Settings:
        """Return the settings, in an event loop; see `get`."""
        settings = self._settings
        if settings is None or not self._is_usable(settings) or refused is not None:
            async with self._lock:
                settings = self._settings
                if settings is None or not self._is_usable(settings) or self._is_due(refused):
                    settings = self._adopt(*await self._alook_up())
        return settings

    def end_loop(self) -> None:
        """Prepare for another event loop."""
        self._lock = asyncio.Lock()

    def _is_usable(self, settings: Settings) -> bool:
        return is_allowed(settings, is_of_environment=self._is_of_environment)

    def _is_due(self, refused: Settings | None) -> bool:
        """Return whether to look up again. Of many requests that are refused, one is enough."""
        is_due = self._settings is refused and time.monotonic() >= self._renew_from
        if is_due:
            self._renew_from = time.monotonic() + self._renew_every
        return is_due

    def _adopt(self, settings: Settings, app_id: str | None) -> Settings:
        if self._settings is None or settings != self._settings:
            if self._settings is not None:
                log.info("Airflow connection %r has changed: using its new settings", self._conn_id)
            self._settings, self.app_id = settings, app_id
        return self._settings

    def _look_up(self) -> tuple[Settings, str | None]:
        with self._around(), self._explained():
            settings, app_id = self._read(self._hook.get_connection(self._conn_id))
            mask(proxy_passwords(settings.proxy))
        return settings, app_id

    async def _alook_up(self) -> tuple[Settings, str | None]:
        with self._explained():
            conn = await _airflow.get_async_connection(self._conn_id, self._hook)
            settings, app_id = self._read(conn)
            await amask(proxy_passwords(settings.proxy))
        return settings, app_id

    def _read(self, conn: Connection) -> tuple[Settings, str | None]:
        settings, app_id = read_connection(conn, self._conn_id)
        self._is_of_environment = find_connection(self._conn_id) is not None
        if not self._is_usable(settings):
            raise RunGenConfigError(
                f"Airflow connection {self._conn_id!r} leads to {settings.base_url}, which a test must not "
                "reach; nothing was sent",
                hint="Use the fixture rungen_emulator, or point the connection at an emulator with "
                f"emulator.connection({self._conn_id!r}), or name another stand-in in RUNGEN_EMULATOR",
            )
        return settings, app_id

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Name the connection if Airflow does not find it, or cannot be asked. Both may be transient."""
        try:
            yield
        except RunGenConfigError:
            raise
        except Exception as error:
            problem, hint = f"could not be read ({type(error).__name__})", ""
            if isinstance(error, AirflowNotFoundException):
                problem = "does not exist"
                hint = (
                    "Add one of type RunGen.AI under Admin → Connections, or set the environment variable "
                    f"AIRFLOW_CONN_{self._conn_id.upper()}, or correct rungen_conn_id"
                )
            failure = RunGenConfigError(
                f"Airflow connection {self._conn_id!r} {problem}", hint=hint, retryable=True
            )
        else:
            return
        raise failure


# --- tests of DAGs reach the emulator alone, whatever connections this Airflow has ----

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
