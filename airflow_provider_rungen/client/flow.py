"""The steps of a flow: what it may ask of its driver. No I/O.

A *flow* is a generator that yields a `Request`, a `Sleep` or `Gather`, and returns a model. A driver
(`transport.drive` or `transport.adrive`) performs what it yields, and sends back the `Response`, the time, or
the outcomes.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar


@dataclass(frozen=True, slots=True)
class Request:
    """
    What is to be sent.

    :param method: the HTTP method.
    :param path: the path below the base URL, its segments already quoted.
    :param purpose: what the request is for, as an infinitive for log and error.
    :param body: the JSON text to send, if any.
    :param as_user: whether to send the connection's ``user_id`` (the reference asks for it on cancel).
    :param timeout: seconds for the whole exchange at most; the connection's own limits when left out.
    :param is_lean: whether ids, status and errors of the answer are enough; a large rest may be dropped.
    """

    method: str
    path: str
    purpose: str
    body: bytes | None = field(default=None, repr=False)
    as_user: bool = False
    timeout: float | None = None
    is_lean: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds; the driver answers with the time (seconds since 1970) after it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the status, the headers (names in lower case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


T = TypeVar("T")


class Pending:
    """What stands for the outcome of a flow that is not done yet, and goes on by itself."""


PENDING = Pending()
#: The same for a flow that was ended because too many go on by themselves already.
CUT = Pending()


@dataclass(frozen=True, slots=True)
class Gather(Generic[T]):
    """
    Perform flows side by side where the driver can; it answers with a result or a `RunGenError` each.

    :param patience: seconds that each flow has from its own start. One that is not done then goes on by
        itself, with `PENDING` as its outcome, or is ended, with `CUT`. A blocking driver performs one after
        the other and waits for all.
    """

    flows: Sequence[Flow[T]]
    patience: float | None = None


Flow: TypeAlias = Generator[Request | Sleep | Gather[Any], Any, T]
