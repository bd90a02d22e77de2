"""Errors of requests without an answer. They never quote a library, which may quote a password or a URL."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.exceptions import RunGenConnectionError


@dataclass
class ExchangeState:
    """
    How far an exchange has come.

    :param is_sent: whether any of the request may have been sent.
    :param is_interrupted: whether the caller has to end soon.
    """

    is_sent: bool = False
    is_interrupted: bool = False


def timed_out(request: Request, limit: float, exchange: ExchangeState) -> RunGenConnectionError:
    """
    Return the error for an exchange that was given up.

    :param request: the request.
    :param limit: the seconds it had.
    :param exchange: how far it has come.
    """
    what = "RunGen did not answer in full" if exchange.is_sent else "RunGen could not be reached"
    when = "before the task had to end" if exchange.is_interrupted else f"within {format_duration(limit)}"
    return RunGenConnectionError(request.failure(f"{what} {when}"), sent=exchange.is_sent)


def connection_failed(request: Request, error: BaseException, *, sent: bool) -> RunGenConnectionError:
    """
    Return the error for a connection that could not be made, or was lost.

    :param request: the request.
    :param error: the library's error.
    :param sent: whether the request may have been sent.
    """
    sent = sent and not isinstance(_root(error), UnicodeError)  # the host's name could not be looked up
    what = (
        "the connection to RunGen was lost before the whole answer came"
        if sent
        else "RunGen could not be reached"
    )
    return RunGenConnectionError(request.failure(f"{what}: {describe_cause(error)}"), sent=sent)


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
