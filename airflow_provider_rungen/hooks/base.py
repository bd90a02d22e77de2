"""Perform flows with the settings of an Airflow connection, blocking or in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen._airflow import BaseHook, metrics
from airflow_provider_rungen.client.flow import Flow, Request, Response, T
from airflow_provider_rungen.client.injected import AsyncInjectedSender, InjectedSender, Transport
from airflow_provider_rungen.client.senders import AsyncSender, Sender
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.client.transport import adrive, asleep_with_checks, drive, sleep_with_checks
from airflow_provider_rungen.exceptions import RunGenConfigError
from airflow_provider_rungen.hooks.lookup import ConnectionLookup, find_connection

if TYPE_CHECKING:
    import requests  # for the type of get_conn() only

    from airflow_provider_rungen._airflow import Connection

_REFUSED = (401, 403)


class FlowHook(BaseHook):
    """
    Performs flows with the settings of an Airflow connection.

    The connection is looked up at the first request, and again when RunGen refuses the API key (401, 403),
    since the key may have been replaced.

    :param rungen_conn_id: the Airflow connection.
    :param renew_every: seconds that pass at least between two look-ups after a refusal.
    :param transport: answers the requests in place of RunGen.
    """

    #: The transport of hooks that are given none. Tests set it, for operators and triggers.
    transport: Transport | None = None

    def __init__(self, rungen_conn_id: str, renew_every: float, transport: Transport | None = None) -> None:
        super().__init__()
        if transport is not None:
            self.transport = transport
        self.rungen_conn_id = rungen_conn_id
        self._lookup = ConnectionLookup(rungen_conn_id, type(self), self._around_lookup, renew_every)
        self._sender: Sender | InjectedSender | None = None
        self._async_sender: AsyncSender | AsyncInjectedSender | None = None
        self._retired: list[AsyncSender | AsyncInjectedSender] = []
        self._stragglers: set[asyncio.Task[Any]] = set()
        #: Called before each request, and again and again while waiting. An error of it ends the call.
        self.checkpoint: Callable[[], None] | None = None
        #: Returns whether the caller has to end soon. A request in flight then gets one more second.
        self.is_interrupted: Callable[[], bool] | None = None
        #: A context in which a blocking call asks Airflow for the connection.
        self.around_lookup: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def _around_lookup(self) -> AbstractContextManager[None]:
        return self.around_lookup()

    # --- the connection ---

    @property
    def settings(self) -> Settings:
        """
        The settings of the Airflow connection.

        :raises RunGenConfigError: the connection is missing or invalid; the message names the field.
        """
        return self._lookup.get()

    async def asettings(self) -> Settings:
        """Return the settings of the Airflow connection, in an event loop; see `settings`."""
        return await self._lookup.aget()

    def resolve_app_id(self, app_id: str | None = None) -> str:
        """
        Return the app to use.

        :param app_id: the app; the connection's ``app_id`` if omitted.
        :raises RunGenConfigError: neither names one.
        """
        if not app_id:
            _ = self.settings
            app_id = self._lookup.app_id
        if not app_id:
            raise RunGenConfigError(
                "There is no app_id",
                hint="Set app_id in the task, or Default app ID (extra field 'app_id') in the Airflow "
                f"connection {self.rungen_conn_id!r}",
            )
        return app_id

    async def aresolve_app_id(self, app_id: str | None = None) -> str:
        """Return the app to use, in an event loop; see `resolve_app_id`."""
        if not app_id:
            await self.asettings()
        return self.resolve_app_id(app_id)

    def get_conn(self) -> requests.Session:
        """
        Return the session of the blocking calls. It sends the API key: use it for RunGen's host only.

        :raises RunGenConfigError: the hook has a transport, and so no session.
        """
        sender = self._get_sender()
        if not isinstance(sender, Sender):
            raise RunGenConfigError("A hook with a transport has no session")
        return sender.session

    @classmethod
    def get_connection(cls, conn_id: str) -> Connection:
        """Return a connection: in a test that of its emulator, whatever a secrets backend has."""
        return find_connection(conn_id) or super().get_connection(conn_id)

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Connection:
        """Return a connection, in an event loop; see `get_connection`."""
        return find_connection(conn_id) or await super().aget_connection(conn_id)

    # --- blocking ---

    def perform(self, flow: Flow[T]) -> T:
        """Perform a flow, blocking."""

        def send(request: Request) -> Response:
            self._check()
            settings = self.settings
            response = self._send(request)
            if response.status in _REFUSED and self._lookup.get(refused=settings) is not settings:
                response = self._send(request)
            return response

        return drive(flow, send, self.sleep)

    def sleep(self, seconds: float) -> None:
        """Sleep, and call `checkpoint` again and again."""
        sleep_with_checks(seconds, self._check)

    def _check(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint()

    def _get_sender(self) -> Sender | InjectedSender:
        settings = self.settings
        if self._sender is not None and self._sender.settings is not settings:
            self.close()  # the connection has changed
        if self._sender is None:
            self._sender = self._open_sender(
                settings,
                sleep=self.sleep,
                is_interrupted=lambda: self.is_interrupted is not None and self.is_interrupted(),
            )
        return self._sender

    def _open_sender(self, settings: Settings, **options: Any) -> Sender | InjectedSender:
        if self.transport is not None:
            return InjectedSender(settings, self.transport)
        return Sender(settings, **options)

    def _open_async_sender(self, settings: Settings, **options: Any) -> AsyncSender | AsyncInjectedSender:
        if self.transport is not None:
            return AsyncInjectedSender(settings, self.transport)
        return AsyncSender(settings, **options)

    def _send(self, request: Request) -> Response:
        response = None
        try:
            response = self._get_sender()(request)
        finally:
            metrics.count_request(request, response)
        return response

    def perform_concurrently(self, flow: Flow[T]) -> T:
        """Perform a flow, blocking, with as many requests at a time as it allows."""

        async def run() -> T:
            async with self:
                return await self.aperform(flow)

        return asyncio.run(run())

    def perform_with_deadline(self, flow: Flow[T], *, within: float) -> T:
        """
        Perform a flow of a few requests on a connection of its own, without asking Airflow for anything.

        For a task that is killed: its usual session may be in the middle of a request.

        :param flow: the flow.
        :param within: seconds it may take; each request gets a quarter of them.
        """
        part = within / 4
        # without the limit of requests a second: their turn may come after the end
        sender = self._open_sender(
            replace(self.settings, connect_timeout=part, read_timeout=part, max_requests_per_second=None)
        )
        try:
            return drive(flow, sender)
        finally:
            sender.close()

    # --- in an event loop ---

    async def aperform(self, flow: Flow[T]) -> T:
        """Perform a flow in an event loop."""

        async def send(request: Request) -> Response:
            self._check()
            settings = await self.asettings()
            response = await self._asend(request)
            if response.status in _REFUSED and await self._lookup.aget(refused=settings) is not settings:
                response = await self._asend(request)
            return response

        async def sleep(seconds: float) -> None:
            if self.checkpoint is None:  # in a triggerer, thousands may sleep at the same time
                await asyncio.sleep(seconds)
            else:
                await asleep_with_checks(seconds, self._check)

        return await adrive(flow, send, sleep, background=self._stragglers)

    async def _get_async_sender(self) -> AsyncSender | AsyncInjectedSender:
        settings = self.settings
        if self._async_sender is not None and self._async_sender.settings is not settings:
            self._retired.append(self._async_sender)  # other requests may be in flight on it
            self._async_sender = None
        if self._async_sender is None:
            # in a thread: importing it blocks the event loop for a third of a second
            if self.transport is None:
                await asyncio.to_thread(import_module, "aiohttp")
            self._async_sender = self._async_sender or self._open_async_sender(
                settings, is_interrupted=self.is_interrupted
            )
        return self._async_sender

    async def _asend(self, request: Request) -> Response:
        sender, response = await self._get_async_sender(), None
        try:
            response = await sender(request)
        finally:
            metrics.count_request(request, response)
        return response

    # --- the end ---

    def close(self) -> None:
        """Close the connections of the blocking calls. The hook can be used again."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    async def aclose(self) -> None:
        """Close the connections of the asynchronous calls, and end what continues in the background."""
        stragglers = list(self._stragglers)
        for straggler in stragglers:
            straggler.cancel()
        self._lookup.end_loop()
        senders, self._retired = self._retired, []
        if self._async_sender is not None:
            senders.append(self._async_sender)
            self._async_sender = None
        canceled: asyncio.CancelledError | None = None
        for sender in senders:
            try:
                await sender.close()
            except asyncio.CancelledError as error:  # an event loop that ends cancels this, too
                canceled = error
        if canceled is not None:
            raise canceled
        await asyncio.gather(*stragglers, return_exceptions=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
