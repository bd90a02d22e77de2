"""
The folder ``.rungen`` of a destination, beside the outputs in ``files``: what a store reads and writes.

=========================================  ================================================================
``store.json``                             the version
``open/{key}.{n}``                         a claim, created exclusively, never empty, never written again
``open/{key}.{n}.{job}``                   its job, as soon as the answer comes
``done/{time}-{run}-{by}-{id}.jsonl.gz``   ended records, immutable
``runs/{run}/{by}.json``                   a view for the page
``runs/{run}/clock``                       written to learn the store's time
``runs/{run}/plan-{digest}.jsonl.gz``      the rows of a deferred table
=========================================  ================================================================

What leaves ``open`` is in ``done`` before: whoever lists ``open`` first and ``done`` second misses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Protocol
from urllib.parse import quote

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.store.records import Policy

VERSION = 1
HEADER = ".rungen/store.json"
HEADER_TEXT = b'{"version": %d}\n' % VERSION
OPEN, DONE, RUNS, OUTPUTS = ".rungen/open", ".rungen/done", ".rungen/runs", "files"


class Files(Protocol):
    """
    The files below a destination. A file that is missing is no error; what cannot be read or written is one.

    :raises RunGenOutputError: by all methods.
    """

    async def list(self, folder: str) -> dict[str, float]:
        """Return when each file of a folder was last modified (seconds since 1970, by the store's clock)."""
        ...

    async def find(self, folder: str) -> set[str]:
        """Return all files below a folder, past any cache."""
        ...

    async def exist(self, paths: Collection[str]) -> set[str]:
        """Return those that exist, past any cache."""
        ...

    async def read(self, paths: Collection[str]) -> dict[str, bytes]:
        """Return the contents of those that exist, past any cache."""
        ...

    async def create(self, files: Mapping[str, bytes]) -> set[str]:
        """Create those that do not exist, and return them."""
        ...

    async def write(self, path: str, content: bytes) -> None:
        """Write a file as a whole."""
        ...

    async def remove(self, paths: Collection[str]) -> None:
        """Remove those that exist."""
        ...


def claim_path(key: str, n: int) -> str:
    """Return the path of a claim."""
    return f"{OPEN}/{key}.{n}"


def job_path(key: str, n: int, job: str) -> str:
    """Return the path of the id of a claim's job."""
    return f"{OPEN}/{key}.{n}.{quote(job, safe='')}"


def view_path(policy: Policy) -> str:
    """Return the path of the view of an attempt."""
    return f"{RUNS}/{policy.run}/{quote(policy.by, safe='')}.json"


def check_header(content: bytes) -> None:
    """
    Check the header of a store.

    :raises RunGenInputError: a later version of this package wrote it, or it is none.
    """
    try:
        version = json.loads(content)["version"]
        if type(version) is not int:
            raise ValueError
    except (ValueError, TypeError, LookupError):
        raise RunGenInputError(
            f"the destination cannot be used: {HEADER} in its folder .rungen is not the header of a store",
            hint="Restore that file, or set destination to another folder",
        ) from None
    if version > VERSION:
        raise RunGenInputError(
            f"the destination cannot be used: its store has version {version}, this package reads {VERSION}",
            hint="Install the version of airflow-provider-rungen that wrote it, or set another destination",
        )
