"""Where the log of a task run is kept, as the log sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

from airflow_provider_rungen.exceptions import RunGenError


class ReadablePlace(Protocol):
    """
    Files that only this task run uses, in folders. The methods block.

    Every error is an outage, whatever its cause: expired credentials, a bucket or mount that is gone, or a
    time-out.
    """

    def vouches(self, name: str) -> bool:
        """
        Return whether an attempt of this task run has certainly put this file.

        Otherwise the ids of jobs in it are checked with the service before they are used.
        """

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of files, by name. Those that are certainly missing are left out."""

    def list(self, folder: str) -> Collection[str]:
        """Return the names of the files in a folder. There are none if it is certainly missing."""


class Place(ReadablePlace, Protocol):
    """Files that an attempt of the task run reads and writes."""

    #: Whether a later attempt finds what was put.
    is_durable: ClassVar[bool]

    def put(self, files: Mapping[str, bytes]) -> None:
        """
        Create or replace files. A reader sees all of a new content, or all of the old one.

        After an error, each of them may be there, or may appear later.
        """


class DamagedLogError(RunGenError):
    """The log of the task run cannot be read as a whole, so nothing is submitted."""

    default_hint = (
        "Restore its files, then retry. Jobs that they name may still run: look at the app's jobs. If you "
        "remove its folder, all inputs are submitted again"
    )


class SupersededError(RunGenError):
    """A later attempt of the task has begun, so this one submits nothing more."""

    default_hint = (
        "The later attempt continues with the jobs that were saved before it began. The last ones of this "
        "attempt may run unused: look at the app's jobs"
    )
