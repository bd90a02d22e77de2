"""Where the log of a task run is kept, as the log sees it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from airflow_provider_rungen.exceptions import RunGenError


class Place(Protocol):
    """
    Files below one folder, which only this task run uses. The methods block.

    They raise `FileNotFoundError` for a file that the store itself reports missing. Every other error is an
    outage, whatever its cause: expired credentials, a bucket or mount that is gone, a time-out.
    """

    def get(self, name: str) -> bytes:
        """Return the content of a file."""

    def put(self, name: str, content: bytes) -> None:
        """Create or replace a file. A reader sees all of the new content, or all of the old one."""

    def list(self, folder: str) -> Collection[str]:
        """Return the names of the files in a folder. There are none if it is missing."""


class DamagedLogError(RunGenError):
    """The log of the task run cannot be read as a whole, so nothing is submitted."""

    default_hint = "Restore its files, then retry. If you remove its folder, all inputs are submitted again"


class SupersededError(RunGenError):
    """A later attempt of the task has begun, so this one submits nothing more."""

    default_hint = "The later attempt goes on with the jobs of this one"
