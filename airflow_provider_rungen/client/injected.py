"""Send requests through an object that the user gives to the hook, instead of a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from airflow_provider_rungen.client.answers import ExchangeState, connection_failed, timed_out
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.settings import Settings


class Answer(Protocol):
    """
    An answer to a request.

    :param status: the HTTP status.
    :param headers: the headers.
    :param body: the body, decoded.
    """

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Transport(Protocol):
    """Answers requests in place of RunGen. Blocking calls and event loops use it, so it must not wait."""

    def handle_request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """
        Return the answer to a request.

        :param method: the HTTP method.
        :param url: the whole URL.
        :param headers: the headers. They hold the API key.
        :param body: the body, if there is one.
        :raises ConnectionRefusedError: the request was not sent.
        :raises OSError: it may have been sent, but there is no answer.
        """


class InjectedSender:
    """
    Sends requests through a transport, blocking.

    :param settings: how to reach the service.
    :param transport: answers the requests.
    """

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self.settings = settings
        self._transport = transport

    def __call__(self, request: Request) -> Response:
        """
        Send a request and return the answer, as `Sender` does.

        :raises RunGenConnectionError: there was no answer.
        :raises RunGenResponseError: the answer is too large.
        """
        settings = self.settings
        headers = settings.headers(request)
        url = f"{settings.base_url}/{request.path}"
        try:
            answer = self._transport.handle_request(request.method, url, headers, request.body)
        except TimeoutError:
            failure = timed_out(request, settings.time_limit(request), ExchangeState(is_sent=True), None)
        except OSError as error:
            failure = connection_failed(request, error, sent=not isinstance(error, ConnectionRefusedError))
        else:
            settings.check_size(len(answer.body), request)
            return settings.response(answer.status, answer.headers, [answer.body])
        raise failure

    def close(self) -> None:
        """Do nothing: there are no connections."""


class AsyncInjectedSender:
    """Does the same in an event loop."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self.settings = settings
        self._sender = InjectedSender(settings, transport)

    async def __call__(self, request: Request, _: Callable[[], bool] | None = None) -> Response:
        await asyncio.sleep(0)  # a task that is canceled sends nothing
        return self._sender(request)

    async def close(self) -> None:
        """Do nothing: there are no connections."""
