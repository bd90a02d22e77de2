"""The service, as an attempt uses it: one seam, behind which requests are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from airflow_provider_rungen.exceptions import RunGenError


@dataclass(frozen=True, slots=True)
class Submitted:
    """The service took the input."""

    job: str


@dataclass(frozen=True, slots=True)
class Refused:
    """
    The service refused, and nothing was created.

    :param why: in its own words.
    :param error: what stops the task; ``None`` if it is the verdict of this row alone.
    """

    why: str
    error: RunGenError | None = None


@dataclass(frozen=True, slots=True)
class NotSent:
    """
    The service certainly did not get it, or asks to wait.

    :param why: the cause.
    :param retry_after: seconds to wait before another try.
    :param error: what the task fails with if this goes on for too long; ``None`` if there is no limit.
    """

    why: str
    retry_after: float = 0.0
    error: RunGenError | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody knows whether a job was made."""

    why: str


Submission: TypeAlias = Submitted | Refused | NotSent | Lost


class Service(Protocol):
    """What buying asks of the service."""

    async def submit(self, job_input: Mapping[str, Any], start_within: float) -> Submission:
        """
        Submit an input.

        :param start_within: seconds in which the request, or its last repetition, has to begin.
        """
        ...

    async def cancel(self, job: str) -> None: ...
