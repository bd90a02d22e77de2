"""Errors of requests without an answer. They never quote a library, which may quote a password or a URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import RunGenConnectionError

# what OpenSSL calls an answer that is not TLS
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")


@dataclass
class ExchangeState:
    """
    How far an exchange has come.

    :param is_sent: whether any of the request may have been sent.
    :param is_interrupted: whether the caller has to end soon.
    """

    is_sent: bool = False
    is_interrupted: bool = False


def timed_out(
    request: Request, limit: float, exchange: ExchangeState, proxy: str | None
) -> RunGenConnectionError:
    """
    Return the error for an exchange that was given up.

    :param request: the request.
    :param limit: the seconds it had.
    :param exchange: how far it has come.
    :param proxy: the URL of the proxy in use.
    """
    what = "RunGen did not answer in full" if exchange.is_sent else _unreachable(proxy)
    when = "before the task had to end" if exchange.is_interrupted else f"within {format_duration(limit)}"
    return RunGenConnectionError(request.failure(f"{what} {when}"), sent=exchange.is_sent)


def connection_failed(
    request: Request, error: BaseException, *, sent: bool, proxy: str | None = None
) -> RunGenConnectionError:
    """
    Return the error for a connection that could not be made, or was lost.

    :param request: the request.
    :param error: the library's error.
    :param sent: whether the request may have been sent.
    :param proxy: the URL of the proxy in use.
    """
    sent = sent and not isinstance(_root(error), UnicodeError)  # the host's name could not be looked up
    what = "the connection to RunGen was lost before the whole answer came" if sent else _unreachable(proxy)
    failure = RunGenConnectionError(request.failure(f"{what}: {describe_cause(error)}"), sent=sent)
    if getattr(_root(error), "reason", None) in _NOT_TLS:
        failure.add_hint(
            "Is the server speaking plain http? Then the host of the connection has to begin with http://"
        )
    return failure


def proxy_failed(request: Request, error: BaseException, proxy: str | None) -> RunGenConnectionError:
    """
    Return the error for a proxy that could not be reached, or made no connection. Nothing was sent.

    :param request: the request.
    :param error: the library's error.
    :param proxy: the URL of the proxy.
    """
    if status := getattr(error, "status", None):
        what = f"refused to connect to RunGen ({status})"
    else:
        what = f"could not be reached ({describe_cause(error)})"
    return RunGenConnectionError(
        request.failure(f"{_name(proxy)} {what}"),
        sent=False,
        hint="Check Proxy of the Airflow connection, or the proxy of the environment",
    )


def _unreachable(proxy: str | None) -> str:
    return f"RunGen could not be reached{f' through {_name(proxy)}' if proxy else ''}"


def _name(proxy: str | None) -> str:
    """Return the name of a proxy, without its user and password."""
    return f"the proxy {urlsplit(proxy or '').netloc.rpartition('@')[2]}"


def describe_cause(error: BaseException) -> str:
    """Return a name for the root cause of a library's error."""
    root = _root(error)
    return root.strerror if isinstance(root, OSError) and root.strerror else type(root).__name__


def _root(error: BaseException) -> BaseException:
    for _ in range(8):
        if isinstance(error, TimeoutError):  # asyncio's comes from the cancellation by which it is made
            break
        first = error.args[0] if error.args else None
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__ or first
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
