"""Perform flows with the settings of an Airflow connection, blocking or in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen import _airflow
from airflow_provider_rungen._airflow import BaseHook, metrics
from airflow_provider_rungen._airflow.masking import amask, mask, proxy_passwords
from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.endpoints import list_apps
from airflow_provider_rungen.client.flow import Flow, Request, Response, T
from airflow_provider_rungen.client.senders import KILL_REQUEST_TIMEOUT, AsyncSender, Sender
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.client.transport import adrive, drive, end_background, short_sleeps, watched
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenConnectionError, RunGenError
from airflow_provider_rungen.hooks.connection import explaining, find_connection, is_allowed, read_connection
from airflow_provider_rungen.hooks.hints import is_about_missing_app, name_apps, name_connection

if TYPE_CHECKING:
    import requests  # for the type of get_conn() only

    from airflow_provider_rungen._airflow import Connection

log = logging.getLogger(__name__)

# Seconds between two look-ups of the Airflow connection while RunGen refuses its key.
LOOK_UP_EVERY = 5.0
_REFUSED = (401, 403)


class FlowHook(BaseHook):
    """
    Performs flows with the settings of an Airflow connection.

    The connection is looked up at the first request, and again when RunGen refuses the API key (401, 403),
    since the key may have been replaced.

    :param rungen_conn_id: the Airflow connection.
    """

    def __init__(self, rungen_conn_id: str = "rungen_default") -> None:
        super().__init__()
        self.rungen_conn_id = rungen_conn_id
        self._renew_from = 0.0
        self._settings: Settings | None = None
        self._is_of_environment = False
        self._lookup_lock = asyncio.Lock()
        self._sender: Sender | None = None
        # requests may be in flight on those before the last one
        self._async_senders: list[tuple[Settings, AsyncSender]] = []
        self._background: set[asyncio.Task[Any]] = set()
        #: Called before each request, and often while waiting. An error that it raises ends the call.
        self.checkpoint: Callable[[], None] | None = None
        #: Returns whether the caller has to end soon. A request in flight then gets one more second.
        self.is_interrupted: Callable[[], bool] | None = None
        #: A context in which signals are deferred: see `KillGuard.defer_signals`.
        self.defer_signals: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    # --- the connection ---

    @property
    def settings(self) -> Settings:
        """
        The settings of the Airflow connection.

        :raises RunGenConfigError: the connection is missing or invalid; the message names the field.
        """
        return self._get_settings()

    def _get_settings(self, refused: Settings | None = None) -> Settings:
        """
        Return the settings.

        :param refused: the settings whose key was just refused. The connection may then be looked up again.
        """
        settings = self._settings
        if settings is None or self._is_outdated(settings, refused):
            with self.defer_signals(), explaining(self.rungen_conn_id):
                settings = self._read(self.get_connection(self.rungen_conn_id))
                mask(proxy_passwords(settings.proxy))
            settings = self._adopt(settings)
        return settings

    async def asettings(self, refused: Settings | None = None) -> Settings:
        """Return the settings of the Airflow connection, in an event loop; see `settings`."""
        settings = self._settings
        if settings is None or refused is not None or self._is_outdated(settings, None):
            async with self._lookup_lock:
                settings = self._settings
                if settings is None or self._is_outdated(settings, refused):
                    with explaining(self.rungen_conn_id):
                        conn = await _airflow.get_async_connection(self.rungen_conn_id, type(self))
                        settings = self._read(conn)
                        await amask(proxy_passwords(settings.proxy))
                    settings = self._adopt(settings)
        return settings

    def _is_outdated(self, settings: Settings, refused: Settings | None) -> bool:
        """Return whether to look up the connection again: once, even if many requests are refused."""
        if not is_allowed(settings, is_of_environment=self._is_of_environment):
            return True
        is_due = settings is refused and time.monotonic() >= self._renew_from
        if is_due:
            self._renew_from = time.monotonic() + LOOK_UP_EVERY
        return is_due

    def _read(self, conn: Connection) -> Settings:
        settings = read_connection(conn, self.rungen_conn_id)
        self._is_of_environment = find_connection(self.rungen_conn_id) is not None
        if not is_allowed(settings, is_of_environment=self._is_of_environment):
            raise RunGenConfigError(
                f"Airflow connection {self.rungen_conn_id!r} leads to {settings.base_url}, which a test must "
                "not reach; nothing was sent",
                hint="Use the fixture rungen_emulator, or point the connection at an emulator with "
                f"emulator.connection({self.rungen_conn_id!r}), or name another stand-in in RUNGEN_EMULATOR. "
                "If this is no test: unset RUNGEN_EMULATOR",
            )
        return settings

    def _adopt(self, settings: Settings) -> Settings:
        """Use these settings from now on. Equal ones are not replaced: senders compare them by identity."""
        if self._settings is None or settings != self._settings:
            if self._settings is not None:
                log.info("Airflow connection %r has changed: using its new settings", self.rungen_conn_id)
            self._settings = settings
        return self._settings

    def resolve_app_id(self, app_id: str | None = None) -> str:
        """
        Return the app to use.

        :param app_id: the app; the connection's ``app_id`` if omitted.
        :raises RunGenConfigError: neither names one, or it is empty.
        """
        found = self.settings.app_id if app_id is None else app_id.strip()
        if not found:
            raise RunGenConfigError(
                "There is no app_id" if app_id is None else "app_id is empty",
                hint="Set app_id in the task, or Default app ID (extra field 'app_id') in "
                f"connection {self.rungen_conn_id!r}",
            )
        return found

    async def aresolve_app_id(self, app_id: str | None = None) -> str:
        """Return the app to use, in an event loop; see `resolve_app_id`."""
        if app_id is None:
            await self.asettings()
        return self.resolve_app_id(app_id)

    def get_conn(self) -> requests.Session:
        """Return a new session. It sends the API key: use it for RunGen's host only."""
        return self.settings.session()

    @classmethod
    def get_connection(cls, conn_id: str) -> Connection:
        """Return a connection; in a test, that of its emulator, even if a secrets backend has another one."""
        return find_connection(conn_id) or super().get_connection(conn_id)

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Connection:
        """Return a connection, in an event loop; see `get_connection`."""
        return find_connection(conn_id) or await super().aget_connection(conn_id)

    def explain(self, error: RunGenError) -> None:
        """Name the connection in what to do about an error, unless it is named already."""
        name_connection(error, self.rungen_conn_id, has_team=bool(self._settings and self._settings.team_id))

    # --- blocking ---

    def perform(self, flow: Flow[T]) -> T:
        """Perform a flow, blocking."""

        def send(request: Request) -> Response:
            self._check()
            settings = self.settings
            response = self._send(request, settings)
            if response.status in _REFUSED:
                renewed = self._get_settings(refused=settings)
                if renewed is not settings:
                    response = self._send(request, renewed)
            return response

        try:
            return drive(flow, send, self.sleep)
        except RunGenError as error:
            if is_about_missing_app(error):
                with contextlib.suppress(RunGenError):
                    name_apps(error, self.rungen_conn_id, drive(list_apps(attempts=1), send, self.sleep))
            self.explain(error)
            raise

    def sleep(self, seconds: float) -> None:
        """Sleep, and call `checkpoint` often."""
        for part in short_sleeps(seconds, self._check):
            time.sleep(part)

    def _check(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint()

    def _send(self, request: Request, settings: Settings) -> Response:
        if self._sender is None or self._sender.settings is not settings:
            self.close()  # the connection has changed
            self._sender = Sender(settings, is_interrupted=self._ends_soon)
        response = None
        try:
            response = self._sender(request)
        finally:
            metrics.count_request(request, response)
        return response

    def _ends_soon(self) -> bool:
        return self.is_interrupted is not None and self.is_interrupted()

    def _open_async_sender(self, settings: Settings) -> AsyncSender:
        return AsyncSender(settings)

    def perform_concurrently(self, flow: Flow[T]) -> T:
        """Perform a flow, blocking, with as many requests at a time as it allows."""

        def check() -> None:
            if self._ends_soon():
                self._check()

        async def run() -> T:
            async with self:
                return await watched(self.aperform(flow), check, self._background)

        # an event loop swallows what a signal handler raises, or waits forever for the callback it cut off
        with self.defer_signals():
            return asyncio.run(run())

    def perform_with_deadline(self, flow: Flow[T], *, within: float, is_paced: bool = False) -> T:
        """
        Perform a flow on connections of its own, without asking Airflow for anything.

        For a task that is killed: its usual connections may be in the middle of a request.

        :param flow: the flow.
        :param within: seconds it may take. Each request gets half of them, so that it can be repeated.
        :param is_paced: whether the limit of requests a second applies.
        :raises RunGenConnectionError: it took longer.
        """
        part = min(within / 2, KILL_REQUEST_TIMEOUT)
        settings = replace(self.settings, connect_timeout=part, read_timeout=part)
        settings = settings if is_paced else replace(settings, max_requests_per_second=None)

        async def run() -> T:
            sender, end = self._open_async_sender(settings), time.monotonic() + within

            async def send(request: Request) -> Response:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(end - time.monotonic()):
                        return await sender(request)
                raise RunGenConnectionError(request.failure("there was no time left"), retryable=False)

            async def sleep(seconds: float) -> None:
                await asyncio.sleep(min(seconds, end - time.monotonic()))

            try:
                return await adrive(flow, send, sleep)
            finally:
                await sender.close()

        performed = begin(asyncio.run, run())  # in a thread, since an event loop may run in this one
        try:
            return performed.result(within + 0.5)
        except TimeoutError:
            if performed.done():  # it is an error of the flow
                raise
        raise RunGenConnectionError("There was no time left", retryable=False)

    # --- in an event loop ---

    async def aperform(self, flow: Flow[T]) -> T:
        """Perform a flow in an event loop."""

        async def send(request: Request) -> Response:
            self._check()
            settings = await self.asettings()
            response = await self._asend(request, settings)
            if response.status in _REFUSED:
                renewed = await self.asettings(refused=settings)
                if renewed is not settings:
                    response = await self._asend(request, renewed)
            return response

        async def sleep(seconds: float) -> None:
            check = self.checkpoint  # none in a triggerer, where thousands may sleep at the same time
            for part in [seconds] if check is None else short_sleeps(seconds, check):
                await asyncio.sleep(part)

        try:
            return await adrive(flow, send, sleep, background=self._background)
        except RunGenError as error:
            if is_about_missing_app(error):
                with contextlib.suppress(RunGenError):
                    name_apps(error, self.rungen_conn_id, await adrive(list_apps(attempts=1), send, sleep))
            self.explain(error)
            raise

    async def _asend(self, request: Request, settings: Settings) -> Response:
        if not self._async_senders:
            # in a thread: importing it blocks the event loop for a third of a second
            await asyncio.to_thread(import_module, "aiohttp")
        if not self._async_senders or self._async_senders[-1][0] is not settings:
            self._async_senders.append((settings, self._open_async_sender(settings)))
        response = None
        try:
            response = await self._async_senders[-1][1](request, self.is_interrupted)
        finally:
            metrics.count_request(request, response)
        return response

    def close(self) -> None:
        """Close the connections of the blocking calls. The hook can be used again."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    async def aclose(self) -> None:
        """Close the connections of the asynchronous calls, and end what runs in the background."""
        senders = self._async_senders
        self._async_senders, self._lookup_lock = [], asyncio.Lock()  # another event loop may come
        async with contextlib.AsyncExitStack() as stack:  # each is closed, even if this is canceled
            for _, sender in senders:
                stack.push_async_callback(sender.close)
            await end_background(self._background)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
