"""
The steps of a flow. No I/O.

A *flow* is a generator that describes an exchange with the API: it yields a `Request`, a `Sleep` or a
`Gather`, and returns a model. A driver (`transport.drive` or `transport.adrive`) performs each step and sends
back the `Response`, the time, or the outcomes.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar


@dataclass(frozen=True, slots=True)
class Request:
    """
    A request to send.

    :param method: the HTTP method.
    :param path: the path below the base URL, with its segments already quoted.
    :param purpose: what the request is for, as an infinitive for logs and errors: ``get the app``.
    :param body: the JSON text to send, if any.
    :param about: the ids that end its errors: ``(app flux)``.
    :param app_id: the app, if a 404 means that there is no such app.
    :param as_user: whether to send the connection's ``user_id``. The API asks for it when a job is canceled.
    :param timeout: the most seconds for the whole exchange. Without it, only the connection's limits apply.
    :param is_lean: whether ids, status and errors of the answer are enough. Large results and inputs may then
        be dropped.
    """

    method: str
    path: str
    purpose: str
    body: bytes | None = field(default=None, repr=False)
    about: str = ""
    app_id: str = ""
    as_user: bool = False
    timeout: float | None = None
    is_lean: bool = False

    def failure(self, reason: str, status: int | None = None) -> str:
        """Return the message of an error: ``Could not get the app (404): no such app (app flux)``."""
        code = "" if status is None else f" ({status})"
        return f"Could not {self.purpose}{code}: {reason.rstrip('.')} {self.about}".rstrip()


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait some seconds. The driver answers with the time after it, in seconds since 1970."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: its status, its headers (names in lower case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


T = TypeVar("T")


class Pending:
    """Stands for the outcome of a flow of a `Gather` that has not ended in time."""


PENDING = Pending()


@dataclass(frozen=True, slots=True)
class Gather(Generic[T]):
    """
    Perform flows concurrently, where the driver can. It answers with a result or a `RunGenError` for each.

    :param flows: the flows.
    :param wait_at_most: seconds that each flow has from its own start. A flow that takes longer continues
        in the background or, if too many do, is closed. Its outcome is `PENDING`. A blocking driver ignores
        it: it performs one flow after another.
    """

    flows: Sequence[Flow[T]]
    wait_at_most: float | None = None


Flow: TypeAlias = Generator[Request | Sleep | Gather[Any], Any, T]
